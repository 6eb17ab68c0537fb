"""Draw each latent's windows: activating ones over all strengths, non-activating ones at random.

Every draw depends on (seed, latent) alone. Explaining and scoring windows come from disjoint documents,
nothing is drawn twice, and a window in which the latent fires anywhere is never a non-activating one.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from autointerp.config import SamplingSettings
from autointerp.sampling.grid import EXPLAIN, SCORE, WindowGrid
from autointerp.seeds import derive, generator
from autointerp.store.reader import LatentStore
from autointerp.subject.load import SubjectModel
from autointerp.types import LatentRecord
from scoring.types import ACTIVATING, RANDOM, Window

SPLIT_NAMES = {EXPLAIN: "explain", SCORE: "score"}


class Sampler:
    """Draws `LatentRecord`s from a store. Building the grid costs one pass over the tokens."""

    def __init__(self, store: LatentStore, subject: SubjectModel, config: SamplingSettings, seed: int) -> None:
        self.store, self.subject, self.config, self.seed = store, subject, config, seed
        self.grid = WindowGrid.of(store, window=config.window, shortest=config.shortest, seed=seed)
        self._tokens = np.asarray(store.tokens).reshape(-1)
        self._documents = np.asarray(store.documents).reshape(-1)
        self._sides = {
            side: np.flatnonzero((self.grid.split == side) & ~self.grid.duplicate) for side in (EXPLAIN, SCORE)
        }
        # To explain, all latents are set against the same windows (each without those it fires in), which an
        # encoder then reads once. Scores keep windows of their own: shared ones would tie latents' errors together.
        self._background = generator(seed, "background").permutation(self._sides[EXPLAIN])

    def window_counts(self) -> NDArray[np.int64]:
        """Distinct activating windows of each latent on its poorer side, `[F]`: what decides live or rare."""
        usable = ~self.grid.duplicate
        counts = np.zeros((2, self.store.n_latents), dtype=np.int64)
        for latent in np.flatnonzero(self.store.n_fired):
            windows = np.unique(self.grid.at(self.store.of(int(latent))[0]))
            windows = windows[windows >= 0]
            windows = windows[usable[windows]]
            counts[:, latent] = np.bincount(self.grid.split[windows], minlength=2)
        poorer: NDArray[np.int64] = counts.min(axis=0)
        return poorer

    def record(self, latent: int) -> LatentRecord:
        positions, values = self.store.of(latent)
        at = self.grid.at(positions)
        inside = at >= 0
        windows, first = np.unique(at[inside], return_index=True)
        peaks = np.maximum.reduceat(np.abs(values[inside]), first) if len(windows) else np.empty(0, np.float32)
        config = self.config
        sizes = {
            EXPLAIN: (config.explain_activating, config.explain_random),
            SCORE: (config.score_activating, config.score_random),
        }
        drawn: dict[int, tuple[Window, ...]] = {}
        for side, (n_activating, n_random) in sizes.items():
            rng = generator(self.seed, "windows", SPLIT_NAMES[side], latent)
            mine = (self.grid.split[windows] == side) & ~self.grid.duplicate[windows]
            chosen, quantile = by_quantile(peaks[mine], n_activating, config.quantiles, rng)
            activating = [
                self._window(latent, int(w), ACTIVATING, positions, values, int(q))
                for w, q in zip(windows[mine][chosen], quantile, strict=True)
            ]
            pool = self._background if side == EXPLAIN else rng.permutation(self._sides[side])
            others = outside(pool, windows, n_random)
            random = [self._window(latent, int(w), RANDOM, positions, values, None) for w in others]
            drawn[side] = (*activating, *random)
        return LatentRecord(
            latent=latent,
            n_fired=len(positions),
            n_tokens=self.store.n_tokens,
            max_activation=float(np.abs(values).max()) if len(values) else 0.0,
            mean_activation=float(np.abs(values).mean()) if len(values) else 0.0,
            explain=drawn[EXPLAIN],
            score=drawn[SCORE],
            prompts=self._prompts(latent, positions, values),
        )

    def _prompts(self, latent: int, positions: NDArray[np.int64], values: NDArray[np.float32]) -> tuple[Window, ...]:
        """Contexts of scoring documents whose last token is the first on which the latent fires.

        Card of the intervention protocol (Paulo et al. 2024): stratified by activation quintile.
        """
        if not len(positions):
            return ()
        documents = self._documents[positions]
        windows = self.grid.at(positions)
        # A context starts after the latest of: its document's (or block's) first token, the previous activation.
        block_start = positions - positions % self.store.context_length
        change = np.flatnonzero(np.diff(self._documents) != 0) + 1
        document_start = np.concatenate([[0], change])[np.searchsorted(change, positions, side="right")]
        previous = np.concatenate([[-1], positions[:-1]]) + 1
        start = np.maximum.reduce([block_start, document_start, previous, positions + 1 - self.config.prompt_tokens])
        long_enough = positions + 1 - start >= self.config.shortest
        usable = long_enough & (documents >= 0) & (windows >= 0) & (self.grid.split[windows] == SCORE)
        found = np.flatnonzero(usable)
        rng = generator(self.seed, "prompts", latent)
        chosen, quantile = by_quantile(np.abs(values[found]), self.config.prompts, 5, rng)
        return tuple(
            self._cut(latent, int(start[i]), int(positions[i]) + 1, ACTIVATING, positions, values, int(q))
            for i, q in zip(found[chosen], quantile, strict=True)
        )

    def _window(
        self, latent: int, index: int, kind: str, positions: NDArray[np.int64], values: NDArray[np.float32],
        quantile: int | None,
    ) -> Window:  # fmt: skip
        start = int(self.grid.start[index])
        return self._cut(latent, start, start + int(self.grid.length[index]), kind, positions, values, quantile)

    def _cut(
        self, latent: int, start: int, end: int, kind: str, positions: NDArray[np.int64], values: NDArray[np.float32],
        quantile: int | None,
    ) -> Window:  # fmt: skip
        tokens = tuple(int(t) for t in self._tokens[start:end])
        activations = np.zeros(end - start, dtype=np.float32)
        span = slice(*np.searchsorted(positions, [start, end]))
        activations[positions[span] - start] = values[span]
        return Window(
            window_id=f"{start:x}-{end - start:x}",
            document=int(self._documents[start]),
            start=start,
            kind=kind,
            pieces=self.subject.pieces(tokens),
            tokens=tokens,
            activations=tuple(float(a) for a in activations),
            quantile=quantile,
        )


def by_quantile(
    peaks: NDArray[np.float32], n: int, quantiles: int, rng: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Indices of up to `n` peaks, evenly over `quantiles` slices of their order, and each one's slice.

    Slices that run out are made up for from the others, so `n` are drawn whenever there are `n`.
    """
    order = np.argsort(peaks, kind="stable")
    slice_of = np.empty(len(peaks), dtype=np.int64)
    slice_of[order] = np.arange(len(peaks)) * quantiles // max(1, len(peaks))
    # Round-robin over the slices: the i-th draw of a slice comes before the (i+1)-th of any other.
    shuffled = rng.permutation(len(peaks))
    shuffled = shuffled[np.argsort(slice_of[shuffled], kind="stable")]
    counts = np.bincount(slice_of, minlength=quantiles)
    nth = np.arange(len(peaks)) - np.repeat(np.cumsum(counts) - counts, counts)
    chosen = shuffled[np.argsort(nth, kind="stable")][:n]
    chosen = chosen[np.argsort(peaks[chosen], kind="stable")]
    return chosen, slice_of[chosen]


def outside(pool: NDArray[np.int64], excluded: NDArray[np.int64], n: int) -> NDArray[np.int64]:
    """The first `n` members of `pool` that are not in `excluded`; neither holds anything twice."""
    return pool[~np.isin(pool, excluded, assume_unique=True)][:n]


def derangement(latents: list[int], seed: int) -> dict[int, int]:
    """For each latent another one whose explanation stands in for its own: a seeded cycle over the sample."""
    if len(latents) < 2:
        return {}
    order = sorted(latents)
    cycle = [order[i] for i in np.random.default_rng(derive(seed, "shuffle")).permutation(len(order))]
    return dict(zip(cycle, [*cycle[1:], cycle[0]], strict=True))
