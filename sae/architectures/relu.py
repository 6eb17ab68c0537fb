"""ReLU with an L1 penalty: the plain SAE, in its older form and in that of Anthropic's April 2024 update.

Loss: (squared error + l1 * sum of activations) / variance. The older form keeps decoder rows at unit
length; with `norm_weighted` they are free and each activation is weighed by its row's length, which
makes the penalty blind to shifting scale between code and decoder. `l1` warms up linearly.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

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
    """Weight of the L1 penalty against the squared error summed over dimensions, for inputs of length sqrt(d_in)."""
    l1_warmup: float = 0.05
    """Share of training over which the penalty rises from zero."""
    norm_weighted: bool = False
    """The April 2024 form: free decoder rows, activations weighed by their length."""

    def __post_init__(self) -> None:
        SAEConfig.__post_init__(self)
        if self.l1 < 0 or not 0 <= self.l1_warmup <= 1:
            raise SAEError(f"l1 must not be negative and l1_warmup lies in 0..1, not {self.l1} and {self.l1_warmup}")


class ReLU(SparseAutoencoder):
    """f = ReLU((x - b_dec) W_enc + b_enc)."""

    architecture: ClassVar[str] = "relu"
    config: Config

    @property
    def unit_decoder(self) -> bool:
        return not self.config.norm_weighted

    def encode_rows(self, inputs: Tensor) -> SparseCodes:
        return SparseCodes.from_dense(self.preactivations(inputs).relu_())

    def weight(self, context: StepContext) -> float | Tensor:
        """The penalty's coefficient at this step."""
        return self.config.l1 * context.ramp(self.config.l1_warmup)

    def sparsity(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """What is penalised of activations `[P]`, as a sum, and its derivative `[P]`."""
        return values.sum(), torch.ones_like(values)

    @torch.no_grad()
    def step(self, batch: Batch, context: StepContext) -> StepResult:
        """Loss of one batch; its gradients are written to `.grad`."""
        inputs = self.encoder_input(batch.x)
        variance = variance_of(batch.y, context, context.rows_of(batch))
        weight = self.weight(context) / variance
        lengths = self.W_dec.norm(dim=1) if self.config.norm_weighted else None
        gradients = Gradients()
        squared, penalty = inputs.new_zeros(()), inputs.new_zeros(())
        fired = torch.zeros(self.n_latents, dtype=torch.int64, device=inputs.device)
        for slab in slabs(self, inputs, lambda pre: pre > 0):
            x, y = batch.x[slab.rows], batch.y[slab.rows]
            missed, grad_out = miss(self, slab.pairs, slab.pre, Batch(x, y), variance)
            squared += missed
            grad_values = slab.pairs.pull(grad_out, self.W_dec)
            if lengths is None:
                amount, slope = self.sparsity(slab.pre)
            else:
                scale = lengths[slab.pairs.latents]
                amount, slope = self.sparsity(slab.pre * scale)
                # d|d_f| along the decoder row: what the penalty pulls each row's length down by.
                pulled = slab.pairs.sum_weights(slope * slab.pre) * weight / lengths.clamp_min(1e-12)
                gradients.add("W_dec", pulled[:, None] * self.W_dec)
                slope = slope * scale
            penalty += amount
            add_encoder_gradients(self, gradients, slab.pairs, grad_values.add_(slope * weight), inputs[slab.rows])
            add_decoder_gradients(self, gradients, slab.pairs, slab.pre, grad_out, x)
            fired += slab.pairs.count(slab.pre > 0)
        gradients.write(self)
        fvu = squared / variance
        loss = fvu + penalty * weight
        return StepResult(loss, fvu, fired, fired.sum(), {"l1": penalty / context.rows_of(batch)})


def create(config: dict[str, Any], metadata: SAEMetadata | None = None) -> ReLU:
    return ReLU(Config(**config), metadata)
