"""JumpReLU: its kernel estimates against finite differences, its target, and that it finds planted features."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from planted_features import best_cosines, fvu, mean_l0, planted, random_model, scaled, train

from sae import SAEError
from sae.architectures.jumprelu import Config, JumpReLU
from sae.training import Batch, StepContext, StepResult

LATE = StepContext(1, 1)


def test_inference_is_strict_at_the_threshold() -> None:
    model = JumpReLU(Config(d_in=3, n_latents=3, apply_b_dec_to_input=False))
    with torch.no_grad():
        model.encoder.copy_(torch.eye(3))
        model.threshold.copy_(torch.tensor([0.5, 0.0, 0.25]))
    x = torch.tensor([[0.5, 0.0, 0.25], [0.5000001, 1e-6, 0.3], [0.4, -1.0, 9.0]])
    expected = torch.tensor([[0, 0, 0], [0.5000001, 1e-6, 0.3], [0, 0, 9.0]])
    assert torch.equal(model.encode_dense(x), expected)


def many(target_l0: float | None = None, **settings: Any) -> tuple[JumpReLU, Batch]:
    """Four latents on 400,000 tokens: enough of them near each threshold to average over."""
    config = {"d_in": 3, "n_latents": 4, "bandwidth": 0.1, "target_l0": target_l0, **settings}
    model: JumpReLU = random_model("jumprelu", 2, dtype=torch.float64, **config)
    with torch.no_grad():
        model.threshold.copy_(torch.tensor([0.2, 0.4, 0.6, 0.8]))
        model.encoder.div_(model.encoder.norm(dim=1, keepdim=True))
        model.W_dec.div_(model.W_dec.norm(dim=1, keepdim=True))
    return model, Batch(torch.randn(400_000, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64))


def slopes(model: JumpReLU, batch: Batch, name: str) -> torch.Tensor:
    """Differences of a figure of the step between thresholds half a bandwidth up and down, `[F]`."""

    def figure(latent: int, shift: float) -> float:
        with torch.no_grad():
            model.threshold[latent] += shift
            result: StepResult = model.step(batch, LATE)
            model.threshold[latent] -= shift
        return float(result.fvu if name == "fvu" else result.parts[name])

    half = model.config.bandwidth / 2
    rises = [figure(latent, half) - figure(latent, -half) for latent in range(4)]
    return torch.tensor(rises, dtype=torch.float64) / (2 * half)


@pytest.mark.parametrize(("target", "tolerance"), [(None, 1e-6), (1.2, 0.005)])
def test_the_penalty_slope_is_the_finite_difference_of_the_penalty(target: float | None, tolerance: float) -> None:
    """Counting within the kernel is what a difference of counts does; the quadratic form adds its curvature."""
    model, batch = many(target, l0_coefficient=1.0)
    model.step(batch, LATE)
    both = model.threshold.grad.clone()
    model, batch = many(target, l0_coefficient=0.0)
    model.step(batch, LATE)
    penalty_part = both - model.threshold.grad
    expected = slopes(many(target, l0_coefficient=1.0)[0], batch, "l0_penalty")
    assert expected.abs().min() > 1e-3
    assert torch.allclose(penalty_part, expected, rtol=tolerance)


def test_the_error_slope_estimates_the_finite_difference_of_the_error() -> None:
    """Over many tokens the estimate is unbiased: the error is quadratic in a code, so that half the tokens' slopes
    with it and half the tokens' without it make up the rise between them. Measured: off by 0.6% of the largest."""
    model, batch = many(l0_coefficient=0.0)
    model.step(batch, LATE)
    found = model.threshold.grad.clone()
    expected = slopes(model, batch, "fvu")
    assert expected.abs().min() > 1e-3
    assert torch.allclose(found, expected, rtol=0.05, atol=0.02 * float(expected.abs().max()))


def test_thresholds_start_where_they_should_and_never_turn_negative() -> None:
    model = JumpReLU(Config(d_in=12, n_latents=40, initial_threshold=0.02))
    model.initialise(0)
    assert torch.equal(model.threshold, torch.full((40,), 0.02))
    with torch.no_grad():
        model.threshold.sub_(torch.linspace(0, 0.1, 40))
        model.after_update()
    assert model.threshold[0] == torch.tensor(0.02) and (model.threshold >= 0).all() and not model.threshold[20:].any()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"l0_coefficient": -1.0}, "l0_coefficient must not be negative"),
        ({"l0_warmup": 2.0}, r"l0_warmup lies in 0\.\.1"),
        ({"target_l0": 0.0}, r"target_l0 has to lie between 0 and n_latents \(40\), not 0"),
        ({"target_l0": 41.0}, "target_l0 has to lie between"),
        ({"bandwidth": 0.0}, "bandwidth has to be positive"),
        ({"initial_threshold": -0.1}, "initial_threshold must not be negative"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, float], message: str) -> None:
    with pytest.raises(SAEError, match=message):
        Config(d_in=12, n_latents=40, **settings)


# The published bandwidth of 0.001 is for runs of 10^5 steps and more; these are hundreds of steps long.
WIDE = {"bandwidth": 0.1, "initial_threshold": 0.05}


@pytest.mark.parametrize(
    "settings", [{"target_l0": 3.0}, {"target_l0": 6.0}, {"l0_coefficient": 0.01}], ids=["3", "6", "free"]
)
def test_planted_features_are_found_and_the_target_is_met(settings: dict[str, float]) -> None:
    """Measured over 3 seeds: mean best cosine above 0.94, FVU below 0.11, L0 3.1, 6.05 and 3.4."""
    directions, x = planted(8192)
    model = JumpReLU(Config(d_in=32, n_latents=96, **WIDE, **settings))
    inputs = scaled(x, model)
    results = train(model, inputs, steps=400, lr=1e-2)
    assert best_cosines(directions, model).mean() > 0.9
    assert fvu(model, inputs) < 0.15
    l0 = mean_l0(results, last=20)
    assert l0 == pytest.approx(settings["target_l0"], rel=0.1) if "target_l0" in settings else 2.5 < l0 < 5
    assert model.threshold.min() >= 0 and model.threshold.mean() > 0.075, "they rose from 0.05"
