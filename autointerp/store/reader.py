"""Read a latent store. One latent is one contiguous, memory-mapped slice."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autointerp.errors import UserError
from autointerp.files import read_array, sha256_of
from autointerp.store import layout


@dataclass
class LatentStore:
    """`tokens`, `documents` int32 [n_blocks, T]; `of(latent)` gives its flat positions and activations."""

    folder: Path
    manifest: dict[str, Any]
    tokens: NDArray[np.int32]
    documents: NDArray[np.int32]
    indptr: NDArray[np.int64]
    positions: NDArray[np.uint32]
    values: NDArray[np.float32]

    @classmethod
    def open(cls, folder: Path, *, verify: bool = False) -> LatentStore:
        """Open a finished store; `verify` also compares every file's sha256.

        Raises:
            UserError: unfinished, of another version, or damaged; the message names the file.
        """
        manifest = layout.read_manifest(folder)
        arrays = []
        for name in layout.ARRAYS:
            try:
                arrays.append(read_array(folder / name))
            except (OSError, ValueError, EOFError) as error:
                raise UserError(f"'{folder / name}' is missing or damaged ({error}); collect with --fresh") from error
            if verify and sha256_of(folder / name) != manifest["sha256"][name]:
                raise UserError(f"'{folder / name}' is not what was written (sha256 differs); collect with --fresh")
        store = cls(folder, manifest, *arrays)
        if len(store.indptr) != store.n_latents + 1 or len(store.positions) != int(store.indptr[-1]):
            raise UserError(f"'{folder}': index and activations do not fit together; collect with --fresh")
        return store

    @property
    def n_latents(self) -> int:
        return int(self.manifest["n_latents"])

    @property
    def context_length(self) -> int:
        return int(self.tokens.shape[1])

    @cached_property
    def n_tokens(self) -> int:
        """Tokens that count: special tokens and skipped positions are left out."""
        return int((self.documents >= 0).sum())

    @cached_property
    def n_fired(self) -> NDArray[np.int64]:
        """Tokens on which each latent fires, [F]."""
        return np.diff(self.indptr)

    def of(self, latent: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Flat positions (ascending) and activations of one latent."""
        span = slice(int(self.indptr[latent]), int(self.indptr[latent + 1]))
        return self.positions[span].astype(np.int64), np.asarray(self.values[span])

    def statistics(self) -> dict[str, NDArray[Any]]:
        """`n_fired`, `max_activation` and `mean_activation` of every latent, NaN where it never fires.

        Magnitudes, so that a signed latent's stronger pole counts.
        """
        live = self.n_fired > 0
        maximum = np.full(self.n_latents, np.nan)
        mean = np.full(self.n_latents, np.nan)
        if live.any():
            starts = self.indptr[:-1][live]
            magnitude = np.abs(self.values)
            maximum[live] = np.maximum.reduceat(magnitude, starts)
            mean[live] = np.add.reduceat(magnitude, starts, dtype=np.float64) / self.n_fired[live]
        return {"n_fired": self.n_fired, "max_activation": maximum, "mean_activation": mean}
