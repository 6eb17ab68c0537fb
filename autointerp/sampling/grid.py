"""Cut every document into windows, once for the whole store.

A window never crosses a document or a context. A stretch of L tokens becomes ceil(L / length) windows of
nearly equal size, so no window is a stub; stretches shorter than `shortest` are left out.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from autointerp.sampling.duplicates import near_duplicates
from autointerp.seeds import generator
from autointerp.store.reader import LatentStore

EXPLAIN, SCORE = 0, 1


@dataclass(frozen=True, slots=True)
class WindowGrid:
    """Windows in order of position. All but `window_of` are [W]; positions are flat."""

    start: NDArray[np.int64]
    length: NDArray[np.int64]
    document: NDArray[np.int32]
    split: NDArray[np.int8]
    """0 to explain from, 1 to score on. All windows of a document share it."""
    duplicate: NDArray[np.bool_]
    """Almost the same tokens stand in an earlier window."""
    side_of: NDArray[np.int8]
    """The split, -1 for duplicates: those are for neither side."""
    stretch_start: NDArray[np.int64]
    stretch_end: NDArray[np.int64]
    """The stretch of one document in one context that the window was cut from."""
    window_of: NDArray[np.int32]
    """Window of each flat position, -1 where it lies in none."""

    @classmethod
    def of(cls, store: LatentStore, *, window: int, shortest: int, seed: int) -> WindowGrid:
        flat = np.asarray(store.documents).reshape(-1)
        change = np.diff(flat) != 0
        change[store.context_length - 1 :: store.context_length] = True
        changes = np.flatnonzero(change) + 1
        begins = np.concatenate([[0], changes])
        lengths = np.diff(np.concatenate([begins, [len(flat)]]))
        kept = (flat[begins] >= 0) & (lengths >= shortest)
        begins, lengths = begins[kept], lengths[kept]
        pieces = -(-lengths // window)
        which = np.repeat(np.arange(len(begins)), pieces)
        nth = np.arange(len(which)) - np.repeat(np.cumsum(pieces) - pieces, pieces)
        base, extra = (lengths // pieces)[which], (lengths % pieces)[which]
        start = begins[which] + nth * base + np.minimum(nth, extra)
        length = base + (nth < extra)
        document = flat[start]
        window_of = np.full(len(flat), -1, dtype=np.int32)
        inside = np.repeat(start - np.cumsum(length) + length, length) + np.arange(int(length.sum()))
        window_of[inside] = np.repeat(np.arange(len(start), dtype=np.int32), length)
        tokens = np.asarray(store.tokens).reshape(-1)
        split, duplicate = _split(document, seed), near_duplicates(tokens, start, length)
        return cls(
            start, length, document, split, duplicate, np.where(duplicate, np.int8(-1), split),
            begins[which], (begins + lengths)[which], window_of,
        )  # fmt: skip

    @property
    def n(self) -> int:
        return len(self.start)

    def side(self, split: int) -> NDArray[np.int64]:
        """Windows of one side, without duplicates."""
        return np.flatnonzero(self.side_of == split)


def _split(document: NDArray[np.int32], seed: int) -> NDArray[np.int8]:
    """Half of the documents to each side, drawn once for all latents."""
    ids = np.unique(document)
    side = np.zeros(len(ids), dtype=np.int8)
    side[generator(seed, "split").permutation(len(ids))[len(ids) // 2 :]] = SCORE
    split: NDArray[np.int8] = side[np.searchsorted(ids, document)]
    return split
