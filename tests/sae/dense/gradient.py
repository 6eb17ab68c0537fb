"""g-SAE in dense tensors: the score is a constant, and only decides which activations are kept."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from dense import Parameters, fvu_and_auxk, largest, preactivations

TRAINS_AS_IT_INFERS = False
CASES: list[dict[str, Any]] = [
    {"k": 4, "beta": 2.0, "normalised": False},
    {"k": 4, "beta": 0.0},
    {"k": 4, "beta": 3.0, "auxk_rows": 1},
    {"k": 40},
]
PLANTED = {"k": 3}


def loss(p: Parameters, batch: Any, model: Any, context: Any) -> Tensor:
    config = model.config
    pre = preactivations(p, batch, model)
    effect = (batch.gradient @ p["W_dec"].T).abs()
    if config.normalised:
        effect = effect / effect.mean()
    score = (pre.relu() * (1 + config.beta * effect)).detach()
    return fvu_and_auxk(p, pre.relu() * largest(score, config.k), pre, batch, model, context)
