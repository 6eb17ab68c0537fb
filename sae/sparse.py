"""Products with sparse codes that cost what their non-zeros cost.

All of it runs on (row, latent) pairs: `k` latents a row, held as `[B, k]` indices and values. Sorted
once by latent, the pairs turn both weight gradients into sums over gathered rows, which torch's
`embedding_bag` does without ever building a `pairs x D` or a `rows x latents` tensor.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional


def decode_pairs(values: Tensor, latents: Tensor, W_dec: Tensor) -> Tensor:
    """`sum_j values[b, j] * W_dec[latents[b, j]]`: `[B, k], [B, k], [F, D] -> [B, D]`."""
    return functional.embedding_bag(latents, W_dec, per_sample_weights=values, mode="sum")


def decode_csr(offsets: Tensor, latents: Tensor, values: Tensor, W_dec: Tensor) -> Tensor:
    """The same for rows of unequal length, `offsets` `[B+1] -> [B, D]`."""
    if offsets.numel() <= 1:
        return W_dec.new_zeros(0, W_dec.shape[1])
    return functional.embedding_bag(
        latents, W_dec, offsets, per_sample_weights=values.to(W_dec.dtype), mode="sum", include_last_offset=True
    )


def values_gradient(grad: Tensor, latents: Tensor, W_dec: Tensor) -> Tensor:
    """Gradient of `decode_pairs` with respect to its values: `[B, D] -> [B, k]`.

    Goes through autograd of `embedding_bag`, whose kernel for this does not gather `B x k x D`.
    """
    weights = torch.zeros(latents.shape, dtype=W_dec.dtype, device=W_dec.device, requires_grad=True)
    with torch.enable_grad():
        out = decode_pairs(weights, latents, W_dec.detach())
    return torch.autograd.grad(out, weights, grad)[0]


@dataclass(frozen=True, slots=True)
class SortedPairs:
    """(row, latent) pairs of a batch in order of latent. `offsets` `[F+1]` delimits each latent's rows."""

    order: Tensor
    rows: Tensor
    offsets: Tensor

    @classmethod
    def of(cls, latents: Tensor, n_latents: int) -> SortedPairs:
        """From `[B, k]` latent indices."""
        flat = latents.reshape(-1)
        # A stable sort fixes the order of summation, so that a resumed run adds up to the same bits.
        order = torch.sort(flat, stable=True).indices
        offsets = torch.zeros(n_latents + 1, dtype=torch.int64, device=flat.device)
        torch.cumsum(torch.bincount(flat, minlength=n_latents), dim=0, out=offsets[1:])
        return cls(order, order // latents.shape[1], offsets)

    @property
    def counts(self) -> Tensor:
        """How many rows each latent has, `[F]`."""
        return self.offsets.diff()

    def sum_rows(self, weights: Tensor, source: Tensor) -> Tensor:
        """`out[f] = sum over f's pairs of weight * source[row]`: `[B, k], [B, D] -> [F, D]`."""
        return functional.embedding_bag(
            self.rows,
            source,
            self.offsets,
            per_sample_weights=weights.reshape(-1)[self.order],
            mode="sum",
            include_last_offset=True,
        )

    def sum_weights(self, weights: Tensor) -> Tensor:
        """`out[f] = sum of f's weights`: `[B, k] -> [F]`."""
        ones = weights.new_ones(weights.shape[0], 1)
        return self.sum_rows(weights, ones)[:, 0]
