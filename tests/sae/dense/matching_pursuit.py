"""Matching pursuit in dense tensors: unrolled, with picks as constants."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dense import Parameters, encoder_input, squared, variance

CASES: list[dict[str, Any]] = [
    {"k": 4},
    {"k": 1},
    {"k": 12, "stop_on_duplicate_support": True},
    {"k": 8, "residual_threshold": 1.5},
    {"k": 4, "apply_b_dec_to_input": False, "skip": True},
]
PLANTED = {"k": 3}


def prepare(model: Any, generator: torch.Generator) -> None:
    # Rows of other lengths too: gradients need not know that training keeps them at 1.
    lengths = 0.8 + 0.4 * torch.rand(model.n_latents, 1, generator=generator, dtype=torch.float64)
    model.W_dec.mul_(lengths / model.W_dec.norm(dim=1, keepdim=True))


def loss(p: Parameters, batch: Any, model: Any, context: Any) -> Tensor:
    config = model.config
    residual = encoder_input(p, batch, model)
    codes = residual.new_zeros(len(residual), model.n_latents)
    going = torch.ones(len(residual), dtype=torch.bool)
    for _ in range(config.k):
        picks = (residual @ p["W_dec"].T).argmax(dim=1)
        amounts = (residual * p["W_dec"][picks]).sum(dim=1).relu() * going
        support = codes.detach() != 0
        codes = codes.scatter_add(1, picks[:, None], amounts[:, None])
        residual = residual - amounts[:, None] * p["W_dec"][picks]
        if config.stop_on_duplicate_support:
            going = going & ((codes.detach() != 0) != support).any(dim=1)
        if config.residual_threshold > 0:
            going = going & (residual.detach().norm(dim=1) >= config.residual_threshold)
    return squared(p, codes, batch) / variance(batch)
