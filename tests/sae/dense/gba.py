"""Group bias adaptation in dense tensors: the squared error alone, in which biases are constants."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dense import Parameters, encoder_input, squared, variance

CASES: list[dict[str, Any]] = [{}, {"apply_b_dec_to_input": False, "n_groups": 3}, {"skip": True, "n_groups": 1}]
NO_GRADIENT = {"b_enc"}
PLANTED = {"n_groups": 4, "highest_frequency": 0.1, "lowest_frequency": 0.02, "adapt_every": 5, "bias_step": 0.05}


def prepare(model: Any, generator: torch.Generator) -> None:
    model.W_dec.div_(model.W_dec.norm(dim=1, keepdim=True))
    model.b_enc.abs_().neg_()


def loss(p: Parameters, batch: Any, model: Any, context: Any) -> Tensor:
    reading = encoder_input(p, batch, model) @ p["W_dec"].T
    fires = reading.detach() + p["b_enc"].detach() > 0
    return squared(p, p["scale"] * reading * fires, batch) / variance(batch)
