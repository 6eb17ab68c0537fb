"""BatchTopK: the choice is exactly the batch's largest, however it is searched, and a threshold stands in for it."""

from __future__ import annotations

import pytest
import torch
from planted_features import random_model, recovery
from torch import Tensor

import sae.base
from sae import load, save
from sae.architectures.batchtopk import BatchTopK, Config
from sae.batch_selection import follow, largest_of_batch
from sae.training import Batch, StepContext


def with_preactivations(u: Tensor, k: int = 1) -> BatchTopK:
    """An SAE that reads `u` [n, F] as its own pre-activations."""
    model = BatchTopK(Config(d_in=u.shape[1], n_latents=u.shape[1], k=k))
    with torch.no_grad():
        model.encoder.copy_(torch.eye(u.shape[1]))
    return model.to(u.dtype)


def expected(u: Tensor, quota: int) -> Tensor:
    """The largest entries by a stable sort, which puts the first of equals first."""
    order = u.flatten().sort(descending=True, stable=True).indices[:quota]
    mask = torch.zeros(u.numel()).scatter(0, order, 1.0).reshape(u.shape)
    return u.relu() * mask


@pytest.mark.parametrize("chunk", [1, 7, 1000])
@pytest.mark.parametrize("threshold", [None, -1.0, 0.0, 0.5, 3.0, 1e6])
@pytest.mark.parametrize("kind", ["distinct", "ties", "few positive"])
def test_the_choice_is_exactly_the_largest(
    kind: str, threshold: float | None, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the chunks and whatever threshold is guessed from; of equal values the first are kept."""
    generator = torch.Generator().manual_seed(1)
    u = torch.randn(50, 40, generator=generator, dtype=torch.float64)
    if kind == "ties":
        u = u.mul(1.5).round()
        assert len(u[u > 0].unique()) < 8
    if kind == "few positive":
        u -= 2.5
        assert 0 < (u > 0).sum() < 50
    model = with_preactivations(u)
    monkeypatch.setattr(sae.base, "CHUNK_BYTES", chunk * 40 * 8)
    guess = None if threshold is None else torch.tensor(threshold)
    for quota in (1, 50, 211, 2000):
        pairs, values = largest_of_batch(model, u, quota, guess)
        dense = torch.zeros(50, 40, dtype=torch.float64)
        dense[pairs.rows, pairs.latents] = values
        assert torch.equal(dense, expected(u, quota)), quota
        assert len(values) == min(quota, int((u > 0).sum()))
        assert (pairs.rows.diff() >= 0).all() and pairs.n_rows == 50


def test_a_step_keeps_k_per_token_on_average() -> None:
    model = random_model("batchtopk", 3, d_in=12, n_latents=40, k=4)
    with torch.no_grad():
        model.b_enc += 2
    x = torch.randn(50, 12, generator=torch.Generator().manual_seed(1))
    u = ((x - model.b_dec) @ model.encoder.T + model.b_enc).detach()
    result = model.step(Batch(x), StepContext())
    chosen = expected(u, 200)
    assert int(result.n_active) == 200
    assert torch.equal(result.fired, (chosen > 0).sum(dim=0))
    per_token = (chosen > 0).sum(dim=1)
    assert per_token.max() > 8 and per_token.min() < 2, "tokens take what they need"


def test_the_threshold_follows_the_smallest_value_kept() -> None:
    generator = torch.Generator().manual_seed(2)
    batches = [torch.randn(50, 40, generator=generator) + shift for shift in (3.0, 2.0, 2.5)]
    model, smallest = with_preactivations(batches[0], k=4), []
    for step, u in enumerate(batches):
        smallest.append(float(u.flatten().sort(descending=True).values[199]))
        model.step(Batch(u), StepContext(step=step))
    second = 2 / 11 * smallest[0] + 9 / 11 * smallest[1]
    assert float(model.threshold) == pytest.approx(3 / 12 * second + 9 / 12 * smallest[2], rel=1e-6)
    # Late in training it remembers for a thousand steps.
    before = float(model.threshold)
    model.step(Batch(batches[0]), StepContext(step=10**6))
    assert float(model.threshold) == pytest.approx(0.999 * before + 0.001 * smallest[0], rel=1e-6)


def test_processes_agree_on_the_mean_of_what_they_saw() -> None:
    """Of the smallest values 1 here and 3 elsewhere, or of those there are, if only one process kept any."""
    for mine, seen, other, expected in (
        (1.0, True, (3.0, 1.0), 2.0),
        (0.0, False, (3.0, 1.0), 3.0),
        (1.0, True, (0.0, 0.0), 1.0),
        (0.0, False, (0.0, 0.0), -1.0),
    ):
        context = StepContext(total=lambda share, other=other: share + torch.tensor(other))  # type: ignore[misc]
        threshold = torch.tensor(-1.0)
        follow(threshold, torch.tensor(mine), torch.tensor(seen), 0, 0.999, context)
        assert float(threshold) == expected


def test_a_batch_without_positive_values_sets_no_threshold() -> None:
    model = with_preactivations(torch.zeros(50, 40), k=4)
    for before in (-1.0, 0.25):
        model.threshold.fill_(before)
        result = model.step(Batch(torch.randn(50, 40) - 100), StepContext())
        assert float(model.threshold) == before
        assert int(result.n_active) == 0 and result.loss.isfinite()


def test_inference_keeps_what_exceeds_the_threshold() -> None:
    u = torch.tensor([[0.2, 0.5, 0.6, -3.0], [-0.1, 0.0, 0.4, 0.1]])
    model = with_preactivations(u)
    assert float(model.threshold) < 0
    assert torch.equal(model.encode_dense(u), u.relu()), "never set: a plain ReLU"
    model.threshold.fill_(0.5)
    assert torch.equal(model.encode_dense(u), torch.tensor([[0.0, 0.0, 0.6, 0.0], [0.0, 0.0, 0.0, 0.0]]))
    model.threshold.fill_(0.0)
    assert torch.equal(model.encode_dense(u), u.relu())


def test_folding_a_scale_in_leaves_a_threshold_that_was_never_set() -> None:
    model = random_model("batchtopk", 3, d_in=12, n_latents=40, k=4)
    x = torch.randn(30, 12, generator=torch.Generator().manual_seed(1))
    codes = model.encode_dense(x)
    model.rescale(1e-3)
    assert float(model.threshold) < 0
    assert torch.allclose(model.encode_dense(1000 * x), 1000 * codes, rtol=1e-4, atol=1e-2)


def test_the_threshold_is_kept_with_the_weights_and_started_anew(tmp_path: object) -> None:
    model = random_model("batchtopk", 3, d_in=12, n_latents=40, k=4)
    model.step(Batch(torch.randn(50, 12)), StepContext())
    assert float(model.threshold) > 0
    again = load(save(model, f"{tmp_path}/sae"))
    assert isinstance(again, BatchTopK) and torch.equal(again.threshold, model.threshold)
    again.initialise(0)
    assert float(again.threshold) < 0


def test_planted_features_are_found() -> None:
    before, after = recovery("batchtopk", k=3)
    assert before < 0.7 and after > 0.9
