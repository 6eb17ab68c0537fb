"""500 latents of the demo's store, on the real model's text: what leaks between explaining and scoring? Nothing may.

`AUTOINTERP_DEMO=results/demo` looks at a finished demo of full size instead of the small one made for the tests.
"""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from autointerp.config import SamplingSettings
from autointerp.files import write_array
from autointerp.pipeline.demo_model import demo_subject
from autointerp.sampling.sampler import Sampler
from autointerp.shards import Shard
from autointerp.store import layout
from autointerp.store.reader import LatentStore
from autointerp.store.writer import StoreWriter
from autointerp.subject.load import SubjectModel, load_subject
from autointerp.types import LatentRecord
from sae.codes import SparseCodes

pytestmark = pytest.mark.slow

N = 500
SHARDS = 4
DRAWS = {
    "default": SamplingSettings(min_windows=1),
    "centred, hard": SamplingSettings(
        min_windows=1, centred=True, score_negatives=("random", "same_token", "cofiring"), score_random=30
    ),
}


@cache
def subject() -> SubjectModel:
    return load_subject(str(demo_subject()))


@pytest.fixture(scope="module")
def store(request: pytest.FixtureRequest) -> LatentStore:
    given = os.environ.get("AUTOINTERP_DEMO")
    run = Path(given) if given else request.getfixturevalue("small_demo")
    (folder,) = (run / "store").iterdir()
    return LatentStore.open(folder, verify=True)


@pytest.fixture(scope="module")
def sharded(store: LatentStore, tmp_path_factory: pytest.TempPathFactory) -> LatentStore:
    """The same activations, in four shards."""
    position, latent, value = [], [], []
    for scan in store.scan():
        position.append(scan.positions)
        latent.append(scan.latents(np.arange(len(scan.positions))))
        value.append(np.array(scan.values))
    at, who, what = (np.concatenate(some) for some in (position, latent, value))
    order = np.argsort(at, kind="stable")
    at, who, what = at[order], who[order], what[order]
    folder = tmp_path_factory.mktemp("demo") / "store"
    width = store.context_length
    for index in range(SHARDS):
        shard = Shard(index, SHARDS)
        rows = shard.of(len(store.tokens))
        place = layout.shard_folder(folder, shard)
        write_array(place / layout.TOKENS, store.tokens[rows.start : rows.stop])
        write_array(place / layout.DOCUMENTS, store.documents[rows.start : rows.stop])
        writer = StoreWriter(place, store.identity, store.n_latents, shard=shard, first_block=rows.start)
        places = np.arange(len(rows) * width)
        edges = np.searchsorted(at, rows.start * width + np.arange(len(places) + 1))
        mine = slice(int(edges[0]), int(edges[-1]))
        codes = SparseCodes(
            torch.from_numpy(edges - edges[0]), torch.from_numpy(who[mine]), torch.from_numpy(what[mine]),
            store.n_latents,
        )  # fmt: skip
        writer.add(slice(0, len(rows)), places, codes)
        writer.finalise()
    return LatentStore.open(folder, verify=True)


def latents_of(store: LatentStore) -> list[int]:
    live = np.flatnonzero(store.n_fired)
    chosen: list[int] = np.random.default_rng(0).permutation(live)[:N].tolist()
    return chosen


@pytest.mark.parametrize("name", DRAWS)
def test_nothing_leaks(store: LatentStore, name: str) -> None:
    sampler = Sampler(store, subject(), DRAWS[name], seed=0)
    chosen = latents_of(store)
    assert len(chosen) == N
    sampler.prepare(chosen)
    windows = activating = 0
    kinds: set[str] = set()
    for latent in chosen:
        record = sampler.record(latent)
        fired = set(store.of(latent)[0].tolist())
        both = [*record.explain, *record.score]
        explained = {w.document for w in record.explain}
        assert not explained & {w.document for w in [*record.score, *record.prompts]}
        assert len({w.window_id for w in both}) == len({w.tokens for w in both}) == len(both)
        taken: set[int] = set()
        for window in both:
            span = set(range(window.start, window.start + len(window.tokens)))
            assert not taken & span, "two windows share a position"
            taken |= span
            assert bool(fired & span) == window.activating
            kinds.add(window.kind)
        windows += len(both)
        activating += sum(w.activating for w in both)
    assert activating > N and windows - activating > N
    assert {"activating", "random"} <= kinds
    assert ("hard:same_token" in kinds) == (name != "default")


@pytest.mark.parametrize("name", DRAWS)
def test_the_same_windows_from_four_shards_and_in_any_order(
    store: LatentStore, sharded: LatentStore, name: str
) -> None:
    chosen = latents_of(store)
    whole = Sampler(store, subject(), DRAWS[name], seed=0)
    split = Sampler(sharded, subject(), DRAWS[name], seed=0)
    whole.prepare(chosen)
    expected: dict[int, LatentRecord] = {latent: whole.record(latent) for latent in chosen}
    shuffled: Any = np.random.default_rng(1).permutation(chosen).tolist()
    assert [latent for latent in shuffled if split.record(latent) != expected[latent]] == []
    np.testing.assert_array_equal(split.window_counts(), whole.window_counts())
