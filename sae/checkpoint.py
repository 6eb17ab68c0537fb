"""A training checkpoint: weights, buffers, Adam's state and counters in one safetensors file, replaced whole."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from sae.base import SparseAutoencoder
from sae.errors import SAEError


def save(
    path: Path,
    model: SparseAutoencoder,
    optimiser: torch.optim.Optimizer,
    extra: dict[str, Tensor],
    header: dict[str, Any],
) -> None:
    """Write-then-rename, so that a kill leaves the last one whole."""
    tensors = {f"model.{name}": tensor for name, tensor in _state(model).items()}
    for name, parameter in model.named_parameters():
        for key, value in optimiser.state[parameter].items():
            tensors[f"adam.{name}.{key}"] = value
    tensors |= {f"extra.{name}": tensor for name, tensor in extra.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    whole = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}
    save_file(whole, temporary, metadata={"header": json.dumps(header, sort_keys=True)})
    temporary.replace(path)


def load(
    path: Path,
    model: SparseAutoencoder,
    optimiser: torch.optim.Optimizer,
    identity: dict[str, Any],
    device: torch.device,
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Put model and optimiser back; header and extra tensors are returned.

    Raises:
        SAEError: damaged, or of a run with another `identity`; the message names the first difference.
    """
    try:
        with safe_open(path, "pt") as file:
            header: dict[str, Any] = json.loads(file.metadata()["header"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (it is no dict)
    except (SafetensorError, KeyError, TypeError, ValueError, OSError) as error:
        raise SAEError(f"the checkpoint {path} is damaged ({error}); delete it to start over") from error
    apart = difference(header["identity"], json.loads(json.dumps(identity)))
    if apart:
        raise SAEError(
            f"{path} belongs to a run with other settings or other data ({apart}); use another folder or --fresh"
        )
    with torch.no_grad():
        for name, tensor in _state(model).items():
            tensor.copy_(tensors[f"model.{name}"])
    for name, parameter in model.named_parameters():
        prefix = f"adam.{name}."
        state = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
        if state:
            # Adam's step counter stays where the fused kernel wants it: with the parameter.
            optimiser.state[parameter] = {key: value.to(device) for key, value in state.items()}
    extra = {key.removeprefix("extra."): value.to(device) for key, value in tensors.items() if key.startswith("extra.")}
    return header, extra


def _state(model: SparseAutoencoder) -> dict[str, Tensor]:
    """Parameters and all buffers, those that are not saved with the SAE included."""
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def difference(found: Any, wanted: Any, where: str = "") -> str:
    """The first entry in which two JSON values differ, in words; empty if they are the same."""
    if isinstance(found, dict) and isinstance(wanted, dict):
        for key in sorted({*found, *wanted}):
            apart = difference(found.get(key), wanted.get(key), f"{where}.{key}" if where else key)
            if apart:
                return apart
        return ""
    return "" if found == wanted else f"{where}: {found} then, {wanted} now"
