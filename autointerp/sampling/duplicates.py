"""Windows that say almost the same as an earlier one: boilerplate would put one text on both sides of a split.

Windows are compared as sets of token shingles by MinHash (Broder 1997), with banding to find candidates.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from autointerp.seeds import generator

SHINGLE = 4
"""Tokens of a shingle."""
BANDS, ROWS = 8, 2
"""Signatures of BANDS * ROWS minima. A pair is compared where all rows of a band agree: at similarity 0.7 it
is missed once in 200 times."""
SIMILAR = 0.7
"""Share of equal minima, an estimate of the sets' Jaccard similarity, from which windows are near-duplicates."""

MIX = np.uint64(0x9E3779B97F4A7C15)


def near_duplicates(
    tokens: NDArray[np.int32], start: NDArray[np.int64], length: NDArray[np.int64]
) -> NDArray[np.bool_]:
    """Which windows `[W]` of flat `tokens` resemble an earlier one. Windows are in order and at least a shingle long.

    Each is compared with the first window of every band that it falls into, so that of a text that
    recurs the first occurrence stays.
    """
    n = len(start)
    duplicate = np.zeros(n, dtype=np.bool_)
    if not n:
        return duplicate
    signature = _signatures(tokens, start, length)
    for band in range(0, BANDS * ROWS, ROWS):
        key = signature[:, band].astype(np.uint64) << np.uint64(32) | signature[:, band + 1]
        # Of equal keys, `unique` gives the first.
        _, first, which = np.unique(key, return_index=True, return_inverse=True)
        leader = first[which]
        led = np.flatnonzero(leader != np.arange(n))
        alike = (signature[led] == signature[leader[led]]).mean(axis=1)
        duplicate[led[alike >= SIMILAR]] = True
    return duplicate


def _signatures(tokens: NDArray[np.int32], start: NDArray[np.int64], length: NDArray[np.int64]) -> NDArray[np.uint32]:
    """`[W, BANDS * ROWS]`: per window, the least value of every hash over its shingles."""
    hashes = np.zeros(len(tokens) - SHINGLE + 1, dtype=np.uint64)
    for i in range(SHINGLE):
        hashes = (hashes ^ tokens[i : len(hashes) + i].astype(np.uint64)) * MIX
        hashes ^= hashes >> np.uint64(29)
    # Shingles that begin in the window and end in it: reduceat takes the stretches at even places.
    edges = np.stack([start, start + length - SHINGLE + 1], axis=1).reshape(-1)
    odd = generator(0, "minhash").integers(1, 2**63, size=BANDS * ROWS, dtype=np.uint64) | np.uint64(1)
    found = np.empty((len(start), BANDS * ROWS), dtype=np.uint32)
    for column, factor in enumerate(odd):
        mixed = ((hashes * factor) >> np.uint64(32)).astype(np.uint32)
        found[:, column] = np.minimum.reduceat(np.append(mixed, np.uint32(0xFFFFFFFF)), edges)[::2]
    return found
