"""Gated: what its auxiliary term may teach, that values need not shrink, and that it finds planted features."""

from __future__ import annotations

import pytest
import torch
from planted_features import best_cosines, fvu, mean_l0, planted, random_model, scaled, train

from sae import SAEError
from sae.architectures import relu
from sae.architectures.gated import Config, Gated
from sae.base import SparseAutoencoder
from sae.metrics import Reconstruction
from sae.training import Batch, StepContext

LATE = StepContext(1, 2)


def batch() -> Batch:
    return Batch(torch.randn(60, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64))


def test_the_auxiliary_term_leaves_the_decoder_alone() -> None:
    """With no magnitude above zero, all that is learned from is the gate: not one entry of the decoder moves."""
    model = random_model("gated", 1, dtype=torch.float64, d_in=12, n_latents=40)
    with torch.no_grad():
        model.b_mag.fill_(-1e3)
    result = model.step(batch(), LATE)
    assert int(result.n_active) == 0 and float(result.parts["gate_fvu"]) > 0
    assert not model.W_dec.grad.any() and not model.b_mag.grad.any() and not model.r_mag.grad.any()
    assert model.encoder.grad.abs().max() > 1e-4 and model.b_gate.grad.abs().max() > 1e-4


def test_the_error_does_not_teach_the_gate() -> None:
    """Only the penalty and the auxiliary term do: magnitudes may change, the gate's gradient stays the same."""
    model = random_model("gated", 1, dtype=torch.float64, d_in=12, n_latents=40)
    model.step(batch(), LATE)
    gate, magnitude = model.b_gate.grad.clone(), model.b_mag.grad.clone()
    with torch.no_grad():
        model.b_mag.add_(0.3)
        model.r_mag.mul_(2)
    model.step(batch(), LATE)
    assert torch.equal(model.b_gate.grad, gate) and not torch.allclose(model.b_mag.grad, magnitude)


def test_gate_and_magnitude_each_have_a_veto() -> None:
    model = Gated(Config(d_in=2, n_latents=2, apply_b_dec_to_input=False))
    with torch.no_grad():
        model.encoder.copy_(torch.eye(2))
        model.b_gate.copy_(torch.tensor([-1.0, 1.0]))
        model.b_mag.copy_(torch.tensor([0.5, -2.0]))
        model.r_mag.copy_(torch.tensor([2.0, 1.0]).log())
    x = torch.tensor([[1.0, 1.0], [1.5, 3.0], [3.0, -0.5]])
    expected = torch.tensor([[0, 0], [3.5, 1.0], [6.5, 0]])  # open gates: 2 x + 0.5 and x - 2, at least 0
    assert torch.allclose(model.encode_dense(x), expected)


@pytest.mark.parametrize("settings", [{"l1": -1.0}, {"l1_warmup": 1.5}])
def test_settings_that_make_no_sense_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(SAEError, match="l1 must not be negative"):
        Config(d_in=12, n_latents=40, **settings)


def test_planted_features_are_found_without_shrinkage() -> None:
    """Measured over 3 seeds: L0 3.5, FVU 0.07, shrinkage 1.005 where L1 alone has 6.0, 0.16 and 0.73."""
    directions, x = planted(8192)
    models: list[SparseAutoencoder] = [
        Gated(Config(d_in=32, n_latents=96, l1=4.0)), relu.ReLU(relu.Config(d_in=32, n_latents=96, l1=2.0)),
    ]  # fmt: skip
    inputs = scaled(x, models[0])
    l0, error, shrinkage = [], [], []
    for model in models:
        results = train(model, inputs, steps=400, lr=1e-2)
        assert best_cosines(directions, model).mean() > 0.95
        measured = Reconstruction(model)
        measured.add(inputs)
        l0.append(mean_l0(results, last=20))
        error.append(fvu(model, inputs))
        shrinkage.append(measured.figures()["shrinkage"])
    assert l0[0] < l0[1] and error[0] < 0.7 * error[1], "sparser and better at once"
    assert abs(1 - shrinkage[0]) < 0.05 < 1 - shrinkage[1]
