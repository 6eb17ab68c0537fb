"""Our own format: `sae.json` (what it is and where it comes from) and `weights.safetensors`."""

from __future__ import annotations

import json
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from sae.base import SAEMetadata, SparseAutoencoder
from sae.errors import SAEError
from sae.registry import Registry, UnknownName

FORMAT, VERSION = "autointerp-sae", 1
CONFIG, WEIGHTS = "sae.json", "weights.safetensors"
LOOKS_FOR = f"{CONFIG} + {WEIGHTS} (ours)"

ARCHITECTURES = Registry("SAE architecture", "sae.architectures", "autointerp.saes")


def recognise(folder: Path) -> bool:
    path = folder / CONFIG
    if not path.is_file():
        return False
    try:
        return bool(json.loads(path.read_text()).get("format") == FORMAT)
    except (json.JSONDecodeError, UnicodeDecodeError, AttributeError):
        return False


def read(folder: Path) -> SparseAutoencoder:
    info = json.loads((folder / CONFIG).read_text())
    if not isinstance(info.get("version"), int):
        raise SAEError(f"{folder / CONFIG} has no version number; it was not written by this program")
    if info["version"] > VERSION:
        raise SAEError(f"{folder / CONFIG} has version {info['version']}; this release reads up to {VERSION}: upgrade")
    try:
        model: SparseAutoencoder = ARCHITECTURES[info["architecture"]].create(
            info["config"], _metadata(info.get("metadata", {}))
        )
    except (AttributeError, KeyError, TypeError, UnknownName) as error:
        raise SAEError(f"{folder / CONFIG} describes no SAE we know: {error}") from error
    path = folder / WEIGHTS
    if not path.is_file():
        raise SAEError(f"{folder} holds {CONFIG} but no {WEIGHTS}: the checkpoint is incomplete, copy it again")
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise SAEError(f"{path} is truncated or damaged ({error}); copy it again") from error
    expected = {name: tuple(p.shape) for name, p in model.state_dict().items()}
    found = {name: tuple(t.shape) for name, t in tensors.items()}
    if expected != found:
        wrong = sorted(name for name in expected | found if expected.get(name) != found.get(name))
        detail = ", ".join(f"{name}: {found.get(name)} instead of {expected.get(name)}" for name in wrong)
        raise SAEError(f"{path} does not fit {CONFIG}: {detail}")
    model.load_state_dict(tensors)
    model.eval()
    return model


def write(model: SparseAutoencoder, folder: Path) -> None:
    """The old config goes first and the new one comes last, so a folder that is recognised is whole."""
    info = {
        "format": FORMAT,
        "version": VERSION,
        "architecture": model.architecture,
        "config": model.config_dict(),
        "metadata": asdict(model.metadata),
    }
    text = json.dumps(info, indent=2) + "\n"
    folder.mkdir(parents=True, exist_ok=True)
    save_file({k: v.detach().contiguous() for k, v in model.state_dict().items()}, folder / "weights.tmp")
    (folder / "sae.json.tmp").write_text(text)
    (folder / CONFIG).unlink(missing_ok=True)
    (folder / "weights.tmp").replace(folder / WEIGHTS)
    (folder / "sae.json.tmp").replace(folder / CONFIG)


def _metadata(values: dict[str, Any]) -> SAEMetadata:
    known = {field.name for field in fields(SAEMetadata)}
    extra = {**values.get("extra", {}), **{k: v for k, v in values.items() if k not in known}}
    return SAEMetadata(**{**{k: v for k, v in values.items() if k in known}, "extra": extra})
