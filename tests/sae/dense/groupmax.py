"""GroupMax in dense tensors."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dense import Parameters, fvu_and_auxk, preactivations

CASES: list[dict[str, Any]] = [
    {"k": 4},
    {"k": 1, "auxk_rows": 3},
    {"k": 40, "auxk_alpha": 0.5},
]
PLANTED = {"k": 8}


def loss(p: Parameters, batch: Any, model: Any, context: Any) -> Tensor:
    pre = preactivations(p, batch, model)
    kept = [group.relu() * (group == group.amax(dim=1, keepdim=True)) for group in pre.chunk(model.config.k, dim=1)]
    return fvu_and_auxk(p, torch.cat(kept, dim=1), pre, batch, model, context)
