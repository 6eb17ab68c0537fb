"""Changes of weights that leave what an SAE computes as it was: lengths and input scales, folded."""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sae.errors import SAEError


def decoder_lengths(tensors: dict[str, Tensor]) -> Tensor:
    lengths: Tensor = torch.linalg.vector_norm(tensors["W_dec"], dim=1)
    return lengths.clamp_min(1e-8)


def unit_decoder(tensors: dict[str, Tensor]) -> None:
    """Decoder rows at unit length, codes larger by what they lost: `encoder`, `b_enc` grow by it, in place."""
    lengths = decoder_lengths(tensors)
    tensors["W_dec"] = tensors["W_dec"] / lengths[:, None]
    tensors["encoder"] = tensors["encoder"] * lengths[:, None]
    tensors["b_enc"] = tensors["b_enc"] * lengths


def scale_inputs(tensors: dict[str, Tensor], scale: float, target_scale: float | None = None) -> None:
    """What was made for `scale * x` becomes made for `x`, with the same codes, in place."""
    target_scale = scale if target_scale is None else target_scale
    if "encoder" in tensors:
        tensors["encoder"] = tensors["encoder"] * scale
        tensors["W_dec"] = tensors["W_dec"] / target_scale
    if "W_skip" in tensors:
        tensors["W_skip"] = tensors["W_skip"] * (scale / target_scale)
    tensors["b_dec"] = tensors["b_dec"] / target_scale


def scale_for(mean_length: float, d_in: int, source: Path) -> float:
    """The factor that brings inputs of a mean length to sqrt(d_in)."""
    if not (mean_length > 0 and math.isfinite(mean_length)):
        raise SAEError(f"{source}: the mean length of activations is given as {mean_length}; it has to be positive")
    return math.sqrt(d_in) / mean_length


def scale_is_unknown(source: Path) -> dict[str, Any]:
    """Say that the SAE needs scaled inputs and that the file does not give the scale; for `metadata.normalization`."""
    warnings.warn(
        f"{source} was trained on activations scaled to a mean length of sqrt(d_in) and does not hold the scale: "
        "call sae.rescale(sqrt(d_in) / mean length of your activations) before use",
        UserWarning,
        stacklevel=2,
    )
    return {"kind": "mean_length", "scale": None}
