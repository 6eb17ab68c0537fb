"""Matching pursuit: latents are picked one after another, each from what the others left (Costa et al. 2025,
arXiv 2506.03093, section 3).

Loss: squared error / variance; the gradient flows through all steps, with the picks as constants. Encoder and
decoder are one dictionary. Trained with k steps, it can be run with any number of them (`steps`): the error
never rises with one more.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from sae.base import SAEConfig, SAEMetadata, SparseAutoencoder
from sae.codes import SparseCodes
from sae.errors import SAEError
from sae.sparse import Pairs
from sae.training import Batch, Gradients, StepContext, StepResult, reconstruction_error, variance_of

TRACE_BYTES = 2**28
"""Residuals and their gradients, over all steps, that are held at once."""
GRAM_BYTES = 2**28
"""Largest table of products between latents that is worth its memory."""
GRAM_ROWS = 256
"""Rows whose correlations stay near the cache while that table corrects them."""


@dataclass(frozen=True, kw_only=True)
class Config(SAEConfig):
    k: int = 32
    """Steps of the pursuit, which no token has more latents than."""
    residual_threshold: float = 0.0
    """A token is done when what is left of it is shorter than this, in training's units; 0 takes all steps."""
    stop_on_duplicate_support: bool = False
    """A token is done when a latent is picked for the second time."""

    def __post_init__(self) -> None:
        SAEConfig.__post_init__(self)
        if self.k < 1 or self.residual_threshold < 0:
            raise SAEError(
                f"k has to be positive and residual_threshold must not be negative, not {self.k} "
                f"and {self.residual_threshold}"
            )


class Pick(NamedTuple):
    """One step of the pursuit of n tokens."""

    latents: Tensor
    """int64 [n]."""
    amounts: Tensor
    """What it adds to their activations, [n]; 0 for tokens that are done."""
    fresh: Tensor
    """Whether the latent was silent before and is not now, bool [n]."""
    residual: Tensor
    """What is left, [n, D]."""


class MatchingPursuit(SparseAutoencoder):
    """From r = x - b_dec, `steps` times: j = argmax d_j.r, f_j += ReLU(d_j.r), r -= ReLU(d_j.r) d_j."""

    architecture: ClassVar[str] = "matching_pursuit"
    tied: ClassVar[bool] = True
    units: ClassVar[tuple[str, ...]] = ("residual_threshold",)
    config: Config
    residual_threshold: Tensor

    def __init__(self, config: Config, metadata: SAEMetadata | None = None) -> None:
        super().__init__(config, metadata)
        self.register_buffer("residual_threshold", torch.tensor(float(config.residual_threshold)))
        self.steps = config.k
        """Steps in inference."""
        self._gram: Tensor | None = None

    @torch.no_grad()
    def encode(self, x: Tensor) -> SparseCodes:
        self._gram = self._gram_for(x.numel() // self.d_in, self.steps)
        try:
            return super().encode(x)
        finally:
            self._gram = None

    def encode_rows(self, inputs: Tensor) -> SparseCodes:
        if self.steps < 1:
            raise SAEError(f"matching pursuit needs a positive number of steps, not {self.steps}")
        parts = []
        for rows in torch.split(inputs, len(inputs) if self._gram is None else GRAM_ROWS):
            codes = rows.new_zeros(len(rows), self.n_latents)
            for pick in self.pursue(rows, self.steps, self._gram):
                codes.scatter_add_(1, pick.latents[:, None], pick.amounts[:, None])
                if self._may_stop and not pick.amounts.any():
                    break
            parts.append(SparseCodes.from_dense(codes))
        return SparseCodes.cat(parts)

    @torch.no_grad()
    def pursue(self, inputs: Tensor, steps: int, gram: Tensor | None = None) -> Iterator[Pick]:
        """The pursuit of `[n, D]`. `gram` `[F, F]` holds the products of latents, if it is to be used.

        Each step moves every correlation by a row of that table, which replaces the step's product.
        """
        residual = inputs
        going = torch.ones(len(inputs), dtype=torch.bool, device=inputs.device)
        picked = torch.empty(steps, len(inputs), dtype=torch.int64, device=inputs.device)
        buffer = inputs.new_empty(len(inputs), self.n_latents)
        correlations = self.preactivations(inputs) if gram is None else inputs @ self.W_dec.T
        for t in range(steps):
            latents = torch.argmax(correlations, dim=1, out=picked[t])
            directions = self.W_dec[latents]
            amounts = torch.linalg.vecdot(residual, directions).relu_().mul_(going)
            fresh = (picked[:t] != latents).all(dim=0).logical_and_(amounts > 0)
            residual = torch.addcmul(residual, amounts[:, None], directions, value=-1.0)
            if self.config.stop_on_duplicate_support:
                going = going & fresh
            if self.config.residual_threshold > 0:
                going = going & (residual.norm(dim=1) >= self.residual_threshold)
            yield Pick(latents, amounts, fresh, residual)
            if t + 1 == steps:
                return
            if gram is None:
                correlations = self.preactivations(residual, out=buffer)
            else:
                torch.index_select(gram, 0, latents, out=buffer)
                correlations.addcmul_(buffer, amounts[:, None], value=-1.0)

    @torch.no_grad()
    def step(self, batch: Batch, context: StepContext) -> StepResult:
        """Loss of one batch; its gradients are written to `.grad`."""
        variance = variance_of(batch.y, context, context.rows_of(batch))
        gradients = Gradients()
        squared = batch.x.new_zeros(())
        fired = torch.zeros(self.n_latents, dtype=torch.int64, device=batch.x.device)
        n, k = len(batch.x), self.config.k
        gram = self._gram_for(n, k)
        traced = max(1, TRACE_BYTES // (2 * (k + 1) * self.d_in * batch.x.element_size()))
        at_once = min(traced, self.chunk_rows(n), n if gram is None else GRAM_ROWS)
        for start in range(0, n, at_once):
            rows = slice(start, start + at_once)
            x, y = batch.x[rows], batch.y[rows]
            inputs = self.encoder_input(x)
            trace = list(self.pursue(inputs, k, gram))
            error = reconstruction_error(self, inputs - trace[-1].residual, Batch(x, y))
            squared += torch.linalg.vector_norm(error).square()
            fired += self._add_gradients(gradients, x, inputs, trace, error.mul_(2.0 / variance))
        gradients.write(self)
        fvu = squared / variance
        return StepResult(fvu, fvu, fired, fired.sum(), {})

    def _add_gradients(
        self, gradients: Gradients, x: Tensor, inputs: Tensor, trace: list[Pick], grad_out: Tensor
    ) -> Tensor:
        """Backward through a pursuit, from the gradient of its reconstruction; returns rows per latent `[F]`.

        The codes' part of the reconstruction is what the residual has lost, so all that flows back flows through
        residuals: r' = r - (d.r) d gives dL/dr = g - (d.g) d and dL/dd = -(d.r) g - (d.g) r, with g = dL/dr'.
        """
        grad = grad_out.neg()
        after, slopes = [], []
        for pick in reversed(trace):
            directions = self.W_dec[pick.latents]
            slope = torch.linalg.vecdot(grad, directions).mul_(pick.amounts > 0)
            after.append(grad)
            slopes.append(slope)
            grad = torch.addcmul(grad, slope[:, None], directions, value=-1.0)
        before = [inputs, *(pick.residual for pick in trace[:-1])]
        pairs = Pairs.of_topk(torch.cat([pick.latents for pick in trace])[:, None], self.n_latents)
        amounts = torch.cat([pick.amounts for pick in trace])
        gradients.add("W_dec", pairs.sum_rows(amounts.neg_(), torch.cat(after[::-1])))
        gradients.add("W_dec", pairs.sum_rows(torch.cat(slopes[::-1]).neg_(), torch.cat(before)))
        gradients.add("b_dec", grad_out.sum(dim=0))
        if self.config.apply_b_dec_to_input:
            gradients.add("b_dec", (grad + grad_out).sum(dim=0).neg_())
        if self.config.skip:
            gradients.add("W_skip", grad_out.T @ x)
        return pairs.count(torch.cat([pick.fresh for pick in trace]))

    @property
    def _may_stop(self) -> bool:
        return self.config.stop_on_duplicate_support or self.config.residual_threshold > 0

    def _gram_for(self, n_rows: int, steps: int) -> Tensor | None:
        """Products of all latents `[F, F]`, where having them costs less than a product per step."""
        fits = self.n_latents**2 * self.W_dec.element_size() <= GRAM_BYTES
        return self.W_dec @ self.W_dec.T if fits and n_rows * (steps - 1) > 2 * self.n_latents else None


def create(config: dict[str, Any], metadata: SAEMetadata | None = None) -> MatchingPursuit:
    return MatchingPursuit(Config(**config), metadata)
