"""g-SAE: the gradient decides which latents are kept and nothing else; without it, it is TopK to the bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from planted_features import best_cosines, fvu, planted, randomise, scaled, train

import sae.base
from sae import SAEError
from sae.architectures.gradient import Config, Gradient
from sae.architectures.topk import Config as TopKConfig
from sae.architectures.topk import TopK
from sae.training import Batch, StepContext

SETTINGS: dict[str, Any] = {"d_in": 12, "n_latents": 40, "k": 4}


def pair(**settings: Any) -> tuple[Gradient, TopK]:
    """A g-SAE and a TopK of the same random weights."""
    return randomise(Gradient(Config(**SETTINGS, **settings)), 3), randomise(TopK(TopKConfig(**SETTINGS)), 3)


def rows(seed: int, n: int = 50) -> torch.Tensor:
    return torch.randn(n, 12, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("settings", "gradient"),
    [({"beta": 0.0}, rows(9)), ({"beta": 2.0}, 0 * rows(9)), ({"beta": 2.0, "normalised": False}, 0 * rows(9))],
    ids=["beta 0", "g 0", "g 0, raw"],
)
def test_without_an_effect_it_is_topk_to_the_bit(settings: dict[str, Any], gradient: torch.Tensor) -> None:
    model, topk = pair(**settings)
    context, x = StepContext(dead=torch.tensor([1, 5])), rows(1)
    results = [model.step(Batch(x, None, gradient), context), topk.step(Batch(x), context)]
    assert torch.equal(results[0].loss, results[1].loss) and torch.equal(results[0].fired, results[1].fired)
    for name, parameter in topk.named_parameters():
        assert torch.equal(dict(model.named_parameters())[name].grad, parameter.grad), name
    codes, same = model.encode_with_gradient(x, gradient), topk.encode(x)
    assert torch.equal(codes.latents, same.latents) and torch.equal(codes.values, same.values)
    assert torch.equal(model.encode(x).values, same.values)


def test_a_very_large_beta_ranks_by_the_effect_alone() -> None:
    model, topk = pair(beta=1e8, normalised=False)
    x, gradient = rows(1), rows(2)
    pre = ((x - model.b_dec) @ model.encoder.T + model.b_enc).detach().relu()
    effect = (pre * (gradient @ model.W_dec.T).abs()).detach()
    kept = pre * (effect >= effect.sort(dim=1, descending=True).values[:, 3:4])
    codes = model.encode_with_gradient(x, gradient).to_dense()
    assert torch.allclose(codes, kept, atol=1e-5)
    assert ((codes != 0).sum(dim=1) == 4).all()
    assert not torch.equal(codes != 0, topk.encode_dense(x) != 0)


def test_a_weak_direction_that_matters_is_kept() -> None:
    """x is five of one direction and one of another, and only the other changes the loss."""
    model = Gradient(Config(d_in=2, n_latents=2, k=1, beta=100.0, normalised=False, auxk_alpha=0.0))
    with torch.no_grad():
        model.encoder.copy_(torch.eye(2))
        model.W_dec.copy_(torch.eye(2))
    x, gradient = torch.tensor([[5.0, 1.0]]), torch.tensor([[0.0, 1.0]])
    plain, informed = model.decode(model.encode(x)), model.decode(model.encode_with_gradient(x, gradient))
    assert plain.tolist() == [[5.0, 0.0]] and informed.tolist() == [[0.0, 1.0]]
    effects = [float(((recon - x) * gradient).sum().abs()) for recon in (plain, informed)]
    errors = [float((recon - x).square().sum()) for recon in (plain, informed)]
    assert effects[1] < effects[0] and errors[1] > errors[0]
    assert model.step(Batch(x, None, gradient), StepContext()).fired.tolist() == [0, 1]


def test_normalised_scores_do_not_know_the_scale_of_the_loss() -> None:
    x, gradient = rows(1), rows(2)
    fired = {}
    for normalised in (True, False):
        for scale in (1e-4, 1.0):
            model, _ = pair(beta=1.0, normalised=normalised)
            fired[normalised, scale] = model.step(Batch(x, None, scale * gradient), StepContext()).fired
    assert torch.equal(fired[True, 1e-4], fired[True, 1.0])
    assert not torch.equal(fired[False, 1e-4], fired[False, 1.0])


@pytest.mark.parametrize("normalised", [True, False])
def test_encoding_with_gradients_chooses_as_training_did(normalised: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also in other chunks, and after the input's scale is folded in: then for raw activations and raw gradients."""
    model, _ = pair(beta=1.5, normalised=normalised)
    x, gradient = rows(1), rows(2)
    result = model.step(Batch(x, None, gradient), StepContext())
    codes = model.encode_with_gradient(x, gradient).to_dense()
    assert torch.equal((codes != 0).sum(dim=0), result.fired)
    assert (codes != 0).ne(model.encode_dense(x) != 0).any()
    monkeypatch.setattr(sae.base, "CHUNK_BYTES", 7 * 40 * 4)
    assert torch.allclose(
        model.encode_with_gradient(x.reshape(5, 10, 12), gradient.reshape(5, 10, 12)).to_dense(), codes
    )
    scale = 0.05
    model.rescale(scale)
    # Trained on scale * x, whose gradient is 1/scale of that for x.
    raw = model.encode_with_gradient(x / scale, scale * gradient).to_dense()
    assert torch.allclose(scale * raw, codes, atol=1e-4)


def test_what_it_cannot_work_with_is_refused() -> None:
    model, _ = pair()
    with pytest.raises(SAEError, match="the batch has none"):
        model.step(Batch(rows(1)), StepContext())
    with pytest.raises(SAEError, match=r"\(49, 12\), activations \(50, 12\)"):
        model.encode_with_gradient(rows(1), rows(2)[:49])
    with pytest.raises(SAEError, match="NaN or infinity"):
        model.encode_with_gradient(rows(1), rows(2) / 0)
    for settings in ({"d_out": 9, "apply_b_dec_to_input": False}, {"input_norm": "layer_norm"}):
        with pytest.raises(SAEError, match="gradient of the activation itself"):
            Config(**SETTINGS, **settings)
    with pytest.raises(SAEError, match="beta must not be negative"):
        Config(**SETTINGS, beta=-1.0)


def test_directions_that_matter_are_reconstructed_better() -> None:
    """Where the loss hangs on a quarter of the features, they are found and kept at the cost of the others."""
    directions, raw = planted(8192 + 1024, active=6)
    matter = torch.from_numpy(directions[:16])
    left = {}
    for beta in (0.0, 4.0):
        model = Gradient(Config(d_in=32, n_latents=64, k=3, beta=beta))
        x = scaled(raw, model)
        # The loss is the sum of the first features' activations, where they are active.
        gradient = ((x @ matter.T) > 0.5 * x.norm(dim=1, keepdim=True) / 6**0.5).float() @ matter
        train(model, x[:8192], gradient=gradient[:8192])
        held, slope = x[8192:], gradient[8192:]
        recon = model.decode(model.encode_with_gradient(held, slope))
        left[beta] = float(
            ((recon - held) * slope).sum(dim=1).square().mean() / (held * slope).sum(dim=1).square().mean()
        )
    assert left[4.0] < 0.75 * left[0.0]


def test_planted_features_are_found() -> None:
    """Also where the effects mean nothing, and make it rank by something else than it should."""
    directions, raw = planted(8192)
    model = Gradient(Config(d_in=32, n_latents=96, k=3))
    x = scaled(raw, model)
    train(model, x, gradient=torch.randn(x.shape, generator=torch.Generator().manual_seed(4)))
    assert best_cosines(directions, model).mean() > 0.9
    assert fvu(model, x) < 0.15
