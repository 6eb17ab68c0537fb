"""Stores whose every activation is known: texts with all that documents can do, latents of all kinds, any shards.

The subject is a stand-in that knows the text of every token id. Some ids are halves of a character.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from autointerp.config import SamplingSettings
from autointerp.files import write_array
from autointerp.sampling.sampler import Sampler
from autointerp.shards import Shard
from autointerp.store import layout
from autointerp.store.reader import LatentStore
from autointerp.store.writer import StoreWriter
from sae.codes import SparseCodes

VOCABULARY = 400
FIRST_HALF, SECOND_HALF = 398, 399
"""Ids that make up one character only together."""
MASKED = -1


class Words:
    """Knows the text of every token, as a `SubjectModel` does."""

    def pieces_alone(self, tokens: Sequence[int]) -> list[str]:
        return ["\ufffd" if token >= FIRST_HALF else f" w{token}" for token in tokens]

    def pieces(self, tokens: Sequence[int]) -> tuple[str, ...]:
        pieces = self.pieces_alone(tokens)
        for i, pair in enumerate(pairwise(tokens)):
            if pair == (FIRST_HALF, SECOND_HALF):
                pieces[i : i + 2] = ["", "é"]
        return tuple(pieces)


@dataclass(frozen=True)
class Planted:
    """`tokens` and `documents` [B, T]; `latents` maps ids to the activation at each flat position, [B * T]."""

    tokens: NDArray[np.int32]
    documents: NDArray[np.int32]
    latents: dict[int, NDArray[np.float32]]
    n_latents: int

    @property
    def context(self) -> int:
        return self.tokens.shape[1]

    @cached_property
    def flat(self) -> NDArray[np.int32]:
        return self.tokens.reshape(-1)

    @cached_property
    def owners(self) -> NDArray[np.int32]:
        return self.documents.reshape(-1)

    def of(self, latent: int) -> NDArray[np.float32]:
        return self.latents.get(latent, np.zeros(self.flat.size, dtype=np.float32))

    @cached_property
    def stretches(self) -> list[tuple[int, int]]:
        """`[begin, end)` of one document in one context."""
        begin, found = 0, []
        for at in range(1, self.flat.size + 1):
            if at == self.flat.size or at % self.context == 0 or self.owners[at] != self.owners[begin]:
                if self.owners[begin] != MASKED:
                    found.append((begin, at))
                begin = at
        return found

    def cells(self, window: int, shortest: int) -> list[tuple[int, int]]:
        """`[begin, end)` of the windows that a grid has to have."""
        found = []
        for begin, end in self.stretches:
            if end - begin >= shortest:
                parts = np.array_split(np.arange(begin, end), -(-(end - begin) // window))
                found += [(int(part[0]), int(part[-1]) + 1) for part in parts]
        return found

    def write(self, folder: Path, shards: int = 1) -> LatentStore:
        for index in range(shards):
            shard = Shard(index, shards)
            blocks = shard.of(len(self.tokens))
            some = slice(blocks.start, blocks.stop)
            part = layout.shard_folder(folder, shard)
            part.mkdir(parents=True, exist_ok=True)
            write_array(part / layout.TOKENS, self.tokens[some])
            write_array(part / layout.DOCUMENTS, self.documents[some])
            owners = self.documents[some].reshape(-1)
            dense = np.zeros((owners.size, self.n_latents), dtype=np.float32)
            at = slice(some.start * self.context, some.stop * self.context)
            for latent, activations in self.latents.items():
                dense[:, latent] = activations[at]
            counted = np.flatnonzero(owners != MASKED)
            codes = SparseCodes.from_dense(torch.from_numpy(dense[counted]))
            writer = StoreWriter(part, {"planted": True}, self.n_latents, shard=shard, first_block=some.start)
            writer.add(slice(0, len(blocks)), counted, codes)
            writer.finalise()
        return LatentStore.open(folder)


def documents(rng: np.random.Generator, blocks: int, context: int, lengths: Iterable[int]) -> NDArray[np.int32]:
    """Documents of these lengths, over and over, a masked separator after each; some contexts begin with a masked token."""
    owners = np.full(blocks * context, MASKED, dtype=np.int32)
    choices, at, number = np.array(list(lengths)), 0, 0
    while at < len(owners):
        length = int(rng.choice(choices))
        owners[at : at + length] = number
        at, number = at + length + 1, number + 1
    owners[:: 2 * context] = MASKED
    owners[rng.integers(0, len(owners), size=len(owners) // 200)] = MASKED
    return owners.reshape(blocks, context)


def text(rng: np.random.Generator, size: int, vocabulary: int = VOCABULARY) -> NDArray[np.int32]:
    """Tokens of very unequal frequency."""
    p = 1 / (np.arange(vocabulary) + 5.0)
    return rng.choice(vocabulary, size=size, p=p / p.sum()).astype(np.int32)


ORDINARY, DENSE, SIGNED, TIED, RARE, DEAD, OF_TOKENS, BURSTS, MOSTLY_NEGATIVE, RARER, SHARED, TWIN = range(12)
N_LATENTS = 16


def everything(seed: int, blocks: int = 60, context: int = 128) -> Planted:
    """One latent of each kind above; 12 and 13 are ordinary, 14 is dead, 15 fires on every token."""
    rng = np.random.default_rng(seed)
    owners = documents(rng, blocks, context, [1, 3, 7, 8, 9, 15, 17, 33, 40, 64, 100, 300])
    tokens = text(rng, owners.size)
    flat = owners.reshape(-1)
    # Texts that come again: whole windows, at the grid's cuts or beside them, with or without an edit.
    for _ in range(owners.size // 600):
        source, target = rng.integers(0, owners.size - 80, size=2)
        tokens[target : target + 60] = tokens[source : source + 60]
    halves = np.flatnonzero(rng.random(owners.size - 1) < 0.02)
    tokens[halves], tokens[halves + 1] = FIRST_HALF, SECOND_HALF

    def fire(share: float) -> NDArray[np.float32]:
        return np.where(rng.random(flat.size) < share, rng.gamma(2.0, size=flat.size) + 0.01, 0).astype(np.float32)

    sign = np.where(rng.random(flat.size) < 0.6, 1, -1).astype(np.float32)
    few = np.zeros((2, flat.size), dtype=np.float32)
    inside = np.flatnonzero(np.convolve(flat != MASKED, np.ones(9), "same") == 9)
    few[0, rng.choice(inside, 3, replace=False)] = rng.random(3) + 0.1
    few[1, rng.choice(inside, 1)] = 1
    begun = fire(0.004)
    bursts = np.maximum.reduce([np.roll(begun, i) * 0.8**i for i in range(4)]).astype(np.float32)
    of_tokens = np.where(np.isin(tokens, [3, 11, 40]), fire(0.6), 0).astype(np.float32)
    shared = fire(0.01)
    latents = {
        ORDINARY: fire(0.01),
        DENSE: fire(0.2),
        SIGNED: fire(0.02) * sign,
        TIED: np.sign(fire(0.02)) * rng.integers(1, 3, flat.size).astype(np.float32) * sign,
        RARE: few[0],
        OF_TOKENS: of_tokens,
        BURSTS: bursts,
        MOSTLY_NEGATIVE: -fire(0.02) * sign,
        RARER: few[1],
        SHARED: shared,
        TWIN: np.where(rng.random(flat.size) < 0.7, shared, fire(0.002)).astype(np.float32),
        12: fire(0.03),
        13: fire(0.001),
        15: fire(1.1),
    }
    counted = flat != MASKED
    planted = {latent: np.where(counted, values, 0).astype(np.float32) for latent, values in latents.items()}
    return Planted(tokens.reshape(owners.shape), owners, planted, N_LATENTS)


def directions(n_latents: int = N_LATENTS, seed: int = 5) -> torch.Tensor:
    return torch.randn(n_latents, 8, generator=torch.Generator().manual_seed(seed))


def embed(texts: Sequence[str]) -> NDArray[np.float32]:
    """Counts of letters and digits by kind, as vectors of unit length: the same for the same text."""
    vectors = np.array([[text.count(str(i)) + 0.1 for i in range(10)] for text in texts], dtype=np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def sampler(store: LatentStore, seed: int = 0, **settings: Any) -> Sampler:
    return Sampler(
        store, Words(), SamplingSettings(**settings), seed,  # type: ignore[arg-type]
        directions=lambda: directions(store.n_latents), embed=embed,
    )  # fmt: skip
