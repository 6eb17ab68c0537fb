"""TopK in dense tensors."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from dense import Parameters, fvu_and_auxk, largest, preactivations, squared, variance

CASES: list[dict[str, Any]] = [
    {"k": 4},
    {"k": 4, "multi_topk": True},
    {"k": 4, "auxk_rows": 1, "auxk_alpha": 0.5},
    {"k": 4, "auxk_rows": 3},
    {"k": 4, "auxk_alpha": 0.0},
    {"k": 1},
    {"k": 40},  # more than are positive: the ReLU cuts some of the chosen ones
]
PLANTED = {"k": 3}


def loss(p: Parameters, batch: Any, model: Any, context: Any) -> Tensor:
    pre = preactivations(p, batch, model)
    k = model.config.k
    out = fvu_and_auxk(p, pre.relu() * largest(pre, k), pre, batch, model, context)
    if model.config.multi_topk:
        wide = pre.relu() * largest(pre, min(4 * k, model.n_latents))
        out = out + squared(p, wide, batch) / variance(batch) / 8
    return out
