"""JumpReLU in dense tensors: the step function and its product with u have the pseudo-derivatives of the paper."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dense import Parameters, preactivations, squared, variance

CASES: list[dict[str, Any]] = [
    {"bandwidth": 0.5, "l0_coefficient": 0.3},
    {"bandwidth": 0.5, "target_l0": 4.0},
    {"bandwidth": 0.5, "target_l0": 30.0, "l0_coefficient": 2.0, "l0_warmup": 0.5},
    {"bandwidth": 2.0, "l0_coefficient": 0.3, "apply_b_dec_to_input": False},  # the kernel reaches below zero
    {"l0_coefficient": 0.3},
]
CONTEXT = {"step": 1, "n_steps": 8}
PLANTED = {"bandwidth": 0.1, "initial_threshold": 0.05, "target_l0": 3.0}


def prepare(model: Any, generator: torch.Generator) -> None:
    model.threshold.abs_()


class Step(torch.autograd.Function):
    """1 where u exceeds the threshold; its slope by the threshold is minus the kernel, by u it is 0."""

    @staticmethod
    def forward(ctx: Any, u: Tensor, threshold: Tensor, width: float) -> Tensor:
        ctx.save_for_backward(u, threshold)
        ctx.width = width
        return (u > threshold).to(u.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        u, threshold = ctx.saved_tensors
        kernel = ((u - threshold) / ctx.width).abs() < 0.5
        return None, -(grads[0] * kernel / ctx.width).sum(dim=0), None


def loss(p: Parameters, batch: Any, model: Any, context: Any) -> Tensor:
    config = model.config
    u, threshold = preactivations(p, batch, model), p["threshold"]
    active = Step.apply(u, threshold, config.bandwidth)
    # The value passes u's gradient where it is active, and threshold * kernel to the threshold.
    codes = u * active.detach() + threshold.detach() * (active - active.detach())
    done = context.step / context.n_steps
    weight = config.coefficient * (min(1.0, done / config.l0_warmup) if config.l0_warmup else 1.0)
    n = len(batch.x)
    l0 = active.sum() / n
    penalty = l0 if config.target_l0 is None else (l0 / config.target_l0 - 1) ** 2
    return (squared(p, codes, batch) + n * weight * penalty) / variance(batch)
