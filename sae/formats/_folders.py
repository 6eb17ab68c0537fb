"""Config files beside weights, and writing both such that a folder is recognised only once it is whole."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, TypeVar

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from sae.errors import SAEError

T = TypeVar("T")


def home(path: Path, *files: str) -> Path:
    """The folder that a path stands for: itself, or where one of the format's files lies."""
    return path.parent if path.name in files and not path.is_dir() else path


def peek_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file, or nothing."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def setting(config: dict[str, Any], name: str, kind: type[Any], path: Path, default: Any = None) -> Any:
    """A value of a config, of the type it has to have; None where it is absent or null and there is no default."""
    value = config.get(name)
    if value is None:
        return default
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise SAEError(f"{path}: '{name}' is {value!r} and no {kind.__name__}")
    return value


def told(config: dict[str, Any], name: str, kind: type[T]) -> T | None:
    """A value that the SAE does not depend on; None where it is of another type."""
    value: Any = config.get(name)
    if kind is float and isinstance(value, int):
        value = float(value)
    return value if isinstance(value, kind) and not isinstance(value, bool) else None


def write_whole(folder: Path, weights: str, tensors: dict[str, Tensor], config: str, info: dict[str, Any]) -> None:
    """Weights and config. The old config goes first and the new one comes last.

    Raises:
        SAEError: the disk is full or the folder cannot be written; what was there may be gone, nothing is half there.
    """
    text = json.dumps(info, indent=2) + "\n"
    temporary, temporary_config = folder / f"{weights}.tmp", folder / f"{config}.tmp"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        save_file({name: tensor.detach().contiguous() for name, tensor in tensors.items()}, temporary)
        temporary_config.write_text(text, encoding="utf-8")
        for path in (temporary, temporary_config):
            with path.open("rb+") as file:
                os.fsync(file.fileno())
        (folder / config).unlink(missing_ok=True)
        temporary.replace(folder / weights)
        temporary_config.replace(folder / config)
    except (OSError, SafetensorError) as error:
        raise SAEError(f"cannot write an SAE to {folder}: {error}") from error
    finally:
        temporary.unlink(missing_ok=True)
        temporary_config.unlink(missing_ok=True)
