"""Where windows come from in which a latent does not fire: at random, or hard to tell from those in which it does.

A source yields candidate windows for one latent and one side, best first. The sampler takes from it,
passing over windows in which the latent fires, duplicates, and what it has taken already.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from autointerp.sampling.centred import Apart
from autointerp.sampling.firing import runs
from autointerp.sampling.grid import WindowGrid
from autointerp.seeds import generator
from autointerp.store.reader import LatentStore

SIDES = ("explain", "score")
PEAK_TOKENS = 20
"""Tokens at a latent's peaks that are looked for elsewhere."""
NEIGHBOURS = 10
"""Neighbouring latents whose windows are taken, in turn."""
SAMPLE = 512
"""Windows with one token, or of one neighbour, that are looked at first."""

Windows = NDArray[np.integer]


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
            for _ in range(8):
                yield pool[rng.integers(0, len(pool), size=256)]
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
        pools = [self.windows[self.edges[t] : self.edges[t + 1]] for t in tokens[common].tolist()]
        return _in_turn(pools, counts[common].astype(np.float64), fired, rng)


class OfNeighbours:
    """Windows in which neighbouring latents fire, from each of the nearest in turn."""

    def __init__(self, store: LatentStore, grid: WindowGrid, near: Callable[[int], NDArray[np.int64]]) -> None:
        self.store, self.grid, self.near = store, grid, near
        # For the other side they are needed once more.
        self.windows = lru_cache(maxsize=2 * NEIGHBOURS)(self._windows)

    def candidates(self, fired: Fired, side: int, rng: np.random.Generator) -> Iterator[Windows]:
        pools = [self.windows(latent) for latent in self.near(fired.latent)[:NEIGHBOURS].tolist()]
        return _in_turn(pools, np.ones(len(pools)), fired, rng)

    def _windows(self, latent: int) -> Windows:
        at = self.grid.window_of[self.store.of(latent)[0]]
        windows = at[runs(at)]
        return windows[windows >= 0]


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


def _in_turn(
    pools: Sequence[Windows], weights: NDArray[np.float64], fired: Fired, rng: np.random.Generator
) -> Iterator[Windows]:
    """Free windows of all pools, such that the first n hold of each pool about its share of the weights.

    Of large pools samples come first: a few windows are wanted of what may be millions.
    """
    if not pools:
        return
    largest = max(map(len, pools))
    for most in (SAMPLE, 32 * SAMPLE, largest):
        some = [pool if len(pool) <= most else rng.choice(pool, most, replace=False) for pool in pools]
        free = [fired.free(rng.permutation(pool)) for pool in some]
        turn = np.concatenate([(np.arange(len(one)) + 0.5) / w for one, w in zip(free, weights, strict=True)])
        yield np.concatenate(free)[np.argsort(turn, kind="stable")]
        if largest <= most:
            return


class Taker:
    """Takes windows for one latent, none twice and none in which it fires; where `apart` is given, as that allows."""

    def __init__(self, grid: WindowGrid, fired: Windows, apart: Apart | None) -> None:
        self.grid, self.apart = grid, apart
        self._barred = np.zeros(grid.n, dtype=np.bool_)
        self._barred[fired] = True

    def free(self, windows: Windows, side: int) -> Windows:
        """Those of the side that may be taken."""
        free: Windows = windows[(self.grid.side_of[windows] == side) & ~self._barred[windows]]
        return free

    def take(self, chunks: Iterator[Windows], side: int, n: int) -> Windows:
        """The first `n` windows that may be taken, in the order they come."""
        taken: dict[int, None] = {}
        while len(taken) < n and (chunk := next(chunks, None)) is not None:
            for window in self.free(chunk, side).tolist():
                if window not in taken and self._fits(window):
                    taken[window] = None
                    if len(taken) == n:
                        break
        found = np.fromiter(taken, dtype=np.int64, count=len(taken))
        self._barred[found] = True
        return found

    def _fits(self, window: int) -> bool:
        if self.apart is None:
            return True
        begin = int(self.grid.start[window])
        return self.apart.add(begin, begin + int(self.grid.length[window]))
