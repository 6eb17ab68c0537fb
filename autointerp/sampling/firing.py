"""Where one pole of one latent fires, window by window."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from autointerp.sampling.grid import WindowGrid


@dataclass(frozen=True, slots=True)
class Firing:
    """Activations of a latent (both poles), and the windows of one pole.

    `positions` (flat, ascending) and `values` are [n]; `fired` are the windows in which either pole fires.
    `windows`, `peaks` (magnitudes) and `peak_at` (flat positions) are [w]: the windows whose strongest
    activation is of this pole's sign.
    """

    pole: int
    positions: NDArray[np.int64]
    values: NDArray[np.float32]
    fired: NDArray[np.int64]
    windows: NDArray[np.int64]
    peaks: NDArray[np.float32]
    peak_at: NDArray[np.int64]

    @classmethod
    def of(cls, grid: WindowGrid, positions: NDArray[np.int64], values: NDArray[np.float32], pole: int) -> Firing:
        window = grid.window_of[positions]
        inside = np.flatnonzero(window >= 0)
        window, size = window[inside], np.abs(values[inside])
        starts = runs(window)
        first = largest(size, starts)
        at = inside[first]
        fired = window[starts].astype(np.int64)
        mine = values[at] * pole > 0
        return cls(pole, positions, values, fired, fired[mine], size[first[mine]], positions[at[mine]])

    def max_within(self, start: NDArray[np.int64], end: NDArray[np.int64]) -> NDArray[np.float32]:
        """Largest magnitude of either pole in each stretch `[start, end)` of positions; each has to hold one."""
        edges = np.stack([np.searchsorted(self.positions, start), np.searchsorted(self.positions, end)], axis=1)
        size = np.append(np.abs(self.values), np.float32(0))
        most: NDArray[np.float32] = np.maximum.reduceat(size, edges.reshape(-1))[::2]
        return most

    def within(
        self, start: NDArray[np.int64], length: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Activations of this pole in some windows, put one after another: their places there, and their values."""
        low, high = np.searchsorted(self.positions, start), np.searchsorted(self.positions, start + length)
        counts = high - low
        index = np.repeat(low - np.cumsum(counts) + counts, counts) + np.arange(int(counts.sum()))
        value = self.values[index]
        place = self.positions[index] + np.repeat(np.cumsum(length) - length - start, counts)
        mine = value * self.pole > 0
        return place[mine], value[mine]


def runs(labels: NDArray[np.integer]) -> NDArray[np.int64]:
    """Where a label differs from the one before it, `[runs]`; the first always does."""
    new = np.ones(len(labels), dtype=np.bool_)
    np.not_equal(labels[1:], labels[:-1], out=new[1:])
    return np.flatnonzero(new)


def largest(size: NDArray[np.float32], starts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Index of the largest `size` of each run, `[runs]`; of equal ones, the first."""
    if not len(starts):
        return np.empty(0, dtype=np.int64)
    counts = np.diff(np.append(starts, len(size)))
    hits = np.flatnonzero(size == np.repeat(np.maximum.reduceat(size, starts), counts))
    return hits if len(hits) == len(starts) else hits[np.searchsorted(hits, starts)]
