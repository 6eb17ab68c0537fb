"""The TopK transcoder with a skip connection in dense tensors."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from dense import Parameters, auxk, largest, variance

CASES: list[dict[str, Any]] = [{"k": 4}, {"k": 4, "d_out": 7}, {"k": 2, "auxk_alpha": 0.0}]
PLANTED = {"k": 3}


def loss(p: Parameters, batch: Any, model: Any, context: Any) -> Tensor:
    pre = batch.x @ p["encoder"].T + p["b_enc"]
    codes = pre.relu() * largest(pre, model.config.k)
    target = batch.x if batch.target is None else batch.target
    error = codes @ p["W_dec"] + p["b_dec"] + batch.x @ p["W_skip"].T - target
    aux = auxk(p, codes, pre, batch, model, context.dead)
    return error.square().sum() / variance(batch) + model.config.auxk_alpha * aux
