"""p-annealing in dense tensors: the schedule is counted out, the weight's factor is the model's."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dense import Parameters, preactivations, squared, variance

# Annealing from step 20 of 100 to step 80, in 4 falls: at 20, 40, 60 and 80.
CASES: list[dict[str, Any]] = [
    {"anneal_start": 0.2, "anneal_end": 0.8, "n_updates": 4, "p_end": 0.2},
    {"anneal_start": 0.2, "anneal_end": 0.8, "n_updates": 4, "p_end": 0.6, "norm_weighted": True},
    {"anneal_start": 0.9, "anneal_end": 1.0, "n_updates": 2},  # p is still 1
]
CONTEXT = {"step": 55, "n_steps": 100}
PLANTED = {"l1": 0.5}


def prepare(model: Any, generator: torch.Generator) -> None:
    model.weight_factor.fill_(0.7)


def loss(p: Parameters, batch: Any, model: Any, context: Any) -> Tensor:
    config = model.config
    span = (config.anneal_end - config.anneal_start) / (config.n_updates - 1)
    falls = sum(
        context.step >= context.n_steps * (config.anneal_start + i * span) - 1e-9 for i in range(config.n_updates)
    )
    exponent = 1 - (1 - config.p_end) * falls / config.n_updates
    codes = preactivations(p, batch, model).relu()
    penalised = codes * p["W_dec"].norm(dim=1) if config.norm_weighted else codes
    penalty = ((penalised + 1e-8) ** exponent - 1e-8**exponent).sum()
    return (squared(p, codes, batch) + config.l1 * float(model.weight_factor) * penalty) / variance(batch)
