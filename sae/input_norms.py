"""What may be done to each token before it is encoded, and is undone after decoding.

Each rule maps rows `[n, D]` to (rows, scale `[n, 1]`, shift `[n, 1]`); `rows * scale + shift` undoes it.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

Normalised = tuple[Tensor, Tensor | None, Tensor | None]


def none(x: Tensor) -> Normalised:
    return x, None, None


def layer_norm(x: Tensor) -> Normalised:
    """Zero mean and unit (unbiased) standard deviation per token, as OpenAI's and SAELens' code has it.

    Their undoing multiplies by the deviation without the epsilon, and so does this.
    """
    shift = x.mean(dim=-1, keepdim=True)
    centred = x - shift
    scale = centred.std(dim=-1, keepdim=True)
    return centred / (scale + 1e-5), scale, shift


def constant_norm(x: Tensor) -> Normalised:
    """Every token at length sqrt(D) (SAELens' `constant_norm_rescale`). A token of zeros stays one."""
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True).clamp_min(torch.finfo(x.dtype).tiny)
    factor = math.sqrt(x.shape[-1]) / length
    return x * factor, 1.0 / factor, None


INPUT_NORMS: dict[str, Callable[[Tensor], Normalised]] = {
    "none": none,
    "layer_norm": layer_norm,
    "constant_norm": constant_norm,
}


def undo(rows: Tensor, scale: Tensor | None, shift: Tensor | None) -> Tensor:
    if scale is not None:
        rows = rows * scale
    return rows if shift is None else rows + shift
