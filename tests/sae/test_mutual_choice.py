"""Mutual Choice: BatchTopK's choice, an auxiliary loss for the under-used, and more latents for harder tokens."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from planted_features import fvu, planted_zipf, randomise, recovery, scaled, train
from scipy.stats import spearmanr
from torch import Tensor

from sae import SAEError
from sae.architectures.batchtopk import BatchTopK
from sae.architectures.batchtopk import Config as BatchTopKConfig
from sae.architectures.mutual_choice import Config, MutualChoice
from sae.architectures.topk import Config as TopKConfig
from sae.architectures.topk import TopK
from sae.aux_zipf import add_aux_zipf, under_used
from sae.auxk import add_auxk
from sae.training import Batch, Gradients, StepContext

SETTINGS: dict[str, Any] = {"d_in": 12, "n_latents": 40, "k": 4}


def rows(seed: int, n: int = 50) -> Tensor:
    return torch.randn(n, 12, generator=torch.Generator().manual_seed(seed))


def test_the_choice_is_that_of_batchtopk_to_the_bit() -> None:
    """Also that of steps with a threshold to start the search from, and of inference."""
    mine = randomise(MutualChoice(Config(**SETTINGS, auxk_alpha=0.0)), 3)
    other = randomise(BatchTopK(BatchTopKConfig(**SETTINGS, auxk_alpha=0.0)), 3)
    for step in range(3):
        context, batch = StepContext(step=step), Batch(rows(step))
        chosen, same = [model.select(batch, model.encoder_input(batch.x), context) for model in (mine, other)]
        assert torch.equal(chosen[0].rows, same[0].rows) and torch.equal(chosen[0].latents, same[0].latents)
        assert torch.equal(chosen[1], same[1]) and torch.equal(mine.threshold, other.threshold)
        results = [model.step(batch, context) for model in (mine, other)]
        assert torch.equal(results[0].loss, results[1].loss) and torch.equal(results[0].fired, results[1].fired)
        for name, parameter in mine.named_parameters():
            assert torch.equal(parameter.grad, dict(other.named_parameters())[name].grad), (step, name)
    assert torch.equal(mine.encode_dense(rows(9)), other.encode_dense(rows(9)))


def aux(model: MutualChoice, densities: Tensor, expected: Tensor, tau: float) -> tuple[Tensor, dict[str, Tensor]]:
    gradients, x = Gradients(), rows(1)
    inputs, residual = model.encoder_input(x).detach(), 0.3 * rows(2)
    with torch.no_grad():
        value = add_aux_zipf(
            model,
            gradients,
            inputs,
            residual,
            StepContext(),
            densities=densities,
            expected=expected,
            tau=tau,
            alpha=0.5,
        )
    return value, gradients.sums


def test_where_the_under_used_are_the_dead_it_is_auxk() -> None:
    model = randomise(MutualChoice(Config(**SETTINGS)), 3)
    dead = torch.tensor([2, 3, 17])
    densities = torch.full((40,), 0.1)
    densities[dead] = 0
    value, sums = aux(model, densities, torch.full((40,), 0.1), tau=0.5)
    plain = Gradients()
    inputs, residual = model.encoder_input(rows(1)).detach(), 0.3 * rows(2)
    with torch.no_grad():
        wanted = add_auxk(model, plain, inputs, residual, StepContext(dead=dead), alpha=0.5)
    assert float(value) > 0 and torch.equal(value, wanted)
    assert sums.keys() == plain.sums.keys()
    for name, gradient in sums.items():
        assert torch.equal(gradient, plain.sums[name]), name


def test_only_the_under_used_are_reached() -> None:
    model = randomise(MutualChoice(Config(**SETTINGS)), 3)
    densities, expected = torch.full((40,), 0.1), torch.linspace(0.4, 0.1, 40)
    indices, weights = under_used(densities, expected, 0.5)
    inside = expected > 0.2
    assert torch.equal(indices, inside.nonzero()[:, 0]) and 5 < len(indices) < 35
    assert torch.allclose(weights, 1 - 0.2 / expected[inside]) and (weights > 0).all() and (weights <= 1).all()
    _, sums = aux(model, densities, expected, tau=0.5)
    for name in ("encoder", "b_enc", "W_dec"):
        assert not sums[name][~inside].any() and sums[name][inside].any(), name
    value, sums = aux(model, densities, expected, tau=0.1)
    assert float(value) == 0 and not sums, "nobody is under-used"
    assert under_used(torch.full((40,), -1.0), expected, 0.5)[0].numel() == 0, "not measured yet"


def test_densities_are_the_running_share_of_tokens() -> None:
    model = randomise(MutualChoice(Config(**SETTINGS)), 3)
    shares = [model.step(Batch(rows(step)), StepContext(step=step)).fired / 50 for step in range(2)]
    assert not torch.equal(shares[0], shares[1])
    assert torch.allclose(model.densities, 2 / 11 * shares[0] + 9 / 11 * shares[1])
    late = model.step(Batch(rows(2)), StepContext(step=10**6)).fired / 50
    assert torch.allclose(model.densities, 0.99 * (2 / 11 * shares[0] + 9 / 11 * shares[1]) + 0.01 * late)
    assert "densities" not in model.state_dict() and "densities" in dict(model.named_buffers())


def test_tau_has_to_be_a_share() -> None:
    with pytest.raises(SAEError, match=r"tau lies between 0 and 1, not 1\.5"):
        Config(**SETTINGS, tau=1.5)


def test_harder_tokens_get_more_latents() -> None:
    """Features of Zipf's frequencies, independent of each other: tokens differ in how many they hold."""
    _, raw, counts = planted_zipf(16384 + 4096)
    left, l0 = {}, {}
    for kind, config in ((MutualChoice, Config), (TopK, TopKConfig)):
        model = kind(config(d_in=64, n_latents=256, k=6))  # type: ignore[arg-type]
        x = scaled(raw, model)
        train(model, x[:16384], steps=400, dead_after=20000)
        left[kind] = fvu(model, x[16384:])
        l0[kind] = model.encode(x[16384:]).offsets.diff().double()
    assert spearmanr(l0[MutualChoice], counts[16384:]).statistic > 0.6
    assert l0[TopK].std() < 0.2 < 1.5 < l0[MutualChoice].std()
    assert left[MutualChoice] < left[TopK]


def test_planted_features_are_found() -> None:
    before, after = recovery("mutual_choice", k=3)
    assert before < 0.7 and after > 0.9
