"""Windows that lie around a peak, rather than where the grid has cut: they may overlap, and repeat a text.

The grid knows neither of them nor of their texts, so whoever draws them has to look.
"""

from __future__ import annotations

from bisect import bisect_right

import numpy as np
from numpy.typing import NDArray

from autointerp.sampling.firing import Firing
from autointerp.sampling.grid import WindowGrid

Ints = NDArray[np.int64]

RUN = 16
"""Tokens in a row that no two windows may share. The same text, cut elsewhere, is the same text."""


def centred(grid: WindowGrid, firing: Firing, mine: Ints) -> tuple[Ints, Ints, Ints]:
    """Of `mine` (indices of `firing.windows`) those to keep, and start and length of their windows, `[kept]` each.

    The lengths are the grid's; the peak is in the middle, or as near as the document's ends allow. Windows that
    reach a stronger activation are left out: it is the centre of a window of its own.
    """
    windows = firing.windows[mine]
    length = grid.length[windows]
    last = grid.stretch_end[windows] - length
    start = np.clip(firing.peak_at[mine] - length // 2, grid.stretch_start[windows], last)
    if not len(start):
        return mine, start, length
    right = firing.max_within(start, start + length) <= firing.peaks[mine]
    return mine[right], start[right], length[right]


class Apart:
    """Takes stretches of flat `tokens` such that no two overlap, and none repeats a run of another's text."""

    def __init__(self, tokens: NDArray[np.int32]) -> None:
        self.tokens = tokens
        self._begins: list[int] = []
        self._ends: list[int] = []
        self._runs: set[bytes] = set()

    def add(self, begin: int, end: int) -> bool:
        """Take `[begin, end)` if it may be taken."""
        place = bisect_right(self._begins, begin)
        if place and self._ends[place - 1] > begin:
            return False
        if place < len(self._begins) and self._begins[place] < end:
            return False
        text, size, step = self.tokens[begin:end].tobytes(), RUN * self.tokens.itemsize, self.tokens.itemsize
        # A shorter text is one run.
        runs = {text[i : i + size] for i in range(0, max(len(text) - size, 0) + 1, step)}
        if not self._runs.isdisjoint(runs):
            return False
        self._begins.insert(place, begin)
        self._ends.insert(place, end)
        self._runs |= runs
        return True

    def take(self, order: Ints, start: Ints, length: Ints, n: int) -> Ints:
        """The first `n` of `order`, an order of stretches, that may be taken."""
        taken: list[int] = []
        for index in order.tolist():
            if len(taken) == n:
                break
            if self.add(int(start[index]), int(start[index] + length[index])):
                taken.append(index)
        return np.array(taken, dtype=np.int64)
