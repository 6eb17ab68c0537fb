"""Intervals at 95%: for an AUROC, for a rate, for a mean."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy import optimize, stats

from scoring.types import Metric

CONFIDENCE = 0.95


def auroc(positives: Sequence[float], negatives: Sequence[float]) -> float:
    """P(positive scores higher than negative) + half of P(tie): the Mann-Whitney statistic over m n."""
    statistic = stats.mannwhitneyu(positives, negatives, method="asymptotic").statistic
    return float(statistic / (len(positives) * len(negatives)))


def auroc_interval(value: float, n_positive: int, n_negative: int) -> tuple[float, float]:
    """Newcombe's score-type interval (Statistics in Medicine 2006, part 2, method 5).

    Its variance is Hanley and McNeil's, taken at the bound rather than at the estimate, so that an AUROC
    of 1 from a handful of windows still has an interval of honest width.
    """
    z = float(stats.norm.ppf(0.5 + CONFIDENCE / 2))
    half = (n_positive + n_negative) / 2 - 1

    def distance(theta: float) -> float:
        spread = 1 + half * ((1 - theta) / (2 - theta) + theta / (1 + theta))
        return z * math.sqrt(theta * (1 - theta) * spread / (n_positive * n_negative))

    edge = 1e-12
    low = 0.0 if value <= edge else _root(lambda t: value - t - distance(t), edge, min(max(value, edge), 1 - edge))
    high = 1.0 if value >= 1 - edge else _root(lambda t: t - value - distance(t), max(value, edge), 1 - edge)
    return low, high


def _root(f: object, low: float, high: float) -> float:
    return float(optimize.brentq(f, low, high, xtol=1e-10))


def auroc_metric(positives: Sequence[float], negatives: Sequence[float], n_failed: int, least: int = 5) -> Metric:
    """AUROC with its interval; null when either side has fewer than `least` usable windows."""
    n = len(positives) + len(negatives)
    if min(len(positives), len(negatives)) < least:
        return Metric("auroc", None, n, n_failed, None, None, "", "too_few_windows")
    value = auroc(positives, negatives)
    return Metric("auroc", value, n, n_failed, *auroc_interval(value, len(positives), len(negatives)), "newcombe")


def mean_metric(name: str, values: Sequence[float], n_failed: int, least: int = 3) -> Metric:
    """Mean with Student's t interval; null below `least` values."""
    n = len(values)
    if n < least:
        return Metric(name, None, n, n_failed, None, None, "", "too_few_windows")
    mean = float(np.mean(values))
    half = float(stats.t.ppf(0.5 + CONFIDENCE / 2, n - 1) * np.std(values, ddof=1) / math.sqrt(n))
    return Metric(name, mean, n, n_failed, mean - half, mean + half, "t")


def rate_interval(successes: int, n: int) -> tuple[float, float]:
    """Wilson's score interval of a rate."""
    interval = stats.binomtest(successes, n).proportion_ci(CONFIDENCE, method="wilson")
    return float(interval.low), float(interval.high)


def balanced_accuracy_metric(hits: tuple[int, int], totals: tuple[int, int], n_failed: int, least: int = 5) -> Metric:
    """Mean of the rates right among activating and among non-activating windows.

    Its interval combines the two Wilson intervals as Newcombe does for a difference of rates (square-and-add).
    """
    n = sum(totals)
    if min(totals) < least:
        return Metric("balanced_accuracy", None, n, n_failed, None, None, "", "too_few_windows")
    rates = [hit / total for hit, total in zip(hits, totals, strict=True)]
    bounds = [rate_interval(hit, total) for hit, total in zip(hits, totals, strict=True)]
    value = sum(rates) / 2
    down = math.hypot(*(rate - low for rate, (low, _) in zip(rates, bounds, strict=True))) / 2
    up = math.hypot(*(high - rate for rate, (_, high) in zip(rates, bounds, strict=True))) / 2
    return Metric("balanced_accuracy", value, n, n_failed, max(0.0, value - down), min(1.0, value + up), "newcombe")
