"""OpenMOSS' Language-Model-SAEs, from Llama Scope R1-Distill on: `config.json` and `sae_weights.safetensors`.

Its rule for codes is applied: with `sparsity_include_decoder_norm` a pre-activation is weighed by its decoder row's
length before the activation function, which for a JumpReLU is a threshold per latent.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sae.base import SAEMetadata, SparseAutoencoder
from sae.errors import SAEError
from sae.formats._assemble import assemble
from sae.formats._folders import home, peek_json, setting, told
from sae.formats._hook_names import hookpoint_of
from sae.formats._scales import decoder_lengths, scale_for, scale_inputs, scale_is_unknown, unit_decoder
from sae.formats._tensors import Tensors, read_weights

CONFIG, WEIGHTS, MODEL = "config.json", "sae_weights.safetensors", "lm_config.json"
LOOKS_FOR = f"{CONFIG} + {WEIGHTS} (OpenMOSS)"

LENGTH = "dataset_average_activation_norm"
THRESHOLDS = ("log_jumprelu_threshold", "activation_function.log_jumprelu_threshold")
HARMLESS = ("tokens_since_last_activation", "is_dead")
ACTIVATIONS = {"jumprelu": "jumprelu", "relu": "relu", "topk": "topk"}


def recognise(path: Path) -> bool:
    return {"d_model", "expansion_factor", "hook_point_in"} <= peek_json(home(path, CONFIG, WEIGHTS) / CONFIG).keys()


def read(path: Path) -> SparseAutoencoder:
    folder = home(path, CONFIG, WEIGHTS)
    source = folder / CONFIG
    config = peek_json(source)
    if config.get("sae_type", "sae") not in ("sae", "transcoder") or config.get("use_glu_encoder"):
        raise SAEError(
            f"{source}: its sae_type {config.get('sae_type')!r} or gated encoder is not read (plain SAEs are)"
        )
    found = Tensors(folder / WEIGHTS, read_weights(folder / WEIGHTS))
    d_in = setting(config, "d_model", int, source)
    weights = _weights(found, d_in)
    activation, threshold = _activation(found, config, len(weights["b_enc"]), source)
    lengths = _lengths(found, config, source)
    found.drop(HARMLESS)
    found.finish()
    ours: dict[str, Any] = {
        "d_in": d_in,
        "n_latents": len(weights["b_enc"]),
        "apply_b_dec_to_input": setting(config, "apply_decoder_bias_to_pre_encoder", bool, source, False),
    }
    if threshold is not None:
        weights["threshold"] = threshold
    if setting(config, "sparsity_include_decoder_norm", bool, source, False):
        if activation == "jumprelu":
            weights["threshold"] = weights["threshold"] / decoder_lengths(weights)
        elif activation == "topk":
            unit_decoder(weights)
    if activation == "topk":
        ours["k"] = setting(config, "top_k", int, source, 50)
    normalization = _normalise(weights, ours, config, lengths, source)
    return assemble(ACTIVATIONS[activation], ours, weights, _metadata(config, folder, normalization), source)


def _weights(found: Tensors, d_in: int) -> dict[str, Tensor]:
    """Older files hold two `nn.Linear`, newer ones matrices that inputs and codes are multiplied by."""
    linear = "encoder.weight" in found
    encoder, b_enc, decoder, b_dec = (
        ("encoder.weight", "encoder.bias", "decoder.weight", "decoder.bias") if linear else ("W_E", "b_E", "W_D", "b_D")
    )
    weights = {"b_enc": found.vector(b_enc)}
    n_latents = len(weights["b_enc"])
    weights["b_dec"] = found.take(b_dec, d_in) if b_dec in found else torch.zeros(d_in)
    weights["encoder"] = found.directions(encoder, n_latents, d_in, latents_first=linear)
    weights["W_dec"] = found.directions(decoder, n_latents, d_in, latents_first=not linear)
    return weights


def _activation(found: Tensors, config: dict[str, Any], n_latents: int, source: Path) -> tuple[str, Tensor | None]:
    held = next((name for name in THRESHOLDS if name in found), None)
    activation = setting(config, "act_fn", str, source, "jumprelu")
    if activation not in ACTIVATIONS:
        raise SAEError(f"{source}: the act_fn '{activation}' has no rule per token that we know (jumprelu, relu, topk)")
    if activation != "jumprelu":
        found.drop(THRESHOLDS)
        return activation, None
    return activation, found.take(held or THRESHOLDS[0], n_latents).exp()


def _lengths(found: Tensors, config: dict[str, Any], source: Path) -> dict[str, float]:
    """Mean activation lengths by hook name, from the state dict or the config; not those that were never set."""
    lengths = {name.removeprefix(f"{LENGTH}."): found.number(name) for name in found.starting(f"{LENGTH}.")}
    return lengths or setting(config, LENGTH, dict, source, {})


def _normalise(
    weights: dict[str, Tensor], ours: dict[str, Any], config: dict[str, Any], lengths: dict[str, float], source: Path
) -> dict[str, Any] | None:
    kind = setting(config, "norm_activation", str, source, "dataset-wise")
    if kind == "inference":
        return None
    if kind == "token-wise":
        ours["input_norm"] = "constant_norm"
        return None
    if kind != "dataset-wise":
        raise SAEError(f"{source}: norm_activation '{kind}' depends on the batch, so a token's codes are not defined")
    read_from = setting(config, "hook_point_in", str, source)
    written_to = setting(config, "hook_point_out", str, source, read_from)
    length = setting(lengths, read_from, float, source, lengths.get("in"))
    if length is None:
        return scale_is_unknown(source.parent)
    scale = scale_for(length, ours["d_in"], source)
    target_scale = scale_for(
        setting(lengths, written_to, float, source, lengths.get("out", length)), ours["d_in"], source
    )
    scale_inputs(weights, scale, target_scale)
    return {"kind": "mean_length", "scale": scale, "target_scale": target_scale}


def _metadata(config: dict[str, Any], folder: Path, normalization: dict[str, Any] | None) -> SAEMetadata:
    model = told(peek_json(folder / MODEL), "model_name", str)
    hookpoint = hookpoint_of(told(config, "hook_point_in", str), model)
    target = hookpoint_of(told(config, "hook_point_out", str), model)
    return SAEMetadata(
        model=model,
        hookpoint=hookpoint,
        target_hookpoint=None if target == hookpoint else target,
        normalization=normalization,
        extra={"format": "openmoss", "source": config},
    )
