"""Feature Choice: quotas of Zipf's shape, each latent's own tokens and threshold, and no latent left dead."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from planted_features import mean_l0, planted_zipf, randomise, recovery, scaled, train
from torch import Tensor
from watch import Watch

import sae.base
from sae import SAEError
from sae.architectures.feature_choice import Config, FeatureChoice
from sae.architectures.mutual_choice import Config as MutualConfig
from sae.architectures.mutual_choice import MutualChoice
from sae.training import Batch, StepContext
from sae.zipf import curve, divide, fit

SETTINGS: dict[str, Any] = {"d_in": 12, "n_latents": 40, "k": 4}


def rows(seed: int, n: int = 50) -> Tensor:
    return torch.randn(n, 12, generator=torch.Generator().manual_seed(seed))


def pre_activations(model: FeatureChoice, x: Tensor) -> Tensor:
    return ((x - model.b_dec) @ model.encoder.T + model.b_enc).detach()


@pytest.mark.parametrize("n", [100, 4608])
@pytest.mark.parametrize(("alpha", "beta"), [(1.0, 0.01), (0.7, 0.1), (1.3, 0.002)])
def test_the_fit_recovers_a_curve(n: int, alpha: float, beta: float) -> None:
    """From densities in any order, whose head and low tail do not follow it."""
    densities = 3 * curve(n, torch.tensor(alpha).double(), torch.tensor(beta * n).double())
    densities *= torch.exp(0.02 * torch.randn(n, generator=torch.Generator().manual_seed(0), dtype=torch.float64))
    densities[: n // 20] *= 2
    densities[-n // 15 :] *= 0.01
    found, offset = fit(densities[torch.randperm(n, generator=torch.Generator().manual_seed(1))])
    assert float(found) == pytest.approx(alpha, abs=0.05 if n > 1000 else 0.15)
    middle = slice(n // 8, -n // 8)
    again = curve(n, found, offset)[middle]
    assert torch.allclose(again / again.sum(), densities[middle] / densities[middle].sum(), rtol=0.1)


def test_without_enough_that_fire_there_is_a_default_curve() -> None:
    for densities in (torch.zeros(200), torch.full((200,), -1.0), torch.eye(200)[0]):
        alpha, beta = fit(densities)
        assert float(alpha) == 1.0 and float(beta) == pytest.approx(2.0)
    assert float(curve(7, torch.tensor(1.0), torch.tensor(2.0)).sum()) == pytest.approx(1)


@pytest.mark.parametrize(("total", "most"), [(300, 50), (96, 50), (97, 50), (96 * 50, 50), (1000, 11), (3000, 512)])
def test_quotas_are_whole_bounded_and_sum_to_the_total(total: int, most: int) -> None:
    shares = curve(96, torch.tensor(1.0), torch.tensor(0.96))
    quotas = divide(shares, total, most)
    assert int(quotas.sum()) == total and quotas.min() >= 1 and quotas.max() <= most
    assert (quotas.diff() <= 0).all(), "no rank gets more than one before it"
    free = (quotas > 1) & (quotas < most)
    ratio = quotas[free] / shares[free]
    if free.sum() > 10 and total == 3000:
        assert ratio.max() / ratio.min() < 1.3, "in proportion where no bound holds"
    even = divide(torch.ones(96), total, most)
    assert even.max() - even.min() <= 1


def test_a_quota_that_cannot_be_divided_is_refused() -> None:
    for total, most in ((95, 50), (97, 1)):
        with pytest.raises(SAEError, match="raise k or the batch size"):
            divide(torch.ones(96), total, most)
    model = randomise(FeatureChoice(Config(**SETTINGS)), 3)
    with pytest.raises(SAEError, match=r"9 tokens with k 4 are fewer than 40 latents; raise batch_size"):
        model.step(Batch(rows(1, 9)), StepContext())
    model.step(Batch(rows(1, 10)), StepContext())


@pytest.mark.parametrize("columns", [1, 7, 1000])
def test_each_latent_keeps_its_quota_of_its_best_tokens(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model = randomise(FeatureChoice(Config(**SETTINGS, phase=0.0)), 3)
    monkeypatch.setattr(sae.base, "CHUNK_BYTES", max(4 * 40, columns * 50 * 4))
    model.shares.copy_(torch.linspace(0.18, 0.02, 40)[torch.randperm(40, generator=torch.Generator().manual_seed(2))])
    with torch.no_grad():
        model.b_enc[:5] = -1000  # never positive: they use nothing of theirs
        model.b_enc[5:10] -= 2.5  # rarely positive: they use a part
    x = rows(1)
    result = model.step(Batch(x), StepContext())
    quotas = torch.empty(40, dtype=torch.int64)
    order = model.shares.argsort(descending=True)
    quotas[order] = divide(model.shares[order], 200, 50)
    u = pre_activations(model, x)
    positive = (u > 0).sum(dim=0)
    assert torch.equal(result.fired, torch.minimum(quotas, positive))
    assert ((quotas < positive).sum() > 10) and not result.fired[:5].any()
    assert ((positive > 0) & (positive < quotas)).sum() > 1
    # Each latent's threshold is the smallest value that it kept, and none is set for those that kept none.
    for latent in range(40):
        kept = u[:, latent].sort(descending=True).values[: quotas[latent]]
        smallest = float(kept[kept > 0].min()) if (kept > 0).any() else -1.0
        assert float(model.threshold[latent]) == pytest.approx(smallest, rel=1e-5)
    model.threshold.mul_(1 + 1e-5)  # the products of inference may round otherwise
    codes = model.encode_dense(x)
    assert torch.equal((codes != 0).sum(dim=0)[5:], (result.fired[5:] - 1).clamp_min(0)), (
        "the smallest itself does not exceed it"
    )


def test_quotas_are_those_of_the_batch_at_hand() -> None:
    model = randomise(FeatureChoice(Config(**SETTINGS, phase=0.0)), 3)
    with torch.no_grad():
        model.b_enc += 100
    fired = [model.step(Batch(rows(n, n)), StepContext()).fired for n in (50, 25, 50)]
    assert [int(one.sum()) for one in fired] == [200, 100, 200] and torch.equal(fired[0], fired[2])


def test_with_a_quota_of_the_whole_batch_everything_positive_is_kept() -> None:
    model = randomise(FeatureChoice(Config(d_in=12, n_latents=40, k=40, phase=0.0)), 3)
    x = rows(1)
    assert torch.equal(model.step(Batch(x), StepContext()).fired, (pre_activations(model, x) > 0).sum(dim=0))


def test_it_is_mutual_choice_until_its_phase_is_over() -> None:
    model = randomise(FeatureChoice(Config(**SETTINGS, phase=0.5)), 3)
    mutual = randomise(MutualChoice(MutualConfig(**SETTINGS)), 3)
    for step in range(5):
        context = StepContext(step=step, n_steps=10)
        results = [one.step(Batch(rows(step)), context) for one in (model, mutual)]
        assert torch.equal(results[0].loss, results[1].loss) and torch.equal(results[0].fired, results[1].fired)
        assert torch.equal(model.threshold, mutual.threshold.expand(40)) and (model.shares < 0).all()
    before = model.threshold.clone()
    model.step(Batch(rows(5)), StepContext(step=5, n_steps=10))
    fixed = model.shares.clone()
    assert float(fixed.sum()) == pytest.approx(4, rel=1e-5) and len(model.threshold.unique()) > 20
    # Each threshold goes from the common one towards its latent's own, with the memory of a first step.
    order = fixed.argsort(descending=True)
    quotas = torch.empty(40, dtype=torch.int64)
    quotas[order] = divide(fixed[order], 200, 50)
    u = pre_activations(model, rows(5))
    smallest = torch.stack([u[:, i].sort(descending=True).values[quotas[i] - 1] for i in range(40)])
    filled = smallest > 0
    assert filled.sum() > 30
    assert torch.allclose(model.threshold[filled], (0.1 * before + 0.9 * smallest)[filled], rtol=1e-4)
    # The most frequent so far gets the largest share, and shares stay as they are.
    assert torch.equal(fixed.argsort(descending=True), mutual.densities.argsort(descending=True, stable=True))
    model.step(Batch(rows(6)), StepContext(step=6, n_steps=10))
    assert torch.equal(model.shares, fixed) and not torch.equal(model.threshold, before)


def test_once_divided_the_quotas_are_filled_without_waiting() -> None:
    model = randomise(FeatureChoice(Config(**SETTINGS, phase=0.0, auxk_alpha=0.0)), 3)
    waits = []
    for step in range(2):
        with Watch() as watch:
            model.step(Batch(rows(step)), StepContext(step=step, n_steps=10))
        waits.append(watch.waits)
    assert waits[0] and not waits[1]


def test_a_run_goes_on_from_its_buffers() -> None:
    """A copy that got weights and buffers, but nothing else, takes the same next step; a new start forgets them."""
    model = randomise(FeatureChoice(Config(**SETTINGS, phase=0.5)), 3)
    for step in range(7):
        model.step(Batch(rows(step)), StepContext(step=step, n_steps=10))
    copy = FeatureChoice(model.config)
    with torch.no_grad():
        for mine, other in zip(
            [*model.parameters(), *model.buffers()], [*copy.parameters(), *copy.buffers()], strict=True
        ):
            other.copy_(mine)
    results = [one.step(Batch(rows(7)), StepContext(step=7, n_steps=10)) for one in (model, copy)]
    assert torch.equal(results[0].loss, results[1].loss) and torch.equal(model.threshold, copy.threshold)
    copy.initialise(0)
    assert all((getattr(copy, name) < 0).all() for name in ("threshold", "shares", "densities"))


@pytest.mark.parametrize("phase", [-0.1, 1.1])
def test_phase_has_to_be_a_share(phase: float) -> None:
    with pytest.raises(SAEError, match="phase lies between 0 and 1"):
        Config(**SETTINGS, phase=phase)


def test_no_latent_is_dead_where_features_follow_zipf() -> None:
    """Where Mutual Choice leaves some dead; and thresholds keep as many per token as training did."""
    _, raw, _ = planted_zipf(16384 + 8192)
    dead = {}
    for phase in (0.8, 1.0):
        model = FeatureChoice(Config(d_in=64, n_latents=256, k=6, phase=phase))
        x = scaled(raw, model)
        results = train(model, x[:16384], steps=400, dead_after=20000)
        codes = model.encode(x[16384:])
        dead[phase] = int((torch.bincount(codes.latents, minlength=256) == 0).sum())
        assert codes.latents.numel() / 8192 == pytest.approx(mean_l0(results, last=10), rel=0.1)
    assert dead[0.8] == 0 < dead[1.0]


def test_planted_features_are_found() -> None:
    """They are equally frequent: the quotas of the lower ranks are then too small, but directions are found."""
    before, after = recovery("feature_choice", k=3)
    assert before < 0.7 and after > 0.9
