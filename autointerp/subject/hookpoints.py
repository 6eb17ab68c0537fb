"""Hookpoints: module paths of the Hugging Face model, `NAME` for a module's output, `NAME:in` for its input.

`layers.9` is the residual stream after block 9; names are relative to the base model (no `model.` prefix). Llama's
names work on every family in `ALIASES`: `layers.9.mlp.down_proj:in` reads `h.9.mlp.c_proj:in` on GPT-2.
"""

from __future__ import annotations

import difflib
import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn

from autointerp.errors import UserError

ALIASES: dict[str, tuple[str, ...]] = {
    # GPT-2; others; the language part of models that also see (Gemma 3).
    "layers": ("h", "blocks", "language_model.layers"),
    # GPT-2, GPT-NeoX.
    "self_attn": ("attn", "attention"),
    "self_attn.o_proj": ("c_proj", "dense"),
    "mlp.down_proj": ("c_proj", "dense_4h_to_h"),
}
"""What other families call a component of Llama's names; GPT-2 has two kinds of `c_proj`, hence parents."""

INPUT = ":in"

BLOCK = rf"(?:{'|'.join(map(re.escape, ('layers', *ALIASES['layers'])))})\.\d+"


class Stop(Exception):
    """Raised inside a hook to leave the forward pass early."""


def base_model(model: nn.Module) -> nn.Module:
    inner = getattr(model, "base_model", model)
    return inner if isinstance(inner, nn.Module) else model


def resolve(model: nn.Module, hookpoint: str) -> str:
    """The hookpoint in this model's own names, `:in` included: a name that exists is itself, others go by `ALIASES`.

    Raises:
        UserError: neither leads to a module; the message lists near matches.
    """
    suffix = INPUT if hookpoint.endswith(INPUT) else ""
    path = hookpoint.removesuffix(INPUT)
    # A module that two parents share has two names.
    names = [name for name, _ in base_model(model).named_modules(remove_duplicate=False) if name]
    spellings = [path, *_spellings(path.removeprefix("model."))]
    real = next((spelling for spelling in spellings if spelling in names), None)
    if real is None:
        raise UserError(f"no hookpoint '{hookpoint}' in this model; {_hint(names, spellings)}")
    return real + suffix


def _spellings(path: str) -> list[str]:
    """A path as it stands, then with its components called what other families call them."""
    parts = path.split(".")
    choices = [
        (part, *ALIASES.get(f"{parent}.{part}", ALIASES.get(part, ())))
        for parent, part in zip(["", *parts], parts, strict=False)
    ]
    return [".".join(choice) for choice in itertools.product(*choices)]


def _hint(names: Sequence[str], spellings: Sequence[str]) -> str:
    """Names close to the spelling that leads furthest into this model, and which blocks there are."""

    def depth(spelling: str) -> int:
        parts = spelling.split(".")
        return sum(".".join(parts[:end]) in names for end in range(1, len(parts)))

    close = difflib.get_close_matches(max(spellings, key=depth), names, n=4, cutoff=0.5)
    blocks = [name for name in names if re.fullmatch(rf"{BLOCK}|\w+\.\d+", name)]
    span = f"; blocks are {blocks[0]} to {blocks[-1]}" if blocks else ""
    return f"near matches: {', '.join(close) or 'none'}{span}"


def find(model: nn.Module, hookpoint: str) -> nn.Module:
    """The module a hookpoint names.

    Raises:
        UserError: there is none; the message lists near matches.
    """
    return base_model(model).get_submodule(resolve(model, hookpoint).removesuffix(INPUT))


def neurons_at(model: nn.Module, hookpoint: str) -> str:
    """Where the MLP's neurons `[B, T, d_mlp]` are, in this model's own names: what its down projection reads.

    That is for a hookpoint that names a block or its MLP, without `:in`; any other is only resolved.

    Raises:
        UserError: no such module, or an MLP whose down projection has none of the known names (experts, say).
    """
    real = resolve(model, hookpoint)
    mlp = re.fullmatch(rf"({BLOCK})(?:\.mlp)?", real)
    return resolve(model, f"{mlp[1]}.mlp.down_proj{INPUT}") if mlp else real


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
        if name.endswith(INPUT):
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
    if hookpoint.endswith(INPUT):
        handle = module.register_forward_pre_hook(on_input, with_kwargs=True)
    else:
        handle = module.register_forward_hook(on_output)
    try:
        yield
    finally:
        handle.remove()
