"""Gated in dense tensors."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from dense import Parameters, preactivations, squared, variance

CASES: list[dict[str, Any]] = [
    {},
    {"l1": 0.0},
    {"l1_warmup": 0.5},  # a quarter of the way up
    {"apply_b_dec_to_input": False, "l1_warmup": 0.0},
]
CONTEXT = {"step": 1, "n_steps": 8}
PLANTED = {"l1": 0.5}


def loss(p: Parameters, batch: Any, model: Any, context: Any) -> Tensor:
    product = preactivations(p, batch, model)
    gate = product + p["b_gate"]
    codes = (product * p["r_mag"].exp() + p["b_mag"]).relu() * (gate > 0)
    done = context.step / context.n_steps
    weight = model.config.l1 * (min(1.0, done / model.config.l1_warmup) if model.config.l1_warmup else 1.0)
    frozen = {name: parameter.detach() for name, parameter in p.items()}
    auxiliary = squared(frozen, gate.relu(), batch)
    return (squared(p, codes, batch) + weight * gate.relu().sum() + auxiliary) / variance(batch)
