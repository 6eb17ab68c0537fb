"""A store holds what was encoded: every activation, exactly, however it was cut up on the way."""

from __future__ import annotations

import json
import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import planted
import pytest
import torch
from random_codes import IDENTITY, RandomCodes, cut, files

import sae
from autointerp.collect import encode
from autointerp.collect.encode import Target, collect_store, collect_stores
from autointerp.collect.tokens import TokenBlocks, batches, pack
from autointerp.errors import UserError
from autointerp.files import write_array
from autointerp.shards import Shard
from autointerp.store import layout
from autointerp.store import statistics as statistics_module
from autointerp.store.merge import ranges
from autointerp.store.parts import Part
from autointerp.store.reader import LatentStore
from autointerp.store.writer import StoreWriter
from autointerp.subject.load import SubjectModel, load_subject
from sae.architectures import topk
from sae.codes import SparseCodes


@pytest.fixture(scope="module")
def subject(world: Any) -> SubjectModel:
    return load_subject(str(world.model))


@pytest.fixture(scope="module")
def blocks(world: Any, subject: SubjectModel) -> TokenBlocks:
    texts = [json.loads(line)["text"] for line in world.corpus.open()]
    return pack(subject, texts, n_tokens=12_000, context_length=64, skip_first=1)


def random_sae(seed: int, n_latents: int = 24, k: int = 5) -> sae.SparseAutoencoder:
    dictionary = topk.create({"d_in": planted.WIDTH, "n_latents": n_latents, "k": k}, sae.SAEMetadata())
    dictionary.initialise(seed)
    return dictionary


# --- what is encoded is there ---------------------------------------------------------------------------------------


def test_every_planted_activation_is_there(
    world: Any, subject: SubjectModel, blocks: TokenBlocks, tmp_path: Path
) -> None:
    collect_store(subject, sae.load(world.sae), blocks, planted.HOOKPOINT, tmp_path, IDENTITY)
    store = LatentStore.open(tmp_path, verify=True)
    flat, documents = blocks.tokens.reshape(-1), blocks.documents.reshape(-1)
    words = planted.vocabulary()
    for latent, concept in enumerate(planted.CONCEPTS):
        positions, values = store.of(latent)
        expected = np.flatnonzero((flat == words["\u2581" + concept]) & (documents >= 0))
        np.testing.assert_array_equal(positions, expected)
        np.testing.assert_allclose(values, 5.0, rtol=1e-2)
    assert store.n_fired[len(planted.CONCEPTS) :].sum() == 0
    assert store.n_tokens == (documents >= 0).sum()
    np.testing.assert_array_equal(store.tokens, blocks.tokens)
    np.testing.assert_array_equal(store.documents, blocks.documents)
    assert not (tmp_path / layout.PARTS).exists()


@pytest.mark.parametrize("hookpoint", ["layers.0", "layers.1.mlp"])
def test_a_store_is_the_dense_encoding(
    subject: SubjectModel, blocks: TokenBlocks, tmp_path: Path, hookpoint: str
) -> None:
    """Of all hidden states of the model at once, as transformers hands them out, or as a hook of our own sees them."""
    dictionary = random_sae(3)
    seen: list[torch.Tensor] = []
    hook = subject.model.get_submodule("model." + hookpoint).register_forward_hook(
        lambda module, given, out: seen.append(out[0] if isinstance(out, tuple) else out)
    )
    with torch.no_grad():
        subject.model(torch.from_numpy(blocks.tokens).long())
    hook.remove()
    # Of top k, the ones kept are the k largest of the positive parts.
    pre = (seen[0].flatten(0, 1).double() - dictionary.b_dec.double()) @ dictionary.encoder.double().T
    pre = (pre + dictionary.b_enc.double()).relu().detach()
    kept = torch.zeros_like(pre).scatter(1, pre.topk(5).indices, 1).numpy() > 0
    expected = np.where(kept & (blocks.documents.reshape(-1, 1) >= 0), pre.numpy(), 0)
    collect_store(subject, dictionary, blocks, hookpoint, tmp_path, IDENTITY, batch_tokens=500)
    store = LatentStore.open(tmp_path, verify=True)
    assert store.n_activations == np.count_nonzero(expected) > 10_000
    for latent in range(dictionary.n_latents):
        positions, values = store.of(latent)
        np.testing.assert_array_equal(positions, np.flatnonzero(expected[:, latent]))
        np.testing.assert_allclose(values, expected[positions, latent], rtol=1e-4, atol=1e-4)


def holds(store: LatentStore, truth: RandomCodes) -> None:
    """Every latent's positions and values, and what they add up to, are those of the dense matrix."""
    dense = truth.dense
    for latent in range(truth.n_latents):
        positions, values = store.of(latent)
        np.testing.assert_array_equal(positions, np.flatnonzero(dense[:, latent]))
        np.testing.assert_array_equal(values, dense[positions, latent])
        assert positions.dtype == np.int64 and values.dtype == np.float32
    assert store.n_activations == np.count_nonzero(dense)
    assert store.n_tokens == np.count_nonzero(truth.documents >= 0)
    assert store.l0 == pytest.approx(np.count_nonzero(dense) / max(1, store.n_tokens))
    assert store.context_length == truth.tokens.shape[1] and store.n_latents == truth.n_latents
    np.testing.assert_array_equal(store.tokens, truth.tokens)
    np.testing.assert_array_equal(store.documents, truth.documents)
    n = np.count_nonzero(dense, axis=0)
    figures = store.statistics()
    np.testing.assert_array_equal(figures["n_fired"], n)
    np.testing.assert_array_equal(figures["n_negative"], np.count_nonzero(dense < 0, axis=0))
    np.testing.assert_array_equal(figures["max_activation"], np.where(n, np.abs(dense).max(axis=0), np.nan))
    with np.errstate(invalid="ignore"):
        mean = np.where(n, np.abs(dense).sum(axis=0, dtype=np.float64) / n, np.nan)
    np.testing.assert_allclose(figures["mean_activation"], mean, rtol=1e-12)
    for pole, sign in (("positive", 1), ("negative", -1)):
        size = np.maximum(sign * dense, 0)
        np.testing.assert_array_equal(store.poles[f"n_{pole}"], np.count_nonzero(size, axis=0))
        np.testing.assert_allclose(store.poles[f"sum_{pole}"], size.sum(axis=0, dtype=np.float64), rtol=1e-12)
        np.testing.assert_array_equal(store.poles[f"max_{pole}"], size.max(axis=0))


SHAPES = [(40, 8, 50), (1, 1, 1), (1, 16, 3), (200, 4, 7), (13, 5, 300), (70, 8, 2), (64, 2, 64)]


@pytest.mark.parametrize("seed", range(21))
def test_random_codes_are_what_they_were(tmp_path: Path, seed: int) -> None:
    """And the same bytes, whatever the batches, the order they came in, the parts and the budget of the merge."""
    n_blocks, length, n_latents = SHAPES[seed % len(SHAPES)]
    truth = RandomCodes.make(seed, n_blocks, length, n_latents)
    holds(truth.write(tmp_path / "plain", spans=[slice(0, n_blocks)]), truth)
    plain = files(tmp_path / "plain")
    rng = np.random.default_rng(seed)
    most = 8 * int(np.count_nonzero(truth.dense, axis=0).max(initial=0))
    for i, budget in enumerate([0, 8, max(8, most // 2), most, most + 8, 10 * most, 2**30]):
        spans = cut(n_blocks, 100 * seed + i, longest=int(rng.integers(2, n_blocks + 2)))
        if i % 2:
            rng.shuffle(spans)  # type: ignore[arg-type]
        how = {"part_bytes": int(rng.choice([1, 200, 5000, 2**25])), "part_seconds": float(rng.choice([0, math.inf]))}
        truth.write(tmp_path / str(i), spans=spans, budget=budget, **how)
        assert files(tmp_path / str(i)) == plain, (budget, how)


def test_parts_are_written_when_they_are_full_or_old(tmp_path: Path) -> None:
    truth = RandomCodes.make(0)
    for name, how in (("full", {"part_bytes": 2000}), ("old", {"part_seconds": 0}), ("neither", {})):
        writer = truth.begin(tmp_path / name, **how)
        for i in range(0, 40, 4):
            writer.add(slice(i, i + 4), *truth.of(slice(i, i + 4)))
        sizes = [path.stat().st_size for path in (tmp_path / name / layout.PARTS).glob("*.part")]
        assert {"full": 3 < len(sizes) < 10, "old": len(sizes) == 10, "neither": not sizes}[name]
        if name == "full":
            assert min(sizes) >= 2000


def test_ranges_are_within_the_budget_and_cover_every_latent() -> None:
    for seed in range(50):
        rng = np.random.default_rng(seed)
        counts = rng.integers(0, 20, size=int(rng.integers(0, 60))) * (rng.random() < 0.9)
        counts[rng.random(len(counts)) < 0.3] = 0
        indptr = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        for most in (1, 7, 19, 1000):
            bounds = ranges(indptr, most)
            assert bounds[0] == 0 and bounds[-1] == len(counts) and (np.diff(bounds) > 0).all()
            for low, high in pairwise(bounds.tolist()):
                assert indptr[high] - indptr[low] <= most or high == low + 1


def test_statistics_of_latents_longer_than_a_stretch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    truth = RandomCodes.make(5, 60, 8, 20)
    plain = truth.write(tmp_path / "plain")
    for chunk in (1, 7, 64, 1000):
        monkeypatch.setattr(statistics_module, "CHUNK", chunk)
        holds(truth.write(tmp_path / str(chunk)), truth)
        np.testing.assert_array_equal(LatentStore.open(tmp_path / str(chunk)).n_fired, plain.n_fired)


def test_an_sae_that_never_fires_and_text_that_never_counts(tmp_path: Path) -> None:
    silent = RandomCodes(np.ones((3, 4), np.int32), np.zeros((3, 4), np.int32), np.zeros((12, 6), np.float32), 0)
    store = silent.write(tmp_path / "silent")
    holds(store, silent)
    assert store.l0 == 0 and np.isnan(store.statistics()["mean_activation"]).all()
    assert all(len(scan.values) == 0 for scan in store.scan())
    uncounted = RandomCodes(silent.tokens, np.full((3, 4), -1, np.int32), silent.dense, 0)
    store = uncounted.write(tmp_path / "uncounted")
    assert store.n_tokens == 0 and store.l0 == 0
    np.testing.assert_array_equal(store.documents, -1)


def test_what_does_not_fit_is_an_error_of_the_caller(tmp_path: Path) -> None:
    truth = RandomCodes.make(0)
    writer = truth.begin(tmp_path)
    at, codes = truth.of(slice(0, 4))
    with pytest.raises(ValueError, match="codes are"):
        writer.add(slice(0, 4), at[:-1], codes)
    with pytest.raises(ValueError, match=r"codes are .* x 51"):
        writer.add(slice(0, 4), at, SparseCodes(codes.offsets, codes.latents, codes.values, 51))
    writer.add(slice(0, 4), at, codes)
    with pytest.raises(ValueError, match="36 of 40 contexts are not collected yet"):
        writer.finalise()


# --- shards ---------------------------------------------------------------------------------------------------------


def scanned(store: LatentStore, most: int) -> list[tuple[int, int, float]]:
    found = []
    for scan in store.scan(most):
        assert len(scan.values) <= max(most, int(store.n_fired.max()))
        latents = scan.latents(np.arange(len(scan.values)))
        found += list(zip(latents.tolist(), scan.positions.tolist(), scan.values.tolist(), strict=True))
    return found


@pytest.mark.parametrize("count", [2, 4, 7])
@pytest.mark.parametrize("seed", range(3))
def test_shards_are_read_as_one_store(tmp_path: Path, seed: int, count: int) -> None:
    truth = RandomCodes.make(seed, n_blocks=29)
    store = truth.write(tmp_path, shards=count, part_bytes=1000, budget=500)
    assert len(store.shards) == count
    holds(store, truth)
    whole = truth.write(tmp_path / "whole")
    np.testing.assert_array_equal(store.n_fired, whole.n_fired)
    assert (store.n_tokens, store.n_activations, store.l0) == (whole.n_tokens, whole.n_activations, whole.l0)
    positions, latents = np.nonzero(truth.dense)
    everything = sorted(
        zip(latents.tolist(), positions.tolist(), truth.dense[positions, latents].tolist(), strict=True)
    )
    for most in (1, 50, 10**6):
        assert sorted(scanned(store, most)) == everything
        assert scanned(whole, most) == everything, "in order"


def test_a_shard_stands_where_it_was_collected(tmp_path: Path) -> None:
    """Shards of a store in a folder of ten and more are read in order of their numbers."""
    truth = RandomCodes.make(1, n_blocks=24)
    store = truth.write(tmp_path, shards=12)
    assert [shard.folder.name for shard in store.shards] == [f"shard-{i}-of-12" for i in range(12)]
    holds(store, truth)


# --- several in one pass --------------------------------------------------------------------------------------------


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[range]]:
    """Contexts that the subject model was run on, by the folders they were for."""
    seen: dict[str, list[range]] = {}
    real = encode._encode

    def spy(subject: Any, writing: Any, blocks: Any, span: slice) -> None:
        for target, _ in writing:
            seen.setdefault(target.folder.name, []).append(range(span.start, span.stop))
        real(subject, writing, blocks, span)

    monkeypatch.setattr(encode, "_encode", spy)
    return seen


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    def writer(*args: Any, **how: Any) -> StoreWriter:
        return StoreWriter(*args, **{**how, "part_bytes": 6000})

    monkeypatch.setattr(encode, "StoreWriter", writer)


def targets(world: Any, folder: Path) -> list[Target]:
    return [
        Target(sae.load(world.sae), planted.HOOKPOINT, folder / "planted", {"sae_sha": "planted"}),
        Target(random_sae(1), "layers.1", folder / "deep", {"sae_sha": "deep"}),
        Target(random_sae(2, 100, 3), planted.HOOKPOINT, folder / "wide", {"sae_sha": "wide"}),
    ]


def test_several_in_one_pass_are_as_if_collected_alone(
    world: Any, subject: SubjectModel, blocks: TokenBlocks, tmp_path: Path, small_parts: None,
    encoded: dict[str, list[range]],
) -> None:  # fmt: skip
    alone, together = tmp_path / "alone", tmp_path / "together"
    for target in targets(world, alone):
        collect_stores(subject, [target], blocks, batch_tokens=640)
    collect_stores(subject, targets(world, together), blocks, batch_tokens=640)
    assert files(alone) == files(together)
    # One finished, one half-way, one not begun; and one named twice.
    mixed = tmp_path / "mixed"
    some = targets(world, mixed)
    collect_stores(subject, [some[0]], blocks, batch_tokens=640)
    with pytest.raises(KeyboardInterrupt):
        collect_stores(subject, [some[1]], blocks, batch_tokens=640, on_tokens=stop_at(6000))
    times = {path: path.stat().st_mtime_ns for path in (mixed / "planted").iterdir()}
    parts = [Part.open(path) for path in (mixed / "deep" / layout.PARTS).iterdir()]
    assert 2 < len(parts) < 20
    covered = sum(part.end - part.first for part in parts)
    encoded.clear()
    collect_stores(subject, [*some, some[2]], blocks, batch_tokens=640)
    assert files(alone) == files(mixed)
    assert {path: path.stat().st_mtime_ns for path in (mixed / "planted").iterdir()} == times
    assert set(encoded) == {"deep", "wide"}
    assert sum(map(len, encoded["deep"])) == len(blocks.tokens) - covered
    assert sum(map(len, encoded["wide"])) == len(blocks.tokens)
    encoded.clear()
    collect_stores(subject, some, blocks, batch_tokens=640)
    assert not encoded and files(alone) == files(mixed)


def stop_at(tokens: int) -> Any:
    def on_tokens(done: int) -> None:
        if done >= tokens:
            raise KeyboardInterrupt

    return on_tokens


def test_shards_of_a_collection_are_the_whole_of_it(subject: SubjectModel, blocks: TokenBlocks, tmp_path: Path) -> None:
    dictionary = random_sae(4)
    collect_store(subject, dictionary, blocks, "layers.1", tmp_path / "whole", IDENTITY, batch_tokens=640)
    whole = LatentStore.open(tmp_path / "whole")
    spans = list(batches(blocks, 640))
    for count in (2, 4):
        for i in range(count):
            shard = Shard(i, count)
            mine = shard.of(len(spans))
            share = blocks[slice(spans[mine[0]].start, spans[mine[-1]].stop)]
            folder = layout.shard_folder(tmp_path / str(count), shard)
            target = Target(dictionary, "layers.1", folder, IDENTITY)
            collect_stores(subject, [target], share, shard=shard, batch_tokens=640)
        store = LatentStore.open(tmp_path / str(count), verify=True)
        assert (store.n_tokens, store.n_activations) == (whole.n_tokens, whole.n_activations)
        np.testing.assert_array_equal(store.tokens, whole.tokens)
        np.testing.assert_array_equal(store.documents, whole.documents)
        for latent in range(dictionary.n_latents):
            for mine_, theirs in zip(store.of(latent), whole.of(latent), strict=True):
                np.testing.assert_array_equal(mine_, theirs)


# --- of what it is --------------------------------------------------------------------------------------------------


def test_a_store_of_something_else_is_refused(subject: SubjectModel, blocks: TokenBlocks, tmp_path: Path) -> None:
    truth, identity = RandomCodes.make(0), {"sae_sha": "one", "tokens": 5}
    truth.begin(tmp_path / "half", identity)
    truth.write(tmp_path / "finished", identity=identity)
    before = files(tmp_path)
    for folder, what in ((tmp_path / "half", "a half-written"), (tmp_path / "finished", "a finished")):
        for other, apart in (
            ({"sae_sha": "two", "tokens": 5}, r"sae_sha: one instead of two"),
            ({"sae_sha": "two", "tokens": 6}, r"sae_sha: one instead of two; tokens: 5 instead of 6"),
            ({"sae_sha": "one", "seed": 5}, r"seed: None instead of 5; tokens: 5 instead of None"),
        ):
            line = rf"^'{folder}' holds {what} store of something else \({apart}\); use --fresh or another --out$"
            with pytest.raises(UserError, match=line):
                truth.begin(folder, other)
            with pytest.raises(UserError, match=line):
                collect_store(subject, random_sae(0), blocks, "layers.0", folder, other)
    with pytest.raises(UserError, match=r"holds a finished store; use --fresh or another --out"):
        truth.begin(tmp_path / "finished", identity)
    assert files(tmp_path) == before, "nothing was touched"


def test_identities_are_compared_as_they_are_written(tmp_path: Path) -> None:
    truth = RandomCodes.make(0)
    identity = {"layers": (1, 2), "name": "Größe", "none": None}
    truth.begin(tmp_path, identity)
    assert truth.write(tmp_path, identity=identity).identity == {"layers": [1, 2], "name": "Größe", "none": None}


def test_more_positions_than_a_shard_can_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from autointerp.store import writer

    class Huge:
        shape, size = (2**25, 256), 2**33

    truth = RandomCodes.make(0)
    write_array(tmp_path / layout.TOKENS, truth.tokens)
    monkeypatch.setattr(writer, "read_array", lambda path: Huge)
    with pytest.raises(UserError, match=r"8,589,934,592 tokens are more .* --shard 0/2 and 1/2"):
        StoreWriter(tmp_path, IDENTITY, 3)


# --- room -----------------------------------------------------------------------------------------------------------


def test_bytes_per_activation(tmp_path: Path) -> None:
    n_tokens, length, n_latents, k = 50_176, 256, 4096, 32
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 50_000, (n_tokens // length, length), dtype=np.int32)
    nothing = RandomCodes(tokens, np.zeros_like(tokens), np.empty((0, n_latents), np.float32), 0)
    writer = nothing.begin(tmp_path, part_bytes=2**22)
    for begin in range(0, len(tokens), 28):
        n = 28 * length
        latents = torch.from_numpy(rng.integers(0, n_latents // k, (n, k)) + n_latents // k * np.arange(k))
        codes = SparseCodes.from_topk(torch.rand(n, k) + 0.1, latents, n_latents)
        writer.add(slice(begin, begin + 28), np.arange(n) + begin * length, codes)
    writer.finalise()
    store = LatentStore.open(tmp_path)
    assert store.n_activations == n_tokens * k and store.l0 == k
    assert sum(map(len, files(tmp_path).values())) / store.n_activations <= 8.5
