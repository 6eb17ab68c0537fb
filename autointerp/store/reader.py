"""Read a latent store. One latent is one contiguous, memory-mapped slice of each shard."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autointerp.errors import Damaged, UserError
from autointerp.files import read_array
from autointerp.store import layout
from autointerp.store.merge import ranges
from autointerp.store.statistics import DTYPE


@dataclass(frozen=True)
class StoreShard:
    """A contiguous range of contexts; its positions count from `offset`."""

    folder: Path
    manifest: dict[str, Any]
    arrays: dict[str, NDArray[Any]] = field(repr=False)
    offset: int = 0

    @classmethod
    def open(cls, folder: Path, offset: int, *, verify: bool) -> StoreShard:
        manifest = layout.read_manifest(folder)
        arrays = {}
        for name in layout.ARRAYS:
            layout.check_file(folder / name, manifest["files"][name], content=verify)
            arrays[name] = read_array(folder / name)
        n = int(manifest["n_activations"])
        indptr = arrays[layout.INDPTR]
        fits = len(indptr) == manifest["n_latents"] + 1 and int(indptr[-1]) == n == len(arrays[layout.POSITIONS])
        if not fits or len(arrays[layout.VALUES]) != n or len(arrays[layout.STATISTICS]) != manifest["n_latents"]:
            raise Damaged(f"'{folder}': index and activations do not fit together; collect with --fresh")
        return cls(folder, manifest, arrays, offset)

    def of(self, latent: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        indptr = self.arrays[layout.INDPTR]
        span = slice(int(indptr[latent]), int(indptr[latent + 1]))
        positions = self.arrays[layout.POSITIONS][span].astype(np.int64)
        return positions + self.offset, np.asarray(self.arrays[layout.VALUES][span])


@dataclass
class LatentStore:
    """Positions are flat: p is context p // T, place p % T, counted over all shards. `of(latent)` gives a latent's."""

    folder: Path
    shards: list[StoreShard]

    @classmethod
    def open(cls, folder: Path, *, verify: bool = False) -> LatentStore:
        """Open a finished store; `verify` also compares every file's sha256.

        Raises:
            UserError: unfinished, of another version, or shards of different things.
            Damaged: a file is missing, cut off or altered; the message names it.
        """
        shards: list[StoreShard] = []
        offset = 0
        folders = layout.shard_folders(folder)
        for i, path in enumerate(folders):
            shard = StoreShard.open(path, offset, verify=verify)
            is_of = shard.manifest["shard"]
            if (is_of["index"], is_of["count"]) != (i, len(folders)):
                raise Damaged(
                    f"'{path}' holds shard {is_of['index']}/{is_of['count']} where {i}/{len(folders)} should be; "
                    "name the folder that holds all shards, each as it was collected"
                )
            apart = layout.differences(shards[0].manifest["identity"], shard.manifest["identity"]) if shards else []
            if apart:
                raise UserError(f"'{path}' was collected with other settings than its siblings ({'; '.join(apart)})")
            length = shard.arrays[layout.TOKENS].shape[1]
            if shard.manifest["shard"]["first_block"] * length != offset:
                raise Damaged(f"'{path}' does not follow on the shard before it; collect its shards with the same text")
            shards.append(shard)
            offset += shard.arrays[layout.TOKENS].size
        return cls(folder, shards)

    @property
    def identity(self) -> dict[str, Any]:
        identity: dict[str, Any] = self.shards[0].manifest["identity"]
        return identity

    @property
    def n_latents(self) -> int:
        return int(self.shards[0].manifest["n_latents"])

    @property
    def n_activations(self) -> int:
        return sum(int(shard.manifest["n_activations"]) for shard in self.shards)

    @property
    def n_tokens(self) -> int:
        """Tokens that count: special tokens and skipped positions are left out."""
        return sum(int(shard.manifest["n_tokens"]) for shard in self.shards)

    @property
    def l0(self) -> float:
        """Mean number of latents that fire on a token."""
        return self.n_activations / max(1, self.n_tokens)

    @property
    def context_length(self) -> int:
        return int(self.tokens.shape[1])

    @cached_property
    def tokens(self) -> NDArray[np.int32]:
        """int32 [n_blocks, T]."""
        return self._joined(layout.TOKENS)

    @cached_property
    def documents(self) -> NDArray[np.int32]:
        """int32 [n_blocks, T]; -1 where a position counts for nothing."""
        return self._joined(layout.DOCUMENTS)

    def _joined(self, name: str) -> NDArray[np.int32]:
        parts = [shard.arrays[name] for shard in self.shards]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    @cached_property
    def n_fired(self) -> NDArray[np.int64]:
        """Tokens on which each latent fires, [F]."""
        total: NDArray[np.int64] = sum(np.diff(shard.arrays[layout.INDPTR]) for shard in self.shards)  # type: ignore[assignment]
        return total

    def of(self, latent: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Flat positions (ascending) and activations of one latent."""
        if len(self.shards) == 1:
            return self.shards[0].of(latent)
        found = [shard.of(latent) for shard in self.shards]
        return np.concatenate([p for p, _ in found]), np.concatenate([v for _, v in found])

    @cached_property
    def poles(self) -> NDArray[np.void]:
        """Counts, sums and maxima of each latent's two poles: structured [F], see `store.statistics.DTYPE`."""
        total = np.zeros(self.n_latents, dtype=DTYPE)
        for shard in self.shards:
            for name in DTYPE.names or ():
                join = np.maximum if name.startswith("max") else np.add
                total[name] = join(total[name], shard.arrays[layout.STATISTICS][name])
        return total

    def statistics(self) -> dict[str, NDArray[Any]]:
        """`n_fired`, `n_negative`, `max_activation` and `mean_activation` of every latent, NaN where it never fires.

        Magnitudes, so that a signed latent's stronger pole counts.
        """
        poles, n = self.poles, self.n_fired
        with np.errstate(invalid="ignore"):
            mean = np.where(n > 0, (poles["sum_positive"] + poles["sum_negative"]) / np.maximum(n, 1), np.nan)
        maximum = np.maximum(poles["max_positive"], poles["max_negative"]).astype(np.float64)
        return {
            "n_fired": n, "n_negative": poles["n_negative"], "max_activation": np.where(n > 0, maximum, np.nan),
            "mean_activation": mean,
        }  # fmt: skip

    def scan(self, most: int = 2**22) -> Iterator[Scan]:
        """All activations, latent by latent and shard by shard, about `most` at a time."""
        for shard in self.shards:
            indptr = np.asarray(shard.arrays[layout.INDPTR])
            for low, high in pairwise(ranges(indptr, most).tolist()):
                span = slice(int(indptr[low]), int(indptr[high]))
                positions = shard.arrays[layout.POSITIONS][span].astype(np.int64) + shard.offset
                yield Scan(low, indptr[low : high + 1] - indptr[low], positions, shard.arrays[layout.VALUES][span])


@dataclass(frozen=True, slots=True)
class Scan:
    """Activations of latents from `first` on: those of the i-th are at `edges[i]:edges[i + 1]`."""

    first: int
    edges: NDArray[np.int64]
    positions: NDArray[np.int64]
    values: NDArray[np.float32]

    def latents(self, index: NDArray[np.int64]) -> NDArray[np.int64]:
        """Latents of activations, given by their (ascending) places in the scan."""
        return np.searchsorted(self.edges, index, side="right") - 1 + self.first
