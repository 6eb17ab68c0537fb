"""Feature Choice in dense tensors, in the phase of its quotas and in that of Mutual Choice."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dense import Parameters, mutual_choice, preactivations, squared, variance

BATCH_WIDE = True
TRAINS_AS_IT_INFERS = False
CASES: list[dict[str, Any]] = [
    {"k": 8, "phase": 0.5},  # half of training is over
    {"k": 4, "phase": 0.0, "auxk_rows": 1, "auxk_alpha": 0.5},
    {"k": 40, "phase": 0.5},  # every latent may keep every token
    {"k": 4, "phase": 0.6},  # still Mutual Choice
]
# Quotas are whole numbers of a process' own tokens, and those of two halves need not add up to those of the whole.
PROCESSES = [{"k": 4, "phase": 1.0}, {"k": 40, "phase": 0.0}]
CONTEXT = {"step": 5, "n_steps": 10}
PLANTED = {"k": 3, "phase": 0.7}


def prepare(model: Any, generator: torch.Generator) -> None:
    mutual_choice.prepare(model, generator)


def quotas(shares: Tensor, total: int, most: int) -> list[int]:
    """One token to each, then one after another to whoever has least of it for its share."""
    counts = [1] * len(shares)
    by_rank = sorted(range(len(shares)), key=lambda i: -float(shares[i]))
    while sum(counts) < total:
        counts[max((i for i in by_rank if counts[i] < most), key=lambda i: float(shares[i]) / (counts[i] + 1))] += 1
    return counts


def loss(p: Parameters, batch: Any, model: Any, context: Any) -> Tensor:
    config = model.config
    if context.step < config.phase * context.n_steps:
        return mutual_choice.loss(p, batch, model, context)
    pre = preactivations(p, batch, model)
    n = len(pre)
    shares = mutual_choice.expected(model.densities, config.k)
    mask = torch.zeros_like(pre)
    for latent, quota in enumerate(quotas(shares, config.k * n, n)):
        mask[pre[:, latent].detach().argsort(descending=True)[:quota], latent] = 1
    codes = pre.relu() * mask
    aux = mutual_choice.aux_zipf(p, codes, pre, batch, model, shares)
    return squared(p, codes, batch) / variance(batch) + config.auxk_alpha * aux
