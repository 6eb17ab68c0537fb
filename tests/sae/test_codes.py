"""Sparse codes: the compressed rows say the same as the dense tensor they stand for."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from planted_features import random_topk
from torch import Tensor

from sae import SparseCodes
from sae.metrics import Reconstruction
from sae.sparse import Pairs, products_by_bags, products_on_pattern


def sparse_dense(n: int, f: int, seed: int = 0, share: float = 0.2) -> Tensor:
    """Random `[n, f]` with signs, some rows and columns empty."""
    generator = torch.Generator().manual_seed(seed)
    dense = torch.randn(n, f, generator=generator) * (torch.rand(n, f, generator=generator) < share)
    dense[n // 2] = 0
    dense[:, f // 3] = 0
    return dense


def test_round_trip_and_invariants() -> None:
    dense = sparse_dense(9, 14)
    codes = SparseCodes.from_dense(dense)
    assert torch.equal(codes.to_dense(), dense)
    assert codes.n_rows == 9 and codes.latents.numel() == int((dense != 0).sum())
    assert codes.offsets[0] == 0 and codes.offsets[-1] == codes.latents.numel()
    assert torch.equal(codes.offsets.diff(), (dense != 0).sum(dim=1))
    assert torch.equal(codes.rows, dense.nonzero()[:, 0])
    for latent in range(14):
        assert torch.equal(codes.of_latent(latent), dense[:, latent])


def test_cat_is_one_below_the_other() -> None:
    parts = [sparse_dense(n, 14, seed=n) for n in (5, 1, 8)]
    whole = SparseCodes.cat([SparseCodes.from_dense(part) for part in parts])
    assert torch.equal(whole.to_dense(), torch.cat(parts))
    assert torch.equal(whole.offsets, SparseCodes.from_dense(torch.cat(parts)).offsets)


def test_cat_with_empty_parts() -> None:
    empty, full = torch.zeros(0, 14), sparse_dense(4, 14)
    for parts in ([empty, full], [full, empty, full], [empty]):
        assert torch.equal(SparseCodes.cat([SparseCodes.from_dense(p) for p in parts]).to_dense(), torch.cat(parts))


def test_from_topk_leaves_zeros_out() -> None:
    codes = SparseCodes.from_topk(
        torch.tensor([[0.0, 2.0], [0.0, 0.0], [-1.0, 3.0]]), torch.tensor([[4, 1], [0, 2], [5, 0]]), 6
    )
    expected = torch.zeros(3, 6)
    expected[0, 1], expected[2, 5], expected[2, 0] = 2, -1, 3
    assert torch.equal(codes.to_dense(), expected)
    assert codes.values.ne(0).all() and codes.offsets.tolist() == [0, 1, 1, 3]


@pytest.mark.parametrize("shapes", [((3, 1), (2,), (2,)), ((3,), (2,), (3,)), ((3,), (2, 1), (2, 1))])
def test_tensors_that_do_not_match_are_refused(shapes: tuple[tuple[int, ...], ...]) -> None:
    offsets, latents, values = (torch.zeros(shape) for shape in shapes)
    with pytest.raises(ValueError, match="one-dimensional"):
        SparseCodes(offsets, latents, values, 6)


def test_decode_equals_the_dense_product() -> None:
    model = random_topk(1, dtype=torch.float64, d_in=7, n_latents=14, k=2)
    dense = sparse_dense(9, 14).double()
    decoded = model.decode(SparseCodes.from_dense(dense))
    assert torch.allclose(decoded, dense @ model.W_dec + model.b_dec, rtol=1e-12)
    nothing = model.decode(SparseCodes.from_dense(torch.zeros(3, 14, dtype=torch.float64)))
    assert torch.equal(nothing, model.b_dec.expand(3, 7))


def topk_pairs() -> tuple[Pairs, Tensor, Tensor]:
    """Three latents of each of 6 rows, not in order; values; the same as a dense `[6, 14]`."""
    generator = torch.Generator().manual_seed(3)
    values = torch.randn(6, 3, generator=generator, dtype=torch.float64)
    latents = torch.stack([torch.randperm(14, generator=generator)[:3] for _ in range(6)])
    dense = torch.zeros(6, 14, dtype=torch.float64).scatter(1, latents, values)
    return Pairs.of_topk(latents, 14), values.reshape(-1), dense


def ragged_pairs() -> tuple[Pairs, Tensor, Tensor]:
    """As many latents a row as happen to be there, the first, the last and a middle row empty."""
    dense = sparse_dense(9, 14).double()
    dense[0] = dense[-1] = 0
    rows, latents = dense.nonzero(as_tuple=True)
    return Pairs.of_rows(rows, latents, 9, 14), dense[rows, latents], dense


@pytest.mark.parametrize("make", [topk_pairs, ragged_pairs])
def test_pair_products_equal_dense_ones(make: Callable[[], tuple[Pairs, Tensor, Tensor]]) -> None:
    pairs, values, dense = make()
    n = len(dense)
    generator = torch.Generator().manual_seed(4)
    W = torch.randn(14, 5, generator=generator, dtype=torch.float64)
    source = torch.randn(n, 5, generator=generator, dtype=torch.float64)
    assert pairs.n_rows == n
    assert torch.equal(pairs.offsets.diff(), torch.bincount(pairs.rows, minlength=n))
    assert torch.allclose(pairs.decode(values, W), dense @ W)
    wanted = (source @ W.T)[pairs.rows, pairs.latents]
    # What runs on the CPU, and what runs elsewhere.
    for dots in (products_on_pattern, products_by_bags):
        assert torch.allclose(dots(pairs.offsets, pairs.latents, source, W), wanted)
    assert torch.allclose(pairs.pull(source, W), wanted)
    assert torch.allclose(pairs.sum_rows(values, source), dense.T @ source)
    assert torch.allclose(pairs.sum_weights(values), dense.sum(dim=0))
    assert torch.equal(pairs.count(values > 0), (dense > 0).sum(dim=0))
    # The same pairs with sources elsewhere: sums by latent of another matrix's rows, in the opposite order.
    turned = pairs.with_rows(n - 1 - pairs.rows)
    assert torch.allclose(turned.sum_rows(values, source), dense.T @ source.flip(0))
    assert torch.allclose(pairs.sum_rows(values, source), dense.T @ source)


def test_no_pairs_at_all() -> None:
    nothing = torch.zeros(0, dtype=torch.int64)
    pairs, values, W = Pairs.of_rows(nothing, nothing, 3, 14), torch.zeros(0), torch.randn(14, 5)
    source = torch.randn(3, 5)
    assert torch.equal(pairs.decode(values, W), torch.zeros(3, 5))
    assert pairs.pull(source, W).shape == (0,)
    assert torch.equal(pairs.sum_rows(values, source), torch.zeros(14, 5))
    assert not pairs.sum_weights(values).any() and not pairs.count(values > 0).any()


def test_reconstruction_pools_over_batches() -> None:
    """Figures of unequal batches are those of all tokens at once, and FVU is residual over variance."""
    model = random_topk(2, d_in=7, n_latents=14, k=3)
    x = torch.randn(60, 7, generator=torch.Generator().manual_seed(2)) * 2 + 1
    pooled = Reconstruction(model)
    for part in x.split([1, 40, 19]):
        pooled.add(part)
    figures = pooled.figures()
    recon, codes = model(x).double(), model.encode_dense(x)
    residual = (recon - x).square().sum() / (x.double() - x.double().mean(dim=0)).square().sum()
    assert figures["fvu"] == pytest.approx(float(residual), rel=1e-6)
    assert figures["l0"] == pytest.approx(float((codes != 0).sum(dim=1).double().mean()))
    assert figures["dead_share"] == pytest.approx(float((codes == 0).all(dim=0).double().mean()))
    assert figures["dense_share"] == pytest.approx(float(((codes != 0).double().mean(dim=0) > 0.1).double().mean()))
    assert figures["shrinkage"] == pytest.approx(float(recon.square().sum() / (recon * x).sum()), rel=1e-6)
    assert Reconstruction(model).figures() == {}
