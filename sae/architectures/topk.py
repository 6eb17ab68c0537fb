"""TopK: keep the k largest pre-activations of a token (Gao et al. 2024, arXiv 2406.04093).

Loss: squared error over the batch's variance, plus `auxk_alpha` times the AuxK loss: dead latents
reconstruct what is left of the error (their section 2.4 and appendix A.2).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from sae.base import SAEConfig, SAEMetadata, SparseAutoencoder
from sae.codes import SparseCodes
from sae.errors import SAEError
from sae.sparse import SortedPairs, decode_pairs
from sae.training import Gradients, StepResult, gradients_of_pairs


@dataclass(frozen=True, kw_only=True)
class Config(SAEConfig):
    k: int = 32
    """Latents kept per token."""
    auxk_alpha: float = 1 / 32
    """Weight of the AuxK loss; 0 turns it off."""
    auxk_rows: int = 8
    """The AuxK loss looks at every n-th row of a batch."""

    def __post_init__(self) -> None:
        SAEConfig.__post_init__(self)
        if not 1 <= self.k <= self.n_latents:
            raise SAEError(f"k has to lie between 1 and n_latents ({self.n_latents}), not {self.k}")


class TopK(SparseAutoencoder):
    """f = the k largest of ReLU((x - b_dec) W_enc + b_enc); ties go to the lower index torch.topk returns."""

    architecture: ClassVar[str] = "topk"
    config: Config

    def select(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """`[n, D]` centred rows -> values and latents `[n, k]`. The one dense product."""
        pre = torch.addmm(self.b_enc, rows, self.encoder.T)
        values, latents = pre.topk(self.config.k, dim=1, sorted=False)
        return values.relu_(), latents

    def encode_rows(self, x: Tensor) -> SparseCodes:
        return SparseCodes.from_topk(*self.select(x - self.b_dec), self.n_latents)

    @torch.no_grad()
    def step(self, x: Tensor, dead: Tensor | None, chunk: int = 1024) -> StepResult:
        """Loss and gradients of one batch `[B, D]`, written to `.grad`.

        `dead` holds the indices of latents that have not fired for long, or None.
        """
        centred = x - self.b_dec
        chosen = [self.select(rows) for rows in torch.split(centred, chunk)]
        values = torch.cat([v for v, _ in chosen])
        latents = torch.cat([i for _, i in chosen])
        error = decode_pairs(values, latents, self.W_dec).add_(self.b_dec).sub_(x)
        variance = (x - x.mean(dim=0)).square_().sum().clamp_min_(1e-12)
        squared_error = error.square().sum()

        pairs = SortedPairs.of(latents, self.n_latents)
        grad_out = error * (2.0 / variance)
        grads = gradients_of_pairs(self, pairs, values, latents, centred, grad_out)
        grads.b_dec += grad_out.sum(dim=0)

        auxk = x.new_zeros(())
        if dead is not None and dead.numel() and self.config.auxk_alpha > 0:
            auxk = self._add_auxk(grads, centred[:: self.config.auxk_rows], -error[:: self.config.auxk_rows], dead)
        grads.write(self)
        fvu = squared_error / variance
        return StepResult(
            loss=fvu + self.config.auxk_alpha * auxk, fvu=fvu, auxk=auxk,
            fired=torch.bincount(latents[values > 0], minlength=self.n_latents),
            n_active=(values > 0).sum(),
        )  # fmt: skip

    def _add_auxk(self, grads: Gradients, centred: Tensor, residual: Tensor, dead: Tensor) -> Tensor:
        """AuxK on the dead columns alone; adds its gradients, returns its loss."""
        k_aux = min(self.d_in // 2, dead.numel())
        pre = torch.addmm(self.b_enc[dead], centred, self.encoder[dead].T)
        values, local = pre.topk(max(k_aux, 1), dim=1, sorted=False)
        values.relu_()
        latents = dead[local]
        scale = (residual - residual.mean(dim=0)).square().sum().clamp_min(1e-12)
        miss = decode_pairs(values, latents, self.W_dec) - residual
        grad_out = miss * (2.0 * self.config.auxk_alpha / scale)
        pairs = SortedPairs.of(latents, self.n_latents)
        grads += gradients_of_pairs(self, pairs, values, latents, centred, grad_out)
        return miss.square().sum() / scale


def create(config: dict[str, Any], metadata: SAEMetadata | None = None) -> TopK:
    return TopK(Config(**config), metadata)
