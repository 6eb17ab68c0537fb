"""Sparse codes of a batch of tokens, as compressed rows. Never a dense tokens x latents tensor."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class SparseCodes:
    """CSR by token: row t holds `latents[offsets[t]:offsets[t+1]]` with `values` of the same slice.

    `offsets` int64 [N+1], `latents` int64 [nnz], `values` [nnz] (non-zero; negative for signed SAEs).
    Latents within a row are in no particular order. SAEs that normalise each token keep here what
    decoding has to undo: `scale` and `shift` [N, 1].
    """

    offsets: Tensor
    latents: Tensor
    values: Tensor
    n_latents: int
    scale: Tensor | None = None
    shift: Tensor | None = None

    def __post_init__(self) -> None:
        if self.offsets.ndim != 1 or self.latents.shape != self.values.shape or self.latents.ndim != 1:
            raise ValueError("offsets [N+1], latents [nnz] and values [nnz] have to be one-dimensional and to match")

    @property
    def n_rows(self) -> int:
        return self.offsets.numel() - 1

    @property
    def rows(self) -> Tensor:
        """Row of each entry, int64 [nnz]."""
        counts = self.offsets.diff()
        return torch.repeat_interleave(torch.arange(self.n_rows, device=counts.device), counts)

    @classmethod
    def empty(cls, n_latents: int, like: Tensor) -> SparseCodes:
        """No rows at all."""
        nothing = torch.zeros(0, dtype=torch.int64, device=like.device)
        return cls(nothing.new_zeros(1), nothing, like.new_zeros(0), n_latents)

    @classmethod
    def from_topk(cls, values: Tensor, latents: Tensor, n_latents: int) -> SparseCodes:
        """From `[N, k]` values and indices; zeros are left out."""
        keep = values != 0
        offsets = torch.zeros(values.shape[0] + 1, dtype=torch.int64, device=values.device)
        torch.cumsum(keep.sum(dim=1), dim=0, out=offsets[1:])
        return cls(offsets, latents[keep], values[keep], n_latents)

    @classmethod
    def from_dense(cls, dense: Tensor) -> SparseCodes:
        """From `[N, F]`; for tests and for small SAEs."""
        rows, latents = dense.nonzero(as_tuple=True)
        offsets = torch.zeros(dense.shape[0] + 1, dtype=torch.int64, device=dense.device)
        torch.cumsum(torch.bincount(rows, minlength=dense.shape[0]), dim=0, out=offsets[1:])
        return cls(offsets, latents, dense[rows, latents], dense.shape[1])

    @classmethod
    def from_mask(cls, values: Tensor, mask: Tensor) -> SparseCodes:
        """The entries of `[N, F]` values where `mask` holds, but for zeros."""
        return cls.from_dense(values * mask)

    def normalised(self, scale: Tensor | None, shift: Tensor | None) -> SparseCodes:
        """The same codes, of tokens that were normalised before encoding."""
        return replace(self, scale=scale, shift=shift)

    @classmethod
    def cat(cls, parts: list[SparseCodes]) -> SparseCodes:
        """One after another, by rows."""
        ends = [part.offsets[1:] for part in parts]
        shift = 0
        offsets = [parts[0].offsets[:1]]
        for part, end in zip(parts, ends, strict=True):
            offsets.append(end + shift)
            shift += part.latents.numel()
        return cls(
            torch.cat(offsets),
            torch.cat([part.latents for part in parts]),
            torch.cat([part.values for part in parts]),
            parts[0].n_latents,
            _stack([part.scale for part in parts]),
            _stack([part.shift for part in parts]),
        )

    def to_dense(self) -> Tensor:
        """`[N, F]`; for tests and for small SAEs."""
        dense = self.values.new_zeros(self.n_rows, self.n_latents)
        dense[self.rows, self.latents] = self.values
        return dense

    def of_latent(self, latent: int) -> Tensor:
        """This latent's activation at every row, `[N]`."""
        out = self.values.new_zeros(self.n_rows)
        mine = self.latents == latent
        out[self.rows[mine]] = self.values[mine]
        return out


def _stack(parts: list[Tensor | None]) -> Tensor | None:
    given = [part for part in parts if part is not None]
    if given and len(given) != len(parts):
        raise ValueError("codes of normalised and of raw tokens cannot be joined")
    return torch.cat(given) if given else None
