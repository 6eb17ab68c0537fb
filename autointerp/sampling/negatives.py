"""Where windows come from in which a latent does not fire: at random, or hard to tell from those in which it does.

A source yields candidate windows for one latent and one side, best first. The sampler takes from it,
passing over windows in which the latent fires, duplicates, and what it has taken already.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from autointerp.sampling.grid import WindowGrid
from autointerp.seeds import generator
from autointerp.store.reader import LatentStore

SIDES = ("explain", "score")
PEAK_TOKENS = 20
"""Tokens at a latent's peaks that are looked for elsewhere."""
OCCURRENCES = 2048
"""Places of such a token that are looked at, unless they do not give enough."""
NEIGHBOURS = 10
"""Neighbouring latents whose windows are taken, in turn."""

Windows = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Fired:
    """What a source may know of a latent."""

    latent: int
    peak_tokens: NDArray[np.int32]
    """The token at the peak of each window in which it fires."""
    shown: Windows
    """Windows it is explained from."""
    free: Callable[[Windows], Windows]
    """Which of some windows may be taken."""


class Source(Protocol):
    def candidates(self, fired: Fired, side: int, rng: np.random.Generator) -> Iterator[Windows]:
        """Windows in chunks, best first. They may hold windows that are not free, and some twice."""


class RandomWindows:
    """Any window of the side. To explain, all latents are set against the same ones, which an encoder then reads once.

    Scores keep windows of their own: shared ones would tie the errors of latents together.
    """

    def __init__(self, grid: WindowGrid, seed: int) -> None:
        self.sides = [grid.side(side) for side in range(len(SIDES))]
        self.background = generator(seed, "background").permutation(self.sides[0])

    def candidates(self, fired: Fired, side: int, rng: np.random.Generator) -> Iterator[Windows]:
        pool = self.sides[side]
        if side == 0:
            for begin in range(0, len(pool), 1024):
                yield self.background[begin : begin + 1024]
        elif len(pool):
            # A full permutation of millions of windows is rarely needed: most draws of a few hit nothing twice.
            for _ in range(4):
                yield pool[rng.integers(0, len(pool), size=512)]
            yield rng.permutation(pool)


class SameToken:
    """Windows with a token at which the latent peaks elsewhere, each token as often as it is at a peak."""

    def __init__(self, store: LatentStore, grid: WindowGrid) -> None:
        inside = np.flatnonzero(grid.window_of >= 0)
        tokens = np.asarray(store.tokens).reshape(-1)[inside]
        order = np.argsort(tokens, kind="stable")
        self.windows = grid.window_of[inside[order]]
        self.edges = np.searchsorted(tokens[order], np.arange(int(tokens.max(initial=0)) + 2))

    def candidates(self, fired: Fired, side: int, rng: np.random.Generator) -> Iterator[Windows]:
        tokens, counts = np.unique(fired.peak_tokens, return_counts=True)
        common = np.argsort(-counts, kind="stable")[:PEAK_TOKENS]
        places = [self.windows[self.edges[t] : self.edges[t + 1]] for t in tokens[common].tolist()]
        # A few windows are wanted of what may be millions.
        some = [rng.choice(p, OCCURRENCES, replace=False) if len(p) > OCCURRENCES else p for p in places]
        for pools in (some, places):
            silent = [rng.permutation(fired.free(np.unique(pool).astype(np.int64))) for pool in pools]
            yield _in_turn(silent, counts[common].astype(np.float64))


class OfNeighbours:
    """Windows in which neighbouring latents fire, from each of the nearest in turn."""

    def __init__(self, store: LatentStore, grid: WindowGrid, near: Callable[[int], NDArray[np.int64]]) -> None:
        self.store, self.grid, self.near = store, grid, near

    def candidates(self, fired: Fired, side: int, rng: np.random.Generator) -> Iterator[Windows]:
        pools = []
        for latent in self.near(fired.latent)[:NEIGHBOURS].tolist():
            windows = np.unique(self.grid.window_of[self.store.of(latent)[0]]).astype(np.int64)
            pools.append(rng.permutation(fired.free(windows[windows >= 0])))
        yield _in_turn(pools, np.ones(len(pools)))


class Embedded:
    """Windows that a sentence encoder puts nearest to what the latent is explained from, out of a pool for all latents.

    The search is exact: one product of the pool with the mean of the latent's windows.
    """

    QUERIES = 8

    def __init__(
        self, grid: WindowGrid, seed: int, pool: int, embed: Callable[[NDArray[np.int64]], NDArray[np.float32]]
    ) -> None:
        self.embed = embed
        self.pools = [
            np.sort(generator(seed, "embedding pool", side).permutation(grid.side(i))[:pool])
            for i, side in enumerate(SIDES)
        ]

    @cached_property
    def vectors(self) -> list[NDArray[np.float32]]:
        return [self.embed(pool) for pool in self.pools]

    def candidates(self, fired: Fired, side: int, rng: np.random.Generator) -> Iterator[Windows]:
        if len(fired.shown) and len(self.pools[side]):
            spread = np.linspace(0, len(fired.shown) - 1, min(self.QUERIES, len(fired.shown))).round().astype(int)
            query = self.embed(fired.shown[spread]).mean(axis=0)
            yield self.pools[side][np.argsort(-(self.vectors[side] @ query), kind="stable")]


def _in_turn(pools: list[NDArray[np.int64]], weights: NDArray[np.float64]) -> NDArray[np.int64]:
    """Members of all pools, such that the first n hold of each pool about its share of the weights."""
    if not pools:
        return np.empty(0, dtype=np.int64)
    turn = np.concatenate([(np.arange(len(pool)) + 0.5) / w for pool, w in zip(pools, weights, strict=True)])
    mixed: NDArray[np.int64] = np.concatenate(pools)[np.argsort(turn, kind="stable")].astype(np.int64)
    return mixed


class Taker:
    """Takes windows for one latent, none twice and none in which it fires."""

    def __init__(self, grid: WindowGrid, fired: Windows) -> None:
        self.grid, self.barred = grid, fired

    def bar(self, windows: Windows) -> None:
        """These may not be taken either."""
        self.barred = np.union1d(self.barred, windows)

    def free(self, windows: Windows, side: int) -> Windows:
        """Those of the side that may be taken."""
        fits = windows[(self.grid.split[windows] == side) & ~self.grid.duplicate[windows]]
        free: Windows = fits[~_within(self.barred, fits)]
        return free

    def take(self, chunks: Iterator[Windows], side: int, n: int) -> Windows:
        """The first `n` windows that may be taken, in the order they come."""
        taken: list[Windows] = []
        left = n
        while left > 0 and (chunk := next(chunks, None)) is not None:
            fits = self.free(chunk, side)
            _, first = np.unique(fits, return_index=True)
            some = fits[np.sort(first)][:left]
            self.barred = np.sort(np.concatenate([self.barred, some]))
            taken.append(some)
            left -= len(some)
        return np.concatenate(taken) if taken else np.empty(0, dtype=np.int64)


def _within(ordered: NDArray[np.int64], values: NDArray[np.int64]) -> NDArray[np.bool_]:
    if not len(ordered):
        return np.zeros(len(values), dtype=np.bool_)
    place = np.searchsorted(ordered, values).clip(max=len(ordered) - 1)
    found: NDArray[np.bool_] = ordered[place] == values
    return found
