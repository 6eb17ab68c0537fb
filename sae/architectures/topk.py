"""TopK: keep the k largest pre-activations of a token (Gao et al. 2024, arXiv 2406.04093).

Loss: squared error over the batch's variance, plus `auxk_alpha` times AuxK; with `multi_topk` also an
eighth of the squared error that 4k latents would leave, so that codes stay good at other k (their A.5).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from sae.base import SAEMetadata
from sae.fixed_count import FixedCountSAE
from sae.largest import largest
from sae.selection import SelectionConfig
from sae.training import (
    Batch,
    Gradients,
    StepContext,
    StepResult,
    add_decoder_gradients,
    add_encoder_gradients,
    reconstruction_error,
    variance_of,
)

MULTI, MULTI_WEIGHT = 4, 1 / 8


@dataclass(frozen=True, kw_only=True)
class Config(SelectionConfig):
    multi_topk: bool = False
    """Also learn to reconstruct from 4k latents, at an eighth of the weight."""


class TopK(FixedCountSAE):
    """f = the k largest of ReLU((x - b_dec) W_enc + b_enc); of equals an arbitrary but fixed one."""

    architecture: ClassVar[str] = "topk"
    config: Config

    def choose(self, pre: Tensor, k: int) -> tuple[Tensor, Tensor]:
        values, latents = largest(pre, k)
        return values.relu_(), latents

    @torch.no_grad()
    def step(self, batch: Batch, context: StepContext) -> StepResult:
        """Loss of one batch; its gradients are written to `.grad`."""
        result = super().step(batch, context)
        if not self.config.multi_topk:
            return result
        wide = self._wide_term(batch, context)
        return result._replace(loss=result.loss + MULTI_WEIGHT * wide, parts={**result.parts, "multi_topk": wide})

    def _wide_term(self, batch: Batch, context: StepContext) -> Tensor:
        """FVU with 4k latents; adds an eighth of its gradient."""
        inputs = self.encoder_input(batch.x)
        pairs, values = self.keep(inputs, min(MULTI * self.config.k, self.n_latents))
        variance = variance_of(batch.y, context, context.rows_of(batch))
        recon = pairs.decode(values, self.W_dec)
        error = reconstruction_error(self, recon, batch)
        fvu: Tensor = torch.linalg.vector_norm(error).square() / variance
        grad_out = error.mul_(2.0 * MULTI_WEIGHT / variance)
        gradients = Gradients({name: p.grad for name, p in self.named_parameters() if p.grad is not None})
        add_encoder_gradients(self, gradients, pairs, pairs.pull(grad_out, self.W_dec) * (values != 0), inputs)
        add_decoder_gradients(self, gradients, pairs, values, grad_out, batch.x)
        gradients.write(self)
        return fvu


def create(config: dict[str, Any], metadata: SAEMetadata | None = None) -> TopK:
    return TopK(Config(**config), metadata)
