"""Gated: which latents fire and how strongly are two readings of one product (Rajamanoharan et al. 2024,
arXiv 2404.16014).

Loss (their eq. 8): (squared error + l1 * sum of ReLU(gate) + squared error of decoding ReLU(gate)) / variance.
Only the last two terms teach the gate, and the last one leaves the decoder alone. `l1` warms up linearly.
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


@dataclass(frozen=True, kw_only=True)
class Config(SAEConfig):
    l1: float = 5.0
    """Weight of the L1 penalty on the gate against the squared error, for inputs of length sqrt(d_in)."""
    l1_warmup: float = 0.05
    """Share of training over which the penalty rises from zero."""

    def __post_init__(self) -> None:
        SAEConfig.__post_init__(self)
        if self.l1 < 0 or not 0 <= self.l1_warmup <= 1:
            raise SAEError(f"l1 must not be negative and l1_warmup lies in 0..1, not {self.l1} and {self.l1_warmup}")


class Gated(SparseAutoencoder):
    """f = ReLU(exp(r_mag) p + b_mag) where p + b_gate > 0, else 0; p = (x - b_dec) W_enc."""

    architecture: ClassVar[str] = "gated"
    units: ClassVar[tuple[str, ...]] = ("b_gate", "b_mag")
    config: Config

    def __init__(self, config: Config, metadata: SAEMetadata | None = None) -> None:
        super().__init__(config, metadata)
        self.b_gate = nn.Parameter(torch.zeros(config.n_latents))
        self.b_mag = nn.Parameter(torch.zeros(config.n_latents))
        self.r_mag = nn.Parameter(torch.zeros(config.n_latents))

    def encode_rows(self, inputs: Tensor) -> SparseCodes:
        product = self.preactivations(inputs)
        open_gates = product > -self.b_gate
        return SparseCodes.from_mask(product.mul_(self.r_mag.exp()).add_(self.b_mag).relu_(), open_gates)

    @torch.no_grad()
    def step(self, batch: Batch, context: StepContext) -> StepResult:
        """Loss of one batch; its gradients are written to `.grad`."""
        inputs = self.encoder_input(batch.x)
        n_rows = context.rows_of(batch)
        variance = variance_of(batch.y, context, n_rows)
        weight = self.config.l1 * context.ramp(self.config.l1_warmup) / variance
        gradients = Gradients()
        squared, missed, penalty = inputs.new_zeros(3).unbind()
        fired = torch.zeros(self.n_latents, dtype=torch.int64, device=inputs.device)
        shut = -self.b_gate
        for slab in slabs(self, inputs, lambda product: product > shut):
            piece, pairs = Batch(batch.x[slab.rows], batch.y[slab.rows]), slab.pairs
            gain = self.r_mag.exp()[pairs.latents]
            stretched = slab.pre * gain
            values = (stretched + self.b_mag[pairs.latents]).relu_()
            error, grad_out = miss(self, pairs, values, piece, variance)
            squared += error
            active = values > 0
            grad_mag = pairs.pull(grad_out, self.W_dec).mul_(active)
            add_decoder_gradients(self, gradients, pairs, values, grad_out, piece.x)

            gate = slab.pre + self.b_gate[pairs.latents]
            penalty += gate.sum()
            # The decoder is a constant here: only the gate's own gradient is taken.
            error, grad_recon = miss(self, pairs, gate, piece, variance)
            missed += error
            grad_gate = pairs.pull(grad_recon, self.W_dec).add_(weight)

            gradients.add("b_gate", pairs.sum_weights(grad_gate))
            gradients.add("b_mag", pairs.sum_weights(grad_mag))
            gradients.add("r_mag", pairs.sum_weights(grad_mag * stretched))
            grad_product = grad_gate.addcmul_(grad_mag, gain)
            add_encoder_gradients(self, gradients, pairs, grad_product, inputs[slab.rows])
            fired += pairs.count(active)
        gradients.write(self)
        fvu, gate_fvu = squared / variance, missed / variance
        parts = {"l1": penalty / n_rows, "gate_fvu": gate_fvu}
        return StepResult(fvu + penalty * weight + gate_fvu, fvu, fired, fired.sum(), parts)


def create(config: dict[str, Any], metadata: SAEMetadata | None = None) -> Gated:
    return Gated(Config(**config), metadata)
