"""The largest pre-activations of a whole batch, found chunk by chunk, and the thresholds that stand in for them.

Where tokens share a quota, what one token keeps depends on the others. Training does that; inference
keeps whatever exceeds a threshold, the running mean of the smallest value that training kept.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sae.base import SparseAutoencoder
from sae.sparse import Pairs
from sae.training import StepContext

NEVER_SET = -1.0
"""A threshold below zero has never been set; inference is then a plain ReLU."""
LONGEST = 0.999
"""Decay of a threshold's running mean, late in training."""
GUESS = 0.7
"""Part of the running threshold below which a batch's values are not looked at, unless too few turn up."""

Entries = tuple[Tensor, Tensor, Tensor]
"""Rows, latents and values, each `[P]`, in order of row and then of latent."""


@torch.no_grad()
def largest_of_batch(
    model: SparseAutoencoder, inputs: Tensor, quota: int, threshold: Tensor | None = None
) -> tuple[Pairs, Tensor]:
    """The `quota` largest positive pre-activations of encoder inputs `[B, D]`, or all if there are fewer.

    Exact, and of equal values the first (by row, then latent) are kept. `threshold` [] only saves work.
    Holds one chunk and the candidates at a time; waits for the device once a chunk.
    """
    nothing_known = inputs.new_zeros(())
    bound = nothing_known if threshold is None else (GUESS * threshold).clamp_min(0.0).to(inputs.dtype)
    found = _exceeding(model, inputs, quota, bound)
    # With the quota filled above the bound, nothing below it can belong to the largest.
    if len(found[2]) < quota and bound > 0:
        found = _exceeding(model, inputs, quota, nothing_known)
    rows, latents, values = found
    return Pairs.of_rows(rows, latents, inputs.shape[0], model.n_latents), values


def _exceeding(model: SparseAutoencoder, inputs: Tensor, quota: int, bound: Tensor) -> Entries:
    """The `quota` largest of the values that exceed `bound`."""
    n = inputs.shape[0]
    step = model.chunk_rows(n)
    buffer = inputs.new_empty(min(step, n), model.n_latents)
    nothing = torch.zeros(0, dtype=torch.int64, device=inputs.device)
    kept: Entries = nothing, nothing, inputs.new_zeros(0)
    for start in range(0, n, step):
        chunk = inputs[start : start + step]
        pre = model.preactivations(chunk, out=buffer[: len(chunk)])
        rows, latents = (pre > bound).nonzero(as_tuple=True)
        new = rows + start, latents, pre[rows, latents]
        kept = tuple(torch.cat(parts) for parts in zip(kept, new, strict=True))  # type: ignore[assignment]
        if len(kept[2]) > quota:
            # What comes later has to be larger than the smallest one kept: of equals the earlier stays.
            kept, bound = _prune(kept, quota)
    return kept


def _prune(entries: Entries, quota: int) -> tuple[Entries, Tensor]:
    """The `quota` largest entries, the first ones of equals, and the smallest value among them."""
    values = entries[2]
    smallest = values.kthvalue(len(values) - quota + 1).values
    above, equal = values > smallest, values == smallest
    keep = (above | (equal & (equal.cumsum(0) <= quota - above.sum()))).nonzero()[:, 0]
    return (entries[0][keep], entries[1][keep], values[keep]), smallest


def decay(done: int, longest: float) -> float:
    """Decay of a running mean after `done` updates: it forgets the untrained start, and remembers longer later on."""
    return min(longest, (1 + done) / (10 + done))


def follow(average: Tensor, value: Tensor, seen: Tensor, done: int, longest: float, context: StepContext) -> None:
    """Move a running mean towards the processes' mean of `value`, where any has `seen` one.

    All three have the shape of `average`. What was never set (negative) takes the value itself.
    """
    weight = seen.to(average.dtype)
    sums = context.total(torch.stack([torch.where(seen, value.to(average.dtype), 0.0), weight]))
    mean = sums[0] / sums[1].clamp_min(1.0)
    share = decay(done, longest)
    moved = torch.where(average < 0, mean, share * average + (1 - share) * mean)
    average.copy_(torch.where(sums[1] > 0, moved, average))


def follow_smallest(threshold: Tensor, values: Tensor, context: StepContext) -> None:
    """Move thresholds, [] or one for each latent, towards the smallest positive of the values kept, `[P]`."""
    positive = torch.where(values > 0, values, torch.inf)
    smallest = torch.cat([positive, positive.new_full((1,), torch.inf)]).min().expand_as(threshold)
    follow(threshold, smallest, smallest < torch.inf, context.step, LONGEST, context)
