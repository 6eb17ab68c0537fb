"""How active latents are in their windows, for a batch of latents at once."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from autointerp.report.text import significant

BINS = 24


class Strengths:
    """Activations of a batch of windows.

    `first` are the windows that each latent's begin with, and their number at the end; `activating` says which windows
    the histograms count.
    """

    def __init__(self, column: pa.ChunkedArray, first: Sequence[int], activating: Sequence[bool]) -> None:
        lengths = pc.fill_null(pc.list_value_length(column), 0).to_numpy()
        ends = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        flat = pc.fill_null(pc.list_flatten(column), 0.0).to_numpy().astype(np.float64)
        flat = np.nan_to_num(flat, posinf=0.0, neginf=0.0)
        # Most positions are zero.
        at = np.flatnonzero(flat)
        values, shown = flat[at], significant(flat[at])
        window = np.searchsorted(ends, at, side="right") - 1
        self._bounds = np.searchsorted(at, ends).tolist()
        self._pairs: list[Any] = [0] * (2 * len(at))
        self._pairs[0::2], self._pairs[1::2] = (at - ends[window]).tolist(), shown.tolist()
        latent = np.searchsorted(first, window, side="right") - 1
        n = len(first) - 1
        strongest = np.zeros(n)
        np.maximum.at(strongest, latent, np.abs(values))
        self.largest: list[float] = strongest.tolist()
        counted = np.asarray(activating, dtype=bool)[window] if len(window) else np.zeros(0, bool)
        self._count(n, latent[counted], values[counted])
        self._windows = [sum(activating[a:b]) for a, b in pairwise(first)]

    def _count(self, n: int, latent: np.ndarray[Any, Any], values: np.ndarray[Any, Any]) -> None:
        low, high = np.zeros(n), np.zeros(n)
        np.minimum.at(low, latent, values)
        np.maximum.at(high, latent, values)
        width = np.where(high > low, high - low, 1.0)
        bins = np.minimum(BINS - 1, (BINS * (values - low[latent]) / width[latent]).astype(np.int64))
        self._counts = np.bincount(latent * BINS + bins, minlength=n * BINS).reshape(n, BINS).tolist()
        self._low, self._high = significant(low).tolist(), significant(high).tolist()

    def active(self, window: int) -> tuple[list[Any], float]:
        """Positions and activations other than zero, in turn; and the strongest activation."""
        pairs = self._pairs[2 * self._bounds[window] : 2 * self._bounds[window + 1]]
        return pairs, max(pairs[1::2], key=abs, default=0.0)

    def histogram(self, latent: int) -> dict[str, Any] | None:
        """Non-zero activations in the activating windows, in BINS equal bins of a range that holds zero."""
        counts = self._counts[latent]
        if not any(counts):
            return None
        return {
            "low": self._low[latent], "high": self._high[latent], "counts": counts, "windows": self._windows[latent],
        }  # fmt: skip
