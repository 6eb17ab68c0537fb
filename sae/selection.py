"""Architectures that keep some pre-activations at their values and learn from the error alone: the TopK family.

A member says which pairs it keeps; the step, its gradients and AuxK are the same for all. Nothing
flows through the choice itself.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from sae.auxk import add_auxk
from sae.base import SAEConfig, SparseAutoencoder
from sae.errors import SAEError
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


@dataclass(frozen=True, kw_only=True)
class SelectionConfig(SAEConfig):
    k: int = 32
    """Latents kept per token (on average, where the batch shares them)."""
    auxk_alpha: float = 1 / 32
    """Weight of the AuxK loss; 0 turns it off."""
    auxk_rows: int = 16
    """The AuxK loss looks at every n-th row of a batch."""

    def __post_init__(self) -> None:
        SAEConfig.__post_init__(self)
        if not 1 <= self.k <= self.n_latents:
            raise SAEError(f"k has to lie between 1 and n_latents ({self.n_latents}), not {self.k}")
        if self.auxk_rows < 1:
            raise SAEError(f"auxk_rows has to be positive, not {self.auxk_rows}")


class SelectingSAE(SparseAutoencoder):
    """`f` is the pre-activation where it is kept, else 0; loss FVU + auxk_alpha * AuxK."""

    config: SelectionConfig
    signed: ClassVar[bool] = False
    """Codes may be negative."""

    @abstractmethod
    def select(self, batch: Batch, inputs: Tensor, context: StepContext) -> tuple[Pairs, Tensor]:
        """Pairs kept of a training batch, in order of row, and their values `[P]` (after the ReLU, if any)."""

    @torch.no_grad()
    def step(self, batch: Batch, context: StepContext) -> StepResult:
        """Loss of one batch; its gradients are written to `.grad`."""
        inputs = self.encoder_input(batch.x)
        pairs, values = self.select(batch, inputs, context)
        variance = variance_of(batch.y, context, context.rows_of(batch))
        gradients, parts = Gradients(), {}
        recon = pairs.decode(values, self.W_dec)
        error = reconstruction_error(self, recon, batch)
        squared = torch.linalg.vector_norm(error).square()

        residual = error[:: self.config.auxk_rows].neg() if self._wants_auxk(context) else None
        grad_out = error.mul_(2.0 / variance)
        grad_values = pairs.pull(grad_out, self.W_dec)
        penalty = self.penalty(batch, pairs, values, grad_values, context)
        add_encoder_gradients(self, gradients, pairs, grad_values * (values != 0), inputs)
        add_decoder_gradients(self, gradients, pairs, values, grad_out, batch.x)
        del error, grad_out, recon

        loss = fvu = squared / variance
        if penalty is not None:
            loss = loss + penalty
            parts["penalty"] = penalty
        if residual is not None:
            auxk = self.auxk(gradients, inputs[:: self.config.auxk_rows], residual, context)
            loss = loss + self.config.auxk_alpha * auxk
            parts["auxk"] = auxk
        gradients.write(self)
        active = values != 0
        return StepResult(loss, fvu, pairs.count(active), active.sum(), parts)

    def penalty(
        self, batch: Batch, pairs: Pairs, values: Tensor, grad_values: Tensor, context: StepContext
    ) -> Tensor | None:
        """A further term of the loss on the codes, if the architecture has one; adds its gradient to `grad_values`."""
        return None

    def auxk(self, gradients: Gradients, inputs: Tensor, residual: Tensor, context: StepContext) -> Tensor:
        return add_auxk(
            self, gradients, inputs, residual, context, alpha=self.config.auxk_alpha, signed=self.signed
        )  # fmt: skip

    def _wants_auxk(self, context: StepContext) -> bool:
        return self.config.auxk_alpha > 0 and context.dead is not None and context.dead.numel() > 0
