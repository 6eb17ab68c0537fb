"""Load and save dictionaries. A format is recognised by what is in the files, never by a name."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch

from sae.base import SparseAutoencoder
from sae.errors import SAEError
from sae.formats import _hub
from sae.formats._tensors import WEIGHT_SUFFIXES, read_weights
from sae.registry import Registry, UnknownName

FORMATS = Registry("SAE format", "sae.formats", "autointerp.sae_formats")

DEPTH = 5
"""Folders below a path in which an SAE is looked for."""


class Found(NamedTuple):
    """A checkpoint: the folder or file that one format recognises."""

    path: Path
    format: str


def load(path: str | Path, device: str | torch.device = "cpu") -> SparseAutoencoder:
    """Load an SAE of any registered format.

    `path` is a folder, a weight file, a folder with exactly one checkpoint somewhere below, or the id of one on the
    Hugging Face hub, such as `owner/repository/folder`, of which only that is downloaded. Other programs' weights
    come in float32 (float64 stays); the native format keeps its dtypes.

    Raises:
        SAEError: nothing is there, or nothing we recognise, or several SAEs are, or it is damaged; the message
            says what was looked for or found.
    """
    found = find(path)
    model: SparseAutoencoder = FORMATS[found.format].read(found.path)
    return model.to(device)


def find(path: str | Path) -> Found:
    """The one checkpoint that a path stands for. Raises as `load` does."""
    place = Path(path).expanduser()
    if not place.exists():
        hub_id = _hub.parse(str(path))
        if hub_id is None:
            raise SAEError(f"no SAE at '{path}': there is no such folder (a folder should hold {_wanted()})")
        place = _hub.fetch(hub_id)
    try:
        found = _at(place) or list(_below(place, DEPTH))
        nothing = "" if found else _nothing(place, path)
    except OSError as error:
        raise SAEError(f"no SAE at '{path}': it cannot be read ({error})") from error
    if nothing:
        raise SAEError(nothing)
    if len(found) > 1:
        raise _hub.several(str(path), [str(each.path.relative_to(place)) for each in found])
    return found[0]


def save(model: SparseAutoencoder, path: str | Path, format: str = "native") -> Path:  # noqa: A002
    """Write an SAE as `native`, `saelens` or `sparsify`; the folder is complete once it can be loaded.

    Raises:
        SAEError: the format has no way to say what this SAE computes, or the folder holds an SAE of another
            format, or it cannot be written.
    """
    folder = Path(path)
    try:
        module = FORMATS[format]
    except UnknownName as error:
        raise SAEError(str(error)) from error
    if not hasattr(module, "write"):
        writable = ", ".join(name for name in FORMATS.names if hasattr(FORMATS[name], "write"))
        raise SAEError(f"SAEs of the format {format} are read, but not written (written are {writable})")
    if folder.exists() and not folder.is_dir():
        raise SAEError(f"cannot write an SAE to {folder}: it is a file; name a folder")
    others = [name for name in _recognised(folder) if name != format] if folder.is_dir() else []
    if others:
        raise SAEError(f"{folder} already holds an SAE of the format {others[0]}; name another folder")
    broken = [name for name, tensor in model.state_dict().items() if not torch.isfinite(tensor).all()]
    if broken:
        raise SAEError(f"{broken[0]} holds NaN or infinity, so this SAE is not written: its training diverged")
    module.write(model, folder)
    return folder


def content_sha(model: SparseAutoencoder) -> str:
    """sha256 (16 hex digits) of architecture, config and weights: two SAEs share it exactly if they are the same.

    Weights count by their bits, dtypes and shapes.
    """
    digest = hashlib.sha256(f"{model.architecture}{sorted(model.config_dict().items())}".encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        raw: Any = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        digest.update(raw)
    return digest.hexdigest()[:16]


def _at(place: Path) -> list[Found]:
    """Checkpoints that a path itself is, or, for a folder, the weight files right in it."""
    names = _recognised(place)
    if len(names) > 1:
        raise SAEError(f"'{place}' looks like several formats at once ({', '.join(names)}); split the folder")
    if names:
        return [Found(place, names[0])]
    return [found for file in _weight_files(place) for found in _at(file)] if place.is_dir() else []


def _below(place: Path, depth: int) -> Iterator[Found]:
    if depth == 0 or not place.is_dir():
        return
    for folder in sorted(path for path in place.iterdir() if path.is_dir() and not path.name.startswith(".")):
        here = _at(folder)
        yield from here or _below(folder, depth - 1)


def _recognised(place: Path) -> list[str]:
    return [name for name in FORMATS.names if FORMATS[name].recognise(place)]


def _weight_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix in WEIGHT_SUFFIXES and path.is_file())


def _wanted() -> str:
    return "; ".join(FORMATS[name].LOOKS_FOR for name in FORMATS.names)


def _nothing(place: Path, path: str | Path) -> str:
    """Why there is no SAE: a weight file that cannot be opened, or what is there instead."""
    files = _weight_files(place) if place.is_dir() else [place] if place.suffix in WEIGHT_SUFFIXES else []
    held = sorted(p.name for p in place.iterdir()) if place.is_dir() else [place.name]
    found = ", ".join(held[:8]) or "nothing"
    try:
        inside = [sorted(read_weights(file)) for file in files]
    except SAEError as error:
        return f"no SAE at '{path}': {error}"
    if len(inside) == 1:
        found += f" (and in {files[0].name} {', '.join(inside[0][:8]) or 'nothing'})"
    return f"no SAE at '{path}': looked for {_wanted()}; found {found}"
