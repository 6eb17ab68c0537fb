"""Draw each latent's windows: activating ones over all strengths, and others in which it does not fire.

Every draw depends on (seed, latent) alone. Explaining and scoring windows come from disjoint documents,
nothing is drawn twice, and a window in which the latent fires anywhere is never a non-activating one.
A signed latent has two poles, each with windows of its own: those whose strongest activation is of its sign.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from autointerp.config import SamplingSettings
from autointerp.errors import UserError
from autointerp.sampling import neighbours
from autointerp.sampling.choice import ORDERS, evenly, slices
from autointerp.sampling.firing import Firing
from autointerp.sampling.grid import EXPLAIN, SCORE, WindowGrid
from autointerp.sampling.negatives import SIDES, Embedded, Fired, OfNeighbours, RandomWindows, SameToken, Source, Taker
from autointerp.sampling.spans import Spans
from autointerp.seeds import derive, generator
from autointerp.store.reader import LatentStore
from autointerp.subject.load import SubjectModel
from autointerp.types import LatentRecord
from scoring.types import HARD, RANDOM, Window

Embed = Callable[[Sequence[str]], NDArray[np.float32]]
"""Texts to vectors of unit length, `[n, E]`."""


class Sampler:
    """Draws `LatentRecord`s from a store. Building the grid costs one pass over the tokens.

    `directions` gives the decoder rows [F, O] and `embed` the vectors of texts, for the non-activating windows
    that need them.
    """

    def __init__(
        self, store: LatentStore, subject: SubjectModel, config: SamplingSettings, seed: int, *,
        directions: Callable[[], Tensor] | None = None, embed: Embed | None = None,
    ) -> None:  # fmt: skip
        self.store, self.subject, self.config, self.seed = store, subject, config, seed
        self.directions, self.embed = directions, embed
        self.grid = WindowGrid.of(store, window=config.window, shortest=config.shortest, seed=seed)
        self.spans = Spans(store, subject)
        self._near: dict[str, neighbours.Neighbours] = {}
        names = dict.fromkeys([*config.explain_negatives, *config.score_negatives])
        self._sources: dict[str, Source] = {name: SOURCES[name](self) for name in names}

    def pole_of(self, latent: int) -> int:
        """The pole on which the latent fires more often: 1 or -1."""
        poles = self.store.poles[latent]
        return -1 if poles["n_negative"] > poles["n_positive"] else 1

    def window_counts(self) -> NDArray[np.int64]:
        """Distinct activating windows of each latent on its poorer side, `[F]`: what decides live or rare.

        Windows of its main pole only. One pass over the store.
        """
        grid, n = self.grid, self.store.n_latents
        counts = np.zeros((2, n), dtype=np.int64)
        main = np.where(self.store.poles["n_negative"] > self.store.poles["n_positive"], -1, 1)
        signed = bool(self.store.poles["n_negative"].any())
        for scan in self.store.scan():
            window = grid.window_of[scan.positions]
            latent = np.repeat(np.arange(len(scan.edges) - 1), np.diff(scan.edges)) + scan.first
            usable = window >= 0
            usable &= ~grid.duplicate[window]
            if signed:
                usable &= np.sign(scan.values) == main[latent]
            window, latent = window[usable], latent[usable]
            # Within a latent windows ascend, so a window is new where it differs from the one before.
            new = (np.diff(window, prepend=-1) != 0) | (np.diff(latent, prepend=-1) != 0)
            for side in (EXPLAIN, SCORE):
                mine = latent[new & (grid.split[window] == side)]
                counts[side] += np.bincount(mine, minlength=n)
        poorer: NDArray[np.int64] = counts.min(axis=0)
        return poorer

    def prepare(self, latents: Sequence[int]) -> None:
        """Find what records of these latents will need in one go, where that is cheaper than one by one."""
        for name in self._sources.keys() & NEAR.keys():
            known = self._near.setdefault(name, {})
            unknown = [latent for latent in latents if latent not in known]
            for begin in range(0, len(unknown), 1024):
                known.update(NEAR[name](self, unknown[begin : begin + 1024]))

    def near(self, source: str, latent: int) -> NDArray[np.int64]:
        """Neighbours of a latent, nearest first."""
        if latent not in self._near.get(source, {}):
            self.prepare([latent])
        return self._near[source][latent]

    def record(self, latent: int, pole: int | None = None) -> LatentRecord:
        """Windows of one latent, of the pole it fires on more often unless another is named.

        Raises:
            UserError: there is no such latent.
        """
        if not 0 <= latent < self.store.n_latents:
            raise UserError(f"no latent {latent}: this store has 0 to {self.store.n_latents - 1}")
        pole = pole or self.pole_of(latent)
        positions, values = self.store.of(latent)
        firing = Firing.of(self.grid, positions, values, pole)
        config = self.config
        taker = Taker(self.grid, firing.fired)
        usable = ~self.grid.duplicate[firing.windows]
        who = (latent,) if pole == 1 else (latent, "negative")
        explain = self._side(firing, usable, taker, EXPLAIN, who, np.empty(0, np.int64))
        score = self._side(firing, usable, taker, SCORE, who, explain[1])
        sides = np.bincount(self.grid.split[firing.windows[usable]], minlength=2)
        size = np.abs(values[np.sign(values) == pole])
        return LatentRecord(
            latent=latent,
            pole=pole,
            n_fired=len(positions),
            n_tokens=self.store.n_tokens,
            max_activation=float(size.max()) if len(size) else 0.0,
            mean_activation=float(size.mean()) if len(size) else 0.0,
            explain=explain[0],
            score=score[0],
            prompts=self._prompts(firing, who),
            rare=int(sides.min()) < config.min_windows,
        )

    def _side(
        self, firing: Firing, usable: NDArray[np.bool_], taker: Taker, side: int, who: tuple[int | str, ...],
        shown: NDArray[np.int64],
    ) -> tuple[tuple[Window, ...], NDArray[np.int64]]:  # fmt: skip
        """Windows of one side, and which of the grid's the activating ones are."""
        config = self.config
        explaining = side == EXPLAIN
        n = config.explain_activating if explaining else config.score_activating
        how = config.explain_from if explaining else config.score_from
        negatives = config.explain_negatives if explaining else config.score_negatives
        n_negative = config.explain_random if explaining else config.score_random
        rng = generator(self.seed, "windows", SIDES[side], *who)
        mine = np.flatnonzero(usable & (self.grid.split[firing.windows] == side))
        mine, start, length = self._centred(firing, mine) if config.centred else self._fixed(firing, mine)
        peaks = firing.peaks[mine]
        order = ORDERS[how](peaks, n, config.quantiles, rng)
        chosen = apart(order, start, length, n) if config.centred else order[:n]
        chosen = chosen[np.argsort(peaks[chosen], kind="stable")]
        quantile = slices(peaks, config.quantiles)[chosen].tolist()
        windows = self.spans.activating(firing, start[chosen], length[chosen], quantile)
        if config.centred:
            # Cells that a centred window reaches into are no text of their own any more.
            touched = self.grid.window_of[np.concatenate([start[chosen], start[chosen] + length[chosen] - 1])]
            taker.bar(touched[touched >= 0])
        grid_windows = firing.windows[mine[chosen]]
        shown = grid_windows if explaining else shown
        at_peaks = self.spans.tokens[firing.peak_at]
        fired = Fired(int(who[0]), firing.windows, at_peaks, shown)
        for name in negatives:
            source_rng = rng if name == "random" else generator(self.seed, name, SIDES[side], *who)
            taken = taker.take(self._sources[name].candidates(fired, side, source_rng), side, n_negative)
            windows += self.spans.silent(self.grid.start[taken], self.grid.length[taken], kind_of(name))
        return tuple(windows), grid_windows

    def _fixed(self, firing: Firing, mine: NDArray[np.int64]) -> tuple[NDArray[np.int64], ...]:
        windows = firing.windows[mine]
        return mine, self.grid.start[windows], self.grid.length[windows]

    def _centred(self, firing: Firing, mine: NDArray[np.int64]) -> tuple[NDArray[np.int64], ...]:
        """Windows of the same lengths with the peak in the middle, or as near as the document's ends allow.

        Those that reach a stronger activation are left out: it is the centre of a window of its own.
        """
        windows = firing.windows[mine]
        length = self.grid.length[windows]
        last = self.grid.stretch_end[windows] - length
        start = np.clip(firing.peak_at[mine] - length // 2, self.grid.stretch_start[windows], last)
        if not len(start):
            return mine, start, length
        right = firing.max_within(start, start + length) <= firing.peaks[mine]
        return mine[right], start[right], length[right]

    def _prompts(self, firing: Firing, who: tuple[int | str, ...]) -> tuple[Window, ...]:
        """Contexts of scoring documents whose last token is the first on which the latent fires.

        Card of the intervention protocol (Paulo et al. 2024): stratified by activation quintile.
        """
        positions, config, grid = firing.positions, self.config, self.grid
        if not len(positions) or not config.prompts:
            return ()
        windows = grid.window_of[positions]
        usable = (windows >= 0) & (np.sign(firing.values) == firing.pole)
        usable &= (grid.split[windows] == SCORE) & ~grid.duplicate[windows]
        # A context starts after the latest of: its document's (or context's) first token, the previous activation.
        previous = np.concatenate([[-1], positions[:-1]]) + 1
        start = np.maximum.reduce([grid.stretch_start[windows], previous, positions + 1 - config.prompt_tokens])
        found = np.flatnonzero(usable & (positions + 1 - start >= config.shortest))
        size = np.abs(firing.values[found])
        chosen = evenly(size, config.prompts, 5, generator(self.seed, "prompts", *who))[: config.prompts]
        chosen = chosen[np.argsort(size[chosen], kind="stable")]
        quantile = slices(size, 5)[chosen].tolist()
        at = found[chosen]
        return tuple(self.spans.activating(firing, start[at], positions[at] + 1 - start[at], quantile))

    def embed_windows(self, windows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Vectors of the texts of some of the grid's windows."""
        if self.embed is None:
            raise UserError("windows that are near in meaning need a sentence encoder: name one with --embedder")
        return self.embed(self.spans.texts(self.grid.start[windows], self.grid.length[windows]))

    def _decoder_neighbours(self, latents: Sequence[int]) -> neighbours.Neighbours:
        if self.directions is None:
            raise UserError("windows of decoder neighbours need the SAE, which is not at hand here")
        return neighbours.decoder(self.directions(), latents, N_NEAR)

    def _cofiring_neighbours(self, latents: Sequence[int]) -> neighbours.Neighbours:
        return neighbours.cofiring(self.store, latents, self.seed, N_NEAR)


N_NEAR = 20
"""Neighbours that are found for each latent."""

NEAR: dict[str, Callable[[Sampler, Sequence[int]], neighbours.Neighbours]] = {
    "cofiring": Sampler._cofiring_neighbours,
    "decoder": Sampler._decoder_neighbours,
}

SOURCES: dict[str, Callable[[Sampler], Any]] = {
    "random": lambda s: RandomWindows(s.grid, s.seed),
    "same_token": lambda s: SameToken(s.store, s.grid),
    "cofiring": lambda s: OfNeighbours(s.store, s.grid, lambda latent: s.near("cofiring", latent)),
    "decoder": lambda s: OfNeighbours(s.store, s.grid, lambda latent: s.near("decoder", latent)),
    "embedding": lambda s: Embedded(s.grid, s.seed, s.config.embedding_pool, s.embed_windows),
}
"""Where non-activating windows come from, by the names of `sampling.explain_negatives` and `score_negatives`."""


def kind_of(source: str) -> str:
    """The `kind` of windows from a source: `random` or `hard:<source>`."""
    return RANDOM if source == "random" else f"{HARD}{source}"


def apart(order: NDArray[np.int64], start: NDArray[np.int64], length: NDArray[np.int64], n: int) -> NDArray[np.int64]:
    """The first `n` of `order` whose stretches do not overlap."""
    taken: list[int] = []
    begins: list[int] = []
    ends: list[int] = []
    for index in order.tolist():
        if len(taken) == n:
            break
        begin, end = int(start[index]), int(start[index] + length[index])
        place = bisect_left(begins, begin)
        if (place and ends[place - 1] > begin) or (place < len(begins) and begins[place] < end):
            continue
        begins.insert(place, begin)
        ends.insert(place, end)
        taken.append(index)
    return np.array(taken, dtype=np.int64)


def derangement(latents: list[int], seed: int) -> dict[int, int]:
    """For each latent another one whose explanation stands in for its own: a seeded cycle over the sample."""
    if len(latents) < 2:
        return {}
    order = sorted(latents)
    cycle = [order[i] for i in np.random.default_rng(derive(seed, "shuffle")).permutation(len(order))]
    return dict(zip(cycle, [*cycle[1:], cycle[0]], strict=True))
