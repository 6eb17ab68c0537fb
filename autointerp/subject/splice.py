"""The edits that every intervention is made of: x' = x + decode(z') - decode(z), the SAE's error kept.

Only the difference of the codes is decoded, so biases and errors cancel exactly, and an edit that
changes no code returns x bit for bit.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sae.base import SparseAutoencoder


@dataclass
class Splice:
    """Add `strengths[b]` to latent `latents[b]`'s code in row b of a batch `[B, T, D]`, at every place of it.

    Every row of a batch carries its own latent and strength; a strength of 0 leaves its row untouched.
    """

    sae: SparseAutoencoder
    latents: Tensor
    strengths: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        directions = self.sae.directions(self.latents)
        change = (self.strengths[:, None] * directions).to(x.dtype)[:, None, :]
        # x + 0 would turn -0.0 into 0.0: rows without an edit are passed on as they are.
        return torch.where((self.strengths == 0)[:, None, None], x, x + change)


@dataclass
class Removal:
    """Take the share `strengths[b]` of latent `latents[b]`'s own code away at every place of row b of `[B, T, D]`.

    A share of 1 clamps the latent to zero. Rows with a share of 0 and places where the latent is silent are left
    untouched.
    """

    sae: SparseAutoencoder
    latents: Tensor
    strengths: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        n_places, width = x.shape[1], x.shape[2]
        codes = self.sae.encode(x.reshape(-1, width).to(self.sae.W_dec.dtype))
        rows = codes.rows
        mine = codes.latents == self.latents.repeat_interleave(n_places)[rows]
        own = codes.values.new_zeros(codes.n_rows)
        own[rows[mine]] = codes.values[mine]
        if codes.scale is not None:
            # Codes are of the normalised token; what they add to the token itself is as much larger.
            own = own * codes.scale[:, 0]
        own = own.reshape(-1, n_places) * self.strengths[:, None]
        change = (own[..., None] * self.sae.directions(self.latents)[:, None, :]).to(x.dtype)
        return torch.where((own == 0)[..., None], x, x - change)


EDITS: dict[str, type[Splice | Removal]] = {"add": Splice, "zero": Removal}
"""By the names of `Steer.edit`."""
