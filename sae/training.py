"""Gradients of one batch, and what an architecture reports of it. Knows no data, schedule or file.

Losses are in units of the batch's variance: every architecture's loss is its squared error (and its
penalties, weighed as published against the squared error) divided by the variance of the target.
That leaves the minimum where it was and makes learning rates and clipping alike for all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from sae.base import SparseAutoencoder
from sae.sparse import Pairs

SLAB_PAIRS = 2**20
"""Pairs that are held before their gradients are taken, where their number is not fixed."""


class Batch(NamedTuple):
    """What a step learns from, all `[B, ...]` and in training's own scale."""

    x: Tensor
    """Activations that are encoded, `[B, D]`."""
    target: Tensor | None = None
    """What is reconstructed, `[B, O]`, where that is not `x`."""
    gradient: Tensor | None = None
    """Gradient of the subject model's loss with respect to `x`, `[B, D]` (the `gradient` architecture)."""

    @property
    def y(self) -> Tensor:
        return self.x if self.target is None else self.target


def alone(x: Tensor) -> Tensor:
    return x


@dataclass(frozen=True, slots=True)
class StepContext:
    """Where in training a step stands."""

    step: int = 0
    n_steps: int = 1
    n_rows: int = 0
    """Rows of the whole batch, over all processes; 0 means this one's."""
    dead: Tensor | None = None
    """Indices of latents that have not fired for long, int64 [n]."""
    total: Callable[[Tensor], Tensor] = alone
    """Sum of a tensor over all processes."""
    largest: Callable[[Tensor], Tensor] = alone
    """Elementwise maximum of a tensor over all processes."""

    @property
    def share_done(self) -> float:
        return self.step / max(1, self.n_steps)

    def ramp(self, share: float) -> float:
        """Rises from 0 to 1 over the first `share` of training."""
        return min(1.0, self.share_done / share) if share > 0 else 1.0

    def rows_of(self, batch: Batch) -> int:
        return self.n_rows or batch.x.shape[0]


class StepResult(NamedTuple):
    """Figures of one batch, kept as tensors so that a step never waits for the device.

    All but `parts` are this process's share of a sum over processes.
    """

    loss: Tensor
    fvu: Tensor
    fired: Tensor
    """Rows in which each latent was active, int64 [F]."""
    n_active: Tensor
    """Non-zero codes in the batch, int64 []."""
    parts: dict[str, Tensor]
    """Further terms of the loss worth a line in the log; of this process alone."""


@dataclass(slots=True)
class Gradients:
    """Sums of a batch's gradients by parameter name."""

    sums: dict[str, Tensor] = field(default_factory=dict)

    def add(self, name: str, gradient: Tensor) -> None:
        """Add to a parameter's gradient; the tensor is taken over."""
        if name in self.sums:
            self.sums[name].add_(gradient)
        else:
            self.sums[name] = gradient

    def write(self, model: SparseAutoencoder) -> None:
        """Hand them to the parameters. What has got none is not trained in this step."""
        for name, parameter in model.named_parameters():
            parameter.grad = self.sums.get(name)


def variance_of(y: Tensor, context: StepContext, n_rows: int) -> Tensor:
    """Sum of squared distances from the batch's mean, over all processes: the unit of every loss."""
    sums = context.total(torch.cat([y.sum(dim=0), torch.linalg.vector_norm(y).square()[None]]).double())
    mean = sums[:-1] / n_rows
    spread: Tensor = (sums[-1] - n_rows * mean.square().sum()).clamp_min(1e-12)
    return spread.to(y.dtype)


def reconstruction_error(model: SparseAutoencoder, recon: Tensor, batch: Batch) -> Tensor:
    """The decoder's sums `[B, O]` become reconstruction minus target, in their own memory."""
    recon.add_(model.b_dec)
    if model.config.skip:
        recon.addmm_(batch.x, model.W_skip.T)
    return recon.sub_(batch.y)


def miss(
    model: SparseAutoencoder, pairs: Pairs, values: Tensor, batch: Batch, variance: Tensor
) -> tuple[Tensor, Tensor]:
    """Squared error of decoding `values` `[P]`, and the gradient of its share of `variance` with respect to the
    output, `[B, O]`."""
    error = reconstruction_error(model, pairs.decode(values, model.W_dec), batch)
    return torch.linalg.vector_norm(error).square(), error.mul_(2.0 / variance)


def add_encoder_gradients(
    model: SparseAutoencoder, gradients: Gradients, pairs: Pairs, grad_pre: Tensor, inputs: Tensor
) -> None:
    """Backward through `inputs @ encoder.T + b_enc` with `inputs = x - b_dec`, from gradients of pairs `[P]`."""
    per_latent = pairs.sum_weights(grad_pre)
    gradients.add("W_dec" if model.tied else "encoder", pairs.sum_rows(grad_pre, inputs))
    if model.config.apply_b_dec_to_input:
        # Every row's gradient flows back with a minus: one mat-vec, not N x D.
        gradients.add("b_dec", torch.mv(model.encoder_rows.T, per_latent).neg_())
    if "b_enc" in model.units:
        gradients.add("b_enc", per_latent)


def add_decoder_gradients(
    model: SparseAutoencoder, gradients: Gradients, pairs: Pairs, values: Tensor, grad_out: Tensor, x: Tensor | None
) -> None:
    """Backward through `decode(values) + b_dec (+ x W_skip^T)` from the output's gradient `[B, O]`."""
    gradients.add("W_dec", pairs.sum_rows(values, grad_out))
    gradients.add("b_dec", grad_out.sum(dim=0))
    if model.config.skip and x is not None:
        gradients.add("W_skip", grad_out.T @ x)


class Slab(NamedTuple):
    """Consecutive rows of a batch with the pairs that were kept of them."""

    rows: slice
    pairs: Pairs
    pre: Tensor
    """Pre-activation of each pair, `[P]`."""


def slabs(
    model: SparseAutoencoder,
    inputs: Tensor,
    keep: Callable[[Tensor], Tensor],
    limit: int | None = None,
) -> Iterator[Slab]:
    """Pairs whose pre-activations `keep` (a mask of `[n, F]`) lets through, a bounded number at a time.

    How many there are is known only once they are counted, so this waits for the device once a chunk.
    """
    limit = SLAB_PAIRS if limit is None else limit
    found: list[tuple[Tensor, Tensor, Tensor]] = []
    n_pairs, first, done = 0, 0, 0
    n = inputs.shape[0]
    # Where every latent may fire, a chunk's pairs have to fit as well.
    step = min(model.chunk_rows(n), max(1, limit // model.n_latents))
    buffer = inputs.new_empty(min(step, n), model.n_latents)
    for chunk in torch.split(inputs, step):
        pre = model.preactivations(chunk, out=buffer[: len(chunk)])
        rows, latents = keep(pre).nonzero(as_tuple=True)
        found.append((rows + (done - first), latents, pre[rows, latents]))
        n_pairs += len(rows)
        done += len(chunk)
        if n_pairs >= limit or done == n:
            joined = [torch.cat(parts) for parts in zip(*found, strict=True)]
            yield Slab(
                slice(first, done), Pairs.of_rows(joined[0], joined[1], done - first, model.n_latents), joined[2]
            )
            found, n_pairs, first = [], 0, done
