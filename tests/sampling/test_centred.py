"""Windows with their peak in the middle, and those without."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import planted_store
import pytest
from planted_store import Planted

from autointerp.store.reader import LatentStore
from autointerp.types import LatentRecord
from scoring.types import Window


@pytest.fixture(scope="module")
def truth() -> Planted:
    """Long documents over several contexts, one latent that fires rarely and one in bursts."""
    rng = np.random.default_rng(0)
    owners = planted_store.documents(rng, 800, 128, range(30, 300))
    sparse = np.where(rng.random(owners.size) < 0.008, rng.random(owners.size) + 0.1, 0)
    bursts = np.maximum.reduce([np.roll(sparse, i) * 0.9**i for i in range(6)])
    tokens = rng.integers(0, 390, owners.shape, dtype=np.int32)
    fires = {i: np.where(owners.reshape(-1) >= 0, v, 0).astype(np.float32) for i, v in enumerate([sparse, bursts])}
    return Planted(tokens, owners, fires, 2)


@pytest.fixture(scope="module")
def store(truth: Planted, tmp_path_factory: pytest.TempPathFactory) -> LatentStore:
    return truth.write(tmp_path_factory.mktemp("store"))


def activating(record: LatentRecord) -> list[Window]:
    return [w for w in [*record.explain, *record.score] if w.activating]


def draw(store: LatentStore, latent: int, centred: bool, window: int = 16, n: int = 200) -> list[Window]:
    sampler = planted_store.sampler(
        store, seed=1, centred=centred, window=window, explain_activating=n, score_activating=n, explain_random=n,
        score_random=n,
    )  # fmt: skip
    drawn = activating(sampler.record(latent))
    assert len(drawn) > 0.7 * n
    return drawn


@pytest.mark.parametrize("latent", [0, 1])
@pytest.mark.parametrize("window", [16, 17, 32])
def test_the_peak_is_in_the_middle_where_it_can_be(
    truth: Planted, store: LatentStore, window: int, latent: int
) -> None:
    bounds = {at: stretch for stretch in truth.stretches for at in range(*stretch)}
    shifted = 0
    for w in draw(store, latent, centred=True, window=window):
        n = len(w.tokens)
        begin, end = bounds[w.start]
        assert begin <= w.start and w.start + n <= end
        assert abs(w.activations[w.peak]) == max(map(abs, w.activations))
        if w.peak != n // 2:
            shifted += 1
            assert w.start == begin if w.peak < n // 2 else w.start + n == end
    assert shifted > 5


def test_lengths_are_the_grids(store: LatentStore) -> None:
    """Otherwise length would tell activating windows from others."""
    sampler = planted_store.sampler(store, window=16)
    grid = np.bincount(sampler.grid.length, minlength=17) / len(sampler.grid.length)
    drawn = draw(store, 0, centred=True)
    assert abs(np.bincount([len(w.tokens) for w in drawn], minlength=17) / len(drawn) - grid).max() < 0.08
    in_place = draw(store, 0, centred=False)
    assert abs(np.bincount([len(w.tokens) for w in in_place], minlength=17) / len(in_place) - grid).max() < 0.08


def test_where_peaks_are(store: LatentStore) -> None:
    """Anywhere in a window of the grid; hardly ever outside the middle of a centred one."""
    places = np.array([w.peak / (len(w.tokens) - 1) for w in draw(store, 0, centred=False)])
    counts = np.histogram(places, bins=5, range=(0, 1))[0]
    assert counts.min() > 0.1 * len(places)
    centred = np.array([w.peak - len(w.tokens) // 2 for w in draw(store, 0, centred=True)])
    assert (centred == 0).mean() > 0.65


def test_nothing_overlaps_and_nothing_more_would_fit(truth: Planted, store: LatentStore) -> None:
    """Asked for more than there are, every peak that was passed over has a reason."""
    for latent in (0, 1):
        sampler = planted_store.sampler(
            store, centred=True, window=32, explain_activating=5000, score_activating=5000, explain_random=5000,
            score_random=5000,
        )  # fmt: skip
        record = sampler.record(latent)
        windows = [*record.explain, *record.score]
        taken = np.zeros(truth.flat.size, dtype=int)
        for w in windows:
            taken[w.start : w.start + len(w.tokens)] += 1
        assert taken.max() == 1
        covered = np.zeros(truth.flat.size, dtype=bool)
        for w in activating(record):
            covered[w.start : w.start + len(w.tokens)] = True
        values, grid = truth.of(latent), sampler.grid
        peaks = {w.start + w.peak for w in activating(record)}
        stretch_of = {at: stretch for stretch in truth.stretches for at in range(*stretch)}
        for begin, n, duplicate in zip(grid.start.tolist(), grid.length.tolist(), grid.duplicate, strict=True):
            here = values[begin : begin + n]
            at = begin + int(here.argmax())
            if duplicate or not here.any() or at in peaks:
                continue
            low, high = stretch_of[at]
            start = min(max(at - n // 2, low), high - n)
            assert covered[start : start + n].any() or values[start : start + n].max() > here.max()


def test_the_same_text_is_shown_once(tmp_path: Path) -> None:
    """A passage that many documents quote, at other distances from the grid's cuts each time."""
    rng = np.random.default_rng(1)
    passage = rng.integers(0, 390, 40)
    rows, owners, fires = [], [], []
    for document in range(60):
        before, after = rng.integers(0, 390, rng.integers(20, 60)), rng.integers(0, 390, 100)
        row = np.concatenate([before, passage, after])[:128]
        rows.append(row)
        owners.append(np.full(128, document))
        fires.append(np.where(np.arange(128) == len(before) + 20, 1 + rng.random(), 0))
        # And one peak of its own, so that there is something to draw.
        fires[-1][5] = rng.random() + 0.1
    there = Planted(
        np.array(rows, dtype=np.int32), np.array(owners, dtype=np.int32), {0: np.concatenate(fires).astype(np.float32)}, 1
    )  # fmt: skip
    store = there.write(tmp_path)
    sampler = planted_store.sampler(store, centred=True, window=16, explain_activating=60, score_activating=60)
    drawn = activating(sampler.record(0))
    quoting = [w for w in drawn if max(w.activations) >= 1 and w.peak == len(w.tokens) // 2]
    assert len(quoting) == 1 and len(drawn) > 50
    prompts = planted_store.sampler(store, window=16, prompts=60).record(0).prompts
    assert sum(w.activations[-1] >= 1 for w in prompts) == 1 and len(prompts) == 1


def test_no_text_is_shown_as_firing_and_as_silent(tmp_path: Path) -> None:
    """A latent that looks further back than the window: it fires in one of two quotations and not in the other."""
    rng = np.random.default_rng(2)
    rows, fires = [], []
    for document in range(120):
        quoted = rows[-1][-90:] if document % 2 else rng.integers(0, 390, 90)
        row = np.concatenate([rng.integers(0, 390, 128), quoted])[-128 - document % 7 :][:128]
        rows.append(row)
        fires.append(np.where(rng.random(128) < (0.04 if document % 2 else 0.002), rng.random(128) + 0.1, 0))
    owners = np.repeat(np.arange(120, dtype=np.int32), 128).reshape(120, 128)
    there = Planted(np.array(rows, dtype=np.int32), owners, {0: np.concatenate(fires).astype(np.float32)}, 1)
    sampler = planted_store.sampler(
        there.write(tmp_path), centred=True, window=32, explain_activating=100, score_activating=100,
        explain_random=200, score_random=200,
    )  # fmt: skip
    record = sampler.record(0)
    seen: dict[tuple[int, ...], str] = {}
    for w in [*record.explain, *record.score]:
        for i in range(len(w.tokens) - 15):
            assert w.tokens[i : i + 16] not in seen
        seen |= {w.tokens[i : i + 16]: w.window_id for i in range(len(w.tokens) - 15)}
    kinds = [w.activating for w in [*record.explain, *record.score]]
    assert kinds.count(True) > 40 and kinds.count(False) > 40
