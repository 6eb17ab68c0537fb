"""Random sparse codes with everything that a store has to put up with, next to the dense matrix that they are."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from autointerp.files import write_array
from autointerp.shards import WHOLE, Shard
from autointerp.store import layout
from autointerp.store.reader import LatentStore
from autointerp.store.writer import StoreWriter
from sae.codes import SparseCodes

IDENTITY: dict[str, Any] = {"sae_sha": "random", "tokens": 1}


@dataclass(frozen=True)
class RandomCodes:
    """`dense` float32 [n_blocks * T, F] is zero where a latent is silent, and on positions that do not count."""

    tokens: NDArray[np.int32]
    documents: NDArray[np.int32]
    dense: NDArray[np.float32]
    seed: int

    @classmethod
    def make(cls, seed: int, n_blocks: int = 40, length: int = 8, n_latents: int = 50) -> RandomCodes:
        """Signed values; some latents dead, the last one among them; latent 1 fires on every token that counts."""
        rng = np.random.default_rng(seed)
        shape = (n_blocks, length)
        tokens = rng.integers(0, 1000, shape, dtype=np.int32)
        documents = np.where(rng.random(shape) < 0.8, np.arange(n_blocks, dtype=np.int32)[:, None] // 3, -1)
        documents[rng.random(n_blocks) < 0.1] = -1  # contexts in which nothing counts
        counted = documents.reshape(-1) >= 0
        # From latents that fire on most tokens to ones that fire once or never; tokens differ in how many they have.
        often = rng.random(n_latents) ** 4
        busy = rng.choice([0.0, 0.3, 1.0, 2.0], size=len(counted))
        fires = rng.random((len(counted), n_latents)) < busy[:, None] * often
        fires[:, rng.random(n_latents) < 0.2] = False
        fires[:, -1] = False
        if n_latents > 2:
            fires[:, 1] = True
        values = rng.standard_normal(fires.shape).astype(np.float32)
        values[values == 0] = 1
        return cls(tokens, documents.astype(np.int32), np.where(fires & counted[:, None], values, 0), seed)

    @property
    def n_latents(self) -> int:
        return self.dense.shape[1]

    def part(self, some: range) -> RandomCodes:
        """These contexts alone."""
        span, length = slice(some.start, some.stop), self.tokens.shape[1]
        flat = slice(some.start * length, some.stop * length)
        return RandomCodes(self.tokens[span], self.documents[span], self.dense[flat], self.seed)

    def of(self, span: slice) -> tuple[NDArray[np.int64], SparseCodes]:
        """Positions that count and their codes, the latents of a token in any order."""
        length = self.tokens.shape[1]
        at = np.flatnonzero(self.documents[span].reshape(-1) >= 0) + span.start * length
        rng = np.random.default_rng([self.seed, span.start])
        latents = [rng.permutation(np.flatnonzero(self.dense[p])) for p in at]
        offsets = np.concatenate([[0], np.cumsum([len(some) for some in latents])]).astype(np.int64)
        flat = np.concatenate([np.empty(0, np.int64), *latents])
        values = self.dense[np.repeat(at, np.diff(offsets)), flat]
        return at, SparseCodes(
            torch.from_numpy(offsets), torch.from_numpy(flat), torch.from_numpy(values), self.n_latents
        )

    def begin(self, folder: Path, identity: dict[str, Any] = IDENTITY, **how: Any) -> StoreWriter:
        if not (folder / layout.DOCUMENTS).is_file():
            write_array(folder / layout.TOKENS, self.tokens)
            write_array(folder / layout.DOCUMENTS, self.documents)
        return StoreWriter(folder, identity, self.n_latents, **{"part_seconds": math.inf, **how})

    def write(
        self, folder: Path, *, spans: list[slice] | None = None, budget: int = 2**20, shards: int = 1,
        identity: dict[str, Any] = IDENTITY, **how: Any,
    ) -> LatentStore:  # fmt: skip
        """Through a writer a shard, in the given spans (of the whole; default: all at once)."""
        for i in range(shards):
            shard = Shard(i, shards) if shards > 1 else WHOLE
            mine = shard.of(len(self.tokens))
            share = self.part(mine)
            writer = share.begin(
                layout.shard_folder(folder, shard), identity, shard=shard, first_block=mine.start, **how
            )
            for span in spans if shards == 1 and spans else cut(len(mine), self.seed):
                writer.add(span, *share.of(span))
            writer.finalise(budget=budget)
        return LatentStore.open(folder, verify=True)


def cut(n: int, seed: int, longest: int = 9) -> list[slice]:
    """`n` contexts in batches of random sizes."""
    rng = np.random.default_rng(seed)
    bounds = [0]
    while bounds[-1] < n:
        bounds.append(min(n, bounds[-1] + int(rng.integers(1, longest))))
    return [slice(a, b) for a, b in pairwise(bounds)]


def files(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in walk(folder)}


def walk(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if path.is_file())
