"""Tests by permutation, and the Hodges-Lehmann shift with its interval, for pairs and for two samples."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy import stats

from autointerp.stats.frames import Floats, slabs

PERMUTATIONS = 4999
EXACT_SIGNS = 12
"""Up to as many pairs all sign patterns are tried."""
EXACT_RANKS = 25
"""Up to as many pairs (or latents on a side) the interval comes from the exact distribution of the rank statistic."""
LEAST_PAIRS = 6
"""With fewer pairs no sign-flip test can reach p < 0.05."""


def sign_flip(differences: Floats, rng: np.random.Generator, n: int = PERMUTATIONS) -> float:
    """Two-sided p of the mean of paired differences, were their signs a matter of chance.

    All patterns for up to EXACT_SIGNS pairs; else n random ones, with the one that was seen counted in, so that p is
    valid and never 0 (Phipson and Smyth 2010).
    """
    size, seen = len(differences), differences.sum()
    if size <= EXACT_SIGNS:
        signs = 1.0 - 2.0 * ((np.arange(2**size)[:, None] >> np.arange(size)) & 1)
        return float((_at_least(signs @ differences, seen)).mean())
    drawn = np.concatenate([
        (1.0 - 2.0 * rng.integers(0, 2, size=(rows, size))) @ differences for rows in slabs(n, size)
    ])  # fmt: skip
    return (1 + int(_at_least(drawn, seen).sum())) / (n + 1)


def label_permutation(
    strata: Sequence[tuple[Floats, Floats]], rng: np.random.Generator, n: int = PERMUTATIONS
) -> float:
    """Two-sided p of the mean over strata of mean(a) - mean(b), with labels permuted within strata."""
    seen, drawn = 0.0, np.zeros(n)
    for a, b in strata:
        pooled = np.concatenate([a, b])
        seen += a.mean() - b.mean()
        chosen = np.concatenate([
            rng.permuted(np.tile(pooled, (rows, 1)), axis=1)[:, : len(a)].sum(axis=1) for rows in slabs(n, len(pooled))
        ])  # fmt: skip
        drawn += chosen / len(a) - (pooled.sum() - chosen) / len(b)
    return (1 + int(_at_least(drawn, seen).sum())) / (n + 1)


def _at_least(drawn: Floats, seen: float) -> np.ndarray[tuple[int, ...], np.dtype[np.bool_]]:
    # Equal statistics differ in the last bits, depending on the order of summation.
    return np.abs(drawn) >= abs(seen) * (1 - 1e-9) - 1e-12


def paired_shift(differences: Floats) -> tuple[float, float, float]:
    """Median of Walsh averages (d_i + d_j) / 2, i <= j, and its 95% interval (Hollander and Wolfe 1999, section 3.2).

    The bounds are the order statistics of the Walsh averages at which the signed-rank test would just reject; NaN
    below LEAST_PAIRS.
    """
    n = len(differences)
    walsh = np.sort((differences[:, None] + differences[None, :])[np.triu_indices(n)] / 2)
    if n < LEAST_PAIRS:
        return _median(walsh), math.nan, math.nan
    if n <= EXACT_RANKS:
        below = _last_rejected(len(walsh) // 2, lambda k: _signed_rank_p(k, n))
    else:
        sd = math.sqrt(n * (n + 1) * (2 * n + 1) / 24)
        below = math.floor(len(walsh) / 2 - 0.5 - stats.norm.ppf(0.975) * sd)
    return _median(walsh), *_bounds(walsh, below)


def two_sample_shift(strata: Sequence[tuple[Floats, Floats]]) -> tuple[float, float, float]:
    """Median of all a_i - b_j of the same stratum, and its 95% interval (Hollander and Wolfe 1999, section 4.2).

    With several strata the Mann-Whitney statistics are added up, with their variances.
    """
    gaps = np.sort(np.concatenate([(a[:, None] - b[None, :]).ravel() for a, b in strata]))
    sizes = [(len(a), len(b)) for a, b in strata]
    if len(sizes) == 1 and max(sizes[0]) <= EXACT_RANKS:
        below = _last_rejected(len(gaps) // 2, lambda k: _rank_sum_p(k, *sizes[0]))
    else:
        sd = math.sqrt(sum(m * n * (m + n + 1) / 12 for m, n in sizes))
        below = math.floor(len(gaps) / 2 - 0.5 - stats.norm.ppf(0.975) * sd)
    return _median(gaps), *_bounds(gaps, below)


def _bounds(ordered: Floats, below: int) -> tuple[float, float]:
    """Bounds that leave `below` values out on either side; -1 where not even leaving out none rejects."""
    if below < 0:
        return math.nan, math.nan
    return float(ordered[below]), float(ordered[len(ordered) - 1 - below])


def _last_rejected(half: int, p: object) -> int:
    """Largest statistic k below the middle with p(k) <= 0.05, by bisection; -1 where there is none."""
    low, high = -1, half
    while high - low > 1:
        middle = (low + high) // 2
        if p(middle) <= 0.05:  # type: ignore[operator]
            low = middle
        else:
            high = middle
    return low


def _signed_rank_p(statistic: int, n: int) -> float:
    """scipy has no distribution of the statistic, only the test: so it is given a sample with that statistic."""
    signed, left = -np.arange(1.0, n + 1), statistic
    for rank in range(n, 0, -1):
        if rank <= left:
            signed[rank - 1], left = rank, left - rank
    return float(stats.wilcoxon(signed, method="exact").pvalue)


def _rank_sum_p(statistic: int, m: int, n: int) -> float:
    full, rest = divmod(statistic, n)
    a = np.full(m, -1.0)
    a[:full] = n
    if rest:
        a[full] = rest - 0.5
    return float(stats.mannwhitneyu(a, np.arange(n), method="exact").pvalue)


def _median(ordered: Floats) -> float:
    return float(np.median(ordered))
