"""Gemma Scope 2: `params.safetensors` and `config.json` of a JumpReLU SAE, transcoder or skip transcoder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sae.base import SAEMetadata, SparseAutoencoder
from sae.errors import SAEError
from sae.formats._assemble import assemble
from sae.formats._folders import home, peek_json, told
from sae.formats._hook_names import hookpoint_of
from sae.formats._tensors import Tensors, names_in, read_weights

CONFIG, WEIGHTS = "config.json", "params.safetensors"
LOOKS_FOR = f"{WEIGHTS} + {CONFIG} (Gemma Scope 2)"

NAMES = {"w_enc", "w_dec", "b_enc", "b_dec", "threshold"}
SKIP = "affine_skip_connection"


def recognise(path: Path) -> bool:
    path = home(path, CONFIG)
    path = path / WEIGHTS if path.is_dir() else path
    return path.suffix == ".safetensors" and names_in(path) >= NAMES


def read(path: Path) -> SparseAutoencoder:
    path = home(path, CONFIG)
    path = path / WEIGHTS if path.is_dir() else path
    config = peek_json(path.parent / CONFIG)
    if config.get("architecture", "jump_relu") != "jump_relu":
        raise SAEError(
            f"{path.parent / CONFIG}: the architecture {config['architecture']!r} is not read (jump_relu is)"
        )
    raw = read_weights(path)
    if raw["w_dec"].ndim == 3:
        raise SAEError(f"{path} is one layer of a cross-layer transcoder, which writes to many; those are not read")
    found = Tensors(path, raw)
    weights = {"b_enc": found.vector("b_enc"), "b_dec": found.vector("b_dec")}
    n_latents, width = len(weights["b_enc"]), len(weights["b_dec"])
    weights["threshold"] = found.take("threshold", n_latents)
    metadata, skip = _metadata(config), SKIP in found
    transcoder = skip or metadata.target_hookpoint is not None
    weights["encoder"] = found.directions("w_enc", n_latents, None if transcoder else width, latents_first=None)
    weights["W_dec"] = found.directions("w_dec", n_latents, width, latents_first=None)
    d_in = weights["encoder"].shape[1]
    if skip:
        weights["W_skip"] = found.take(SKIP, d_in, width).T.contiguous()
    found.finish()
    ours = {
        "d_in": d_in,
        "n_latents": n_latents,
        "d_out": None if d_in == width else width,
        "apply_b_dec_to_input": False,
        "skip": skip,
    }
    return assemble("jumprelu", ours, weights, metadata, path)


def _metadata(config: dict[str, Any]) -> SAEMetadata:
    model = told(config, "model_name", str)
    if model:
        # The repositories write gemma-v3 for gemma-3, and the smallest model's id has no -pt.
        model = model.replace("-v3", "-3")
        model = model if "/" in model else f"google/{model}"
        model = model.removesuffix("-pt") if "270m" in model else model
    target = hookpoint_of(told(config, "hf_hook_point_out", str), model)
    hookpoint = hookpoint_of(told(config, "hf_hook_point_in", str), model)
    return SAEMetadata(
        model=model,
        hookpoint=hookpoint,
        target_hookpoint=None if target == hookpoint else target,
        extra={"format": "gemma_scope_2", "source": config},
    )
