"""Activations made from known sparse features, how well a dictionary found them, and the shortest training loop."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sae.architectures.topk import Config, TopK
from sae.base import SparseAutoencoder
from sae.formats.native import ARCHITECTURES
from sae.training import Batch, StepContext, StepResult


def planted(
    n: int, *, d: int = 32, features: int = 64, active: int = 3, seed: int = 0
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Unit features `[features, d]`, and `[n, d]` activations that each sum `active` of them."""
    rng = np.random.default_rng(seed)
    directions = rng.normal(size=(features, d))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    chosen = np.argsort(rng.random((n, features)), axis=1)[:, :active]
    codes = np.zeros((n, features))
    np.put_along_axis(codes, chosen, rng.uniform(0.5, 1.5, (n, active)), axis=1)
    return directions.astype(np.float32), (codes @ directions + 0.005 * rng.normal(size=(n, d))).astype(np.float32)


def planted_zipf(
    n: int, *, d: int = 64, features: int = 256, active: float = 6.0, seed: int = 0
) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Features that fire independently, as often as Zipf's law has their rank, `active` a row on average.

    Unit features `[features, d]`, activations `[n, d]` and how many features each row has `[n]`.
    """
    rng = np.random.default_rng(seed)
    directions = rng.normal(size=(features, d))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    often = 1 / (np.arange(features) + 3)
    fires = rng.random((n, features)) < active * often / often.sum()
    x = (fires * rng.uniform(0.5, 1.5, (n, features))) @ directions + 0.005 * rng.normal(size=(n, d))
    return directions.astype(np.float32), x.astype(np.float32), fires.sum(axis=1)


def best_cosines(directions: NDArray[Any], model: SparseAutoencoder, *, signed: bool = False) -> NDArray[Any]:
    """For each planted feature the cosine of the decoder row that is nearest to it (either way round, if `signed`)."""
    decoder = model.W_dec.detach().numpy()
    cosines = directions @ (decoder / np.linalg.norm(decoder, axis=1, keepdims=True)).T
    return np.asarray((np.abs(cosines) if signed else cosines).max(axis=1))


def random_model(architecture: str, seed: int = 0, *, dtype: torch.dtype = torch.float32, **config: Any) -> Any:
    """Untied random weights and biases, so that no term of a gradient vanishes by symmetry."""
    return randomise(ARCHITECTURES[architecture].create(config), seed).to(dtype)


def random_topk(seed: int = 0, *, dtype: torch.dtype = torch.float32, **config: Any) -> TopK:
    return randomise(TopK(Config(**config)), seed).to(dtype)


def randomise(model: Any, seed: int) -> Any:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.4 * torch.randn(parameter.shape, generator=generator))
    return model


def scaled(x: NDArray[Any] | Tensor, model: SparseAutoencoder) -> Tensor:
    """At the mean length that training scales inputs to."""
    rows = torch.as_tensor(x)
    length = math.sqrt(model.d_in) if model.input_length is None else model.input_length
    return rows * (length / float(rows.norm(dim=1).mean()))


def train(
    model: SparseAutoencoder,
    x: Tensor,
    *,
    target: Tensor | None = None,
    gradient: Tensor | None = None,
    steps: int = 250,
    batch_size: int = 512,
    lr: float = 5e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    dead_after: int = 4096,
    seed: int = 0,
    initialise: bool = True,
) -> list[StepResult]:
    """Adam on seeded random batches of rows of `x`, with warm-up, linear decay and unit decoder rows."""
    if initialise:
        model.initialise(seed)
        model.initialise_from(x if target is None else target)
    optimiser = torch.optim.Adam(model.parameters(), lr=lr, betas=betas)
    generator = torch.Generator().manual_seed(seed)
    since_fired = torch.zeros(model.n_latents, dtype=torch.int64)
    results = []
    for step in range(steps):
        rows = torch.randint(len(x), (batch_size,), generator=generator)
        batch = Batch(x[rows], *(None if other is None else other[rows] for other in (target, gradient)))
        dead = (since_fired > dead_after).nonzero()[:, 0]
        results.append(model.step(batch, StepContext(step, steps, batch_size, dead)))
        for group in optimiser.param_groups:
            group["lr"] = lr * min(1.0, (step + 1) / 20, (steps - step) / (0.3 * steps))
        with torch.no_grad():
            model.before_update()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            model.after_update()
        since_fired = torch.where(results[-1].fired > 0, 0, since_fired + batch_size)
    return results


@torch.no_grad()
def fvu(model: SparseAutoencoder, x: Tensor, target: Tensor | None = None) -> float:
    """Squared error of `forward` over the variance of what it has to reconstruct."""
    y = x if target is None else target
    return float((model(x) - y).square().sum() / (y - y.mean(dim=0)).square().sum())


def mean_l0(results: list[StepResult], last: int, batch_size: int = 512) -> float:
    """Non-zero codes per row in the last steps of a training."""
    return float(torch.stack([result.n_active for result in results[-last:]]).double().mean()) / batch_size


def recovery(architecture: str, *, steps: int = 250, **settings: Any) -> tuple[float, float]:
    """Mean best cosine with 64 planted features, before and after training 96 latents on rows of three of them."""
    model = ARCHITECTURES[architecture].create({"d_in": 32, "n_latents": 96, **settings})
    directions, raw = planted(8192)
    x = scaled(raw, model)
    model.initialise(0)
    model.initialise_from(x)
    before = best_cosines(directions, model, signed=getattr(model, "signed", False)).mean()
    train(model, x, steps=steps, initialise=False)
    after = best_cosines(directions, model, signed=getattr(model, "signed", False)).mean()
    return float(before), float(after)
