"""Records depend on the store's content, the seed and the latent; few windows, or none, are no error."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import planted
import planted_store
import pytest
from planted_store import DEAD, N_LATENTS, RARE, RARER, SIGNED, Planted, Words

from autointerp.config import SamplingSettings
from autointerp.errors import UserError
from autointerp.sampling.sampler import Sampler, derangement
from autointerp.store.reader import LatentStore
from autointerp.subject.load import SubjectModel

NEGATIVES = ("random", "same_token", "cofiring", "decoder", "embedding")
SETTINGS = {
    "window": 32, "explain_activating": 10, "explain_random": 5, "score_activating": 10, "score_random": 5,
    "explain_negatives": NEGATIVES, "score_negatives": NEGATIVES, "embedding_pool": 100,
}  # fmt: skip


@pytest.fixture(scope="module")
def truth() -> Planted:
    return planted_store.everything(11)


@pytest.fixture(scope="module")
def whole(truth: Planted, tmp_path_factory: pytest.TempPathFactory) -> LatentStore:
    return truth.write(tmp_path_factory.mktemp("whole"))


@pytest.fixture(scope="module")
def sharded(truth: Planted, tmp_path_factory: pytest.TempPathFactory) -> LatentStore:
    store = truth.write(tmp_path_factory.mktemp("shards"), shards=4)
    assert len(store.shards) == 4
    return store


def test_the_planted_stores_are_what_was_planted(truth: Planted, whole: LatentStore, sharded: LatentStore) -> None:
    for store in (whole, sharded):
        for latent in range(N_LATENTS):
            positions, values = store.of(latent)
            np.testing.assert_array_equal(positions, np.flatnonzero(truth.of(latent)))
            np.testing.assert_array_equal(values, truth.of(latent)[positions])


@pytest.mark.parametrize("centred", [False, True])
def test_shards_order_and_preparation_change_nothing(whole: LatentStore, sharded: LatentStore, centred: bool) -> None:
    first = planted_store.sampler(whole, centred=centred, **SETTINGS)
    records = [first.record(latent) for latent in range(N_LATENTS)]
    rng = np.random.default_rng(0)
    for store in (whole, sharded):
        again = planted_store.sampler(store, centred=centred, **SETTINGS)
        for latent in rng.permutation(N_LATENTS).tolist():
            again.prepare(rng.permutation(N_LATENTS)[: rng.integers(0, 4)].tolist())
            assert again.record(latent) == records[latent]
            assert again.record(latent) == records[latent]
        together = planted_store.sampler(store, centred=centred, **SETTINGS)
        together.prepare(range(N_LATENTS))
        assert [together.record(latent) for latent in range(N_LATENTS)] == records


def test_what_is_kept_of_texts_changes_nothing(whole: LatentStore, monkeypatch: pytest.MonkeyPatch) -> None:
    records = [planted_store.sampler(whole, **SETTINGS).record(latent) for latent in range(N_LATENTS)]
    for kept in (0, 10, 100):
        monkeypatch.setattr("autointerp.sampling.spans.KEPT", kept)
        sampler = planted_store.sampler(whole, **SETTINGS)
        for _ in range(2):
            assert [sampler.record(latent) for latent in range(N_LATENTS)] == records


def test_another_seed_draws_other_windows(whole: LatentStore) -> None:
    one, other = (planted_store.sampler(whole, seed=seed, **SETTINGS) for seed in (0, 1))
    assert (one.grid.split != other.grid.split).any()
    live = [latent for latent in range(N_LATENTS) if one.window_counts()[latent] > 10]
    assert len(live) > 8
    for latent in live:
        a, b = one.record(latent), other.record(latent)
        assert {w.window_id for w in a.score} != {w.window_id for w in b.score}
        assert (a.n_fired, a.max_activation, a.mean_activation) == (b.n_fired, b.max_activation, b.mean_activation)


def test_figures(truth: Planted, whole: LatentStore) -> None:
    sampler = planted_store.sampler(whole, **SETTINGS)
    for latent in range(N_LATENTS):
        values = truth.of(latent)
        for pole in (1, -1):
            record, size = sampler.record(latent, pole), np.abs(values[np.sign(values) == pole])
            assert (record.latent, record.pole) == (latent, pole)
            assert record.n_fired == np.count_nonzero(values)
            assert record.n_tokens == (truth.documents >= 0).sum() == whole.n_tokens
            assert record.max_activation == (size.max() if len(size) else 0)
            np.testing.assert_allclose(record.mean_activation, size.mean() if len(size) else 0, rtol=1e-5)


@pytest.mark.parametrize("window", [16, 32])
def test_window_counts(truth: Planted, whole: LatentStore, sharded: LatentStore, window: int) -> None:
    """They count the windows that a record can be drawn from: those whose strongest activation is of its pole."""
    settings = {**SETTINGS, "window": window, "explain_activating": 10_000, "score_activating": 10_000}
    for store in (whole, sharded):
        sampler = planted_store.sampler(store, **settings)
        grid, expected = sampler.grid, np.zeros((N_LATENTS, 2), dtype=int)
        for latent in range(N_LATENTS):
            values = truth.of(latent)
            main = -1 if (values < 0).sum() > (values > 0).sum() else 1
            assert sampler.pole_of(latent) == main
            for begin, n, side in zip(grid.start, grid.length, np.where(grid.duplicate, -1, grid.split), strict=True):
                here = values[begin : begin + n]
                if side >= 0 and here.any() and np.sign(here[np.abs(here).argmax()]) == main:
                    expected[latent, side] += 1
        np.testing.assert_array_equal(sampler.window_counts(), expected.min(axis=1))
        for latent in (0, SIGNED, RARE, DEAD):
            record = sampler.record(latent)
            drawn = [sum(w.activating for w in side) for side in (record.explain, record.score)]
            assert drawn == expected[latent].tolist()
            assert record.rare == (min(drawn) < sampler.config.min_windows)


@pytest.mark.parametrize("centred", [False, True])
def test_rare_and_dead(truth: Planted, whole: LatentStore, centred: bool) -> None:
    sampler = planted_store.sampler(whole, centred=centred, **SETTINGS)
    counts = sampler.window_counts()
    for latent, most in ((RARE, 3), (RARER, 1), (DEAD, 0), (14, 0)):
        record = sampler.record(latent)
        assert record.rare and counts[latent] <= most // 2
        drawn = [w for w in [*record.explain, *record.score] if w.activating]
        usable = {
            int(window) for window in sampler.grid.window_of[np.flatnonzero(truth.of(latent))]
            if window >= 0 and not sampler.grid.duplicate[window]
        }  # fmt: skip
        assert len(drawn) == len(usable) <= most and (drawn or most < 3)
        # There is something to contrast with nonetheless.
        assert sum(w.kind == "random" for w in record.score) == 5
        if not most:
            assert record.prompts == () and record.n_fired == 0 == record.max_activation == record.density


def test_few_on_one_side_is_rare(truth: Planted, whole: LatentStore) -> None:
    """However many there are on the other."""
    sampler = planted_store.sampler(whole, **SETTINGS)
    record = sampler.record(0)
    there = [
        int((sampler.grid.side(side)[:, None] == sampler.grid.window_of[np.flatnonzero(truth.of(0))]).any(1).sum())
        for side in (0, 1)
    ]
    assert min(there) > 2 and there[0] != there[1] and not record.rare
    for least, rare in ((min(there), False), (min(there) + 1, True), (max(there), True), (max(there) + 1, True)):
        assert planted_store.sampler(whole, **{**SETTINGS, "min_windows": least}).record(0).rare == rare


def test_latents_out_of_range(whole: LatentStore) -> None:
    sampler = planted_store.sampler(whole)
    for latent in (-1, N_LATENTS, 10**9):
        with pytest.raises(UserError, match=rf"no latent {latent}: this store has 0 to {N_LATENTS - 1}"):
            sampler.record(latent)


def test_sources_say_what_they_lack(whole: LatentStore) -> None:
    for name, lacking in (("decoder", "SAE"), ("embedding", "--embedder")):
        sampler = Sampler(whole, Words(), SamplingSettings(score_negatives=(name,)), 0)  # type: ignore[arg-type]
        with pytest.raises(UserError, match=lacking):
            sampler.record(0)


@pytest.mark.parametrize("shortest", [2, 8])
@pytest.mark.parametrize("centred", [False, True])
def test_small_windows_and_no_windows(tmp_path: Path, shortest: int, centred: bool) -> None:
    """Documents too short for any window, and windows of a few tokens at the very end of the text."""
    rng = np.random.default_rng(0)
    for lengths, some in (([1], False), ([2, 3, 5, 9], True)):
        owners = planted_store.documents(rng, 8, 32, lengths)
        # The text ends in a document of two tokens.
        owners[-1, -4:] = [-1, -1, owners.max() + 1, owners.max() + 1]
        fires = np.where((owners.reshape(-1) >= 0) & (rng.random(owners.size) < 0.1), 1, 0).astype(np.float32)
        tokens = rng.integers(0, 100, owners.shape, dtype=np.int32)
        there = Planted(tokens, owners, {1: fires}, 3)
        store = there.write(tmp_path / f"{shortest}{some}{centred}")
        sampler = planted_store.sampler(
            store, **{**SETTINGS, "window": 4}, shortest=shortest, centred=centred, prompts=3
        )
        ends = list(zip(sampler.grid.start.tolist(), (sampler.grid.start + sampler.grid.length).tolist(), strict=True))
        assert ends == there.cells(4, shortest)
        assert sampler.window_counts().tolist()[::2] == [0, 0]
        for latent in range(3):
            record = sampler.record(latent)
            if some:
                assert record.score
            elif shortest > 2:
                assert record.rare and not (record.explain or record.score or record.prompts)


def test_words_of_a_real_tokenizer(tmp_path: Path) -> None:
    """A latent that fires on one word: that word stands in all its activating windows, and in no other."""
    words = planted.vocabulary()
    subject = SubjectModel("planted", None, planted.tokenizer())
    rng = np.random.default_rng(0)
    owners = planted_store.documents(rng, 200, 64, range(20, 60))
    tokens = rng.integers(len(planted.SPECIAL), len(words), owners.shape, dtype=np.int32)
    concepts = [words["\u2581" + concept] for concept in planted.CONCEPTS]
    tokens[np.isin(tokens, concepts) & (rng.random(owners.shape) < 0.8)] = words["\u2581the"]
    fires = {
        i: np.where((tokens == word) & (owners >= 0), 5, 0).astype(np.float32).reshape(-1)
        for i, word in enumerate(concepts)
    }
    store = Planted(tokens, owners, fires, len(concepts)).write(tmp_path)
    settings = SamplingSettings(
        window=16, explain_activating=10, explain_random=10, score_activating=10, score_random=10
    )
    sampler = Sampler(store, subject, settings, seed=3)
    for latent, concept in enumerate(planted.CONCEPTS):
        record = sampler.record(latent)
        both = [*record.explain, *record.score]
        assert len([w for w in both if w.activating]) == len([w for w in both if not w.activating]) == 20
        for window in both:
            assert (concept in window.text) == window.activating
            assert [a > 0 for a in window.activations] == [piece == f" {concept}" for piece in window.pieces]
        for prompt in record.prompts:
            assert prompt.pieces[-1] == f" {concept}"
            assert [a > 0 for a in prompt.activations] == [False] * (len(prompt.pieces) - 1) + [True]


def test_derangement_gives_everyone_somebody_elses() -> None:
    partner = derangement([4, 8, 15, 16, 23, 42], seed=0)
    assert sorted(partner) == sorted(partner.values())
    assert all(a != b for a, b in partner.items())
    assert derangement([42, 8, 4, 16, 15, 23], seed=0) == partner != derangement([4, 8, 15, 16, 23, 42], seed=1)
    assert derangement([7], seed=0) == derangement([], seed=0) == {}
