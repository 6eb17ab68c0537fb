"""Draw each latent's windows: activating ones over all strengths, and others in which it does not fire.

Every draw depends on (seed, latent) alone. Explaining and scoring windows come from disjoint documents,
nothing is drawn twice, and a window in which the latent fires anywhere is never a non-activating one.
A signed latent has two poles, each with windows of its own: those whose strongest activation is of its sign.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from autointerp.config import SamplingSettings
from autointerp.errors import UserError
from autointerp.sampling import neighbours
from autointerp.sampling.centred import Apart, centred
from autointerp.sampling.choice import ORDERS, ascending, evenly, slices
from autointerp.sampling.firing import Firing, largest, runs
from autointerp.sampling.grid import EXPLAIN, SCORE, WindowGrid
from autointerp.sampling.later import Later
from autointerp.sampling.negatives import SIDES, Embedded, Fired, OfNeighbours, RandomWindows, SameToken, Source, Taker
from autointerp.sampling.spans import Spans
from autointerp.seeds import derive, generator
from autointerp.store.reader import LatentStore
from autointerp.subject.load import SubjectModel
from autointerp.types import LatentRecord
from scoring.types import HARD, RANDOM, Window

VERSION = "1"
"""Goes up whenever the same settings draw other windows, so that no result is taken for one of these."""

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

    def fires_enough(self, latent: int, pole: int) -> bool:
        """Whether a pole has `min_windows` activating windows on either side."""
        least = self.config.min_windows
        if self.store.poles[latent]["n_positive" if pole == 1 else "n_negative"] < 2 * least:
            return False
        positions, values = self.store.of(latent)
        sides = self.grid.side_of[Firing.of(self.grid, positions, values, pole).windows]
        return all(int((sides == side).sum()) >= least for side in (EXPLAIN, SCORE))

    def window_counts(self) -> NDArray[np.int64]:
        """Distinct activating windows of each latent on its poorer side, `[F]`: what decides live or rare.

        Windows of its main pole only. One pass over the store.
        """
        grid, n = self.grid, self.store.n_latents
        counts = np.zeros((2, n), dtype=np.int64)
        poles = self.store.poles
        main = np.where(poles["n_negative"] > poles["n_positive"], -1, 1)
        signed = bool(poles["n_negative"].any())
        for scan in self.store.scan() if grid.n else ():
            window = grid.window_of[scan.positions]
            usable = np.flatnonzero((window >= 0) & (grid.side_of[window] >= 0))
            latent = np.repeat(np.arange(len(scan.edges) - 1), np.diff(scan.edges))[usable] + scan.first
            window = window[usable]
            starts = runs(latent * grid.n + window)
            if signed:
                # A window is of the pole that its strongest activation has.
                values = scan.values[usable]
                peaks = values[largest(np.abs(values), starts)]
                starts = starts[peaks * main[latent[starts]] > 0]
            sides = grid.split[window[starts]]
            for side in (EXPLAIN, SCORE):
                counts[side] += np.bincount(latent[starts[sides == side]], minlength=n)
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
        apart = Apart(self.spans.tokens) if self.config.centred else None
        drawing = _Drawing(
            latent=latent,
            who=(latent,) if pole == 1 else (latent, "negative"),
            firing=firing,
            side_of=self.grid.side_of[firing.windows],
            taker=Taker(self.grid, firing.fired, apart),
            prompts_apart=Apart(self.spans.tokens),
        )
        size = np.abs(values[values * pole > 0])
        return LatentRecord(
            latent=latent,
            pole=pole,
            n_fired=len(positions),
            n_tokens=self.store.n_tokens,
            max_activation=float(size.max()) if len(size) else 0.0,
            mean_activation=float(size.mean()) if len(size) else 0.0,
            explain=self._side(drawing, EXPLAIN),
            score=self._side(drawing, SCORE),
            prompts=self._prompts(drawing, SCORE),
            explain_prompts=Later(lambda: self._prompts(drawing, EXPLAIN)),
            window_rate=len(firing.windows) / self.grid.n if self.grid.n else None,
            rare=any(int((drawing.side_of == side).sum()) < self.config.min_windows for side in (EXPLAIN, SCORE)),
        )

    def _side(self, drawing: _Drawing, side: int) -> tuple[Window, ...]:
        """Windows of one side: the activating ones, weakest first, then those of each source."""
        config, firing, taker = self.config, drawing.firing, drawing.taker
        explaining = side == EXPLAIN
        n = config.explain_activating if explaining else config.score_activating
        how = config.explain_from if explaining else config.score_from
        negatives = config.explain_negatives if explaining else config.score_negatives
        n_negative = config.explain_random if explaining else config.score_random
        rng = generator(self.seed, "windows", SIDES[side], *drawing.who)
        mine = np.flatnonzero(drawing.side_of == side)
        mine = mine[ascending(firing.peaks[mine])]
        if config.centred:
            mine, start, length = centred(self.grid, firing, mine)
        else:
            start, length = self.grid.start[firing.windows[mine]], self.grid.length[firing.windows[mine]]
        order = ORDERS[how](firing.peaks[mine], n, config.quantiles, rng)
        if taker.apart is not None:
            order = taker.apart.take(order, start, length, n)
        chosen = np.sort(order[:n])
        start, length = start[chosen], length[chosen]
        quantile = slices(len(mine), config.quantiles)[chosen].tolist()
        windows = self.spans.activating(firing, start, length, quantile)
        if explaining:
            drawing.shown = firing.windows[mine[chosen]]
        at_peaks = self.spans.tokens[firing.peak_at[drawing.side_of == side]]
        fired = Fired(drawing.latent, at_peaks, drawing.shown, lambda some: taker.free(some, side))
        for name in negatives:
            source_rng = rng if name == "random" else generator(self.seed, name, SIDES[side], *drawing.who)
            taken = taker.take(self._sources[name].candidates(fired, side, source_rng), side, n_negative)
            windows += self.spans.silent(self.grid.start[taken], self.grid.length[taken], kind_of(name))
        return tuple(windows)

    def _prompts(self, drawing: _Drawing, side: int) -> tuple[Window, ...]:
        """Contexts of one side's documents whose last token is the first on which the latent fires.

        Stratified by activation quintile (the intervention protocol of Paulo et al. 2024). Those to score on are
        drawn first; those to explain from must not repeat their text.
        """
        firing, config, grid = drawing.firing, self.config, self.grid
        explaining = side == EXPLAIN
        positions, n = firing.positions, config.explain_prompts if explaining else config.prompts
        if not (n and grid.n and len(positions)):
            return ()
        windows = grid.window_of[positions]
        usable = (windows >= 0) & (firing.values * firing.pole > 0) & (grid.side_of[windows] == side)
        # A context starts after the latest of: its document's (or context's) first token, the previous activation.
        previous = np.concatenate([[-1], positions[:-1]]) + 1
        start = np.maximum.reduce([grid.stretch_start[windows], previous, positions + 1 - config.prompt_tokens])
        length = positions + 1 - start
        found = np.flatnonzero(usable & (length >= config.shortest))
        if explaining:
            # Before the activation there may stand a window that repeats one to score on.
            doubled = np.concatenate([[0], np.cumsum(grid.duplicate)])
            found = found[doubled[windows[found]] == doubled[grid.window_of[start[found]]]]
        size = np.abs(firing.values[found])
        by_size = ascending(size)
        found, size = found[by_size], size[by_size]
        start, length = start[found], length[found]
        rng = generator(self.seed, "explain_prompts" if explaining else "prompts", *drawing.who)
        chosen = np.sort(drawing.prompts_apart.take(evenly(size, n, QUINTILES, rng), start, length, n))
        quantile = slices(len(found), QUINTILES)[chosen].tolist()
        return tuple(self.spans.activating(firing, start[chosen], length[chosen], quantile))

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
QUINTILES = 5
"""Slices of strength that contexts of the intervention scorer are drawn from evenly."""


@dataclass(slots=True)
class _Drawing:
    """The record of one pole of one latent, in the making."""

    latent: int
    who: tuple[int | str, ...]
    firing: Firing
    side_of: NDArray[np.int8]
    """Side of each of its windows, -1 for those that repeat another's text, [w]."""
    taker: Taker
    prompts_apart: Apart
    """Takes the contexts of both sides."""
    shown: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    """Windows of the grid that it is explained from."""


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


def derangement(latents: list[int], seed: int) -> dict[int, int]:
    """For each latent another one whose explanation stands in for its own: a seeded cycle over the sample."""
    if len(latents) < 2:
        return {}
    order = sorted(latents)
    cycle = [order[i] for i in np.random.default_rng(derive(seed, "shuffle")).permutation(len(order))]
    return dict(zip(cycle, [*cycle[1:], cycle[0]], strict=True))
