"""Zipf curves: how often the latent of each rank fires, and how a batch's quota is divided accordingly.

Densities of latents, in order, follow `C (rank + beta)^-alpha` but for their low tail (Ayonrinde 2024, Fig. 2).
"""

from __future__ import annotations

import torch
from torch import Tensor

from sae.errors import SAEError

ALPHA, BETA_SHARE = 1.0, 1 / 100
"""The curve where there is nothing to fit: alpha, and beta over the number of latents."""
FITTED = (0.1, 0.9)
"""Ranks that a curve is fitted to; the head and the tail do not follow it."""
N_RANKS, N_BETAS, FEWEST = 1024, 64, 8
"""Most ranks and offsets that a fit looks at, and fewest ranks that it needs."""


def curve(n: int, alpha: Tensor, beta: Tensor) -> Tensor:
    """`(rank + beta)^-alpha` of ranks 1..n, scaled to sum 1: float64 `[n]`."""
    ranks = torch.arange(1, n + 1, dtype=torch.float64, device=alpha.device)
    # The largest term is factored out, so that no exponent overflows.
    logs = -alpha * torch.log(ranks + beta)
    return torch.softmax(logs, dim=0)


def fit(densities: Tensor) -> tuple[Tensor, Tensor]:
    """alpha and beta, float64 [], of densities `[F]` in any order; never waits for the device.

    Least squares between logarithms over the middle ranks that fire at all: linear in alpha for each of a
    grid of beta. Where fewer than FEWEST of them fire there is no fit, and the default curve is returned.
    """
    n = densities.numel()
    ordered = densities.double().sort(descending=True).values
    first, last = int(FITTED[0] * n), int(FITTED[1] * n) - 1
    index = torch.linspace(first, max(first, last), min(N_RANKS, max(1, last - first + 1)), device=densities.device)
    index = index.round().long()
    fires = (ordered[index] > 0).double()
    count = fires.sum().clamp_min(1.0)
    y = ordered[index].clamp_min(torch.finfo(torch.float64).tiny).log()
    betas = n * torch.logspace(-4, 0, N_BETAS, dtype=torch.float64, device=densities.device)
    x = torch.log(index + 1 + betas[:, None])

    def centred(v: Tensor) -> Tensor:
        return (v - (v * fires).sum(dim=-1, keepdim=True) / count) * fires

    x, y = centred(x), centred(y)
    slopes = (x * y).sum(dim=1) / x.square().sum(dim=1).clamp_min(1e-30)
    best = (y - slopes[:, None] * x).square().sum(dim=1).argmin()
    enough = fires.sum() >= FEWEST
    alpha = torch.where(enough, -slopes[best], ALPHA).clamp_min(0.0)
    return alpha, torch.where(enough, betas[best], BETA_SHARE * n)


def expected_densities(densities: Tensor, total: float) -> Tensor:
    """What the fitted curve has each latent of `[F]` fire, by its rank among them; sums to `total`."""
    alpha, beta = fit(densities)
    order = densities.sort(descending=True, stable=True).indices
    by_rank = (total * curve(densities.numel(), alpha, beta)).to(densities.dtype)
    return torch.empty_like(by_rank).index_copy_(0, order, by_rank)


def divide(shares: Tensor, total: int, most: int) -> Tensor:
    """Whole numbers from 1 to `most` that sum to `total`, in proportion to `shares` `[F]` in falling order: int64.

    Each gets the floor of its part of the largest total that fits; what is left goes to the first ranks.
    """
    n = shares.numel()
    if not n <= total <= n * most:
        raise SAEError(
            f"a quota of {total} per batch cannot give each of {n} latents between 1 and {most} tokens; "
            "raise k or the batch size, or take fewer latents"
        )
    parts = shares.double().clamp_min(0.0) / shares.double().sum()

    def floors(scale: float) -> Tensor:
        return (parts * scale).floor().clamp(1, most).long()

    low, high = 0.0, 2.0 * most / max(float(parts.min()), 1e-12)
    for _ in range(200):
        middle = (low + high) / 2
        if int(floors(middle).sum()) <= total:
            low = middle
        else:
            high = middle
    counts = floors(low)
    room = (counts < most).nonzero()[:, 0]
    counts[room[: total - int(counts.sum())]] += 1
    return counts
