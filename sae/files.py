"""Load and save dictionaries. A format is recognised by what is in the folder, never by its name."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch

from sae.base import SparseAutoencoder
from sae.errors import SAEError
from sae.registry import Registry

FORMATS = Registry("SAE format", "sae.formats", "autointerp.sae_formats")


def load(path: str | Path, device: str | torch.device = "cpu") -> SparseAutoencoder:
    """Load an SAE from a folder of any registered format.

    Raises:
        SAEError: nothing is there, or nothing we recognise, or it is damaged; the message says what
            was looked for.
    """
    folder = Path(path)
    wanted = "; ".join(FORMATS[name].LOOKS_FOR for name in FORMATS.names)
    if not folder.is_dir():
        raise SAEError(f"no SAE at '{path}': there is no such folder (a folder should hold {wanted})")
    matching = [name for name in FORMATS.names if FORMATS[name].recognise(folder)]
    if not matching:
        held = ", ".join(sorted(p.name for p in folder.iterdir())[:8]) or "nothing"
        raise SAEError(f"no SAE at '{path}': looked for {wanted}; found {held}")
    if len(matching) > 1:
        raise SAEError(f"'{path}' looks like several formats at once ({', '.join(matching)}); split the folder")
    model: SparseAutoencoder = FORMATS[matching[0]].read(folder)
    return model.to(device)


def save(model: SparseAutoencoder, path: str | Path, format: str = "native") -> Path:  # noqa: A002
    """Write an SAE; the folder is complete once it can be loaded."""
    folder = Path(path)
    FORMATS[format].write(model, folder)
    return folder


def content_sha(model: SparseAutoencoder) -> str:
    """sha256 (16 hex digits) of architecture, config and weights: two SAEs share it exactly if they are the same."""
    digest = hashlib.sha256(f"{model.architecture}{sorted(model.config_dict().items())}".encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().float().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
