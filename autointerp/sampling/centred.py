"""Windows that lie around a peak, rather than where the grid has cut: they may overlap, and repeat a text.

The grid knows neither of them nor of their texts, so whoever draws them has to look.
"""

from __future__ import annotations

from bisect import bisect_left

import numpy as np
from numpy.typing import NDArray

from autointerp.sampling.firing import Firing
from autointerp.sampling.grid import WindowGrid

Ints = NDArray[np.int64]

CORE = 8
"""Tokens on either side of a peak. Where those are the same, so is the text, whatever stands farther off."""


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
    """Takes stretches of text around peaks such that no two overlap, and none says what an earlier one said."""

    def __init__(self, tokens: NDArray[np.int32]) -> None:
        self.tokens = tokens
        self._begins: list[int] = []
        self._ends: list[int] = []
        self._texts: set[bytes] = set()

    def take(self, order: Ints, start: Ints, length: Ints, peak_at: Ints, n: int) -> Ints:
        """The first `n` of `order`, an order of stretches, that may be taken."""
        taken: list[int] = []
        for index in order.tolist():
            if len(taken) == n:
                break
            begin, end = int(start[index]), int(start[index] + length[index])
            place = bisect_left(self._begins, begin)
            if place and self._ends[place - 1] > begin:
                continue
            if place < len(self._begins) and self._begins[place] < end:
                continue
            peak = int(peak_at[index])
            text = self.tokens[max(begin, peak - CORE) : min(end, peak + CORE + 1)].tobytes()
            if text in self._texts:
                continue
            self._begins.insert(place, begin)
            self._ends.insert(place, end)
            self._texts.add(text)
            taken.append(index)
        return np.array(taken, dtype=np.int64)
