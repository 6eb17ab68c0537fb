"""JumpReLU: a learned threshold per latent and a penalty on their number (Rajamanoharan et al. 2024, arXiv 2407.14435).

Loss: (squared error + l0_coefficient * L0) / variance, or, with `target_l0`, (squared error + l0_coefficient *
(L0 / target_l0 - 1)^2) / variance, squared error and L0 being means per token. Thresholds have a gradient through
the kernel estimate of their eqs. 11 and 12 alone: a rectangle of width `bandwidth` around each threshold.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from sae.base import SAEConfig, SAEMetadata, SparseAutoencoder
from sae.codes import SparseCodes
from sae.errors import SAEError
from sae.training import (
    Batch,
    Gradients,
    StepContext,
    StepResult,
    add_decoder_gradients,
    add_encoder_gradients,
    miss,
    slabs,
    variance_of,
)

WITH_TARGET, WITHOUT_TARGET = 1.0, 1e-3


@dataclass(frozen=True, kw_only=True)
class Config(SAEConfig):
    l0_coefficient: float | None = None
    """Weight of the penalty against the squared error of inputs of unit length; None: 1 with a target, 0.001 without.
    Without a target it decides how many latents fire: more of it, fewer of them."""
    target_l0: float | None = None
    """Latents per token that training steers towards; None penalises each of them alike."""
    l0_warmup: float = 0.1
    """Share of training over which the penalty rises from zero."""
    bandwidth: float = 0.001
    """Width of the kernel that gives thresholds a gradient, in units of inputs of unit length."""
    initial_threshold: float = 0.001
    """Thresholds before training, in the same units."""

    def __post_init__(self) -> None:
        SAEConfig.__post_init__(self)
        if self.coefficient < 0 or not 0 <= self.l0_warmup <= 1:
            raise SAEError(
                f"l0_coefficient must not be negative and l0_warmup lies in 0..1, not {self.coefficient} "
                f"and {self.l0_warmup}"
            )
        if self.target_l0 is not None and not 0 < self.target_l0 <= self.n_latents:
            raise SAEError(f"target_l0 has to lie between 0 and n_latents ({self.n_latents}), not {self.target_l0}")
        if self.bandwidth <= 0 or self.initial_threshold < 0:
            raise SAEError(
                f"bandwidth has to be positive and initial_threshold must not be negative, not {self.bandwidth} "
                f"and {self.initial_threshold}"
            )

    @property
    def coefficient(self) -> float:
        if self.l0_coefficient is not None:
            return self.l0_coefficient
        return WITHOUT_TARGET if self.target_l0 is None else WITH_TARGET


class JumpReLU(SparseAutoencoder):
    """f = ReLU(u) where u = (x - b_dec) W_enc + b_enc exceeds the latent's `threshold` [F], else 0."""

    architecture: ClassVar[str] = "jumprelu"
    input_length: ClassVar[float | None] = 1.0
    units: ClassVar[tuple[str, ...]] = ("b_enc", "threshold")
    config: Config

    def __init__(self, config: Config, metadata: SAEMetadata | None = None) -> None:
        super().__init__(config, metadata)
        self.threshold = nn.Parameter(torch.full((config.n_latents,), config.initial_threshold))

    def initialise(self, seed: int) -> None:
        super().initialise(seed)
        with torch.no_grad():
            self.threshold.fill_(self.config.initial_threshold)

    def after_update(self) -> None:
        super().after_update()
        self.threshold.clamp_min_(0)

    def encode_rows(self, inputs: Tensor) -> SparseCodes:
        pre = self.preactivations(inputs)
        above = pre > self.threshold
        return SparseCodes.from_mask(pre.relu_(), above)

    @torch.no_grad()
    def step(self, batch: Batch, context: StepContext) -> StepResult:
        """Loss of one batch; its gradients are written to `.grad`."""
        inputs = self.encoder_input(batch.x)
        n_rows, width = context.rows_of(batch), self.config.bandwidth
        variance = variance_of(batch.y, context, n_rows)
        gradients = Gradients()
        squared = inputs.new_zeros(())
        fired = torch.zeros(self.n_latents, dtype=torch.int64, device=inputs.device)
        at_threshold = inputs.new_zeros(self.n_latents)
        # Latents just below their threshold are silent, but they have a say in where it goes.
        floor = self.threshold - width / 2
        for slab in slabs(self, inputs, lambda pre: pre > floor):
            x, y, pairs = batch.x[slab.rows], batch.y[slab.rows], slab.pairs
            threshold = self.threshold[pairs.latents]
            active = slab.pre > threshold
            values = slab.pre * active
            missed, grad_out = miss(self, pairs, values, Batch(x, y), variance)
            squared += missed
            grad_values = pairs.pull(grad_out, self.W_dec)
            kernel = ((slab.pre - threshold).abs() < width / 2) / width
            gradients.add("threshold", pairs.sum_weights(grad_values * threshold * kernel).neg_())
            at_threshold += pairs.sum_weights(kernel.to(inputs.dtype))
            add_encoder_gradients(self, gradients, pairs, grad_values.mul_(active), inputs[slab.rows])
            add_decoder_gradients(self, gradients, pairs, values, grad_out, x)
            fired += pairs.count(active)
        n_active = fired.sum()
        penalty, slope = self.penalty(n_active, len(inputs), context, n_rows)
        gradients.add("threshold", at_threshold.mul_(-slope / variance))
        gradients.write(self)
        fvu = squared / variance
        parts = {"l0_penalty": penalty / variance}
        return StepResult(fvu + parts["l0_penalty"], fvu, fired, n_active, parts)

    def penalty(self, n_active: Tensor, n_local: int, context: StepContext, n_rows: int) -> tuple[Tensor, Tensor]:
        """This process's share of the penalty, summed over tokens, and its derivative by a latent's firing once."""
        weight = self.config.coefficient * context.ramp(self.config.l0_warmup)
        n_active = n_active.to(self.W_dec.dtype)
        target = self.config.target_l0
        if target is None:
            return weight * n_active, torch.full_like(n_active, weight)
        excess = context.total(n_active) / (n_rows * target) - 1
        return weight * n_local * excess.square(), 2 * weight / target * excess


def create(config: dict[str, Any], metadata: SAEMetadata | None = None) -> JumpReLU:
    return JumpReLU(Config(**config), metadata)
