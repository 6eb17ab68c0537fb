"""The external counting sort that turns parts, each sorted by latent, into one CSR by latent.

One pass counts; then ranges of latents small enough for the budget are gathered from all parts, put in
order in memory, and appended to the files. Within a latent, parts come in order of position, and so do
its activations. Disk is read and written from front to back.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from autointerp.files import ArrayWriter, replacing, write_array
from autointerp.store import layout
from autointerp.store.parts import Part

BUDGET = 512 * 2**20
"""Bytes that a range of latents may take in memory while it is put in order."""
PER_ENTRY = 8
"""Bytes of a range per activation: its position and its value, where they belong."""

OnEntries = Callable[[int, int], None]
"""Called with (activations placed, activations in all)."""


def merge(
    parts: Sequence[Part], n_latents: int, folder: Path, *, budget: int = BUDGET, on_entries: OnEntries | None = None
) -> int:
    """Write `indptr.npy`, `positions.npy` and `values.npy`; returns the number of activations.

    `parts` are in order of position. Memory is `budget` and one part, whatever the number of activations,
    but for a counter per latent; a latent that alone exceeds the budget is copied part by part.

    Raises:
        DiskFull: no room; the parts are still there.
    """
    counts = np.zeros(n_latents, dtype=np.int64)
    for part in parts:
        counts += np.bincount(part.read("latents"), minlength=n_latents)
    indptr = np.concatenate([[0], np.cumsum(counts)])
    write_array(folder / layout.INDPTR, indptr)
    total = int(indptr[-1])
    bounds = ranges(indptr, max(1, budget // PER_ENTRY))
    # Where every range begins in every part: one look at each part's latents.
    edges = np.empty((len(parts), len(bounds)), dtype=np.int64)
    for i, part in enumerate(parts):
        edges[i] = np.searchsorted(part.read("latents"), bounds)
    with (
        replacing(folder / layout.POSITIONS) as at, ArrayWriter(at, "<u4", (total,)) as positions,
        replacing(folder / layout.VALUES) as what, ArrayWriter(what, "<f4", (total,)) as values,
    ):  # fmt: skip
        for r, (low, high) in enumerate(zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True)):
            slices = [(part, *edges[i, r : r + 2].tolist()) for i, part in enumerate(parts)]
            filled = [piece for piece in slices if piece[1] < piece[2]]
            # Appended in there, so that a range is gone from memory before the next one is made.
            if high == low + 1:
                _append_latent(filled, positions, values)
            else:
                _append_range(filled, indptr, low, high, positions, values)
            if on_entries:
                on_entries(int(indptr[high]), total)
    return total


def ranges(indptr: NDArray[np.int64], most: int) -> NDArray[np.int64]:
    """Bounds of ranges of latents that hold at most `most` activations each, or a single latent that has more."""
    bounds = [0]
    last = len(indptr) - 1
    while bounds[-1] < last:
        low = bounds[-1]
        high = int(np.searchsorted(indptr, indptr[low] + most, side="right")) - 1
        bounds.append(min(last, max(high, low + 1)))
    return np.array(bounds, dtype=np.int64)


Slice = tuple[Part, int, int]
"""Some entries of a part, from the second to the third number."""


def _append_range(
    slices: Sequence[Slice], indptr: NDArray[np.int64], low: int, high: int, positions: ArrayWriter, values: ArrayWriter
) -> None:
    """Latents `low` to `high`, by latent and then by position."""
    begin, size = int(indptr[low]), int(indptr[high] - indptr[low])
    at, what = np.empty(size, dtype="<u4"), np.empty(size, dtype="<f4")
    cursor = indptr[low:high] - begin
    for part, first, end in slices:
        latents = part.read("latents", first, end).astype(np.int64) - low
        here = np.bincount(latents, minlength=high - low)
        # The i-th entry of a latent in this part goes i places behind the latent's last one so far.
        place = (cursor - (np.cumsum(here) - here))[latents]
        place += np.arange(end - first)
        at[place] = part.read("positions", first, end)
        what[place] = part.read("values", first, end)
        cursor += here
    positions.append(at)
    values.append(what)


def _append_latent(slices: Sequence[Slice], positions: ArrayWriter, values: ArrayWriter) -> None:
    """A single latent, which may be larger than the budget: its parts are in order already."""
    for part, first, end in slices:
        positions.append(part.read("positions", first, end))
        values.append(part.read("values", first, end))
