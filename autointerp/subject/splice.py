"""The one edit that every intervention is: x' = x + decode(z') - decode(z), the SAE's error kept.

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
