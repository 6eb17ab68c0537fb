"""p-annealing: a ReLU SAE whose penalty turns from L1 into sum of f^p, p falling to `p_end` (Karvonen et al. 2024,
arXiv 2408.00113, section 4).

p falls in `n_updates` equal steps between two shares of training. At each, the weight is multiplied by the ratio of
the old penalty to the new one over the ten batches before, so that the penalty does not jump (their eq. 7).
As p nears 0 all activations cost the same, and the shrinkage that L1 brings goes away.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from sae.architectures import relu
from sae.base import SAEMetadata
from sae.errors import SAEError
from sae.training import Batch, StepContext, StepResult

WINDOW = 10
"""Batches over which the old penalty is compared with the next."""
OFFSET = 1e-8
"""Added to activations: f^p is infinitely steep at 0."""


@dataclass(frozen=True, kw_only=True)
class Config(relu.Config):
    p_end: float = 0.2
    """The last exponent. At 0 the penalty would be a count, which has no gradient."""
    anneal_start: float = 0.3
    """Share of training that is done when p first falls."""
    anneal_end: float = 0.9
    """Share of training that is done when p falls for the last time."""
    n_updates: int = 10
    """Steps in which p falls."""

    def __post_init__(self) -> None:
        relu.Config.__post_init__(self)
        if not 0 < self.p_end <= 1:
            raise SAEError(f"p_end has to lie above 0 and not above 1, not {self.p_end}")
        if not 0 <= self.anneal_start <= self.anneal_end <= 1 or self.n_updates < 1:
            raise SAEError(
                "annealing needs 0 <= anneal_start <= anneal_end <= 1 and a positive n_updates, not "
                f"{self.anneal_start}, {self.anneal_end} and {self.n_updates}"
            )

    def exponents(self, n_steps: int) -> dict[int, float]:
        """p from each step at which it changes."""
        span = (self.anneal_end - self.anneal_start) / max(1, self.n_updates - 1)
        fall = (1 - self.p_end) / self.n_updates
        return {int(n_steps * (self.anneal_start + i * span)): 1 - fall * (i + 1) for i in range(self.n_updates)}


class PAnneal(relu.ReLU):
    """f = ReLU((x - b_dec) W_enc + b_enc)."""

    architecture: ClassVar[str] = "p_anneal"
    config: Config
    weight_factor: Tensor
    """What the changes of p have made of the penalty's weight, `[]`."""
    recent: Tensor
    """The penalties of the last batches with p and with the next p, `[2, WINDOW]`."""

    def __init__(self, config: Config, metadata: SAEMetadata | None = None) -> None:
        super().__init__(config, metadata)
        self.register_buffer("weight_factor", torch.ones(()), persistent=False)
        self.register_buffer("recent", torch.zeros(2, WINDOW), persistent=False)
        self._p, self._next_p = 1.0, 1.0
        self._sums = torch.zeros(2)

    def weight(self, context: StepContext) -> Tensor:
        return self.weight_factor * super().weight(context)

    def sparsity(self, values: Tensor) -> tuple[Tensor, Tensor]:
        amount, slope = power(values, self._p)
        if self._next_p != self._p:
            self._sums += torch.stack([amount, power(values, self._next_p)[0]])
        return amount, slope

    @torch.no_grad()
    def step(self, batch: Batch, context: StepContext) -> StepResult:
        """Loss of one batch; its gradients are written to `.grad`."""
        exponents = self.config.exponents(context.n_steps)
        if context.step in exponents:
            self._carry_over()
        self._p = max((at, p) for at, p in [(-1, 1.0), *exponents.items()] if at <= context.step)[1]
        change = min((at for at in exponents if at > context.step), default=None)
        compare = change is not None and change - context.step <= WINDOW
        self._next_p = exponents[change] if compare and change is not None else self._p
        self._sums = torch.zeros_like(self.recent[:, 0])
        result = super().step(batch, context)
        if compare:
            self.recent[:, context.step % WINDOW] = context.total(self._sums)
        # Figures are shares of sums over processes.
        share = len(batch.x) / context.rows_of(batch)
        state = {"p": torch.full_like(result.loss, self._p * share), "l1_weight": self.weight(context) * share}
        return result._replace(parts={**result.parts, **state})

    def _carry_over(self) -> None:
        """A new p begins: the weight makes up for the change of the penalty."""
        old, new = self.recent.sum(dim=1)
        self.weight_factor.mul_(torch.where(new > 0, old / new, 1.0))
        self.recent.zero_()


def power(values: Tensor, p: float) -> tuple[Tensor, Tensor]:
    """Sum of f^p over activations `[P]`, 0 at 0, and its derivative `[P]`."""
    slope = (values + OFFSET).pow_(p - 1)
    return (slope * (values + OFFSET) - OFFSET**p).sum(), slope.mul_(p)


def create(config: dict[str, Any], metadata: SAEMetadata | None = None) -> PAnneal:
    return PAnneal(Config(**config), metadata)
