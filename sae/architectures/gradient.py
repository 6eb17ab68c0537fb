"""g-SAE: rank latents also by what they do to the model's loss (Olmo et al. 2024, arXiv 2411.10397). Experimental.

Kept are the k latents with the largest z (1 + beta |d . g|), where z is the activation, d the decoder row and
g the gradient of the subject model's loss with respect to the activation: to first order, leaving a latent
out changes the loss by z d . g. The score decides which latents are kept and nothing else; they keep z, the
loss is that of TopK, and nothing flows through g. The added term is the paper's; that it is added to z, the
loss, and the normalised form are our reading, so no figure of the paper is claimed.

`encode` knows no gradient and is TopK; `encode_with_gradient` ranks as training does. The gradient tells of
the next token, which makes the latter a tool of analysis.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from sae.base import SAEMetadata
from sae.batch_selection import NEVER_SET, follow
from sae.codes import SparseCodes
from sae.errors import SAEError
from sae.fixed_count import FixedCountSAE
from sae.largest import largest
from sae.selection import SelectionConfig
from sae.sparse import Pairs
from sae.training import Batch, StepContext

LONGEST = 0.99
"""Decay of the running mean of |d . g|."""


@dataclass(frozen=True, kw_only=True)
class Config(SelectionConfig):
    beta: float = 1.0
    """Weight of the effect on the loss; 0 is TopK."""
    normalised: bool = True
    """Divide |d . g| by its mean over the batch, so that beta needs no knowledge of the loss's scale."""

    def __post_init__(self) -> None:
        SelectionConfig.__post_init__(self)
        if self.beta < 0:
            raise SAEError(f"beta must not be negative, not {self.beta}")
        if self.width_out != self.d_in or self.input_norm != "none":
            raise SAEError(
                "gradient ranks by the loss's gradient of the activation itself: it needs d_out equal to d_in "
                "and input_norm none"
            )


class Gradient(FixedCountSAE):
    """f = ReLU((x - b_dec) W_enc + b_enc) where it is kept, else 0."""

    architecture: ClassVar[str] = "gradient"
    units: ClassVar[tuple[str, ...]] = ("b_enc", "gradient_scale")
    config: Config
    gradient_scale: Tensor
    """What |d . g| is multiplied by in `encode_with_gradient`, float32 []: 1, or one over its running mean in
    training. Folding in an input scale divides it as well, since gradients grow where activations shrink."""
    mean_effect: Tensor
    """Running mean of |d . g| in training's scale, []; below zero: never set."""

    def __init__(self, config: Config, metadata: SAEMetadata | None = None) -> None:
        super().__init__(config, metadata)
        self.register_buffer("gradient_scale", torch.ones(()))
        self.register_buffer("mean_effect", torch.tensor(NEVER_SET), persistent=False)

    def initialise(self, seed: int) -> None:
        super().initialise(seed)
        self.gradient_scale.fill_(1.0)
        self.mean_effect.fill_(NEVER_SET)

    def choose(self, pre: Tensor, k: int) -> tuple[Tensor, Tensor]:
        values, latents = largest(pre, k)
        return values.relu_(), latents

    def choose_by_effect(
        self, pre: Tensor, gradient: Tensor, scale: Tensor, k: int, out: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Values and latents `[n, k]` kept of pre-activations `[n, F]`, with the gradients `[n, D]` of their tokens.

        `out` [n, F] receives the scores.
        """
        # Negative scores stay negative and rank last, as they would after the ReLU.
        score = self._effects(gradient, out).mul_(scale * self.config.beta).add_(1.0).mul_(pre)
        _, latents = largest(score, k)
        return pre.gather(1, latents).relu_(), latents

    @torch.no_grad()
    def encode_with_gradient(self, x: Tensor, gradient: Tensor) -> SparseCodes:
        """Codes of activations `[..., D]`, chosen with the gradients of the model's loss at them, `[..., D]`.

        Raises:
            SAEError: the shapes differ, or a value is not finite.
        """
        if gradient.shape != x.shape:
            raise SAEError(f"gradients have shape {tuple(gradient.shape)}, activations {tuple(x.shape)}; match them")
        rows, slopes = self._rows(x), self._rows(gradient)
        if not self.config.beta or not rows.shape[0]:
            return self.encode(x)
        scale, parts = self.gradient_scale.to(rows.dtype), []
        step = self.chunk_rows(len(rows))
        for chunk, slope in zip(torch.split(rows, step), torch.split(slopes, step), strict=True):
            pre = self.preactivations(self.encoder_input(chunk))
            kept = self.choose_by_effect(pre, slope, scale, self.config.k)
            parts.append(SparseCodes.from_topk(*kept, self.n_latents))
        return SparseCodes.cat(parts)

    def select(self, batch: Batch, inputs: Tensor, context: StepContext) -> tuple[Pairs, Tensor]:
        """See `choose_by_effect`: a second product of the encoder's size, and a third for its mean if normalised."""
        gradient, k = batch.gradient, self.config.k
        if gradient is None:
            raise SAEError("gradient trains on the loss's gradient beside each activation; the batch has none")
        if not self.config.beta:
            return self.keep(inputs, k)
        scale = self._batch_scale(gradient, context) if self.config.normalised else inputs.new_ones(())
        n = inputs.shape[0]
        step = self.chunk_rows(n)
        values = inputs.new_empty(n, k)
        latents = torch.empty(n, k, dtype=torch.int64, device=inputs.device)
        buffer = inputs.new_empty(2, min(step, n), self.n_latents)
        for start in range(0, n, step):
            part = slice(start, min(start + step, n))
            pre, score = buffer[:, : part.stop - start]
            pre = self.preactivations(inputs[part], out=pre)
            values[part], latents[part] = self.choose_by_effect(pre, gradient[part], scale, k, out=score)
        return Pairs.of_topk(latents, self.n_latents), values.reshape(-1)

    def _effects(self, gradient: Tensor, out: Tensor | None = None) -> Tensor:
        """|d . g| of gradients `[n, D]`, `[n, F]`."""
        return torch.mm(gradient, self.W_dec.T, out=out).abs_()

    def _batch_scale(self, gradient: Tensor, context: StepContext) -> Tensor:
        """One over the mean of |d . g| over the batch of all processes and all latents; keeps the running mean."""
        own = torch.stack(
            [self._effects(part).sum() for part in torch.split(gradient, self.chunk_rows(len(gradient)))]
        ).sum()
        sums = context.total(torch.stack([own, own.new_tensor(float(gradient.shape[0] * self.n_latents))]))
        tiny = torch.finfo(own.dtype).tiny
        mean = (sums[0] / sums[1]).clamp_min(tiny)
        follow(self.mean_effect, mean, mean > tiny, context.step, LONGEST, context)
        self.gradient_scale.copy_(torch.where(self.mean_effect > 0, 1 / self.mean_effect, 1.0))
        return mean.reciprocal()


def create(config: dict[str, Any], metadata: SAEMetadata | None = None) -> Gradient:
    return Gradient(Config(**config), metadata)
