"""Qwen Scope: one `layer{n}.sae.pt` a layer, TopK. k and the model are said by the repository's name alone."""

from __future__ import annotations

import re
from pathlib import Path

from sae.base import SAEMetadata, SparseAutoencoder
from sae.errors import SAEError
from sae.formats._assemble import assemble
from sae.formats._tensors import Tensors, names_in, read_weights

LOOKS_FOR = "layer{n}.sae.pt (Qwen Scope)"

NAMES = {"W_enc", "W_dec", "b_enc", "b_dec"}
REPOSITORY = re.compile(r"(?:SAE-Res-(?P<model>[\w.-]+?)-W\d+K-)?L0_(?P<k>\d+)")


def recognise(path: Path) -> bool:
    return path.suffix in (".pt", ".pth") and path.is_file() and names_in(path) == NAMES


def read(path: Path) -> SparseAutoencoder:
    named = REPOSITORY.search(path.absolute().as_posix())
    if named is None:
        raise SAEError(
            f"{path} is a top-k SAE that does not say its k; Qwen's repositories have it in their names: keep it in a "
            "folder of its repository's name, which ends in L0_{k}"
        )
    found = Tensors(path, read_weights(path))
    weights = {"b_enc": found.vector("b_enc"), "b_dec": found.vector("b_dec")}
    n_latents, width = len(weights["b_enc"]), len(weights["b_dec"])
    weights["encoder"] = found.directions("W_enc", n_latents, width, latents_first=None)
    weights["W_dec"] = found.directions("W_dec", n_latents, width, latents_first=None)
    found.finish()
    layer = re.search(r"layer(\d+)", path.name)
    metadata = SAEMetadata(
        model=f"Qwen/{named['model']}" if named["model"] else None,
        hookpoint=f"layers.{layer.group(1)}" if layer else None,
        extra={"format": "qwen_scope", "source": named.group()},
    )
    config = {"d_in": width, "n_latents": n_latents, "k": int(named["k"]), "apply_b_dec_to_input": False}
    return assemble("topk", config, weights, metadata, path)
