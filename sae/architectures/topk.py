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
from sae.codes import SparseCodes
from sae.selection import SelectingSAE, SelectionConfig
from sae.sparse import Pairs
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


class TopK(SelectingSAE):
    """f = the k largest of ReLU((x - b_dec) W_enc + b_enc); ties go to the index that torch.topk returns."""

    architecture: ClassVar[str] = "topk"
    config: Config

    def choose(self, pre: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Values and latents `[n, k]` kept of pre-activations `[n, F]`."""
        values, latents = pre.topk(k, dim=1, sorted=False)
        return values.relu_(), latents

    def encode_rows(self, inputs: Tensor) -> SparseCodes:
        return SparseCodes.from_topk(*self.choose(self.preactivations(inputs), self.config.k), self.n_latents)

    def select(self, batch: Batch, inputs: Tensor, context: StepContext) -> tuple[Pairs, Tensor]:
        return self._select(inputs, self.config.k)

    def _select(self, inputs: Tensor, k: int) -> tuple[Pairs, Tensor]:
        n = inputs.shape[0]
        values = inputs.new_empty(n, k)
        latents = torch.empty(n, k, dtype=torch.int64, device=inputs.device)
        step = self.chunk_rows()
        buffer = inputs.new_empty(min(step, n), self.n_latents)
        for start in range(0, n, step):
            rows = inputs[start : start + step]
            pre = self.preactivations(rows, out=buffer[: len(rows)])
            values[start : start + step], latents[start : start + step] = self.choose(pre, k)
        return Pairs.of_topk(latents, self.n_latents), values.reshape(-1)

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
        pairs, values = self._select(inputs, min(MULTI * self.config.k, self.n_latents))
        variance = variance_of(batch.y, context, context.rows_of(batch))
        recon, pull = pairs.decode_and_pull(values, self.W_dec)
        error = reconstruction_error(self, recon, batch)
        fvu: Tensor = torch.linalg.vector_norm(error).square() / variance
        grad_out = error.mul_(2.0 * MULTI_WEIGHT / variance)
        gradients = Gradients({name: p.grad for name, p in self.named_parameters() if p.grad is not None})
        add_encoder_gradients(self, gradients, pairs, pull(grad_out) * (values != 0), inputs)
        add_decoder_gradients(self, gradients, pairs, values, grad_out, batch.x)
        gradients.write(self)
        return fvu


def create(config: dict[str, Any], metadata: SAEMetadata | None = None) -> TopK:
    return TopK(Config(**config), metadata)
