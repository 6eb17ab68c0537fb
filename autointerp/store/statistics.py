"""What every latent's activations add up to, per pole: counts, sums and extremes, taken once for a finished store."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from autointerp.files import write_array
from autointerp.store import layout
from autointerp.store.merge import ranges

DTYPE = np.dtype(
    [("n_positive", "<i8"), ("n_negative", "<i8"), ("sum_positive", "<f8"), ("sum_negative", "<f8"),
     ("max_positive", "<f4"), ("max_negative", "<f4")]
)  # fmt: skip
"""Of one latent. Magnitudes: those of the negative pole are positive too, and zero where it never fires."""

CHUNK = 2**22
"""Activations looked at together; also the stretches in which a longer latent is added up."""


def write_statistics(folder: Path, indptr: NDArray[np.int64]) -> None:
    """Write `statistics.npy` [F] from the finished `values.npy`. Sums do not depend on how values came in."""
    n = len(indptr) - 1
    found = np.zeros(n, dtype=DTYPE)
    path = folder / layout.VALUES
    header = path.stat().st_size - 4 * int(indptr[-1])
    for low, high in pairwise(ranges(indptr, CHUNK).tolist()):
        # One stretch, unless a single latent is longer than that.
        for start in range(int(indptr[low]), int(indptr[high]), CHUNK):
            stop = min(start + CHUNK, int(indptr[high]))
            # Read, not mapped: mapped pages would count as memory of this process.
            values = np.fromfile(path, "<f4", stop - start, offset=header + 4 * start)
            _add(found[low:high], values, (indptr[low : high + 1] - start).clip(0, stop - start))
    write_array(folder / layout.STATISTICS, found)


def _add(found: NDArray[np.void], values: NDArray[np.float32], edges: NDArray[np.int64]) -> None:
    """Add values, whose latents begin at `edges[:-1]`, to what was found of them."""
    live = np.diff(edges) > 0
    starts = edges[:-1][live]
    if not len(starts):
        return
    for pole, sign in (("positive", 1), ("negative", -1)):
        size = np.maximum(sign * values, 0)
        if sign < 0 and not size.any():
            continue
        found[f"n_{pole}"][live] += np.add.reduceat(size > 0, starts, dtype=np.int64)
        found[f"sum_{pole}"][live] += np.add.reduceat(size, starts, dtype=np.float64)
        found[f"max_{pole}"][live] = np.maximum(found[f"max_{pole}"][live], np.maximum.reduceat(size, starts))
