"""top-AFA in dense tensors: every activation is sorted, and every prefix's length compared."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dense import Parameters, fvu_and_auxk, preactivations

CASES: list[dict[str, Any]] = [
    {},
    {"afa": 0.5, "auxk_rows": 1, "auxk_alpha": 0.5},
    {"afa": 0.25, "afa_centred": True, "auxk_rows": 3},
    {"afa": 0.0, "apply_b_dec_to_input": False},
]


def loss(p: Parameters, batch: Any, model: Any, context: Any) -> Tensor:
    config = model.config
    inputs = batch.x - p["b_dec"] if config.apply_b_dec_to_input else batch.x
    pre = preactivations(p, batch, model)
    size = (pre.relu() * p["W_dec"].norm(dim=1)).detach()
    order = size.argsort(dim=1, descending=True)
    lengths = size.gather(1, order).square().cumsum(dim=1)
    lengths[:, -1] = 1e8
    k = 1 + (lengths.sqrt() - inputs.detach().norm(dim=1, keepdim=True)).abs().argmin(dim=1)
    mask = torch.zeros_like(pre)
    for row in range(len(pre)):
        mask[row, order[row, : k[row]]] = 1
    codes = pre.relu() * mask
    wanted = (batch.x - p["b_dec"]).detach() if config.afa_centred else batch.x
    afa = (codes.norm(dim=1) - wanted.norm(dim=1)).square().mean()
    # Against an error that is averaged over tokens and dimensions, and then in units of the batch's variance.
    mean_square = (batch.x - batch.x.mean(dim=0)).square().mean()
    return fvu_and_auxk(p, codes, pre, batch, model, context) + config.afa * afa / mean_square
