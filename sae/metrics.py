"""How well a dictionary reconstructs: pooled figures over many batches, each with a stated definition."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from sae.base import SparseAutoencoder


@dataclass
class Reconstruction:
    """Running sums over tokens; `figures()` pools them (ratios of sums, never means of ratios)."""

    model: SparseAutoencoder
    n_tokens: int = 0
    _error: float = 0.0
    _square: float = 0.0
    _n_active: int = 0
    _sum: Tensor = field(init=False)
    _fired: Tensor = field(init=False)
    _recon_square: float = 0.0
    _recon_dot: float = 0.0

    def __post_init__(self) -> None:
        self._sum = torch.zeros(self.model.d_in, dtype=torch.float64)
        self._fired = torch.zeros(self.model.n_latents, dtype=torch.int64)

    @torch.no_grad()
    def add(self, x: Tensor) -> None:
        """Take in activations `[N, D]`."""
        codes = self.model.encode(x)
        recon = self.model.decode(codes).double()
        exact = x.double()
        self.n_tokens += x.shape[0]
        self._error += float((recon - exact).square().sum())
        self._square += float(exact.square().sum())
        self._sum += exact.sum(dim=0)
        self._recon_square += float(recon.square().sum())
        self._recon_dot += float((recon * exact).sum())
        self._n_active += codes.latents.numel()
        self._fired += torch.bincount(codes.latents, minlength=self.model.n_latents)

    def figures(self) -> dict[str, float]:
        """`fvu` (pooled), `l0`, `dead_share` (of these tokens), `dense_share` (fires on > 10%), `shrinkage`
        (gamma = E|xhat|^2 / E x.xhat, Rajamanoharan et al. 2024, eq. 10; 1 = unbiased)."""
        if not self.n_tokens:
            return {}
        variance = self._square - float(self._sum.square().sum()) / self.n_tokens
        density = self._fired / self.n_tokens
        figures = {
            "l0": self._n_active / self.n_tokens,
            "dead_share": float((self._fired == 0).double().mean()),
            "dense_share": float((density > 0.1).double().mean()),
        }
        if variance > 0:
            figures["fvu"] = self._error / variance
        if self._recon_dot > 0:
            figures["shrinkage"] = self._recon_square / self._recon_dot
        return figures
