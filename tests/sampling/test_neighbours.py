"""Neighbours of latents: planted ones are found, whoever else is asked for, in little memory."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import planted_store
import pytest
import torch
from planted_store import Planted

from autointerp.files import write_array
from autointerp.sampling.neighbours import LEAST_SHARED, N_POSITIONS, cofiring, decoder
from autointerp.store import layout
from autointerp.store.reader import LatentStore
from autointerp.store.writer import StoreWriter
from sae.codes import SparseCodes

A, B, C, ALONE, RARE, DEAD = range(6)


@pytest.fixture(scope="module")
def truth() -> Planted:
    """A and B fire together, C nearly everywhere (and wherever A does), RARE on two tokens of A; 6 to 29 are noise."""
    rng = np.random.default_rng(0)
    owners = planted_store.documents(rng, 80, 128, range(50, 200))
    n = owners.size
    a = rng.random(n) < 0.01
    rare = np.zeros(n)
    rare[np.flatnonzero(a & (owners.reshape(-1) >= 0))[:2]] = 1
    fires = {
        A: a,
        B: np.where(rng.random(n) < 0.6, a, rng.random(n) < 0.004),
        C: a | (rng.random(n) < 0.7),
        ALONE: (rng.random(n) < 0.01) & ~a,
        RARE: rare,
        **{i: rng.random(n) < 0.005 for i in range(6, 30)},
    }
    counted = owners.reshape(-1) >= 0
    planted = {i: np.where(counted, values, 0).astype(np.float32) for i, values in fires.items()}
    return Planted(planted_store.text(rng, n).reshape(owners.shape), owners, planted, 30)


@pytest.fixture(scope="module")
def store(truth: Planted, tmp_path_factory: pytest.TempPathFactory) -> LatentStore:
    return truth.write(tmp_path_factory.mktemp("store"))


def test_cofiring_finds_what_fires_together(store: LatentStore) -> None:
    near = cofiring(store, range(30), 0, 20)
    assert near[A][0] == B and near[B][0] == A
    assert B not in near[ALONE].tolist() and A not in near[ALONE].tolist()
    # C fires on more of A's tokens than B does, and on hardly more than its share.
    assert C in near[A] and near[A][0] != C
    assert all(found[0] != C for found in near.values() if len(found) and found.tolist() != [C])
    assert not len(near[RARE]) and not len(near[DEAD])
    assert all(latent not in found for latent, found in near.items())


def test_cofiring_counts_as_a_dense_count_would(truth: Planted, store: LatentStore) -> None:
    """With few enough activations all tokens are counted, and the ranking is that of counts over chance."""
    fires = np.stack([truth.of(i) != 0 for i in range(30)])
    density = fires.sum(axis=1) / store.n_tokens
    near = cofiring(store, range(30), 0, 20)
    checked = 0
    for latent in range(30):
        mine = fires[latent]
        if not 0 < mine.sum() <= N_POSITIONS:
            continue
        checked += 1
        counts = (fires & mine).sum(axis=1)
        with np.errstate(divide="ignore", invalid="ignore"):
            lift = counts / mine.sum() / density
            worth = np.where(
                (counts >= LEAST_SHARED) & (lift > 1) & (np.arange(30) != latent), counts * np.log(lift), 0
            )
        expected = sorted(np.flatnonzero(worth > 0), key=lambda i: (-worth[i], i))
        assert near[latent].tolist() == expected
    assert checked > 10


def test_cofiring_does_not_depend_on_who_else_is_asked(truth: Planted, store: LatentStore, tmp_path: Path) -> None:
    together = cofiring(store, range(30), 0, 20)
    sharded = truth.write(tmp_path, shards=4)
    rng = np.random.default_rng(0)
    for some in (store, sharded):
        for latent in range(0, 30, 4):
            others = [latent, *rng.permutation(30)[:3].tolist()]
            for asked in ([latent], others, others[::-1]):
                np.testing.assert_array_equal(cofiring(some, asked, 0, 20)[latent], together[latent])


def test_memory_does_not_grow_with_the_square_of_latents(tmp_path: Path) -> None:
    n, blocks, context, k = 20_000, 40, 128, 32
    rng = np.random.default_rng(0)
    owners = np.zeros((blocks, context), dtype=np.int32)
    write_array(tmp_path / layout.TOKENS, owners)
    write_array(tmp_path / layout.DOCUMENTS, owners)
    latents = torch.from_numpy(np.sort(rng.integers(0, n, (owners.size, k)), axis=1))
    latents += torch.arange(k)  # none twice on a token
    writer = StoreWriter(tmp_path, {}, n + k)
    codes = SparseCodes.from_topk(torch.ones(owners.size, k), latents, n + k)
    writer.add(slice(0, blocks), np.arange(owners.size), codes)
    writer.finalise()
    store = LatentStore.open(tmp_path)
    tracemalloc.start()
    try:
        found = cofiring(store, range(1024), 0, 20)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(found) == 1024
    # n x n counts of one byte would be 400 MB, and 1024 x n of four 80 MB.
    assert peak < 25e6


def planted_rows() -> torch.Tensor:
    """[40, 16]: rows 1 to 5 at known cosines to row 0, row 6 opposite; the others at right angles to it."""
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(40, 16))
    rows[:, 0] = 0
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    first = np.eye(16)[0]
    for i, cosine in enumerate([0.9, 0.99, 0.3, 0.5, 0.1], start=1):
        rows[i] = cosine * first + np.sqrt(1 - cosine**2) * rows[i]
    rows[0], rows[6] = first, -first
    # Lengths say nothing of directions.
    return torch.from_numpy(rows * rng.uniform(0.1, 10, size=(40, 1))).float()


def test_decoder_neighbours_are_those_of_the_largest_cosines() -> None:
    W = planted_rows()
    assert decoder(W, [0], 20)[0].tolist()[:5] == [2, 1, 4, 3, 5]
    assert decoder(W, [0], 3)[0].tolist() == [2, 1, 4]
    unit = (W / W.norm(dim=1, keepdim=True)).double().numpy()
    for latent, found in decoder(W, range(40), 20).items():
        cosines = unit @ unit[latent]
        cosines[latent] = -1
        expected = [i for i in np.argsort(-cosines)[:20] if cosines[i] > 1e-6]
        assert [i for i in found.tolist() if cosines[i] > 1e-6] == expected
        assert latent not in found
    assert 6 not in decoder(W, [0], 40)[0]


def test_decoder_neighbours_do_not_depend_on_who_else_is_asked() -> None:
    """Rows that are copies of each other, or almost: products of other shapes round them differently."""
    torch.manual_seed(0)
    W = torch.randn(501, 576)
    W[100:160] = W[7]
    W[200:260] = W[8] + 1e-6 * torch.randn(60, 576)
    W[300] = 0
    together = decoder(W, range(501), 20)
    rng = np.random.default_rng(0)
    for size in (1, 2, 63, 64, 65, 200):
        some = rng.permutation(501)[:size].tolist()
        found = decoder(W, [*some, 7, 8, 100, 200, 300], 20)
        for latent, near in found.items():
            np.testing.assert_array_equal(near, together[latent])
    assert together[7].tolist() == list(range(100, 120)) and not len(together[300])
    assert set(together[8].tolist()) < set(range(200, 260))


def test_few_latents_have_few_neighbours() -> None:
    assert decoder(torch.tensor([[1.0, 0.0]]), [0], 20)[0].tolist() == []
    assert decoder(torch.tensor([[1.0, 0.0], [1.0, 1.0], [-1.0, 0.0]]), [0, 2], 20)[0].tolist() == [1]
