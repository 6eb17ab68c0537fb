"""Matryoshka BatchTopK in dense tensors."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dense import Parameters, auxk, preactivations, squared, variance
from dense.batchtopk import kept

BATCH_WIDE = True
TRAINS_AS_IT_INFERS = False
CASES: list[dict[str, Any]] = [
    {"k": 4},
    {"k": 4, "group_sizes": [7, 1, 32], "weights": [0.5, 0.125, 0.375], "auxk_rows": 1, "auxk_alpha": 0.5},
    {"k": 2, "groups": [1.0]},
    {"k": 40, "groups": [0.25, 0.75]},
]
PLANTED = {"k": 3}
DEFAULT_SIZES = [1, 3, 5, 10, 21]  # of 40: 1.25, 2.5, 5, 10 and 21.25, rounded at their running sums


def prepare(model: Any, generator: torch.Generator) -> None:
    model.threshold.fill_(0.5)


def sizes(config: Any) -> list[int]:
    if config.group_sizes is not None:
        return list(config.group_sizes)
    return {5: DEFAULT_SIZES, 1: [40], 2: [10, 30]}[len(config.groups)]


def loss(p: Parameters, batch: Any, model: Any, context: Any) -> Tensor:
    pre = preactivations(p, batch, model)
    codes = kept(pre, model.config.k * len(pre))
    given = sizes(model.config)
    out = pre.new_zeros(())
    for i in range(len(given)):
        prefix = codes * (torch.arange(40) < sum(given[: i + 1]))
        weight = 1 / len(given) if model.config.weights is None else model.config.weights[i]
        out = out + weight * squared(p, prefix, batch) / variance(batch)
    return out + model.config.auxk_alpha * auxk(p, codes, pre, batch, model, context.dead)
