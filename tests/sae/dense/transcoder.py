"""The TopK transcoder in dense tensors."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from dense import Parameters, fvu_and_auxk, largest

CASES: list[dict[str, Any]] = [{"k": 4}, {"k": 4, "d_out": 7}, {"k": 2, "d_out": 12, "auxk_rows": 1}]
PLANTED = {"k": 3}


def loss(p: Parameters, batch: Any, model: Any, context: Any) -> Tensor:
    assert not model.config.apply_b_dec_to_input
    pre = batch.x @ p["encoder"].T + p["b_enc"]
    return fvu_and_auxk(p, pre.relu() * largest(pre, model.config.k), pre, batch, model, context)
