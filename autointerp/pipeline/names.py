"""What things are called in tables and folders."""

from __future__ import annotations

import re
from pathlib import Path

from autointerp.config import RunSettings
from sae.base import SparseAutoencoder
from sae.files import content_sha


def sae_id(sae: SparseAutoencoder, hookpoint: str) -> str:
    """Architecture, place, width and the start of the content's hash: unique, and readable."""
    return f"{sae.architecture}-{hookpoint.replace(':', '-')}-{sae.n_latents}-{content_sha(sae)[:6]}"


def run_folder(settings: RunSettings, config: Path | None) -> Path:
    """Where a run or study goes: where it is told to, else under `results/` by its SAE's or its YAML's name."""
    name = run_name(settings.sae, settings.null) if settings.sae else config.stem if config else "study"
    return Path(settings.out) if settings.out else Path("results") / name


def run_name(sae: str, null: str | None = None) -> str:
    """Folder under `results/` for a run of an SAE."""
    name = re.sub(r"[^\w.-]+", "-", sae if sae.startswith("neurons") else Path(sae).resolve().name)
    return f"{name}-{null}" if null else name
