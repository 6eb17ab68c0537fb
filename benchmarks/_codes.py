"""Synthetic sparse codes with the spread of densities that SAEs have, made as fast as they are written."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from sae.codes import SparseCodes


@dataclass(frozen=True)
class Planted:
    """`k` latents per token, one of each of `k` strata whose sizes grow geometrically.

    So no latent fires twice on a token, and densities run from a few percent to one in a million.
    """

    n_latents: int
    k: int = 32
    smallest: int = 16

    @property
    def edges(self) -> NDArray[np.int64]:
        """Bounds of the strata, `[k + 1]`."""
        growth = np.geomspace(1, self.n_latents / self.smallest, self.k)
        return np.round(np.concatenate([[0], np.cumsum(growth)]) / growth.sum() * self.n_latents).astype(np.int64)

    def codes(self, n_tokens: int, rng: np.random.Generator) -> SparseCodes:
        edges = self.edges
        latents = edges[:-1] + (rng.random((n_tokens, self.k)) * np.diff(edges)).astype(np.int64)
        values = rng.random((n_tokens, self.k), dtype=np.float32) + 0.01
        offsets = torch.arange(0, n_tokens * self.k + 1, self.k)
        flat = torch.from_numpy(latents.reshape(-1)), torch.from_numpy(values.reshape(-1))
        return SparseCodes(offsets, *flat, self.n_latents)
