"""Activations made from known sparse features, and how well a dictionary found them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sae.architectures.topk import Config, TopK


def planted(
    n: int, *, d: int = 32, features: int = 64, active: int = 3, seed: int = 0
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Unit features `[features, d]`, and `[n, d]` activations that each sum `active` of them."""
    rng = np.random.default_rng(seed)
    directions = rng.normal(size=(features, d))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    chosen = np.argsort(rng.random((n, features)), axis=1)[:, :active]
    codes = np.zeros((n, features))
    np.put_along_axis(codes, chosen, rng.uniform(0.5, 1.5, (n, active)), axis=1)
    return directions.astype(np.float32), (codes @ directions + 0.005 * rng.normal(size=(n, d))).astype(np.float32)


def best_cosines(directions: NDArray[Any], model: TopK) -> NDArray[Any]:
    """For each planted feature the cosine of the decoder row that is nearest to it."""
    decoder = model.W_dec.detach().numpy()
    return np.asarray((directions @ (decoder / np.linalg.norm(decoder, axis=1, keepdims=True)).T).max(axis=1))


def random_topk(seed: int = 0, *, dtype: torch.dtype = torch.float32, **config: Any) -> TopK:
    """Untied random weights and biases, so that no term of a gradient vanishes by symmetry."""
    model = TopK(Config(**config))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.4 * torch.randn(parameter.shape, generator=generator))
    return model.to(dtype)
