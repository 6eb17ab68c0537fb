"""Mutual Choice in dense tensors, with aux_zipf: AuxK of the under-used, chosen by weighted activation."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from dense import Parameters, auxk, preactivations, squared, variance
from dense.batchtopk import kept

BATCH_WIDE = True
TRAINS_AS_IT_INFERS = False
CASES: list[dict[str, Any]] = [
    {"k": 4},
    {"k": 4, "tau": 1.0, "auxk_rows": 1, "auxk_alpha": 0.5},
    {"k": 40, "auxk_alpha": 0.0},
]
PLANTED = {"k": 3}


def prepare(model: Any, generator: torch.Generator) -> None:
    """Densities of Zipf's shape in a random order, the tail far below it, some of them zero."""
    n = model.n_latents
    model.threshold.fill_(0.5)
    ranks = torch.arange(1, n + 1, dtype=torch.float64)
    curve = (ranks + 2) ** -0.8 * (1 + 0.1 * torch.randn(n, generator=generator))
    curve[-n // 5 :] *= 0.3
    curve[-n // 10 :] = 0
    curve *= model.config.k / curve.sum()
    model.densities.copy_(curve[torch.randperm(n, generator=generator)])


def expected(densities: Tensor, k: int) -> Tensor:
    """Best line through the logarithms of the middle ranks, over a grid of offsets."""
    n = len(densities)
    order = np.argsort(-densities.numpy(), kind="stable")
    ranks = np.arange(1, n + 1)
    middle = [r for r in ranks if 0.1 * n < r <= 0.9 * n and densities[order[r - 1]] > 0]
    y = np.log([float(densities[order[r - 1]]) for r in middle])
    fits = []
    for beta in n * 10 ** np.linspace(-4, 0, 64):
        x = np.log(np.array(middle) + beta)
        line, misfit = np.polynomial.polynomial.polyfit(x, y, 1, full=True)
        fits.append((misfit[0][0], -line[1], beta))
    _, alpha, beta = min(fits)
    weights = (ranks + beta) ** -alpha
    out = np.empty(n)
    out[order] = k * weights / weights.sum()
    return torch.from_numpy(out)


def aux_zipf(p: Parameters, codes: Tensor, pre: Tensor, batch: Any, model: Any, wanted: Tensor) -> Tensor:
    limit = model.config.tau * wanted
    under = torch.tensor([i for i in range(model.n_latents) if 0 <= model.densities[i] < limit[i]])
    assert 3 < len(under) < model.n_latents
    return auxk(p, codes, pre, batch, model, under, weights=(1 - model.densities / limit)[under])


def loss(p: Parameters, batch: Any, model: Any, context: Any) -> Tensor:
    pre = preactivations(p, batch, model)
    codes = kept(pre, model.config.k * len(pre))
    aux = aux_zipf(p, codes, pre, batch, model, expected(model.densities, model.config.k))
    return squared(p, codes, batch) / variance(batch) + model.config.auxk_alpha * aux
