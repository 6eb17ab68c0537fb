"""In which order a latent's activating windows are taken, by the strength of their peaks.

Windows come weakest first, so that a window's index is its rank. Every way returns an order of all of them,
best first: whoever takes from it can pass over some.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Peaks = NDArray[np.float32]
"""Ascending, [w]."""
Order = NDArray[np.int64]

TOP_SHARE = 0.2
"""Share of `mixed` windows that are the strongest ones (Paulo et al. 2024, their mix)."""


def ascending(peaks: NDArray[np.float32]) -> Order:
    """Indices of (positive) peaks, the weakest first; equal ones in the order they come."""
    # Positive floats are in the order of their bits, and one sort of plain numbers costs a third of a stable argsort.
    bits = peaks.view(np.int32).astype(np.int64)
    return np.sort(bits << 32 | np.arange(len(peaks))) & 0xFFFFFFFF


def slices(n: int, quantiles: int) -> NDArray[np.int64]:
    """The slice of the order of strengths that each of `n` windows lies in, 0 the weakest."""
    return np.arange(n) * quantiles // max(1, n)


def evenly(peaks: Peaks, n: int, quantiles: int, rng: np.random.Generator) -> Order:
    """Round-robin over the slices, at random within each; slices that run out are made up for from the others.

    The slices take their turns in a random order: where `n` is no multiple of them, no strength is favoured.
    """
    slice_of = slices(len(peaks), quantiles)
    sizes = np.bincount(slice_of, minlength=quantiles)
    shuffled: Order = np.argsort(slice_of + rng.random(len(peaks)))
    nth = np.arange(len(peaks)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    turns = np.full(quantiles * int(sizes.max()), -1)
    turns[nth * quantiles + rng.permutation(quantiles)[slice_of]] = shuffled
    return turns[turns >= 0]


def strongest(peaks: Peaks, n: int, quantiles: int, rng: np.random.Generator) -> Order:
    """The largest peaks first."""
    return np.arange(len(peaks))[::-1]


def uniform(peaks: Peaks, n: int, quantiles: int, rng: np.random.Generator) -> Order:
    """At random."""
    return rng.permutation(len(peaks))


def weighted(peaks: Peaks, n: int, quantiles: int, rng: np.random.Generator) -> Order:
    """At random without replacement, with probability proportional to the peak (Efraimidis and Spirakis 2006)."""
    keys = np.log(np.maximum(peaks, 1e-30)) + rng.gumbel(size=len(peaks))
    return np.argsort(-keys, kind="stable")


def mixed(peaks: Peaks, n: int, quantiles: int, rng: np.random.Generator) -> Order:
    """A fifth of the `n` from the top, the rest evenly over the slices of what is left."""
    left = max(0, len(peaks) - round(TOP_SHARE * n))
    return np.concatenate([np.arange(left, len(peaks))[::-1], evenly(peaks[:left], n, quantiles, rng)])


ORDERS: dict[str, Callable[[Peaks, int, int, np.random.Generator], Order]] = {
    "quantiles": evenly,
    "top": strongest,
    "random": uniform,
    "importance": weighted,
    "mixed": mixed,
}
"""By what `sampling.explain_from` and `sampling.score_from` say."""
