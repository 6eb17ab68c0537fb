"""BatchTopK in dense tensors."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dense import Parameters, fvu_and_auxk, preactivations

BATCH_WIDE = True
TRAINS_AS_IT_INFERS = False
CASES: list[dict[str, Any]] = [
    {"k": 4},
    {"k": 1, "auxk_rows": 1, "auxk_alpha": 0.5},
    {"k": 40},  # more than are positive
]
PLANTED = {"k": 3}


def prepare(model: Any, generator: torch.Generator) -> None:
    model.threshold.fill_(0.5)


def kept(pre: Tensor, quota: int) -> Tensor:
    """The `quota` largest entries of the whole matrix, at their values, but for negative ones."""
    order = pre.detach().flatten().sort(descending=True, stable=True).indices[:quota]
    mask = pre.new_zeros(pre.numel()).scatter(0, order, 1.0).reshape(pre.shape)
    return pre.relu() * mask


def loss(p: Parameters, batch: Any, model: Any, context: Any) -> Tensor:
    pre = preactivations(p, batch, model)
    return fvu_and_auxk(p, kept(pre, model.config.k * len(pre)), pre, batch, model, context)
