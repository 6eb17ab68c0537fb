"""top-AFA: keep the largest activations until the code is as long as the input (Lee et al. 2025, arXiv 2503.24277).

If decoder rows of length one hardly overlap, the length of a code is pinned down by that of what it stands for:
the approximate feature activation (AFA) of x is |x|. So k needs no setting, every token gets its own, and an AFA
loss pulls |f| towards |x|. There is no encoder bias.

Loss: (squared error + afa * d_in * sum over tokens of (|f| - |x|)^2) / variance + auxk_alpha * AuxK. The factor d_in
stands against the authors' mean over dimensions. As in their code, the choice looks at |x - b_dec| and the AFA loss
at |x|. Authors also standardise each token, which is `input_norm: layer_norm`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from sae.auxk import add_auxk
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
    reconstruction_error,
    slabs,
    variance_of,
)

FIRST, GROWTH = 64, 8
"""Latents that are sorted of each token at first, and how many times more while some token needs more."""


@dataclass(frozen=True, kw_only=True)
class Config(SAEConfig):
    afa: float = 1 / 16
    """Weight of the AFA loss against the squared error's mean over dimensions."""
    afa_centred: bool = False
    """Compare |f| with |x - b_dec|, as the choice does (held constant), rather than with |x|."""
    auxk_alpha: float = 1 / 32
    """Weight of the AuxK loss; 0 turns it off."""
    auxk_rows: int = 16
    """The AuxK loss looks at every n-th row of a batch."""

    def __post_init__(self) -> None:
        SAEConfig.__post_init__(self)
        if self.n_latents < 2 or self.width_out != self.d_in:
            raise SAEError(
                "top_afa measures codes by their input: it needs d_out equal to d_in and two latents or more"
            )
        if self.afa < 0 or self.auxk_rows < 1:
            raise SAEError(f"afa must not be negative and auxk_rows is positive, not {self.afa} and {self.auxk_rows}")


class TopAFA(SparseAutoencoder):
    """f = a where a = ReLU((x - b_dec) W_enc) is among the token's k largest a |d|, else 0.

    k in 1..F-1 brings the length of (a |d|) over the k largest nearest to |x - b_dec|.
    """

    architecture: ClassVar[str] = "top_afa"
    units: ClassVar[tuple[str, ...]] = ()
    config: Config

    def encode_rows(self, inputs: Tensor) -> SparseCodes:
        pre = self.preactivations(inputs)
        return SparseCodes.from_mask(pre, self.kept(pre, inputs.norm(dim=1), self.W_dec.norm(dim=1)))

    def kept(self, pre: Tensor, target: Tensor, lengths: Tensor) -> Tensor:
        """Mask `[n, F]` of what is kept of pre-activations, for codes as long as `target` [n]; `lengths` [F] of rows.

        Only so many are sorted as it takes for every token to reach its target: beyond it, or beyond the
        last positive activation, the distance grows no smaller. Waits for the device at each growth.
        """
        scores = pre.relu().mul_(lengths)
        most = self.n_latents - 1
        size = min(FIRST, most)
        while True:
            top, latents = scores.topk(size, dim=1)
            reached = top.to(torch.promote_types(top.dtype, torch.float32)).square_().cumsum(dim=1).sqrt_()
            if size == most or bool(((reached[:, -1] >= target) | (top[:, -1] == 0)).all()):
                break
            size = min(GROWTH * size, most)
        last = (reached - target[:, None]).abs_().argmin(dim=1, keepdim=True)
        chosen = (torch.arange(size, device=pre.device) <= last) & (top > 0)
        return torch.zeros_like(pre, dtype=torch.bool).scatter_(1, latents, chosen)

    @torch.no_grad()
    def step(self, batch: Batch, context: StepContext) -> StepResult:
        """Loss of one batch; its gradients are written to `.grad`."""
        config = self.config
        inputs = self.encoder_input(batch.x)
        targets, lengths = inputs.norm(dim=1), self.W_dec.norm(dim=1)
        wanted = (batch.x - self.b_dec).norm(dim=1) if config.afa_centred else batch.x.norm(dim=1)
        variance = variance_of(batch.y, context, context.rows_of(batch))
        weight = config.afa * self.d_in / variance
        ones = self.W_dec.new_ones(self.n_latents, 1)
        gradients = Gradients()
        squared, distance = inputs.new_zeros(()), inputs.new_zeros(())
        fired = torch.zeros(self.n_latents, dtype=torch.int64, device=inputs.device)
        residuals: list[Tensor] = []
        seen = 0

        def keep(pre: Tensor) -> Tensor:
            nonlocal seen
            seen += len(pre)
            return self.kept(pre, targets[seen - len(pre) : seen], lengths)

        for slab in slabs(self, inputs, keep):
            x, values = batch.x[slab.rows], slab.pre
            recon = slab.pairs.decode(values, self.W_dec)
            error = reconstruction_error(self, recon, Batch(x, batch.y[slab.rows]))
            squared += torch.linalg.vector_norm(error).square()
            residuals.append(error[-slab.rows.start % config.auxk_rows :: config.auxk_rows].neg())
            grad_out = error.mul_(2.0 / variance)
            grad_values = slab.pairs.pull(grad_out, self.W_dec)
            code = slab.pairs.decode(values.square(), ones)[:, 0].sqrt_()
            excess = code - wanted[slab.rows]
            distance += excess.square().sum()
            pulled = 2.0 * weight * excess / code.clamp_min(1e-12)
            grad_values += pulled[slab.pairs.rows] * values
            add_encoder_gradients(self, gradients, slab.pairs, grad_values, inputs[slab.rows])
            add_decoder_gradients(self, gradients, slab.pairs, values, grad_out, x)
            fired += slab.pairs.count(values > 0)

        fvu = squared / variance
        loss = fvu + weight * distance
        parts = {"afa": distance / context.rows_of(batch)}
        if config.auxk_alpha > 0 and context.dead is not None and context.dead.numel() > 0:
            every, alpha = inputs[:: config.auxk_rows], config.auxk_alpha
            parts["auxk"] = add_auxk(self, gradients, every, torch.cat(residuals), context, alpha=alpha)
            loss = loss + alpha * parts["auxk"]
        gradients.write(self)
        return StepResult(loss, fvu, fired, fired.sum(), parts)


def epsilon_lbo(x: Tensor, codes: SparseCodes) -> Tensor:
    """Lower bound on the overlap of decoder rows that codes betray: `||x|^2 - |f|^2| / ((F - 1) |f|^2)`, `[N]`.

    If rows of unit length with no overlap beyond epsilon sum to x exactly, no token's value exceeds epsilon.
    A token without a code has no bound: infinity, or NaN if it is zero itself.
    """
    squares = codes.values.new_zeros(codes.n_rows).index_add_(0, codes.rows, codes.values.square())
    return (x.square().sum(dim=-1).reshape(-1) - squares).abs() / ((codes.n_latents - 1) * squares)


def create(config: dict[str, Any], metadata: SAEMetadata | None = None) -> TopAFA:
    return TopAFA(Config(**config), metadata)
