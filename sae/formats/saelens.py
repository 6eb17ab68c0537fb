"""SAELens: `cfg.json` and `sae_weights.safetensors`, in its current form and those before version 6.

Two saves of one SAE are read alike: the training save of the top-k family has free decoder rows and, of a batch
top-k, one scalar threshold; the inference save has folded them. Here they are folded while loading.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sae.base import SAEMetadata, SparseAutoencoder
from sae.errors import SAEError
from sae.formats import _saelens_writer
from sae.formats._assemble import assemble
from sae.formats._folders import home, peek_json, setting, told
from sae.formats._hook_names import hookpoint_of, model_id
from sae.formats._scales import scale_inputs, scale_is_unknown, unit_decoder
from sae.formats._tensors import Tensors, read_weights
from sae.formats.native import metadata_of

CONFIG, WEIGHTS = "cfg.json", "sae_weights.safetensors"
SCALE = "activation_scaler.json"
LOOKS_FOR = f"{CONFIG} + {WEIGHTS} (SAELens)"

OURS = {
    "standard": "relu",
    "gated": "gated",
    "jumprelu": "jumprelu",
    "topk": "topk",
    "abstopk": "abstopk",
    "batchtopk": "batchtopk",
    "matryoshka_batchtopk": "matryoshka",
    "matching_pursuit": "matching_pursuit",
    "transcoder": "relu",
    "skip_transcoder": "relu",
    "jumprelu_transcoder": "jumprelu",
    "jumprelu_skip_transcoder": "jumprelu",
}
TRAINING_ONLY = {"batchtopk", "matryoshka_batchtopk"}
SELECTING = {"topk", "abstopk", *TRAINING_ONLY}
INPUT_NORMS = {"none": "none", "layer_norm": "layer_norm", "constant_norm_rescale": "constant_norm"}
SCALED = "expected_average_only_in"


def recognise(path: Path) -> bool:
    config = peek_json(home(path, CONFIG, WEIGHTS) / CONFIG)
    return "d_in" in config and bool({"d_sae", "hook_name", "hook_point"} & config.keys())


def read(path: Path) -> SparseAutoencoder:
    folder = home(path, CONFIG, WEIGHTS)
    source = folder / CONFIG
    config = _current(peek_json(source))
    theirs = config.get("architecture")
    if not isinstance(theirs, str) or theirs not in OURS:
        raise SAEError(f"{source}: SAEs of architecture {theirs!r} are not read (known: {', '.join(sorted(OURS))})")
    found = Tensors(folder / WEIGHTS, read_weights(folder / WEIGHTS))
    weights = _weights(found, config, theirs, source)
    ours = _config(config, weights, theirs, source)
    normalization = _fold(weights, ours, config, theirs, folder)
    metadata = _metadata(config, ours, source)
    metadata.normalization = normalization or metadata.normalization
    return assemble(OURS[theirs], ours, weights, metadata, source)


def write(model: SparseAutoencoder, folder: Path) -> None:
    _saelens_writer.write(model, folder, CONFIG, WEIGHTS)


def _current(config: dict[str, Any]) -> dict[str, Any]:
    """The keys of version 6 for files of any version: flat metadata moves into `metadata`, old names are renamed."""
    new = dict(config)
    for old, name in (("hook_point", "hook_name"), ("activation_fn_str", "activation_fn")):
        if old in new:
            new.setdefault(name, new.pop(old))
    given = new.get("metadata")
    new["metadata"] = {
        **{k: v for k, v in new.items() if k != "metadata"},
        **(given if isinstance(given, dict) else {}),
    }
    arguments = new.get("activation_fn_kwargs")
    if new.get("activation_fn") == "topk" and isinstance(arguments, dict) and "k" in arguments:
        new["architecture"], new["k"] = "topk", arguments["k"]
    elif new.get("activation_fn") not in (None, "relu", "topk"):
        new["architecture"] = f"{new.get('architecture', 'standard')} with {new['activation_fn']}"
    new.setdefault("architecture", "standard")
    if isinstance(new.get("normalize_activations"), bool):
        new["normalize_activations"] = SCALED if new["normalize_activations"] else "none"
    return new


def _weights(found: Tensors, config: dict[str, Any], theirs: str, source: Path) -> dict[str, Tensor]:
    """Tensors by our names, as they stand in the file."""
    d_in = setting(config, "d_in", int, source)
    d_out = setting(config, "d_out", int, source, d_in) if "transcoder" in theirs else d_in
    weights = {"b_dec": found.take("b_dec", d_out)}
    if theirs == "matching_pursuit":
        weights["W_dec"] = found.directions("W_dec", setting(config, "d_sae", int, source), d_out, latents_first=True)
        found.finish()
        return weights
    for name in ("b_gate", "b_mag", "r_mag") if theirs == "gated" else ("b_enc",):
        weights[name] = found.vector(name)
    n_latents = weights["b_gate" if theirs == "gated" else "b_enc"].numel()
    if setting(config, "d_sae", int, source, n_latents) != n_latents:
        raise SAEError(f"{source} says {config['d_sae']} latents (d_sae), but {WEIGHTS} has {n_latents}")
    weights["encoder"] = found.directions("W_enc", n_latents, d_in, latents_first=False)
    weights["W_dec"] = found.directions("W_dec", n_latents, d_out, latents_first=True)
    if theirs.startswith("jumprelu"):
        logarithmic = "log_threshold" in found
        threshold = found.take("log_threshold" if logarithmic else "threshold", n_latents)
        weights["threshold"] = threshold.exp() if logarithmic else threshold
    if theirs in TRAINING_ONLY:
        weights["threshold"] = found.take("topk_threshold")
    if "skip" in theirs:
        weights["W_skip"] = found.take("W_skip", d_out, d_in)
    if "scaling_factor" in found and (found.take("scaling_factor", n_latents) - 1).abs().max() > 1e-5:
        raise SAEError(f"{source.parent / WEIGHTS}: 'scaling_factor' is not one; fold it into W_dec with SAELens first")
    found.finish()
    return weights


def _config(config: dict[str, Any], weights: dict[str, Tensor], theirs: str, source: Path) -> dict[str, Any]:
    n_latents, width_out = weights["W_dec"].shape
    d_in = setting(config, "d_in", int, source)
    norm = setting(config, "normalize_activations", str, source, "none")
    if norm not in INPUT_NORMS and norm != SCALED:
        raise SAEError(
            f"{source}: normalize_activations is '{norm}', which belongs into the weights; save it with SAELens "
            "after training, which folds it"
        )
    ours: dict[str, Any] = {
        "d_in": d_in,
        "n_latents": n_latents,
        "d_out": width_out if width_out != d_in else None,
        "apply_b_dec_to_input": "transcoder" not in theirs
        and setting(config, "apply_b_dec_to_input", bool, source, True),
        "skip": "W_skip" in weights,
        "input_norm": INPUT_NORMS.get(norm, "none"),
    }
    if theirs in SELECTING:
        k = setting(config, "k", float, source)
        if k is None:
            raise SAEError(f"{source} does not say how many latents are kept: it has no 'k'")
        ours["k"] = round(k)  # a batch top-k may have a fraction
    if theirs == "matryoshka_batchtopk":
        ours["group_sizes"] = _group_sizes(setting(config, "matryoshka_widths", list, source, []), n_latents)
    if theirs == "matching_pursuit":
        ours["k"] = setting(config, "max_iterations", int, source, d_in)
        ours["residual_threshold"] = setting(config, "residual_threshold", float, source, 1e-2)
        ours["stop_on_duplicate_support"] = setting(config, "stop_on_duplicate_support", bool, source, True)
    return ours


def _group_sizes(widths: list[Any], n_latents: int) -> tuple[int, ...]:
    """From widths of nested prefixes to the sizes of what each adds."""
    ends = [*widths, n_latents] if not widths or widths[-1] != n_latents else widths
    return tuple(end - start for start, end in zip([0, *ends], ends, strict=False))


def _fold(
    weights: dict[str, Tensor], ours: dict[str, Any], config: dict[str, Any], theirs: str, folder: Path
) -> dict[str, Any] | None:
    """Fold what SAELens applies around the weights into them. Returns the input scale, if there was one."""
    rescaled = theirs in SELECTING and setting(
        config, "rescale_acts_by_decoder_norm", bool, folder / CONFIG, theirs in TRAINING_ONLY
    )
    normalization = None
    if config.get("normalize_activations") == SCALED:
        scale = peek_json(folder / SCALE).get("scaling_factor")
        if isinstance(scale, float | int) and scale > 0 and math.isfinite(scale):
            scale_inputs(weights, float(scale))
            # A batch top-k's threshold is in units of pre-activation times decoder row, and the row just shrank.
            if rescaled and "threshold" in weights:
                weights["threshold"] = weights["threshold"] / scale
            if theirs == "matching_pursuit":
                ours["residual_threshold"] /= scale
            normalization = {"kind": "mean_length", "scale": float(scale)}
        else:
            normalization = scale_is_unknown(folder)
    if rescaled:
        unit_decoder(weights)
    if theirs == "matching_pursuit":
        weights["residual_threshold"] = torch.tensor(ours["residual_threshold"])
        if not ours["apply_b_dec_to_input"]:
            weights["b_dec"] = torch.zeros_like(weights["b_dec"])  # SAELens then leaves it out of decoding, too
    return normalization


def _metadata(config: dict[str, Any], ours: dict[str, Any], source: Path) -> SAEMetadata:
    given = config["metadata"]
    if "autointerp" in given:
        return metadata_of(given["autointerp"], source)
    model = told(given, "model_name", str)
    hook = told(given, "hook_name", str)
    understood = hookpoint_of(hook, model)
    window = given.get("seqpos_slice")
    metrics = {"l0": told(given, "l0", float)}
    dead = told(given, "num_dead_features", float)
    metrics["dead_share"] = None if dead is None else dead / ours["n_latents"]
    return SAEMetadata(
        model=model_id(model),
        hookpoint=hookpoint_of(told(given, "hf_hook_name", str), model) if understood == hook else understood,
        target_hookpoint=hookpoint_of(told(given, "hook_name_out", str), model),
        dataset=told(given, "dataset_path", str),
        context_length=told(given, "context_size", int),
        skip_first=window[0] if isinstance(window, list) and window and isinstance(window[0], int) else None,
        n_tokens=told(given, "training_tokens", int),
        metrics={name: value for name, value in metrics.items() if value is not None},
        extra={"format": "saelens", "source": {k: v for k, v in config.items() if k != "metadata"} | given},
    )
