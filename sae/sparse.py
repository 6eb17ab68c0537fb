"""Products with sparse codes that cost what their non-zeros cost.

The codes of a batch are (row, latent) pairs with a value each. Bags of pairs are summed by torch's
`embedding_bag`: by row that is the decoder, by latent it is every weight gradient. Neither builds a
`pairs x D` nor a `rows x latents` tensor, and neither waits for the device.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional


def bag_sums(indices: Tensor, offsets: Tensor, weights: Tensor, source: Tensor) -> Tensor:
    """`out[b] = sum_p weights[p] * source[indices[p]]` over p in `offsets[b]:offsets[b+1]`: `[P], [N+1] -> [N, D]`."""
    return functional.embedding_bag(
        indices, source, offsets, per_sample_weights=weights, mode="sum", include_last_offset=True
    )


def decode_csr(offsets: Tensor, latents: Tensor, values: Tensor, W_dec: Tensor) -> Tensor:
    """Sum of decoder rows per token, `offsets` `[N+1] -> [N, D]`."""
    if offsets.numel() <= 1:
        return W_dec.new_zeros(0, W_dec.shape[1])
    return bag_sums(latents, offsets, values.to(W_dec.dtype), W_dec.detach())


def products_on_pattern(offsets: Tensor, latents: Tensor, rows: Tensor, W_dec: Tensor) -> Tensor:
    """`rows[n] . W_dec[f]` of every pair (n, f), by a dense product sampled at the pattern of the codes: `[P]`."""
    _silence_beta_warning()
    size = (offsets.numel() - 1, W_dec.shape[0])
    pattern = torch.sparse_csr_tensor(offsets, latents, rows.new_zeros(latents.shape), size)
    products: Tensor = torch.sparse.sampled_addmm(pattern, rows, W_dec.T, beta=0.0)
    return products.values()


def products_by_bags(offsets: Tensor, latents: Tensor, rows: Tensor, W_dec: Tensor) -> Tensor:
    """The same as the gradient of `embedding_bag` with respect to its weights."""
    weights = rows.new_zeros(latents.shape, requires_grad=True)
    with torch.enable_grad():
        out = bag_sums(latents, offsets, weights, W_dec.detach())
    return torch.autograd.grad(out, weights, rows)[0]


@cache
def _silence_beta_warning() -> None:
    """torch warns once in a process that its CSR tensors are in beta; a user can do nothing about it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        index = torch.zeros(1, dtype=torch.int64)
        torch.sparse_csr_tensor(torch.tensor([0, 1]), index, torch.zeros(1), (1, 1))


@dataclass(slots=True)
class Pairs:
    """(row, latent) pairs of a batch, in order of row. Values travel beside them as `[P]` tensors.

    `rows`, `latents` int64 [P]; `offsets` int64 [n_rows + 1] delimits each row's pairs. What the sums are
    driven by is int32, which they read a tenth faster.
    """

    rows: Tensor
    latents: Tensor
    offsets: Tensor
    n_latents: int
    _by_latent: tuple[Tensor, Tensor] | None = field(default=None, repr=False)
    _rows_by_latent: Tensor | None = field(default=None, repr=False)
    _by_row: tuple[Tensor, Tensor] | None = field(default=None, repr=False)

    @classmethod
    def of_topk(cls, latents: Tensor, n_latents: int) -> Pairs:
        """From `[n, k]` latents per row."""
        n, k = latents.shape
        offsets = torch.arange(0, n * k + 1, k, device=latents.device)
        rows = torch.arange(n, device=latents.device).repeat_interleave(k, output_size=n * k)
        return cls(rows, latents.reshape(-1), offsets, n_latents)

    @classmethod
    def of_rows(cls, rows: Tensor, latents: Tensor, n_rows: int, n_latents: int) -> Pairs:
        """From pairs that are already in order of row."""
        edges = torch.arange(n_rows + 1, device=rows.device)
        return cls(rows, latents, torch.searchsorted(rows, edges), n_latents)

    @property
    def n_rows(self) -> int:
        return self.offsets.numel() - 1

    def with_rows(self, rows: Tensor) -> Pairs:
        """The same pairs for sums by latent whose sources lie at other rows."""
        return Pairs(rows, self.latents, self.offsets, self.n_latents, self._by_latent)

    def decode(self, values: Tensor, W_dec: Tensor) -> Tensor:
        """`[P], [F, D] -> [n_rows, D]`."""
        return decode_csr(*self._row_order(), values, W_dec)

    def pull(self, grad: Tensor, W_dec: Tensor) -> Tensor:
        """Gradient of `decode` with respect to its values: one dot product a pair, `[n_rows, D], [F, D] -> [P]`."""
        if self.latents.numel() == 0:
            return grad.new_zeros(0)
        # On the CPU the sparse product takes half the time of embedding_bag's backward; elsewhere it wants its
        # columns in order, which the latents of a row are not.
        dots = products_on_pattern if grad.device.type == "cpu" else products_by_bags
        return dots(*self._row_order(), grad, W_dec)

    def _row_order(self) -> tuple[Tensor, Tensor]:
        if self._by_row is None:
            self._by_row = self.offsets.int(), self.latents.int()
        return self._by_row

    def _latent_order(self) -> tuple[Tensor, Tensor]:
        if self._by_latent is None:
            # A stable sort fixes the order of summation, so that a resumed run adds up to the same bits.
            ordered, order = torch.sort(self._row_order()[1], stable=True)
            edges = torch.arange(self.n_latents + 1, dtype=torch.int32, device=ordered.device)
            self._by_latent = order, torch.searchsorted(ordered, edges, out_int32=True)
        return self._by_latent

    def sum_rows(self, weights: Tensor, source: Tensor) -> Tensor:
        """`out[f] = sum over f's pairs of weight * source[row]`: `[P], [n_rows, D] -> [F, D]`."""
        order, offsets = self._latent_order()
        if self._rows_by_latent is None:
            self._rows_by_latent = self.rows.int().index_select(0, order)
        return bag_sums(self._rows_by_latent, offsets, weights.index_select(0, order), source)

    def sum_weights(self, weights: Tensor) -> Tensor:
        """`out[f] = sum of f's weights`: `[P] -> [F]`."""
        order, offsets = self._latent_order()
        ones = weights.new_ones(1, 1)
        return bag_sums(torch.zeros_like(order, dtype=torch.int32), offsets, weights.index_select(0, order), ones)[:, 0]

    def count(self, mask: Tensor) -> Tensor:
        """How many of each latent's pairs are in `mask` (bool [P]): int64 [F]."""
        order, offsets = self._latent_order()
        ends = torch.zeros(len(order) + 1, dtype=torch.int64, device=order.device)
        torch.cumsum(mask.index_select(0, order), dim=0, out=ends[1:])
        return ends[offsets].diff()
