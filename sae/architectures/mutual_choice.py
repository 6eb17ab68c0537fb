"""Mutual Choice: tokens and latents share one quota of k x B activations (Ayonrinde 2024, arXiv 2411.02124).

The choice and its inference are those of BatchTopK. What differs is the auxiliary loss, aux_zipf, which also
reaches latents that fire far less than the Zipf curve of all latents' densities has them fire. That loss is
experimental: the paper's formula is not known to us.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from sae.architectures import batchtopk
from sae.aux_zipf import add_aux_zipf
from sae.base import SAEMetadata
from sae.batch_selection import NEVER_SET, follow
from sae.errors import SAEError
from sae.training import Batch, Gradients, StepContext, StepResult
from sae.zipf import expected_densities

LONGEST = 0.99
"""Decay of the densities' running mean, late in training."""


@dataclass(frozen=True, kw_only=True)
class Config(batchtopk.Config):
    tau: float = 0.5
    """A latent is under-used when it fires less than this share of what the Zipf curve says of its rank."""

    def __post_init__(self) -> None:
        batchtopk.Config.__post_init__(self)
        if not 0 < self.tau <= 1:
            raise SAEError(f"tau lies between 0 and 1, not {self.tau}")


class MutualChoice(batchtopk.BatchTopK):
    """f = u where u = (x - b_dec) W_enc + b_enc is positive and exceeds the threshold, else 0."""

    architecture: ClassVar[str] = "mutual_choice"
    config: Config
    densities: Tensor
    """Running mean of the share of tokens in which each latent fires, `[F]`; below zero: not measured yet."""

    def __init__(self, config: Config, metadata: SAEMetadata | None = None) -> None:
        super().__init__(config, metadata)
        self.register_buffer("densities", torch.full((config.n_latents,), NEVER_SET), persistent=False)

    def initialise(self, seed: int) -> None:
        super().initialise(seed)
        self.densities.fill_(NEVER_SET)

    def expected(self) -> Tensor:
        """The Zipf curve's density of each latent, `[F]`."""
        return expected_densities(self.densities, self.config.k)

    @torch.no_grad()
    def step(self, batch: Batch, context: StepContext) -> StepResult:
        """Loss of one batch; its gradients are written to `.grad`."""
        result = super().step(batch, context)
        share = result.fired.to(self.densities.dtype) / batch.x.shape[0]
        follow(self.densities, share, torch.ones_like(share, dtype=torch.bool), context.step, LONGEST, context)
        return result

    def auxk(self, gradients: Gradients, inputs: Tensor, residual: Tensor, context: StepContext) -> Tensor:
        return add_aux_zipf(
            self, gradients, inputs, residual, context,
            densities=self.densities, expected=self.expected(), tau=self.config.tau, alpha=self.config.auxk_alpha,
        )  # fmt: skip

    def _wants_auxk(self, context: StepContext) -> bool:
        return self.config.auxk_alpha > 0


def create(config: dict[str, Any], metadata: SAEMetadata | None = None) -> MutualChoice:
    return MutualChoice(Config(**config), metadata)
