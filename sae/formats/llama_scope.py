"""Llama Scope (He et al. 2024, arXiv 2410.20526), first release: `hyperparams.json` and
`checkpoints/final.safetensors`.

The weights are for activations scaled to a mean length of sqrt(d_in), and the one threshold of all latents stands in
units of unscaled ones: with the scale in the encoder, the threshold takes it too.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from sae.base import SAEMetadata, SparseAutoencoder
from sae.errors import SAEError
from sae.formats._assemble import assemble
from sae.formats._folders import peek_json, setting, told
from sae.formats._hook_names import hookpoint_of
from sae.formats._scales import scale_for, scale_inputs
from sae.formats._tensors import Tensors, read_weights

CONFIG, WEIGHTS = "hyperparams.json", "checkpoints/final.safetensors"
LOOKS_FOR = f"{CONFIG} + {WEIGHTS} (Llama Scope)"


def _home(path: Path) -> Path:
    if path.is_dir():
        return path
    return path.parents[1] if path.parts[-2:] == ("checkpoints", "final.safetensors") else path.parent


def recognise(path: Path) -> bool:
    if not path.is_dir() and path.name not in (CONFIG, "final.safetensors"):
        return False
    return {"d_model", "jump_relu_threshold"} <= peek_json(_home(path) / CONFIG).keys()


def read(path: Path) -> SparseAutoencoder:
    folder = _home(path)
    source = folder / CONFIG
    config = peek_json(source)
    if config.get("act_fn", "jumprelu") != "jumprelu" or config.get("use_glu_encoder"):
        raise SAEError(f"{source}: act_fn {config.get('act_fn')!r} or a gated encoder is not read (jumprelu is)")
    found = Tensors(folder / WEIGHTS, read_weights(folder / WEIGHTS))
    d_in = setting(config, "d_model", int, source)
    weights = {"b_enc": found.vector("encoder.bias")}
    n_latents = len(weights["b_enc"])
    weights["b_dec"] = found.take("decoder.bias", d_in) if "decoder.bias" in found else torch.zeros(d_in)
    weights["encoder"] = found.directions("encoder.weight", n_latents, d_in, latents_first=True)
    weights["W_dec"] = found.directions("decoder.weight", n_latents, d_in, latents_first=False)
    found.finish()
    threshold = setting(config, "jump_relu_threshold", float, source)
    weights["threshold"] = torch.full((n_latents,), threshold)
    normalization = None
    if setting(config, "norm_activation", str, source, "dataset-wise") == "dataset-wise":
        lengths = setting(config, "dataset_average_activation_norm", dict, source, {})
        mean_length = setting(lengths, "in", float, source)
        if mean_length is None:
            raise SAEError(f"{source} gives no mean activation length (dataset_average_activation_norm.in)")
        scale = scale_for(mean_length, d_in, source)
        target_scale = scale_for(setting(lengths, "out", float, source, mean_length), d_in, source)
        scale_inputs(weights, scale, target_scale)
        weights["threshold"] = weights["threshold"] * scale
        normalization = {"kind": "mean_length", "scale": scale, "target_scale": target_scale}
    ours = {
        "d_in": d_in,
        "n_latents": n_latents,
        "apply_b_dec_to_input": setting(config, "apply_decoder_bias_to_pre_encoder", bool, source, False),
    }
    return assemble("jumprelu", ours, weights, _metadata(config, source, normalization), source)


def _metadata(config: dict[str, Any], source: Path, normalization: dict[str, Any] | None) -> SAEMetadata:
    hookpoint = hookpoint_of(told(config, "hook_point_in", str))
    target = hookpoint_of(told(config, "hook_point_out", str))
    return SAEMetadata(
        model="meta-llama/Llama-3.1-8B" if "Llama3_1-8B" in source.as_posix() else None,
        hookpoint=hookpoint,
        target_hookpoint=None if target == hookpoint else target,
        normalization=normalization,
        extra={"format": "llama_scope", "source": config},
    )
