"""Hookpoints: module paths of the Hugging Face model, `NAME` for a module's output, `NAME:in` for its input.

`layers.9` is the residual stream after block 9; names are relative to the base model (no `model.` prefix).
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn

from autointerp.errors import UserError


class Stop(Exception):
    """Raised inside a hook to leave the forward pass early."""


def base_model(model: nn.Module) -> nn.Module:
    inner = getattr(model, "base_model", model)
    return inner if isinstance(inner, nn.Module) else model


def find(model: nn.Module, hookpoint: str) -> nn.Module:
    """The module a hookpoint names.

    Raises:
        UserError: there is none; the message lists near matches.
    """
    base = base_model(model)
    path = hookpoint.removesuffix(":in").removeprefix("model.")
    modules = dict(base.named_modules())
    if path and path in modules:
        found: nn.Module = modules[path]
        return found
    names = [name for name in modules if name]
    close = difflib.get_close_matches(path, names, n=4, cutoff=0.5)
    blocks = [name for name in names if re.fullmatch(r"\w+\.\d+", name)]
    span = f"; blocks are {blocks[0]} to {blocks[-1]}" if blocks else ""
    raise UserError(f"no hookpoint '{hookpoint}' in this model; near matches: {', '.join(close) or 'none'}{span}")


def layer_of(hookpoint: str) -> int | None:
    """Index of the block a hookpoint lies in, None outside the blocks."""
    found = re.search(r"(?:^|\.)(?:layers|h|blocks)\.(\d+)", hookpoint)
    return int(found.group(1)) if found else None


def _first(value: Any) -> Tensor:
    tensor: Tensor = value[0] if isinstance(value, tuple) else value
    return tensor


@contextmanager
def reading(model: nn.Module, hookpoints: Sequence[str], *, stop: bool) -> Iterator[dict[str, Tensor]]:
    """Collect the hooked tensors of a forward pass by name; with `stop`, it ends by raising `Stop` at the last one."""
    seen: dict[str, Tensor] = {}

    def take(name: str, tensor: Tensor) -> None:
        seen[name] = tensor
        if stop and len(seen) == len(set(hookpoints)):
            raise Stop

    def on_input(name: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        take(name, args[0] if args else next(iter(kwargs.values())))

    def on_output(name: str, module: nn.Module, args: Any, output: Any) -> None:
        take(name, _first(output))

    handles = []
    for name in set(hookpoints):
        module = find(model, name)
        if name.endswith(":in"):
            handles.append(module.register_forward_pre_hook(partial(on_input, name), with_kwargs=True))
        else:
            handles.append(module.register_forward_hook(partial(on_output, name)))
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def editing(model: nn.Module, hookpoint: str, edit: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Replace the hooked tensor by `edit(tensor)` in every forward pass of the block."""

    def on_input(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if args:
            return (edit(args[0]), *args[1:]), kwargs
        name = next(iter(kwargs))
        return args, {**kwargs, name: edit(kwargs[name])}

    def on_output(module: nn.Module, args: Any, output: Any) -> Any:
        return (edit(output[0]), *output[1:]) if isinstance(output, tuple) else edit(output)

    module = find(model, hookpoint)
    if hookpoint.endswith(":in"):
        handle = module.register_forward_pre_hook(on_input, with_kwargs=True)
    else:
        handle = module.register_forward_hook(on_output)
    try:
        yield
    finally:
        handle.remove()
