"""Latents near a latent: those that fire where it fires, and those that write in its direction.

Neither builds a latents x latents array: co-firing is counted on a sample of each latent's own tokens, found
in one pass over the store for many latents; decoder rows are compared some at a time.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from autointerp.seeds import generator
from autointerp.store.reader import LatentStore

N_POSITIONS = 64
"""Tokens of a latent on which co-firing is counted."""
LEAST_SHARED = 3
"""Tokens of those that a neighbour has to fire on, too: one or two are an accident."""
ROWS = 64
"""Decoder rows that are compared with all others at once."""
ROUNDING = 1e-5
"""More than cosines in single precision are off by."""

Neighbours = dict[int, NDArray[np.int64]]
"""Nearest first."""


def cofiring(store: LatentStore, latents: Sequence[int], seed: int, n: int) -> Neighbours:
    """Up to `n` latents that fire on the same tokens far more often than their density explains.

    Ranked by shared tokens times the log of how many times more often than by chance. A latent's
    neighbours depend on (seed, latent) alone, not on who else is asked for.
    """
    chosen: dict[int, NDArray[np.int64]] = {}
    for latent in latents:
        positions, _ = store.of(latent)
        rng = generator(seed, "cofiring", latent)
        chosen[latent] = positions[rng.permutation(len(positions))[:N_POSITIONS]]
    wanted = np.unique(np.concatenate([np.empty(0, np.int64), *chosen.values()]))
    flags = np.zeros(store.tokens.size, dtype=np.bool_)
    flags[wanted] = True
    at, who = [], []
    for scan in store.scan():
        hit = np.flatnonzero(flags[scan.positions])
        at.append(scan.positions[hit])
        who.append(scan.latents(hit))
    position, firing = np.concatenate(at), np.concatenate(who)
    order = np.argsort(position, kind="stable")
    firing = firing[order]
    edges = np.searchsorted(position[order], np.append(wanted, np.iinfo(np.int64).max))
    density = store.n_fired / max(1, store.n_tokens)
    found: Neighbours = {}
    for latent, positions in chosen.items():
        rows = np.searchsorted(wanted, positions)
        together = [firing[edges[row] : edges[row + 1]] for row in rows]
        others, counts = np.unique(np.concatenate([np.empty(0, firing.dtype), *together]), return_counts=True)
        lift = counts / max(1, len(positions)) / density[others]
        usable = (others != latent) & (counts >= LEAST_SHARED) & (lift > 1)
        worth = counts[usable] * np.log(lift[usable])
        found[latent] = others[usable][np.argsort(-worth, kind="stable")[:n]]
    return found


@torch.inference_mode()
def decoder(W_dec: Tensor, latents: Sequence[int], n: int) -> Neighbours:
    """The `n` latents whose decoder rows `[F, O]` have the largest positive cosine with each latent's."""
    norms = W_dec.norm(dim=1).clamp_min(1e-12)
    found: Neighbours = {}
    for some in torch.split(torch.tensor(list(latents), device=W_dec.device), ROWS):
        cosines = (W_dec[some] / norms[some, None]) @ W_dec.T / norms
        cosines[torch.arange(len(some)), some] = -1.0
        least = cosines.topk(min(n, W_dec.shape[0]), dim=1).values[:, -1:].clamp_min(0)
        for latent, close in zip(some.tolist(), cosines >= least - ROUNDING, strict=True):
            others = close.nonzero()[:, 0]
            # A product's last bits depend on how many rows it has: rank by cosines that do not.
            rows, own = W_dec[others].double().cpu().numpy(), W_dec[latent].double().cpu().numpy()
            exact = (rows * own).sum(axis=1) / np.maximum(np.sqrt((rows**2).sum(axis=1)), 1e-12)
            best = np.argsort(-exact, kind="stable")[:n]
            found[latent] = others.cpu().numpy()[best[exact[best] > 0]]
    return found
