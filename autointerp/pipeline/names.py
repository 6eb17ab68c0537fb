"""What things are called in tables and folders."""

from __future__ import annotations

from sae.base import SparseAutoencoder
from sae.files import content_sha


def sae_id(sae: SparseAutoencoder, hookpoint: str) -> str:
    """Architecture, place, width and the start of the content's hash: unique, and readable."""
    return f"{sae.architecture}-{hookpoint.replace(':', '-')}-{sae.n_latents}-{content_sha(sae)[:6]}"
