"""Contexts to explain from: those of `prompts`, from the other side's documents, and drawn only when looked at."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import planted_store
import pytest
from planted_store import MOSTLY_NEGATIVE, N_LATENTS, SIGNED, Planted

from autointerp.sampling.centred import RUN
from autointerp.sampling.later import Later
from autointerp.sampling.sampler import Sampler
from autointerp.store.reader import LatentStore
from autointerp.types import LatentRecord
from scoring.types import Window

SETTINGS = {
    "explain_activating": 10, "explain_random": 5, "score_activating": 10, "score_random": 5, "prompts": 6,
    "prompt_tokens": 24,
}  # fmt: skip


@pytest.fixture(scope="module", params=[0, 3])
def world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Planted, LatentStore]:
    planted = planted_store.everything(request.param)
    return planted, planted.write(tmp_path_factory.mktemp("store"))


def records(sampler: Sampler) -> list[LatentRecord]:
    poles = [
        (latent, pole)
        for latent in range(N_LATENTS)
        for pole in ((1, -1) if latent in (SIGNED, MOSTLY_NEGATIVE) else (None,))
    ]
    return [sampler.record(latent, pole) for latent, pole in poles]


def runs(windows: tuple[Window, ...] | Later) -> set[tuple[int, ...]]:
    return {w.tokens[i : i + RUN] for w in windows for i in range(max(1, len(w.tokens) - RUN + 1))}


def test_they_end_where_the_latent_first_fires_in_documents_to_explain_from(world: tuple[Planted, LatentStore]) -> None:
    planted, store = world
    sampler = planted_store.sampler(store, **SETTINGS, explain_prompts=5)
    grid, drawn = sampler.grid, 0
    sides = dict(zip(grid.document.tolist(), grid.split.tolist(), strict=True))
    for record in records(sampler):
        drawn += len(record.explain_prompts)
        assert len(record.explain_prompts) <= 5
        fires = planted.of(record.latent)
        for w in record.explain_prompts:
            end = w.start + len(w.tokens)
            assert w.tokens == tuple(planted.flat[w.start : end].tolist()) and 8 <= len(w.tokens) <= 24
            assert set(planted.owners[w.start : end].tolist()) == {w.document} and sides[w.document] == 0
            assert not fires[w.start : end - 1].any() and np.sign(fires[end - 1]) == record.pole
            assert not grid.duplicate[grid.window_of[w.start : end]].any(), "may repeat a text to score on"
        assert not {w.document for w in record.explain_prompts} & {w.document for w in [*record.score, *record.prompts]}
        assert not runs(record.explain_prompts) & runs(record.prompts)
        assert len({w.window_id for w in record.explain_prompts}) == len(record.explain_prompts)
        strengths = [abs(w.activations[-1]) for w in record.explain_prompts]
        assert strengths == sorted(strengths)
    assert drawn > 40


def test_none_begins_in_a_window_that_repeats_another(tmp_path: Path) -> None:
    """Half of the documents begin alike, in words that one of the other side may be scored on."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(50, 300, (40, 64), dtype=np.int32)
    tokens[::2, :32] = np.arange(32)
    tokens[:, 50] = 40
    owners = np.broadcast_to(np.arange(40, dtype=np.int32)[:, None], tokens.shape).copy()
    fires = np.where(tokens.reshape(-1) == 40, 1, 0).astype(np.float32)
    store = Planted(tokens, owners, {0: fires}, 1).write(tmp_path)
    for longest, alike in ((64, False), (19, True)):
        settings = {**SETTINGS, "prompts": 0, "prompt_tokens": longest}
        sampler = planted_store.sampler(store, **settings, explain_prompts=40)
        assert sampler.grid.duplicate.reshape(40, 2)[2::2, 0].all() and sampler.grid.duplicate.sum() == 19
        record = sampler.record(0)
        assert len(record.explain_prompts) >= 8
        # What is within the second window is of the document's own.
        assert any(w.document % 2 == 0 and w.document > 0 for w in record.explain_prompts) == alike


def test_a_text_of_both_sides_is_scored_on(tmp_path: Path) -> None:
    """Every document ends in the same 18 tokens, after others of its own: too few for a near-duplicate."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(50, 300, (40, 64), dtype=np.int32)
    tokens[:, 46:] = np.arange(18)
    owners = np.broadcast_to(np.arange(40, dtype=np.int32)[:, None], tokens.shape).copy()
    fires = np.where(tokens.reshape(-1) == 17, 1, 0).astype(np.float32)
    store = Planted(tokens, owners, {0: fires}, 1).write(tmp_path)
    for prompts, explaining in ((0, 1), (6, 0)):
        sampler = planted_store.sampler(store, **{**SETTINGS, "window": 64, "prompts": prompts}, explain_prompts=5)
        assert not sampler.grid.duplicate.any()
        record = sampler.record(0)
        assert (len(record.prompts), len(record.explain_prompts)) == (1 - explaining, explaining)


def test_no_other_draw_depends_on_them(world: tuple[Planted, LatentStore]) -> None:
    _, store = world
    without, some, many = (
        records(planted_store.sampler(store, **SETTINGS, explain_prompts=n)) for n in (0, 5, 30)
    )  # fmt: skip
    assert [len(record.explain_prompts) for record in without] == [0] * len(without)
    assert sum(len(record.explain_prompts) for record in many) > sum(len(record.explain_prompts) for record in some) > 0
    for others in (some, many):
        assert [replace(record, explain_prompts=()) for record in others] == [
            replace(record, explain_prompts=()) for record in without
        ]


def test_they_are_drawn_when_somebody_looks(
    world: tuple[Planted, LatentStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, store = world
    drawn: list[int] = []
    draw = Sampler._prompts

    def watched(self: Sampler, drawing: object, side: int) -> tuple[Window, ...]:
        drawn.append(side)
        return draw(self, drawing, side)  # type: ignore[arg-type]

    monkeypatch.setattr(Sampler, "_prompts", watched)
    sampler = planted_store.sampler(store, **SETTINGS)
    first, second = sampler.record(0), sampler.record(12)
    assert drawn == [1, 1]
    assert first.explain_prompts and second.explain_prompts and len(first.explain_prompts)
    assert drawn == [1, 1, 0, 0], "once each"


def test_they_are_the_same_whenever_they_are_drawn(world: tuple[Planted, LatentStore]) -> None:
    _, store = world
    at_once = [tuple(record.explain_prompts) for record in records(planted_store.sampler(store, **SETTINGS))]
    sampler = planted_store.sampler(store, **SETTINGS)
    late = records(sampler)
    sampler.prepare(range(N_LATENTS))
    assert [tuple(record.explain_prompts) for record in late[::-1]][::-1] == at_once
    other = records(planted_store.sampler(store, seed=1, **SETTINGS))
    assert [tuple(record.explain_prompts) for record in other] != at_once


def test_later_is_a_sequence() -> None:
    windows = tuple(Window(f"w{i}", i, 0, "activating", ("a",), (i,), (1.0,)) for i in range(3))
    later = Later(lambda: windows)
    assert later == windows and windows == later and later == Later(lambda: windows) and later != windows[:2]
    assert list(later) == list(windows) and later[0] is windows[0] and later[1:] == windows[1:]
    assert hash(later) == hash(windows) and repr(later) == repr(windows) and not Later(lambda: ())
