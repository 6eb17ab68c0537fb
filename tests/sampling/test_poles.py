"""A latent that fires with both signs is two things: each pole has windows of its own."""

from __future__ import annotations

import numpy as np
import planted_store
import pytest
from planted_store import MOSTLY_NEGATIVE, ORDINARY, SIGNED, TIED, Planted

from autointerp.store.reader import LatentStore


@pytest.fixture(scope="module")
def truth() -> Planted:
    return planted_store.everything(21)


@pytest.fixture(scope="module")
def store(truth: Planted, tmp_path_factory: pytest.TempPathFactory) -> LatentStore:
    return truth.write(tmp_path_factory.mktemp("store"))


@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize("latent", [SIGNED, TIED, MOSTLY_NEGATIVE])
def test_poles_share_no_activating_window(truth: Planted, store: LatentStore, latent: int, centred: bool) -> None:
    sampler = planted_store.sampler(
        store, window=16, centred=centred, explain_activating=1000, score_activating=1000, prompts=50, shortest=5
    )
    both = {pole: sampler.record(latent, pole) for pole in (1, -1)}
    starts = {p: {w.window_id for w in [*r.explain, *r.score] if w.activating} for p, r in both.items()}
    assert min(map(len, starts.values())) > 10
    assert not starts[1] & starts[-1]
    values = truth.of(latent)
    for pole, record in both.items():
        for w in [*record.explain, *record.score]:
            assert all(np.sign(a) in (0, pole) for a in w.activations)
            if w.activating:
                assert np.sign(values[w.start + w.peak]) == pole
        for w in record.prompts:
            end = w.start + len(w.tokens)
            assert np.sign(values[end - 1]) == pole and not values[w.start : end - 1].any()
        assert record.prompts
    if not centred:
        # Each window in which it fires is one pole's, none is lost.
        fired = {
            f"{begin:x}-{n:x}"
            for begin, n, duplicate in zip(sampler.grid.start, sampler.grid.length, sampler.grid.duplicate, strict=True)
            if not duplicate and values[begin : begin + n].any()
        }
        assert starts[1] | starts[-1] == fired


def test_the_pole_is_the_one_that_fires_more(truth: Planted, store: LatentStore) -> None:
    sampler = planted_store.sampler(store)
    for latent in range(truth.n_latents):
        values = truth.of(latent)
        expected = -1 if (values < 0).sum() > (values > 0).sum() else 1
        assert sampler.pole_of(latent) == sampler.record(latent).pole == expected
    assert (sampler.pole_of(SIGNED), sampler.pole_of(MOSTLY_NEGATIVE)) == (1, -1)


def test_the_other_pole_of_an_unsigned_latent_is_empty(store: LatentStore) -> None:
    record = planted_store.sampler(store).record(ORDINARY, -1)
    assert record.rare and record.max_activation == 0 and not record.prompts
    assert not any(w.activating for w in [*record.explain, *record.score])


def test_poles_draw_for_themselves(store: LatentStore) -> None:
    """The windows in which neither fires are drawn anew for each."""
    sampler = planted_store.sampler(store, explain_activating=5, score_activating=5, score_random=20)
    one, other = ({w.window_id for w in sampler.record(SIGNED, pole).score if not w.activating} for pole in (1, -1))
    assert one != other
