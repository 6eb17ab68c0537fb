"""EleutherAI's sparsify: `cfg.json` and `sae.safetensors` in a folder that is named after the hookpoint.

Neither file says which model or hookpoint: the folder's name and the run's `config.json` above it do.
"""

from __future__ import annotations

import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors import safe_open

from sae.base import SAEMetadata, SparseAutoencoder
from sae.errors import SAEError
from sae.formats._assemble import assemble
from sae.formats._folders import home, peek_json, setting, told, write_whole
from sae.formats._tensors import Tensors, read_weights
from sae.formats.native import metadata_of

CONFIG, WEIGHTS, RUN = "cfg.json", "sae.safetensors", "config.json"
LOOKS_FOR = f"{CONFIG} + {WEIGHTS} (sparsify)"

HOOKPOINT = re.compile(r"(layers|h|blocks)\.\d+(\.[\w.]+)?|embed_tokens|wte|embed_in")
WRITTEN = {"topk": "topk", "gradient": "topk", "transcoder": "topk", "skip_transcoder": "topk", "groupmax": "groupmax"}


def recognise(path: Path) -> bool:
    config = peek_json(home(path, CONFIG, WEIGHTS) / CONFIG)
    return "d_in" in config and bool({"num_latents", "expansion_factor"} & config.keys()) and "d_sae" not in config


def read(path: Path) -> SparseAutoencoder:
    folder = home(path, CONFIG, WEIGHTS)
    source = folder / CONFIG
    config = peek_json(source)
    activation = config.get("activation", "topk")
    if activation not in ("topk", "groupmax"):
        raise SAEError(f"{source}: the activation {activation!r} is not known (topk, groupmax)")
    if config.get("signed"):
        raise SAEError(f"{source} is of a signed SAE, whose rule sparsify has dropped; it is not read")
    found = Tensors(folder / WEIGHTS, _with_shared(folder / WEIGHTS))
    d_in = setting(config, "d_in", int, source)
    weights = {"b_enc": found.vector("encoder.bias"), "b_dec": found.take("b_dec", d_in)}
    n_latents = weights["b_enc"].numel()
    if setting(config, "num_latents", int, source, 0) not in (0, n_latents):
        raise SAEError(f"{source} says {config['num_latents']} latents (num_latents), but {WEIGHTS} has {n_latents}")
    weights["encoder"] = found.directions("encoder.weight", n_latents, d_in, latents_first=True)
    weights["W_dec"] = found.directions("W_dec", n_latents, d_in, latents_first=True)
    skip = "W_skip" in found
    if skip != setting(config, "skip_connection", bool, source, skip):
        raise SAEError(f"{source} says skip_connection: {not skip}, but {WEIGHTS} holds {'a' if skip else 'no'} W_skip")
    if skip:
        weights["W_skip"] = found.take("W_skip", d_in, d_in)
    found.finish()
    transcode = setting(config, "transcode", bool, source, False)
    ours: dict[str, Any] = {
        "d_in": d_in,
        "n_latents": n_latents,
        "k": setting(config, "k", int, source, 32),
        "apply_b_dec_to_input": not transcode,
        "skip": skip,
    }
    architecture = activation
    if activation == "topk":
        ours["multi_topk"] = setting(config, "multi_topk", bool, source, False)
        architecture = ("skip_transcoder" if skip else "transcoder") if transcode else "topk"
    return assemble(architecture, ours, weights, _metadata(config, folder), source)


def write(model: SparseAutoencoder, folder: Path) -> None:
    """One SAE's folder; for a run of sparsify's put it below the run, named after the hookpoint."""
    config = model.config
    if model.architecture not in WRITTEN:
        raise SAEError(f"sparsify has top-k and group-max SAEs only, not {model.architecture}; save it as native")
    if config.width_out != config.d_in or config.input_norm != "none":
        raise SAEError(
            "sparsify's SAEs have outputs as wide as their inputs and do not normalise inputs; this one has "
            f"d_out {config.width_out} for d_in {config.d_in} and input_norm '{config.input_norm}'; save it as native"
        )
    ours = model.config_dict()
    info = {
        "activation": WRITTEN[model.architecture],
        "expansion_factor": max(1, model.n_latents // model.d_in),
        "normalize_decoder": model.unit_decoder,
        "num_latents": model.n_latents,
        "k": ours["k"],
        "multi_topk": ours.get("multi_topk", False),
        "skip_connection": config.skip,
        "transcode": not config.apply_b_dec_to_input,
        "d_in": model.d_in,
        "autointerp": asdict(model.metadata),
    }
    theirs = {
        "encoder": "encoder.weight",
        "b_enc": "encoder.bias",
        "W_dec": "W_dec",
        "b_dec": "b_dec",
        "W_skip": "W_skip",
    }
    tensors = {theirs[name]: tensor for name, tensor in model.state_dict().items() if name in theirs}
    write_whole(folder, WEIGHTS, tensors, CONFIG, info)


def _with_shared(path: Path) -> dict[str, Any]:
    """safetensors stores tensors that share memory once, and notes the other names in the file's header."""
    tensors = read_weights(path)
    with safe_open(path, framework="pt") as file:
        notes = file.metadata() or {}
    return tensors | {name: tensors[kept].clone() for name, kept in notes.items() if kept in tensors}


def _metadata(config: dict[str, Any], folder: Path) -> SAEMetadata:
    if "autointerp" in config:
        return metadata_of(config["autointerp"], folder / CONFIG)
    place = folder.parent if re.fullmatch(r"seed\d+", folder.name) else folder
    run = next((found for above in place.parents[:2] if (found := peek_json(above / RUN)).get("sae")), {})
    return SAEMetadata(
        model=told(run, "model", str),
        hookpoint=place.name if HOOKPOINT.fullmatch(place.name) else None,
        dataset=told(run, "dataset", str),
        context_length=told(run, "ctx_len", int),
        extra={"format": "sparsify", "source": config},
    )
