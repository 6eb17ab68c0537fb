"""ReLU and L1 in dense tensors, in both forms."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from dense import Parameters, preactivations, squared, variance

CASES: list[dict[str, Any]] = [
    {},
    {"l1": 0.0},
    {"l1_warmup": 0.5},  # a quarter of the way up
    {"norm_weighted": True},
    {"norm_weighted": True, "apply_b_dec_to_input": False, "l1_warmup": 0.0},
]
CONTEXT = {"step": 1, "n_steps": 8}
PLANTED = {"l1": 0.5}


def loss(p: Parameters, batch: Any, model: Any, context: Any) -> Tensor:
    config = model.config
    codes = preactivations(p, batch, model).relu()
    penalised = codes * p["W_dec"].norm(dim=1) if config.norm_weighted else codes
    done = context.step / context.n_steps
    weight = config.l1 * (min(1.0, done / config.l1_warmup) if config.l1_warmup else 1.0)
    return (squared(p, codes, batch) + weight * penalised.sum()) / variance(batch)
