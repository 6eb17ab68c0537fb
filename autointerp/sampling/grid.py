"""Cut every document into windows, once for the whole store.

A window never crosses a document or a block. A stretch of L tokens becomes ceil(L / length) windows of
nearly equal size, so no window is a stub; stretches shorter than `shortest` are left out.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from autointerp.seeds import generator
from autointerp.store.reader import LatentStore

EXPLAIN, SCORE = 0, 1


@dataclass(frozen=True, slots=True)
class WindowGrid:
    """Windows in order of position. `start`, `length`, `document`, `split` are [W]; positions are flat."""

    start: NDArray[np.int64]
    length: NDArray[np.int64]
    document: NDArray[np.int32]
    split: NDArray[np.int8]
    """0 to explain from, 1 to score on. All windows of a document share it."""
    duplicate: NDArray[np.bool_]
    """The same tokens stand in an earlier window."""

    @classmethod
    def of(cls, store: LatentStore, *, window: int, shortest: int, seed: int) -> WindowGrid:
        flat = np.asarray(store.documents).reshape(-1)
        blocks = np.arange(len(flat)) // store.context_length
        changes = np.flatnonzero((np.diff(flat) != 0) | (np.diff(blocks) != 0)) + 1
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
        return cls(start, length, document, _split(document, seed), _duplicates(store, start, length))

    def at(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Window of each flat position, -1 where it lies in none."""
        index = np.searchsorted(self.start, positions, side="right") - 1
        inside = (index >= 0) & (positions < (self.start + self.length)[index])
        return np.where(inside, index, -1)


def _split(document: NDArray[np.int32], seed: int) -> NDArray[np.int8]:
    """Half of the documents to each side, drawn once for all latents."""
    ids = np.unique(document)
    side = np.zeros(len(ids), dtype=np.int8)
    side[generator(seed, "split").permutation(len(ids))[len(ids) // 2 :]] = SCORE
    split: NDArray[np.int8] = side[np.searchsorted(ids, document)]
    return split


def _duplicates(store: LatentStore, start: NDArray[np.int64], length: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Windows whose token sequence occurred before: boilerplate would put the same text on both sides."""
    flat = np.asarray(store.tokens).reshape(-1)
    seen: set[bytes] = set()
    duplicate = np.zeros(len(start), dtype=np.bool_)
    for i, (begin, size) in enumerate(zip(start.tolist(), length.tolist(), strict=True)):
        key = flat[begin : begin + size].tobytes()
        duplicate[i] = key in seen
        seen.add(key)
    return duplicate
