"""Windows that say almost the same as an earlier one: boilerplate would put one text on both sides of a split.

Windows are compared as sets of pairs of neighbouring tokens by MinHash (Broder 1997), with banding to find
candidates. Another token in the middle of 32, or a shift by three, leaves a similarity above 0.8.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from autointerp.seeds import generator

SHINGLE = 2
"""Tokens of a shingle. No window is shorter, and longer ones would let every edit count for more."""
BANDS, ROWS = 10, 3
"""Signatures of BANDS * ROWS minima. A pair is compared where all rows of a band agree: at similarity 0.7 it
is missed once in 70 times, at 0.8 once in 1,300."""
SIMILAR = 0.65
"""Share of equal minima, an estimate of the sets' Jaccard similarity, from which windows are near-duplicates."""
CHUNK = 2**16
"""Windows that are read together."""

MIX = np.uint64(0x9E3779B97F4A7C15)


def near_duplicates(
    tokens: NDArray[np.int32], start: NDArray[np.int64], length: NDArray[np.int64]
) -> NDArray[np.bool_]:
    """Which windows `[W]` of flat `tokens` resemble an earlier one. Windows are in order and at least a shingle long.

    Each is compared with the first window of every band that it falls into, so that of a text that recurs the
    first occurrence stays. Windows of the same tokens are always found.
    """
    n = len(start)
    duplicate = np.zeros(n, dtype=np.bool_)
    if not n:
        return duplicate
    signature = _signatures(tokens, start, length)
    bands = [signature[:, row : row + ROWS] for row in range(0, BANDS * ROWS, ROWS)]
    # The whole signature is a band, too: in all others, windows may come first that only contain a text and its copy.
    for band in [*bands, signature]:
        # Of equal keys, `unique` gives the first.
        _, first, which = np.unique(_hashed(band.T), return_index=True, return_inverse=True)
        leader = first[which]
        led = np.flatnonzero(leader != np.arange(n))
        alike = (signature[led] == signature[leader[led]]).mean(axis=1)
        duplicate[led[alike >= SIMILAR]] = True
    return duplicate


def _hashed(columns: NDArray[np.uint32]) -> NDArray[np.uint64]:
    """One number for each of the tuples that `columns` hold."""
    # Not from zero: zeros would stay zero, whatever they are multiplied with, and be the least value of every hash.
    hashed = np.full(columns.shape[1], MIX)
    for column in columns:
        hashed = (hashed ^ column.astype(np.uint64)) * MIX
        hashed ^= hashed >> np.uint64(29)
    return hashed


def _signatures(tokens: NDArray[np.int32], start: NDArray[np.int64], length: NDArray[np.int64]) -> NDArray[np.uint32]:
    """`[W, BANDS * ROWS]`: per window, the least value of every hash over its shingles."""
    odd = generator(0, "minhash").integers(1, 2**63, size=BANDS * ROWS, dtype=np.uint64) | np.uint64(1)
    found = np.empty((len(start), BANDS * ROWS), dtype=np.uint32)
    for begin in range(0, len(start), CHUNK):
        some = slice(begin, min(begin + CHUNK, len(start)))
        low, high = int(start[begin]), int(start[some.stop - 1] + length[some.stop - 1])
        text = tokens[low:high].view(np.uint32)
        hashes = _hashed(np.stack([text[i : len(text) - SHINGLE + 1 + i] for i in range(SHINGLE)]))
        # Shingles that begin in the window and end in it: reduceat takes the stretches at even places. The last
        # one's end has to be a place, too.
        edges = np.stack([start[some], (start + length)[some] - SHINGLE + 1], axis=1).reshape(-1) - low
        mixed = np.empty(len(hashes) + 1, dtype=np.uint32)
        for column, factor in enumerate(odd):
            mixed[:-1] = (hashes * factor) >> np.uint64(32)
            found[some, column] = np.minimum.reduceat(mixed, edges)[::2]
    return found
