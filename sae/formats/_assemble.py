"""From a description and tensors by our names to a model: the last step of every reader."""

from __future__ import annotations

import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sae.base import SAEMetadata, SparseAutoencoder
from sae.errors import SAEError
from sae.registry import Registry, UnknownName

ARCHITECTURES = Registry("SAE architecture", "sae.architectures", "autointerp.saes")


def create(architecture: str, config: dict[str, Any], metadata: SAEMetadata, source: Path) -> SparseAutoencoder:
    """An SAE without weights. Lists in `config` become tuples where the architecture has tuples."""
    try:
        module = ARCHITECTURES[architecture]
        model: SparseAutoencoder = module.create(_with_tuples(module, config), metadata)
    except SAEError as error:
        raise SAEError(f"{source}: {error}") from error
    except (AttributeError, KeyError, TypeError, RuntimeError, UnknownName) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise SAEError(f"{source} describes no SAE we know: {reason}") from error
    return model


def fill(model: SparseAutoencoder, tensors: dict[str, Tensor], complain: Callable[[str], str]) -> SparseAutoencoder:
    """Give a model its weights, in the dtypes that they have.

    Raises:
        SAEError: with `complain(what does not fit)`, or since a value is not finite.
    """
    expected = {name: tuple(p.shape) for name, p in model.state_dict().items()}
    found = {name: tuple(t.shape) for name, t in tensors.items()}
    if expected != found:
        wrong = sorted(name for name in expected | found if expected.get(name) != found.get(name))
        detail = ", ".join(f"{name}: {found.get(name)} instead of {expected.get(name)}" for name in wrong)
        raise SAEError(complain(detail))
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise SAEError(complain(f"{name} holds NaN or infinity"))
    model.load_state_dict(tensors, assign=True)
    model.eval()
    return model


def assemble(
    architecture: str, config: dict[str, Any], tensors: dict[str, Tensor], metadata: SAEMetadata, source: Path
) -> SparseAutoencoder:
    """An SAE that another program wrote, from tensors by our names."""
    model = create(architecture, config, metadata, source)
    dtype = tensors["W_dec"].dtype
    weights = {name: tensor.to(dtype) for name, tensor in tensors.items()}
    return fill(model, weights, lambda detail: f"{source} does not make a {architecture} SAE: {detail}")


def _with_tuples(module: Any, config: dict[str, Any]) -> dict[str, Any]:
    if not isinstance(config, dict):
        raise TypeError(f"its config is {config!r} and no object")
    if not hasattr(module, "Config"):
        return config
    hints = typing.get_type_hints(module.Config)
    return {name: _tuple(value) if _holds_tuple(hints.get(name)) else value for name, value in config.items()}


def _holds_tuple(hint: Any) -> bool:
    return typing.get_origin(hint) is tuple or any(_holds_tuple(part) for part in typing.get_args(hint))


def _tuple(value: Any) -> Any:
    return tuple(_tuple(item) for item in value) if isinstance(value, list) else value
