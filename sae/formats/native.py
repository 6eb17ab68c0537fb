"""Our own format: `sae.json` (what it is and where it comes from) and `weights.safetensors`."""

from __future__ import annotations

from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from sae.base import SAEMetadata, SparseAutoencoder
from sae.errors import SAEError
from sae.formats._assemble import ARCHITECTURES as ARCHITECTURES
from sae.formats._assemble import create, fill
from sae.formats._folders import home, peek_json, write_whole
from sae.formats._tensors import read_weights

FORMAT, VERSION = "autointerp-sae", 1
CONFIG, WEIGHTS = "sae.json", "weights.safetensors"
LOOKS_FOR = f"{CONFIG} + {WEIGHTS} (ours)"


def recognise(path: Path) -> bool:
    return bool(peek_json(home(path, CONFIG, WEIGHTS) / CONFIG).get("format") == FORMAT)


def read(path: Path) -> SparseAutoencoder:
    """An SAE bit for bit as it was written, dtypes included."""
    folder = home(path, CONFIG, WEIGHTS)
    info = peek_json(folder / CONFIG)
    if not isinstance(info.get("version"), int):
        raise SAEError(f"{folder / CONFIG} has no version number; it was not written by this program")
    if info["version"] > VERSION:
        raise SAEError(f"{folder / CONFIG} has version {info['version']}; this release reads up to {VERSION}: upgrade")
    metadata = metadata_of(info.get("metadata", {}), folder / CONFIG)
    if not isinstance(info.get("architecture"), str) or not isinstance(info.get("config"), dict):
        raise SAEError(f"{folder / CONFIG} describes no SAE we know: it names no architecture or no config")
    model = create(info["architecture"], info["config"], metadata, folder / CONFIG)
    if not (folder / WEIGHTS).is_file():
        raise SAEError(f"{folder} holds {CONFIG} but no {WEIGHTS}: the checkpoint is incomplete, copy it again")
    weights = folder / WEIGHTS
    return fill(model, read_weights(weights), lambda detail: f"{weights} does not fit {CONFIG}: {detail}")


def write(model: SparseAutoencoder, folder: Path) -> None:
    """All of the model: parameters, the buffers that belong to it, config and metadata."""
    info = {
        "format": FORMAT,
        "version": VERSION,
        "architecture": model.architecture,
        "config": model.config_dict(),
        "metadata": asdict(model.metadata),
    }
    write_whole(folder, WEIGHTS, model.state_dict(), CONFIG, info)


def metadata_of(values: Any, source: Path) -> SAEMetadata:
    """Metadata from JSON; entries that we do not know go to `extra`."""
    if not isinstance(values, dict) or not isinstance(values.get("extra", {}), dict):
        raise SAEError(f"{source} describes no SAE we know: its metadata is no object")
    known = {field.name for field in fields(SAEMetadata)}
    extra = {**values.get("extra", {}), **{k: v for k, v in values.items() if k not in known}}
    return SAEMetadata(**{**{k: v for k, v in values.items() if k in known}, "extra": extra})
