"""What every record has to keep, whatever the store, the settings and the latent: checked against what was planted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import numpy as np
import planted_store
import pytest
from planted_store import N_LATENTS, Planted, Words

from autointerp.sampling.sampler import Sampler
from autointerp.store.reader import LatentStore
from autointerp.types import LatentRecord

MODES = ["quantiles", "top", "random", "importance", "mixed"]
NEGATIVES = ("random", "same_token", "cofiring", "decoder", "embedding")
QUANTILES = 4
ASKED = {"explain": (12, 6), "score": (16, 7)}
"""Activating windows, and others of each source."""


@pytest.fixture(scope="module", params=[0, 1, 2])
def world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Planted, LatentStore]:
    planted = planted_store.everything(request.param, context=[128, 64, 256][request.param])
    return planted, planted.write(tmp_path_factory.mktemp("store"))


def sampler_of(store: LatentStore, **settings: object) -> Sampler:
    return planted_store.sampler(
        store, seed=7, quantiles=QUANTILES, min_windows=3, shortest=6, explain_negatives=NEGATIVES,
        score_negatives=NEGATIVES, explain_activating=ASKED["explain"][0], explain_random=ASKED["explain"][1],
        score_activating=ASKED["score"][0], score_random=ASKED["score"][1], **settings,
    )  # fmt: skip


def records(sampler: Sampler) -> Iterable[LatentRecord]:
    for latent in range(N_LATENTS):
        yield sampler.record(latent)
        if latent in (planted_store.SIGNED, planted_store.TIED, planted_store.MOSTLY_NEGATIVE):
            yield sampler.record(latent, -sampler.pole_of(latent))


@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize("window", [16, 32])
@pytest.mark.parametrize("mode", MODES)
def test_records(world: tuple[Planted, LatentStore], mode: str, window: int, centred: bool) -> None:
    planted, store = world
    # Windows that are explained from in one way are scored on in another.
    other = MODES[(MODES.index(mode) + 1) % len(MODES)]
    sampler = sampler_of(store, window=window, centred=centred, explain_from=mode, score_from=other)
    cells = Cells(planted, sampler, window)
    drawn = 0
    for record in records(sampler):
        sound(planted, record, window)
        split_by_document(sampler, record)
        if centred:
            share_no_run(record)
        else:
            cells.activating_are_right(record, mode, other)
        drawn += sum(w.activating for w in record.score)
        cells.random_are_all_there_are(record)
    assert drawn > 150


def sound(planted: Planted, record: LatentRecord, longest: int) -> None:
    """Every window says what the store says; none comes twice, none overlaps another."""
    activations = planted.of(record.latent)
    everywhere = [*record.explain, *record.score]
    for w in [*everywhere, *record.prompts]:
        span = slice(w.start, w.start + len(w.tokens))
        assert set(planted.owners[span].tolist()) == {w.document} and w.document >= 0
        assert w.start // planted.context == (span.stop - 1) // planted.context
        assert w.tokens == tuple(planted.flat[span].tolist())
        assert w.pieces == Words().pieces(w.tokens)
        assert w.text == "".join(w.pieces)
        here = activations[span]
        if w.activating:
            mine = np.where(np.sign(here) == record.pole, here, 0)
            assert w.activations == tuple(mine.tolist())
            assert w.quantile is not None
        else:
            assert not here.any(), "a non-activating window in which the latent fires"
            assert w.activations == (0.0,) * len(w.tokens)
            assert w.quantile is None
    for w in everywhere:
        assert len(w.tokens) <= longest
        if w.activating:
            # The strongest activation of either sign is of this pole.
            here = activations[w.start : w.start + len(w.tokens)]
            assert max(np.abs(w.activations)) == np.abs(here).max() > 0
    assert len({w.window_id for w in everywhere}) == len(everywhere)
    assert len({w.tokens for w in everywhere}) == len(everywhere)
    taken = Counter(at for w in everywhere for at in range(w.start, w.start + len(w.tokens)))
    assert not taken or max(taken.values()) == 1
    for side in (record.explain, record.score):
        kinds = [w.kind for w in side]
        assert set(kinds) <= {"activating", "random", *(f"hard:{name}" for name in NEGATIVES[1:])}
        peaks = [max(np.abs(w.activations)) for w in side if w.activating]
        assert peaks == sorted(peaks)
        quantiles = [w.quantile for w in side if w.activating]
        assert quantiles == sorted(quantiles) and all(0 <= q < QUANTILES for q in quantiles)  # type: ignore[type-var, operator]


def share_no_run(record: LatentRecord) -> None:
    """Centred windows lie anywhere in the text; one that comes again would do so at another place of its window."""
    seen: set[tuple[int, ...]] = set()
    for w in [*record.explain, *record.score]:
        runs = {w.tokens[i : i + 16] for i in range(max(1, len(w.tokens) - 15))}
        assert not runs & seen
        seen |= runs


def split_by_document(sampler: Sampler, record: LatentRecord) -> None:
    mine = {w.document for w in record.explain}
    others = {w.document for w in [*record.score, *record.prompts]}
    assert not mine & others
    sides = dict(zip(sampler.grid.document.tolist(), sampler.grid.split.tolist(), strict=True))
    assert all(sides[document] == 0 for document in mine)
    assert all(sides[document] == 1 for document in others)


class Cells:
    """The windows of the grid as the planted text says them, and what a record has to hold of them."""

    def __init__(self, planted: Planted, sampler: Sampler, window: int) -> None:
        self.planted, self.cells = planted, planted.cells(window, 6)
        grid = sampler.grid
        assert self.cells == list(zip(grid.start.tolist(), (grid.start + grid.length).tolist(), strict=True))
        self.side = np.where(grid.duplicate, -1, grid.split)

    def of_pole(self, record: LatentRecord, side: int) -> list[tuple[float, int]]:
        """Peak and start of each usable window whose strongest activation (of equals the first) is of the pole."""
        found = []
        activations = self.planted.of(record.latent)
        for (begin, end), where in zip(self.cells, self.side, strict=True):
            size = np.abs(activations[begin:end])
            if where == side and size.any() and np.sign(activations[begin + int(size.argmax())]) == record.pole:
                found.append((float(size.max()), begin))
        return sorted(found)

    def activating_are_right(self, record: LatentRecord, explain_from: str, score_from: str) -> None:
        fewest = []
        for side, (name, mode) in enumerate((("explain", explain_from), ("score", score_from))):
            there = self.of_pole(record, side)
            fewest.append(len(there))
            drawn = [w for w in getattr(record, name) if w.activating]
            n = ASKED[name][0]
            assert len(drawn) == min(n, len(there))
            rank = {start: i for i, (_, start) in enumerate(there)}
            ranks = [rank[w.start] for w in drawn]
            assert ranks == sorted(set(ranks))
            assert [w.quantile for w in drawn] == [i * QUANTILES // len(there) for i in ranks]
            if mode == "top":
                assert ranks == list(range(len(there)))[-n:]
            if mode == "mixed":
                top = min(round(0.2 * n), len(there))
                assert ranks[len(ranks) - top :] == list(range(len(there) - top, len(there)))
            if mode == "quantiles" and len(there) >= n * QUANTILES:
                assert Counter(w.quantile for w in drawn) == dict.fromkeys(range(QUANTILES), n // QUANTILES)
        assert record.rare == (min(fewest) < 3)
        if not sum(fewest):
            assert not any(w.activating for w in [*record.explain, *record.score])

    def random_are_all_there_are(self, record: LatentRecord) -> None:
        activations = self.planted.of(record.latent)
        taken = np.zeros(len(activations), dtype=bool)
        for w in [*record.explain, *record.score]:
            if w.activating:
                taken[w.start : w.start + len(w.tokens)] = True
        for side, name in enumerate(("explain", "score")):
            n = ASKED[name][1]
            free = {
                begin for (begin, end), where in zip(self.cells, self.side, strict=True)
                if where == side and not activations[begin:end].any() and not taken[begin:end].any()
            }  # fmt: skip
            drawn = [w for w in getattr(record, name) if not w.activating]
            assert {w.start for w in drawn} <= free
            kinds = Counter(w.kind for w in drawn)
            assert kinds["random"] == min(n, len(free))
            assert max(kinds.values(), default=0) <= n
            # The pool of embeddings holds every window here, so that only what runs out is not full.
            if any(w.activating for w in record.explain):
                assert kinds["hard:embedding"] == min(n, len(free) - sum(kinds.values()) + kinds["hard:embedding"])


def test_prompts_end_at_their_first_activation(world: tuple[Planted, LatentStore]) -> None:
    planted, store = world
    sampler = sampler_of(store, window=32, prompts=9, prompt_tokens=20)
    drawn = 0
    for record in records(sampler):
        activations = planted.of(record.latent)
        assert len({w.start + len(w.tokens) for w in record.prompts}) == len(record.prompts) <= 9
        assert len({w.tokens for w in record.prompts}) == len(record.prompts)
        for w in record.prompts:
            end = w.start + len(w.tokens)
            assert 6 <= len(w.tokens) <= 20
            assert not activations[w.start : end - 1].any()
            assert np.sign(activations[end - 1]) == record.pole
            # It begins where something forces it to: its length, its document's or context's start, an activation.
            forced = (
                len(w.tokens) == 20
                or w.start % planted.context == 0
                or planted.owners[w.start - 1] != w.document
                or activations[w.start - 1] != 0
            )
            assert forced
        drawn += len(record.prompts)
    assert drawn > 40


def test_the_split_halves_documents(world: tuple[Planted, LatentStore]) -> None:
    planted, store = world
    grid = sampler_of(store, window=16).grid
    sides: dict[int, set[int]] = {}
    for document, side in zip(grid.document.tolist(), grid.split.tolist(), strict=True):
        sides.setdefault(document, set()).add(side)
    assert all(len(found) == 1 for found in sides.values())
    assert abs(2 * sum(found == {1} for found in sides.values()) - len(sides)) <= 1
    over_contexts = [
        d for d in sides if len({b // planted.context for b, _ in planted.stretches if planted.owners[b] == d}) > 1
    ]
    assert over_contexts, "no document lies in several contexts: the planted text is too tame"


def test_windows_repeat_no_text_and_leave_none_out(world: tuple[Planted, LatentStore]) -> None:
    planted, store = world
    for window in (16, 32):
        grid = sampler_of(store, window=window).grid
        texts = [tuple(planted.flat[b : b + n].tolist()) for b, n in zip(grid.start, grid.length, strict=True)]
        seen: set[tuple[int, ...]] = set()
        for text, duplicate in zip(texts, grid.duplicate.tolist(), strict=True):
            assert duplicate or text not in seen
            seen.add(text)
        assert {text for text, d in zip(texts, grid.duplicate, strict=True) if not d} >= {texts[0]}
        assert 0 < grid.duplicate.sum() < len(texts) / 4
        of = np.full(planted.flat.size, -1)
        for i, (begin, end) in enumerate(planted.cells(window, 6)):
            of[begin:end] = i
        np.testing.assert_array_equal(grid.window_of, of)
