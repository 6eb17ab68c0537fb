"""top-AFA: k from the input's length, the bound that codes set on the dictionary's overlap, and the AFA loss."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from planted_features import best_cosines, fvu, planted, random_model, scaled, train
from torch import Tensor

import sae.architectures.top_afa
from sae import SAEError, SparseCodes
from sae.architectures.top_afa import Config, TopAFA, epsilon_lbo
from sae.training import Batch, StepContext


def orthonormal(n: int = 59, d: int = 64, seed: int = 0) -> tuple[TopAFA, Tensor, Tensor]:
    """A tied orthonormal dictionary, codes `[n, d]` with 1..n active entries, and what they stand for."""
    generator = torch.Generator().manual_seed(seed)
    model = TopAFA(Config(d_in=d, n_latents=d)).double()
    rows = torch.linalg.qr(torch.randn(d, d, generator=generator, dtype=torch.float64)).Q
    with torch.no_grad():
        model.W_dec.copy_(rows)
        model.encoder.copy_(rows)
    codes = torch.zeros(n, d, dtype=torch.float64)
    for row in range(n):
        active = torch.randperm(d, generator=generator)[: row + 1]
        codes[row, active] = 0.5 + torch.rand(row + 1, generator=generator, dtype=torch.float64)
    return model, codes, codes @ rows


def test_an_orthonormal_dictionary_gives_back_every_code() -> None:
    model, codes, x = orthonormal()
    found = model.encode(x)
    assert found.offsets.diff().tolist() == list(range(1, 60))
    assert torch.allclose(found.to_dense(), codes, atol=1e-9) and torch.allclose(model(x), x, atol=1e-9)
    assert epsilon_lbo(x, found).max() < 1e-12


def scores(model: TopAFA, x: Tensor) -> tuple[Tensor, Tensor]:
    pre = ((x - model.b_dec) @ model.encoder.T).detach().relu()
    return pre, pre * model.W_dec.norm(dim=1).detach()


@pytest.mark.parametrize("first", [1, 3, 64])
def test_what_is_kept_is_the_prefix_of_nearest_length(first: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of scores in falling order; whether all of them are sorted, or only as many as it takes."""
    monkeypatch.setattr(sae.architectures.top_afa, "FIRST", first)
    monkeypatch.setattr(sae.architectures.top_afa, "GROWTH", 2)
    model = random_model("top_afa", 3, dtype=torch.float64, d_in=12, n_latents=40)
    # From too short for any code to reach, over the middle, to rows that a single latent overshoots.
    x = torch.randn(80, 12, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    x = x * torch.logspace(-2, 2, 80, dtype=torch.float64)[:, None]
    with torch.no_grad():
        model.encoder[:, :6] *= 0.2
    codes = model.encode_dense(x)
    pre, size = scores(model, x)
    target = (x - model.b_dec).norm(dim=1)
    assert torch.equal(codes[codes != 0], pre[codes != 0])
    counts = []
    for row in range(80):
        order = size[row].argsort(descending=True)
        lengths = size[row, order].square().cumsum(0).sqrt()[:-1]  # never all of them
        k = 1 + int((lengths - target[row]).abs().argmin())
        assert set(codes[row].nonzero()[:, 0].tolist()) == set(order[:k].tolist()), row
        counts.append(k)
    assert min(counts) <= 3 and max(counts) >= 15 and max(counts) <= 39


def test_a_code_that_never_reaches_its_input_is_kept_whole() -> None:
    """But for one latent: all of F is never kept."""
    model = random_model("top_afa", 3, dtype=torch.float64, d_in=12, n_latents=40)
    with torch.no_grad():
        model.encoder.mul_(1e-3)
    x = torch.randn(80, 12, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    pre, _ = scores(model, x)
    assert torch.equal(model.encode_dense(x) > 0, pre > 0)
    with torch.no_grad():
        model.encoder.copy_(1e-3 * torch.ones(40, 12) + 1e-5 * torch.arange(40)[:, None])
        model.b_dec.zero_()
    assert (model.encode_dense(torch.ones(1, 12, dtype=torch.float64)) > 0).sum() == 39


def test_lengths_are_compared_and_not_their_squares() -> None:
    """|f| of 2 or of 3.1 for an input of 2.6: 2.6 - 2 > 3.1 - 2.6, though 2.6^2 - 2^2 < 3.1^2 - 2.6^2."""
    model = TopAFA(Config(d_in=3, n_latents=3))
    second = (3.1**2 - 4) ** 0.5
    with torch.no_grad():
        model.W_dec.copy_(torch.eye(3))
        model.encoder[:, 0] = torch.tensor([2.0, second, 0.1]) / 2.6
    assert 2.6**2 - 2**2 < 3.1**2 - 2.6**2
    assert (model.encode_dense(torch.tensor([[2.6, 0.0, 0.0]])) > 0).tolist() == [[False, True, False]]
    with torch.no_grad():
        model.encoder[0, 0], model.encoder[1, 0] = second / 2.6, 2.0 / 2.6
    assert (model.encode_dense(torch.tensor([[2.55001, 0.0, 0.0]])) > 0).sum() == 1


def test_scaling_input_and_bias_leaves_k_alone() -> None:
    model = random_model("top_afa", 3, dtype=torch.float64, d_in=12, n_latents=40)
    x = torch.randn(80, 12, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    codes = model.encode_dense(x)
    with torch.no_grad():
        model.b_dec.mul_(7.0)
    assert torch.allclose(model.encode_dense(7 * x), 7 * codes, rtol=1e-9)


def test_there_is_no_encoder_bias() -> None:
    assert set(dict(random_model("top_afa", d_in=12, n_latents=40).named_parameters())) == {"encoder", "W_dec", "b_dec"}


@pytest.mark.parametrize("settings", [{"n_latents": 1}, {"d_out": 9, "apply_b_dec_to_input": False}, {"afa": -1.0}])
def test_what_cannot_be_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(SAEError, match=r"top_afa measures codes|afa must not be negative"):
        Config(**{"d_in": 12, "n_latents": 40, **settings})


def test_the_bound_never_exceeds_the_largest_overlap() -> None:
    generator = torch.Generator().manual_seed(1)
    bounds = []
    for _ in range(50):
        rows = torch.randn(256, 64, generator=generator, dtype=torch.float64)
        rows /= rows.norm(dim=1, keepdim=True)
        overlap = (rows @ rows.T - torch.eye(256)).abs().max()
        codes = torch.rand(10, 256, generator=generator, dtype=torch.float64)
        codes *= torch.rand(10, 256, generator=generator) < 0.03
        bound = epsilon_lbo(codes @ rows, SparseCodes.from_dense(codes))
        assert bound.shape == (10,) and (bound <= overlap).all()
        bounds.append(bound)
    assert torch.stack(bounds).mean() > 1e-4
    # |x|^2 = 9, |f|^2 = 4, F - 1 = 2.
    codes = SparseCodes.from_dense(torch.tensor([[2.0, 0.0, 0.0], [0.0, 0.0, 0.0]]))
    assert epsilon_lbo(torch.tensor([[3.0, 0.0], [3.0, 0.0]]), codes).tolist() == [0.625, float("inf")]


def test_the_afa_loss_is_nil_where_lengths_match() -> None:
    """And without it, and where nothing else pulls, there is no gradient at all."""
    model, codes, x = orthonormal()
    results = []
    for bias in (0.0, 0.1):
        with torch.no_grad():
            model.b_dec.fill_(bias)
        results.append(model.step(Batch(x + bias), StepContext()))
    assert float(results[0].parts["afa"]) < 1e-20 and float(results[0].loss) < 1e-20
    # The input's own length counts, bias and all, unless asked otherwise.
    assert float(results[1].fvu) < 1e-20 and float(results[1].loss) > 1e-5
    centred = TopAFA(Config(d_in=64, n_latents=64, afa_centred=True)).double()
    centred.load_state_dict(model.state_dict())
    assert float(centred.step(Batch(x + 0.1), StepContext()).loss) < 1e-20
    never = (codes == 0).all(dim=0)
    model.step(Batch(x[:4] + 0.1), StepContext())
    idle = (codes[:4] == 0).all(dim=0)
    assert idle.sum() > 40 and not never.all()
    assert not model.encoder.grad[idle].any() and model.encoder.grad[~idle].any()  # type: ignore[index]


def test_planted_features_are_found_with_no_k_given() -> None:
    """Where features hardly overlap: 32 of them in 64 dimensions, three at a time, and L0 comes out at three."""
    model = TopAFA(Config(d_in=64, n_latents=64))
    directions, raw = planted(8192 + 1024, d=64, features=32)
    x = scaled(raw, model)
    model.initialise(0)
    before = best_cosines(directions, model).mean()
    results = train(model, x[:8192], steps=800)
    codes = model.encode(x[8192:])
    assert before < 0.5 and best_cosines(directions, model).mean() > 0.95
    assert int(results[0].n_active) > 8 * 512
    assert 2.5 < float(codes.offsets.diff().double().mean()) < 4.5
    assert fvu(model, x[8192:]) < 0.25
    # Lengths of codes and of inputs go together, token by token.
    length = codes.to_dense().norm(dim=1)
    assert np.corrcoef(length.numpy(), x[8192:].norm(dim=1).numpy())[0, 1] > 0.8
