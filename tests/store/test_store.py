"""The store holds exactly what was planted, survives a kill, and refuses what is damaged or foreign."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import planted
import pytest
import torch

import sae
from autointerp.collect.encode import collect_store
from autointerp.collect.tokens import TokenBlocks, pack
from autointerp.config import SamplingSettings
from autointerp.errors import UserError
from autointerp.sampling.grid import EXPLAIN, SCORE, WindowGrid
from autointerp.sampling.sampler import Sampler, by_quantile, derangement
from autointerp.store import layout
from autointerp.store.reader import LatentStore
from autointerp.store.writer import StoreWriter
from autointerp.subject.load import SubjectModel, load_subject
from sae.codes import SparseCodes

IDENTITY = {"sae_sha": "planted"}


@pytest.fixture(scope="module")
def subject(world: Any) -> SubjectModel:
    return load_subject(str(world.model))


@pytest.fixture(scope="module")
def blocks(world: Any, subject: SubjectModel) -> TokenBlocks:
    texts = [json.loads(line)["text"] for line in world.corpus.open()]
    return pack(subject, texts, n_tokens=20_000, context_length=64, skip_first=0)


@pytest.fixture(scope="module")
def store(
    world: Any, subject: SubjectModel, blocks: TokenBlocks, tmp_path_factory: pytest.TempPathFactory
) -> LatentStore:
    folder = tmp_path_factory.mktemp("store") / "s"
    collect_store(subject, sae.load(world.sae), blocks, planted.HOOKPOINT, folder, IDENTITY)
    return LatentStore.open(folder, verify=True)


def test_every_planted_activation_is_there(store: LatentStore, blocks: TokenBlocks) -> None:
    flat, documents = blocks.tokens.reshape(-1), blocks.documents.reshape(-1)
    words = planted.vocabulary()
    for latent, concept in enumerate(planted.CONCEPTS):
        positions, values = store.of(latent)
        expected = np.flatnonzero((flat == words["\u2581" + concept]) & (documents >= 0))
        np.testing.assert_array_equal(positions, expected)
        np.testing.assert_allclose(values, 5.0, rtol=1e-2)
    assert store.n_fired[len(planted.CONCEPTS) :].sum() == 0
    assert store.n_tokens == (documents >= 0).sum()


def test_documents_and_separators(blocks: TokenBlocks) -> None:
    separator = planted.vocabulary()["<sep>"]
    np.testing.assert_array_equal(blocks.documents == -1, blocks.tokens == separator)
    flat = blocks.documents.reshape(-1)
    assert (np.diff(flat[flat >= 0]) >= 0).all()


def test_same_bytes_after_a_kill(
    world: Any, subject: SubjectModel, blocks: TokenBlocks, store: LatentStore, tmp_path: Path
) -> None:
    """A writer that dies between parts, in the middle of a part or while merging ends with the same files."""
    dictionary = sae.load(world.sae)
    calls = 0

    class Killed(Exception):
        pass

    def die(done: int, total: int) -> None:
        nonlocal calls
        calls += 1
        if calls in {3, 7, 20}:
            raise Killed

    for _ in range(3):
        with pytest.raises(Killed):
            collect_store(subject, dictionary, blocks, planted.HOOKPOINT, tmp_path / "s", IDENTITY, die)
        with pytest.raises(UserError, match=r"manifest.json is missing"):
            LatentStore.open(tmp_path / "s")
    (tmp_path / "s" / ".positions.npy.tmp").write_bytes(b"half a merge")
    collect_store(subject, dictionary, blocks, planted.HOOKPOINT, tmp_path / "s", IDENTITY)
    for name in layout.ARRAYS:
        assert (tmp_path / "s" / name).read_bytes() == (store.folder / name).read_bytes()


def test_a_foreign_half_written_store_is_refused(tmp_path: Path) -> None:
    StoreWriter(tmp_path, {"sae_sha": "one"}, 4, 1)
    with pytest.raises(UserError, match="sae_sha: one instead of two"):
        StoreWriter(tmp_path, {"sae_sha": "two"}, 4, 1)


def write_tiny(folder: Path) -> Path:
    writer = StoreWriter(folder, IDENTITY, 4, 2)
    tokens = np.arange(16, dtype=np.int32).reshape(2, 8)
    writer.write_tokens(tokens, np.zeros_like(tokens))
    for part in range(2):
        codes = SparseCodes.from_topk(torch.tensor([[1.0, 2.0]] * 8), torch.tensor([[0, 3]] * 8), 4)
        writer.add(part, np.arange(8) + 8 * part, codes)
    writer.finalise()
    return folder


@pytest.mark.parametrize("name", layout.ARRAYS)
def test_damage_is_found(tmp_path: Path, name: str) -> None:
    folder = write_tiny(tmp_path / "s")
    data = (folder / name).read_bytes()
    (folder / name).write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(UserError, match=name):
        LatentStore.open(folder, verify=True)
    (folder / name).write_bytes(data[: len(data) // 2])
    with pytest.raises(UserError):
        LatentStore.open(folder)
    (folder / name).unlink()
    with pytest.raises(UserError, match="missing or damaged"):
        LatentStore.open(folder)


def test_dead_latents_at_the_edges_have_no_statistics(tmp_path: Path) -> None:
    figures = LatentStore.open(write_tiny(tmp_path / "s")).statistics()
    np.testing.assert_array_equal(figures["n_fired"], [16, 0, 0, 16])
    np.testing.assert_array_equal(figures["max_activation"], [1, np.nan, np.nan, 2])
    np.testing.assert_array_equal(figures["mean_activation"], [1, np.nan, np.nan, 2])


def test_windows_tile_the_documents(store: LatentStore) -> None:
    grid = WindowGrid.of(store, window=16, shortest=5, seed=0)
    assert (grid.length <= 16).all()
    assert (grid.length >= 5).all()
    documents = np.asarray(store.documents).reshape(-1)
    for start, length, document in zip(grid.start, grid.length, grid.document, strict=True):
        assert (documents[start : start + length] == document).all()
        assert start // 64 == (start + length - 1) // 64
    assert (grid.start[1:] >= (grid.start + grid.length)[:-1]).all()
    assert len(set(grid.document[grid.split == EXPLAIN]) & set(grid.document[grid.split == SCORE])) == 0


@pytest.fixture(scope="module")
def sampler(store: LatentStore, subject: SubjectModel) -> Sampler:
    config = SamplingSettings(window=16, explain_activating=10, explain_random=10, score_activating=10, score_random=10)
    return Sampler(store, subject, config, seed=3)


@pytest.mark.parametrize("latent", range(len(planted.CONCEPTS)))
def test_no_leak_no_repeat_no_false_negative(sampler: Sampler, store: LatentStore, latent: int) -> None:
    record = sampler.record(latent)
    both = [*record.explain, *record.score]
    assert len({w.window_id for w in both}) == len(both)
    assert len({w.tokens for w in both}) == len(both)
    assert not {w.document for w in record.explain} & {w.document for w in [*record.score, *record.prompts]}
    concept = planted.CONCEPTS[latent]
    assert len([w for w in both if w.activating]) == 20
    for window in both:
        assert (concept in window.text) == window.activating
        assert [a > 0 for a in window.activations] == [piece == f" {concept}" for piece in window.pieces]
    for prompt in record.prompts:
        assert prompt.pieces[-1] == f" {concept}"
        assert [a > 0 for a in prompt.activations] == [False] * (len(prompt.pieces) - 1) + [True]
        assert len(prompt.pieces) >= 8


def test_draws_depend_on_seed_and_latent_alone(store: LatentStore, subject: SubjectModel, sampler: Sampler) -> None:
    again = Sampler(store, subject, sampler.config, seed=3)
    forward = {latent: sampler.record(latent) for latent in range(4)}
    backward = {latent: again.record(latent) for latent in reversed(range(4))}
    assert forward == backward
    other = Sampler(store, subject, sampler.config, seed=4)
    assert other.record(0) != forward[0]


def test_quantiles_are_drawn_evenly() -> None:
    peaks = np.random.default_rng(0).random(1000).astype(np.float32)
    chosen, quantile = by_quantile(peaks, 50, 10, np.random.default_rng(1))
    assert len(set(chosen.tolist())) == 50
    assert np.bincount(quantile).tolist() == [5] * 10
    order = np.argsort(np.argsort(peaks))[chosen]
    np.testing.assert_array_equal(quantile, order // 100)
    few, _ = by_quantile(peaks[:7], 50, 10, np.random.default_rng(1))
    assert sorted(few) == list(range(7))
    none, _ = by_quantile(peaks[:0], 5, 10, np.random.default_rng(1))
    assert len(none) == 0


def test_derangement_gives_everyone_somebody_elses() -> None:
    partner = derangement([4, 8, 15, 16, 23, 42], seed=0)
    assert sorted(partner) == sorted(partner.values())
    assert all(a != b for a, b in partner.items())
    assert derangement([7], seed=0) == {}
