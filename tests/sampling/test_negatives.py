"""Windows in which a latent is silent, from each source: where they come from, and in which order."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import planted_store
import pytest
from numpy.typing import NDArray
from planted_store import BURSTS, DEAD, DENSE, N_LATENTS, OF_TOKENS, ORDINARY, SHARED, SIGNED, Planted, Words

from autointerp.config import SamplingSettings
from autointerp.sampling import negatives
from autointerp.sampling.negatives import NEIGHBOURS, PEAK_TOKENS
from autointerp.sampling.sampler import Sampler, kind_of
from autointerp.store.reader import LatentStore
from scoring.types import Window


@pytest.fixture(scope="module")
def truth() -> Planted:
    return planted_store.everything(31, blocks=150)


@pytest.fixture(scope="module")
def store(truth: Planted, tmp_path_factory: pytest.TempPathFactory) -> LatentStore:
    return truth.write(tmp_path_factory.mktemp("store"))


def of_source(store: LatentStore, name: str, n: int = 40, **settings: object) -> Sampler:
    return planted_store.sampler(
        store, seed=2, window=16, explain_activating=20, score_activating=20, explain_random=n, score_random=n,
        explain_negatives=(name,), score_negatives=(name,), **settings,
    )  # fmt: skip


def silent(windows: Sequence[Window], name: str) -> list[Window]:
    found = [w for w in windows if not w.activating]
    assert all(w.kind == kind_of(name) for w in found)
    return found


def windows_of(sampler: Sampler, activations: NDArray[np.float32]) -> set[int]:
    """Starts of the windows of the grid in which something fires."""
    at = sampler.grid.window_of[np.flatnonzero(activations)]
    return set(sampler.grid.start[np.unique(at[at >= 0])].tolist())


def free(truth: Planted, sampler: Sampler, latent: int, side: int) -> set[int]:
    """Starts of the windows of a side in which the latent is silent."""
    grid = sampler.grid
    return set(grid.start[(grid.split == side) & ~grid.duplicate].tolist()) - windows_of(sampler, truth.of(latent))


def test_explaining_sets_all_latents_against_the_same_background(store: LatentStore) -> None:
    """So that an encoder reads it once. Scores keep windows of their own."""
    sampler = of_source(store, "random", 20)
    explain, score = Counter[str](), Counter[str]()
    latents = [ORDINARY, SIGNED, DEAD, OF_TOKENS, SHARED, 12, 13, 14]
    for latent in latents:
        record = sampler.record(latent)
        explain.update(w.window_id for w in silent(record.explain, "random"))
        score.update(w.window_id for w in silent(record.score, "random"))
    assert len(explain) < 45 and max(explain.values()) >= len(latents) - 1
    assert len(score) > 70


def test_random_windows_are_any(truth: Planted, store: LatentStore) -> None:
    """Of many draws each free window has had its share."""
    counts = Counter[int]()
    for seed in range(60):
        sampler = planted_store.sampler(store, seed=seed, window=16, score_activating=5, score_random=100)
        counts.update(w.start for w in silent(sampler.record(0).score, "random"))
    everywhere = {*free(truth, sampler, 0, 0), *free(truth, sampler, 0, 1)}
    share = 60 * 100 / len(everywhere)
    # Any of them is on the scoring side half of the time.
    assert max(abs(counts[start] - share) for start in everywhere) < 5 * np.sqrt(share) + 3


@pytest.mark.parametrize("latent", range(N_LATENTS))
def test_same_token(truth: Planted, store: LatentStore, latent: int) -> None:
    sampler = of_source(store, "same_token")
    values, grid, record = truth.of(latent), sampler.grid, sampler.record(latent)
    for side, windows in enumerate((record.explain, record.score)):
        # Of this side alone: what is shown to an explainer says nothing of the scoring documents.
        peaks = Counter[int]()
        for window in grid.side(side).tolist():
            begin = int(grid.start[window])
            here = values[begin : begin + int(grid.length[window])]
            at = int(np.abs(here).argmax())
            if np.sign(here[at]) == record.pole:
                peaks[int(truth.flat[begin + at])] += 1
        least = sorted(peaks.values(), reverse=True)[:PEAK_TOKENS][-1] if peaks else 0
        common = {token for token, count in peaks.items() if count >= least}
        drawn = silent(windows, "same_token")
        for w in drawn:
            assert common & set(w.tokens)
            assert not values[w.start : w.start + len(w.tokens)].any()
        surely = {token for token, count in peaks.items() if count > least}
        lengths = dict(zip(grid.start.tolist(), grid.length.tolist(), strict=True))
        there = [s for s in free(truth, sampler, latent, side) if surely & set(truth.flat[s : s + lengths[s]].tolist())]
        assert len(drawn) >= min(40, len(there))


def test_tokens_come_in_proportion(tmp_path: Path) -> None:
    """A latent peaks on one token three times as often as on another, and is silent beside the first much less."""
    rng = np.random.default_rng(0)
    owners = planted_store.documents(rng, 400, 128, range(30, 200))
    tokens = rng.integers(100, 390, owners.shape, dtype=np.int32)
    place = rng.random(owners.shape)
    tokens[place < 0.012], tokens[place > 0.988] = 1, 2
    fires = ((tokens == 1) & (rng.random(owners.shape) < 0.75)) | ((tokens == 2) & (rng.random(owners.shape) < 0.25))
    there = Planted(tokens, owners, {0: np.where(fires & (owners >= 0), 1, 0).astype(np.float32).reshape(-1)}, 1)
    store = there.write(tmp_path)
    for sample in (negatives.SAMPLE, 10**9):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(negatives, "SAMPLE", sample)
            record = of_source(store, "same_token", 60).record(0)
        for windows in (record.explain, record.score):
            drawn = silent(windows, "same_token")
            with_first = sum(1 in w.tokens for w in drawn) / len(drawn)
            assert 0.62 < with_first < 0.88 and len(drawn) == 60


def test_a_common_token_is_looked_at_further_when_need_be(truth: Planted, store: LatentStore) -> None:
    """The first places of a token may all be where the latent fires: then the others are looked at."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(negatives, "SAMPLE", 2)
        few = of_source(store, "same_token", 500).record(OF_TOKENS)
    sampler = of_source(store, "same_token", 500)
    everything = sampler.record(OF_TOKENS)
    assert {w.start for w in few.score} == {w.start for w in everything.score}
    assert len(silent(everything.score, "same_token")) > 30


@pytest.mark.parametrize("name", ["cofiring", "decoder"])
@pytest.mark.parametrize("latent", range(N_LATENTS))
def test_windows_of_neighbours(truth: Planted, store: LatentStore, name: str, latent: int) -> None:
    sampler = of_source(store, name)
    near = sampler.near(name, latent)[:NEIGHBOURS].tolist()
    fired = [windows_of(sampler, truth.of(other)) for other in near]
    record = sampler.record(latent)
    for side, windows in enumerate((record.explain, record.score)):
        drawn = {w.start for w in silent(windows, name)}
        pools = [some & free(truth, sampler, latent, side) for some in fired]
        there = set().union(*pools) if pools else set()
        assert drawn <= there and len(drawn) == min(40, len(there))
        # In turn: the first of each come before the eleventh of any.
        for pool in pools:
            assert len(drawn & pool) >= min(len(pool), 40 // len(pools))


def test_those_nearest_in_meaning_come_first(truth: Planted, store: LatentStore) -> None:
    """Vectors are planted by the first token of a window; the order is exact, out of a pool that all latents share."""
    angles: dict[str, float] = {}

    def embed(texts: Sequence[str]) -> NDArray[np.float32]:
        asked.append(len(texts))
        angle = np.array([angles.setdefault(text, 0.01 + 3 * (hash_of(text) % 1000) / 1000) for text in texts])
        return np.stack([np.cos(angle), np.sin(angle)], axis=1).astype(np.float32)

    def hash_of(text: str) -> int:
        return sum(ord(c) * 31**i for i, c in enumerate(text)) % 10**9

    asked: list[int] = []
    settings = SamplingSettings(
        window=16, explain_activating=20, score_activating=20, explain_random=10, score_random=10,
        explain_negatives=("embedding",), score_negatives=("embedding",), embedding_pool=50,
    )  # fmt: skip
    sampler = Sampler(store, Words(), settings, 0, embed=embed)  # type: ignore[arg-type]
    pool: list[set[int]] = [set(), set()]
    for latent in (ORDINARY, SIGNED, OF_TOKENS, BURSTS, 12):
        record = sampler.record(latent)
        shown = [w.text for w in record.explain if w.activating]
        some = [shown[i] for i in np.linspace(0, len(shown) - 1, min(8, len(shown))).round().astype(int)]
        query = embed(some).mean(axis=0)
        for side, windows in enumerate((record.explain, record.score)):
            drawn = silent(windows, "embedding")
            assert len(drawn) == 10
            worth = [float(embed([w.text])[0] @ query) for w in drawn]
            assert worth == sorted(worth, reverse=True)
            pool[side] |= {w.start for w in drawn}
            grid, source = sampler.grid, sampler._sources["embedding"]
            mine = source.pools[side]  # type: ignore[attr-defined]
            assert len(mine) == 50 and set(grid.start[mine]) >= {w.start for w in drawn}
            passed_over = [
                w for w in mine.tolist() if grid.start[w] in free(truth, sampler, latent, side)
                and grid.start[w] not in {d.start for d in drawn}
            ]  # fmt: skip
            texts = sampler.spans.texts(grid.start[passed_over], grid.length[passed_over])
            assert (embed(texts) @ query).max() <= worth[-1] + 1e-6
    # Both pools once, a few windows for each latent.
    assert sorted(asked, reverse=True)[:2] == [50, 50] or max(asked) == 50
    assert not pool[0] & pool[1]


def test_a_latent_that_fires_nearly_everywhere(truth: Planted, store: LatentStore) -> None:
    """All there are, whatever the source, and none that it fires in."""
    everywhere = {w for w in range(store.tokens.size) if truth.of(15)[w]}
    for name in ("random", "same_token", "cofiring", "decoder", "embedding"):
        sampler = of_source(store, name)
        record = sampler.record(15)
        assert not any(set(range(w.start, w.start + len(w.tokens))) & everywhere for w in silent(record.score, name))
        dense = sampler.record(DENSE)
        there = free(truth, sampler, DENSE, 1)
        assert {w.start for w in silent(dense.score, name)} <= there
        if name == "random":
            assert len(silent(dense.score, name)) == min(40, len(there))
