"""In which order a latent's activating windows are taken, by the strength of their peaks.

Every way returns an order of all of them, best first, so that whoever takes from it can pass over some.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Peaks = NDArray[np.float32]
Order = NDArray[np.int64]

TOP_SHARE = 0.2
"""Share of `mixed` windows that are the strongest ones (Paulo et al. 2024, their mix)."""


def slices(peaks: Peaks, quantiles: int) -> NDArray[np.int64]:
    """The slice of the order of strengths that each peak lies in, 0 the weakest."""
    slice_of = np.empty(len(peaks), dtype=np.int64)
    slice_of[np.argsort(peaks, kind="stable")] = np.arange(len(peaks)) * quantiles // max(1, len(peaks))
    return slice_of


def evenly(peaks: Peaks, n: int, quantiles: int, rng: np.random.Generator) -> Order:
    """Round-robin over the slices, at random within each; slices that run out are made up for from the others."""
    slice_of = slices(peaks, quantiles)
    shuffled = rng.permutation(len(peaks))
    shuffled = shuffled[np.argsort(slice_of[shuffled], kind="stable")]
    counts = np.bincount(slice_of, minlength=quantiles)
    nth = np.arange(len(peaks)) - np.repeat(np.cumsum(counts) - counts, counts)
    order: Order = shuffled[np.argsort(nth, kind="stable")]
    return order


def strongest(peaks: Peaks, n: int, quantiles: int, rng: np.random.Generator) -> Order:
    """The largest peaks first."""
    return np.argsort(-peaks, kind="stable")


def uniform(peaks: Peaks, n: int, quantiles: int, rng: np.random.Generator) -> Order:
    """At random."""
    return rng.permutation(len(peaks))


def weighted(peaks: Peaks, n: int, quantiles: int, rng: np.random.Generator) -> Order:
    """At random without replacement, with probability proportional to the peak (Efraimidis and Spirakis 2006)."""
    keys = np.log(np.maximum(peaks, 1e-30)) + rng.gumbel(size=len(peaks))
    return np.argsort(-keys, kind="stable")


def mixed(peaks: Peaks, n: int, quantiles: int, rng: np.random.Generator) -> Order:
    """A fifth of the `n` from the top, the rest evenly over the slices of what is left."""
    ranked = strongest(peaks, n, quantiles, rng)
    top, rest = ranked[: round(TOP_SHARE * n)], np.sort(ranked[round(TOP_SHARE * n) :])
    return np.concatenate([top, rest[evenly(peaks[rest], n, quantiles, rng)]])


ORDERS: dict[str, Callable[[Peaks, int, int, np.random.Generator], Order]] = {
    "quantiles": evenly,
    "top": strongest,
    "random": uniform,
    "importance": weighted,
    "mixed": mixed,
}
"""By what `sampling.explain_from` and `sampling.score_from` say."""
