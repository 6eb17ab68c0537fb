"""Gemma Scope (Lieberum et al. 2024, arXiv 2408.05147): a lone `params.npz` of a JumpReLU SAE or transcoder.

The file says nothing but the weights. Model, layer and place come from the names of its repository and folders.
"""

from __future__ import annotations

import math
import re
from pathlib import Path

from torch import Tensor

from sae.base import SAEMetadata, SparseAutoencoder
from sae.formats._assemble import assemble
from sae.formats._hook_names import hookpoint_of
from sae.formats._tensors import Tensors, names_in, read_weights

WEIGHTS = "params.npz"
LOOKS_FOR = f"{WEIGHTS} (Gemma Scope)"

NAMES = {"w_enc", "w_dec", "b_enc", "b_dec", "threshold"}
REPOSITORY = re.compile(r"gemma-scope-(\d+b)-(pt|it)-(res|mlp|att|transcoders)")
SITES = {
    "res": "blocks.{}.hook_resid_post",
    "mlp": "blocks.{}.hook_mlp_out",
    "att": "blocks.{}.attn.hook_z",
    "transcoders": "blocks.{}.ln2.hook_normalized",
}


def recognise(path: Path) -> bool:
    path = path / WEIGHTS if path.is_dir() else path
    return path.suffix == ".npz" and {name.lower() for name in names_in(path)} >= NAMES


def read(path: Path) -> SparseAutoencoder:
    path = path / WEIGHTS if path.is_dir() else path
    found = Tensors(path, {name.lower(): tensor for name, tensor in read_weights(path).items()})
    weights = {"b_enc": found.vector("b_enc"), "b_dec": found.vector("b_dec")}
    n_latents, width = len(weights["b_enc"]), len(weights["b_dec"])
    weights["threshold"] = found.take("threshold", n_latents)
    weights["encoder"] = found.directions("w_enc", n_latents, width, latents_first=None)
    weights["W_dec"] = found.directions("w_dec", n_latents, width, latents_first=None)
    found.finish()
    if "embedding" in path.parent.parts:
        _scale_embedding(weights, width)
    config = {"d_in": width, "n_latents": n_latents, "apply_b_dec_to_input": False}
    return assemble("jumprelu", config, weights, _metadata(path), path)


def _scale_embedding(weights: dict[str, Tensor], d_in: int) -> None:
    """SAEs on the embedding were trained on what Gemma makes of it: sqrt(d_in) times the table's rows."""
    weights["encoder"] = weights["encoder"] / math.sqrt(d_in)
    weights["W_dec"] = weights["W_dec"] * math.sqrt(d_in)


def _metadata(path: Path) -> SAEMetadata:
    whole = path.as_posix()
    metadata = SAEMetadata(extra={"format": "gemma_scope", "source": "/".join(path.parent.parts[-4:])})
    repository, layer = REPOSITORY.search(whole), re.search(r"layer_(\d+)", whole)
    if repository:
        size, kind, site = repository.groups()
        metadata.model = f"google/gemma-2-{size}" + ("-it" if kind == "it" else "")
        if "embedding" in path.parent.parts:
            metadata.hookpoint = "embed_tokens"
        elif layer:
            metadata.hookpoint = hookpoint_of(SITES[site].format(layer.group(1)), metadata.model)
            if site == "transcoders":
                metadata.target_hookpoint = hookpoint_of(f"blocks.{layer.group(1)}.hook_mlp_out", metadata.model)
    return metadata
