"""Which dtype the encoder product runs in: what the processor does fast, decided by what it is, not by a race.

A timed choice could fall differently after a resumption and change the weights' last bits.
"""

from __future__ import annotations

import torch

from sae.errors import SAEError

CHOICES = ("auto", "float32", "bfloat16")


def product_dtype(choice: str, device: torch.device) -> torch.dtype | None:
    """The product's dtype where it differs from the weights', else None. Weights stay float32.

    Raises:
        SAEError: the choice has no such name.
    """
    if choice not in CHOICES:
        raise SAEError(f"unknown product dtype '{choice}' (known: {', '.join(CHOICES)})")
    if choice == "bfloat16" or (choice == "auto" and _bfloat16_is_fast(device)):
        return torch.bfloat16
    return None


def _bfloat16_is_fast(device: torch.device) -> bool:
    """Tensor cores (compute capability 8 on), AMX tiles or AVX512-BF16. Elsewhere it is up to nine times slower."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device)[0] >= 8
    if device.type != "cpu":
        return False
    flags = [getattr(torch.cpu, name, None) for name in ("_is_amx_tile_supported", "_is_avx512_bf16_supported")]
    return any(bool(supported()) for supported in flags if supported is not None)
