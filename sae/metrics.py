"""How well a dictionary reconstructs: sums over tokens, and the figures that are ratios of such sums.

Never a mean of ratios: figures of many batches are those of all their tokens at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from sae.base import SparseAutoencoder

DENSE = 0.1
"""Latents that fire on a larger share of tokens are dense."""


@torch.no_grad()
def token_sums(model: SparseAutoencoder, x: Tensor, y: Tensor | None = None) -> tuple[dict[str, Tensor], Tensor]:
    """Sums over activations `[N, D]` (and targets `[N, O]`, by default `x`), float64; and firings, int64 [F]."""
    x = x.to(model.b_dec.device)
    codes = model.encode(x)
    recon = (model(x) if model.config.skip else model.decode(codes)).double().cpu()
    exact = (x if y is None else y).double().cpu()
    sums = {
        "n": torch.tensor(float(len(exact)), dtype=torch.float64),
        "error": (recon - exact).square().sum(),
        "square": exact.square().sum(),
        "sum": exact.sum(dim=0),
        "active": torch.tensor(float(codes.latents.numel()), dtype=torch.float64),
        "recon_square": recon.square().sum(),
        "recon_dot": (recon * exact).sum(),
        "length": exact.norm(dim=1).sum(),
        "recon_length": recon.norm(dim=1).sum(),
    }
    return sums, torch.bincount(codes.latents, minlength=model.n_latents).cpu()


def ratios(sums: Mapping[str, Any]) -> dict[str, float]:
    """`fvu` (pooled), `l0`, `shrinkage` (gamma = E|xhat|^2 / E x.xhat, Rajamanoharan et al. 2024, arXiv 2404.16014,
    eq. 10; 1 = unbiased) and `norm_ratio` (E|xhat| / E|x|); NaN where there is nothing to divide by."""
    variance = sums["square"] - (sums["sum"] ** 2).sum() / sums["n"]
    parts = {
        "fvu": (sums["error"], variance),
        "l0": (sums["active"], sums["n"]),
        "shrinkage": (sums["recon_square"], sums["recon_dot"]),
        "norm_ratio": (sums["recon_length"], sums["length"]),
    }
    return {name: divide(over, under) for name, (over, under) in parts.items()}


def divide(over: Any, under: Any) -> float:
    return float(over / under) if under else float("nan")


def shares(fired: Tensor, n_tokens: int) -> dict[str, float]:
    """`dead_share` (of these tokens) and `dense_share` (fires on more than a tenth of them)."""
    density = fired.double() / n_tokens
    return {
        "dead_share": float((density == 0).double().mean()),
        "dense_share": float((density > DENSE).double().mean()),
    }


@dataclass
class Reconstruction:
    """Running sums over batches; `figures()` pools them."""

    model: SparseAutoencoder
    _sums: dict[str, Tensor] = field(default_factory=dict)
    _fired: Tensor | None = None

    def add(self, x: Tensor, y: Tensor | None = None) -> None:
        """Take in activations `[N, D]`, and targets `[N, O]` where they differ."""
        sums, fired = token_sums(self.model, x, y)
        self._sums = {name: self._sums[name] + value if self._sums else value for name, value in sums.items()}
        self._fired = fired if self._fired is None else self._fired + fired

    def figures(self) -> dict[str, float]:
        """See `ratios` and `shares`; nothing before the first batch."""
        if self._fired is None:
            return {}
        return {**ratios(self._sums), **shares(self._fired, int(self._sums["n"]))}
