"""AbsTopK in dense tensors."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from dense import Parameters, fvu_and_auxk, largest, preactivations, squared, variance

CASES: list[dict[str, Any]] = [
    {"k": 4},
    {"k": 4, "multi_topk": True},
    {"k": 4, "auxk_rows": 1, "auxk_alpha": 0.5},
    {"k": 40},
]
PLANTED = {"k": 3}


def loss(p: Parameters, batch: Any, model: Any, context: Any) -> Tensor:
    pre = preactivations(p, batch, model)
    k = model.config.k
    out = fvu_and_auxk(p, pre * largest(pre.abs(), k), pre, batch, model, context, signed=True)
    if model.config.multi_topk:
        out = out + squared(p, pre * largest(pre.abs(), min(4 * k, 40)), batch) / variance(batch) / 8
    return out
