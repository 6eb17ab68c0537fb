"""What is drawn from judged windows: rates, their combinations and AUROCs, for each kind of non-activating windows.

The activating windows are the same throughout; the others are taken all together (`negatives` is `mixed`, or the
kind if there is one only) and, where there are several kinds, each kind apart. A window whose answer failed is
counted in `n_failed` of every number it would have gone into, and is never taken for a wrong answer.

Intervals treat windows as independent. Windows that were judged in one prompt, or come from one document, are not
quite; where their answers go together the intervals are too narrow, and `widened` makes up for it. The numbers of
windows of each kind are taken as given, for they are chosen by whoever draws the windows.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from scoring.intervals import (
    CONFIDENCE,
    Pair,
    auroc_metric,
    balanced_accuracy_metric,
    delong_interval,
    mover,
    mover_root,
    rate_interval,
)
from scoring.types import MIXED, Judgement, Metric

LEAST = 5
"""Fewest usable windows on a side for a number to be given."""
DELONG_LEAST = 20
"""Fewest usable windows on a side for DeLong's interval."""
DELONG_MISORDERED = 4
"""DeLong's interval is used where min(m, n) * min(A, 1 - A) is at least this: nearer to 0 or 1 its variance is
estimated from too few misordered pairs, and it covers down to 0.91."""


def classification(judgements: Sequence[Judgement], base_rate: float | None = None, least: int = LEAST) -> list[Metric]:
    """Numbers drawn from yes-or-no answers (`prediction`); all are shares, from 0 to 1.

    With TPR the share of activating windows in which the judge says yes, FPR that of the others, m and n their
    numbers, and pi = m / (m + n):

    - `recall` = TPR, once, with `negatives` None; Wilson's interval.
    - `specificity` = 1 - FPR; Wilson's interval.
    - `balanced_accuracy` = (TPR + 1 - FPR) / 2; square-and-add of two Wilson intervals.
    - `precision` = TPR pi / (TPR pi + FPR (1 - pi)): true among all yes. Null where the judge never says yes.
      Its interval is MOVER's, as at the base rate. Wilson's for TP of TP + FP would take the number of yes as
      given and m and n as random; they are the other way round here, and it is up to 1.7 times too wide.
    - `f1` = 2 TPR / (TPR + FPR n / m + 1), that is 2 TP / (2 TP + FP + FN); MOVER, solved for F1.

    `precision` and `f1` depend on how many windows of each kind were drawn. Not so, with `base_rate` = pi, the share
    of all windows in which the latent fires:

    - `accuracy_at_base_rate` = TPR pi + (1 - FPR) (1 - pi); MOVER.
    - `precision_at_base_rate` = TPR pi / (TPR pi + FPR (1 - pi)); MOVER for the ratio FPR / TPR (MOVER-R).

    These two speak of the corpus only where FPR does: read them at `negatives` = `random`. From other kinds they say
    what would hold if all non-activating windows were of that kind. `base_rate` is taken as known.

    A number is null with `too_few_windows` below `least` usable windows on a side it needs, and where it would be 0
    divided by 0. Judgements without a label are left out.
    """
    if base_rate is not None and not 0 <= base_rate <= 1:
        raise ValueError(f"base_rate is a share of windows, from 0 to 1, not {base_rate}")
    positives = [j for j in judgements if j.label is True]
    metrics = [_rate("recall", *tally(positives), None, least)]
    for kind, negatives in _groups(judgements):
        metrics += _against(positives, negatives, kind, base_rate, least)
    return metrics


def ranking(judgements: Sequence[Judgement], least: int = LEAST) -> list[Metric]:
    """AUROC of `probability` (any number that is larger where the judge is surer), for each kind of negatives.

    Numbers that are not finite are failed answers. Judgements without a label are left out. What interval there
    is, `auroc_of` says.
    """
    metrics = []
    positives = [j for j in judgements if j.label is True]
    for kind, negatives in _groups(judgements):
        high = [j.probability for j in positives if j.probability is not None and math.isfinite(j.probability)]
        low = [j.probability for j in negatives if j.probability is not None and math.isfinite(j.probability)]
        n_failed = len(positives) + len(negatives) - len(high) - len(low)
        metrics.append(auroc_of(high, low, n_failed, kind, least))
    return metrics


def auroc_of(
    high: Sequence[float], low: Sequence[float], n_failed: int, negatives: str | None = None, least: int = LEAST
) -> Metric:
    """AUROC of activating (`high`) against other windows (`low`), with the better one of two intervals.

    It is DeLong's on the logit scale (`ci_method` is `delong`) where both sides have 20 windows and enough pairs
    are misordered (DELONG_MISORDERED); else it is Newcombe's (`newcombe`). Newcombe's takes its variance from Hanley
    and McNeil's exponential model: where scores of activating windows spread more than those of others (a latent
    with two meanings of which the explanation has one) it covers 0.91 to 0.94, at any number of windows; DeLong's
    covers 0.94 to 0.97 there. Near an AUROC of 0 or 1 Newcombe's is the better one.
    """
    metric = replace(auroc_metric(high, low, n_failed, max(least, 1)), negatives=negatives)
    fewest = min(len(high), len(low))
    # Rounded, so that an AUROC and its mirror image are on the same side.
    if (
        metric.value is None
        or fewest < DELONG_LEAST
        or round(fewest * min(metric.value, 1 - metric.value), 9) < DELONG_MISORDERED
    ):
        return metric
    bounds = delong_interval(high, low)
    return replace(metric, ci_low=bounds[0], ci_high=bounds[1], ci_method="delong")


def by_kind(kinds: Iterable[str]) -> list[tuple[str | None, frozenset[str]]]:
    """Kinds of non-activating windows to report on: all of them together, then each apart where there are several."""
    apart = sorted(set(kinds))
    together = MIXED if len(apart) > 1 else apart[0] if apart else None
    return [(together, frozenset(apart)), *((kind, frozenset({kind})) for kind in apart if len(apart) > 1)]


def _groups(judgements: Sequence[Judgement]) -> list[tuple[str | None, list[Judgement]]]:
    """Non-activating windows: all of them first, then each kind apart where there are several."""
    negatives = [j for j in judgements if j.label is False]
    groups = by_kind(j.kind for j in negatives)
    return [(name, [j for j in negatives if j.kind in kinds]) for name, kinds in groups]


def tally(judgements: Sequence[Judgement]) -> tuple[int, int, int]:
    """Right answers, usable answers, failed answers."""
    usable = [j for j in judgements if j.prediction is not None]
    return sum(j.prediction is j.label for j in usable), len(usable), len(judgements) - len(usable)


def _null(name: str, n: int, n_failed: int, negatives: str | None) -> Metric:
    return Metric(name, None, n, n_failed, None, None, "", "too_few_windows", negatives)


def _rate(name: str, hits: int, n: int, n_failed: int, negatives: str | None, least: int) -> Metric:
    if n < max(least, 1):
        return _null(name, n, n_failed, negatives)
    return Metric(name, hits / n, n, n_failed, *rate_interval(hits, n), "wilson", negatives=negatives)


def _against(
    positives: Sequence[Judgement],
    negatives: Sequence[Judgement],
    kind: str | None,
    base_rate: float | None,
    least: int,
) -> list[Metric]:
    """All numbers that need non-activating windows, against one group of them."""
    (hits, m, lost), (rejections, n, also_lost) = tally(positives), tally(negatives)
    n_failed = lost + also_lost
    balanced = balanced_accuracy_metric((hits, rejections), (m, n), n_failed, max(least, 1))
    metrics = [replace(balanced, negatives=kind), _rate("specificity", rejections, n, also_lost, kind, least)]
    rest = ["precision", "f1"] + (["accuracy_at_base_rate", "precision_at_base_rate"] if base_rate is not None else [])
    if balanced.value is None:
        return metrics + [_null(name, m + n, n_failed, kind) for name in rest]
    rates = (hits / m, 1 - rejections / n)
    bounds = (rate_interval(hits, m), rate_interval(n - rejections, n))

    def add(name: str, value: float, interval: tuple[float, float]) -> None:
        metrics.append(Metric(name, value, m + n, n_failed, *interval, "mover", negatives=kind))

    def add_precision(name: str, pi: float) -> None:
        # The products first: an underflowing sum is 0 / 0 as well.
        true, false = rates[0] * pi, rates[1] * (1 - pi)
        if true + false == 0:
            metrics.append(_null(name, m + n, n_failed, kind))
        else:
            add(name, true / (true + false), precision_interval(pi, rates, bounds))

    add_precision("precision", m / (m + n))
    add("f1", 2 * rates[0] / (rates[0] + rates[1] * n / m + 1), f1_interval(n / m, rates, bounds))
    if base_rate is not None:
        value, low, high = mover((base_rate, base_rate - 1), 1 - base_rate, rates, bounds)
        add("accuracy_at_base_rate", value, (max(0.0, low), min(1.0, high)))
        add_precision("precision_at_base_rate", base_rate)
    return metrics


def precision_interval(pi: float, rates: Pair, bounds: tuple[Pair, Pair]) -> tuple[float, float]:
    """Interval of p = TPR pi / (TPR pi + FPR (1 - pi)), that is of the p with (1 - p) pi TPR - p (1 - pi) FPR = 0.

    `rates` are TPR and FPR, `bounds` their intervals.
    """
    value = rates[0] * pi / (rates[0] * pi + rates[1] * (1 - pi))
    return mover_root(lambda p: (((1 - p) * pi, -p * (1 - pi)), 0.0), value, rates, bounds)


def f1_interval(ratio: float, rates: Pair, bounds: tuple[Pair, Pair]) -> tuple[float, float]:
    """Interval of f = 2 TPR / (TPR + ratio FPR + 1), that is of the f with (2 - f) TPR - f ratio FPR - f = 0.

    `ratio` is the number of non-activating over that of activating windows.
    """
    value = 2 * rates[0] / (rates[0] + ratio * rates[1] + 1)
    return mover_root(lambda f: ((2 - f, -f * ratio), -f), value, rates, bounds)


def widened(
    metrics: Sequence[Metric],
    judgements: Sequence[Judgement],
    clusters: Mapping[str, str],
    base_rate: float | None = None,
    resamples: int = 2000,
    seed: int = 0,
) -> list[Metric]:
    """The metrics of `classification`, their intervals widened where windows of one cluster are judged alike.

    `clusters` gives a window's cluster (its prompt, its document) by `window_id`. Whole clusters are drawn with
    replacement, with percentiles moved outwards for their small number, Phi(-sqrt(G / (G-1)) t_{G-1}) (Hesterberg
    2015, section 5.2). The bootstrap of a judge without errors has no width, so the interval becomes the hull of both,
    and `ci_method` gets `+clusters`. Below LEAST clusters, and for other metrics, nothing changes.

    Simulated with prompts of five windows and a correlation of 0.3 between answers of a prompt, intervals of a balanced
    accuracy cover 0.81 as they are and, widened, 0.915, 0.94, 0.935 at 10, 20, 40 prompts; at 0.05, 0.93 and 0.96.
    """
    done = []
    for metric in metrics:
        used = [
            j
            for j in judgements
            if j.prediction is not None
            and (j.label is True or (j.label is False and metric.negatives in (MIXED, j.kind)))
        ]
        names = sorted({clusters[j.window_id] for j in used})
        if metric.value is None or len(names) < LEAST:
            done.append(metric)
            continue
        counts = np.zeros((len(names), 4))
        rows = {name: i for i, name in enumerate(names)}
        for j in used:
            column = 0 if j.label else 2
            counts[rows[clusters[j.window_id]], [column, column + 1]] += (bool(j.prediction), 1)
        draws = np.random.default_rng(seed).multinomial(len(names), np.full(len(names), 1 / len(names)), resamples)
        pi = counts[:, 1].sum() / (counts[:, 1].sum() + counts[:, 3].sum())
        with np.errstate(invalid="ignore", divide="ignore"):
            yes, m, false, n = (draws @ counts).T
            values = _formula(metric.metric, yes / m, false / n, pi, base_rate)
        if values is None or not np.isfinite(values).any():
            done.append(metric)
            continue
        t = stats.t.ppf(0.5 + CONFIDENCE / 2, len(names) - 1)
        tail = stats.norm.cdf(-math.sqrt(len(names) / (len(names) - 1)) * t)
        low, high = np.quantile(values[np.isfinite(values)], [tail, 1 - tail])
        assert metric.ci_low is not None and metric.ci_high is not None
        low, high = min(metric.ci_low, float(low)), max(metric.ci_high, float(high))
        done.append(replace(metric, ci_low=low, ci_high=high, ci_method=metric.ci_method + "+clusters"))
    return done


Array = NDArray[np.float64]


def _formula(name: str, t: Array, e: Array, pi: float, base_rate: float | None) -> Array | None:
    """The formulas of `classification`, from many TPR and FPR at once."""
    if name.endswith("_at_base_rate"):
        if base_rate is None:
            raise ValueError(f"{name} needs base_rate")
        name, pi = name.removesuffix("_at_base_rate"), base_rate
    if name == "recall":
        return t
    if name == "specificity":
        return 1 - e
    if name == "balanced_accuracy":
        return (t + 1 - e) / 2
    if name == "accuracy":
        return t * pi + (1 - e) * (1 - pi)
    if name == "precision":
        return t * pi / (t * pi + e * (1 - pi))
    if name == "f1":
        return 2 * t * pi / (t * pi + e * (1 - pi) + pi)
    return None
