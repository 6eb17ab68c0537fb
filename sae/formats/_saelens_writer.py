"""Our SAEs as SAELens saves its own for inference. What it has no architecture for is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sae.base import SparseAutoencoder
from sae.errors import SAEError
from sae.formats._folders import write_whole
from sae.formats._hook_names import hugging_face_name, transformer_lens_name

LAYOUT = "6.0.0"
"""SAELens converts what claims to be older."""
INPUT_NORMS = {"none": "none", "layer_norm": "layer_norm", "constant_norm": "constant_norm_rescale"}
UNIT = 1e-5
"""Decoder rows this close to unit length count as such."""


class Theirs(NamedTuple):
    """What SAELens calls an SAE, its tensors beside the common four, and its keys of cfg.json."""

    architecture: str
    tensors: dict[str, Tensor]
    config: dict[str, Any]
    training: dict[str, Any] | None = None
    """How it was trained, where SAELens saves that as something else."""


def write(model: SparseAutoencoder, folder: Path, config_file: str, weights_file: str) -> None:
    theirs = EXPRESSED.get(model.architecture, _refuse)(model)
    weights = {"W_dec": model.W_dec, "b_dec": model.b_dec, **theirs.tensors}
    dtype = model.W_dec.dtype
    if model.config.skip or model.config.d_out is not None or model.metadata.target_hookpoint:
        theirs = _transcoder(model, theirs)
        weights |= theirs.tensors
    config = {
        "architecture": theirs.architecture,
        "d_in": model.d_in,
        "d_sae": model.n_latents,
        "dtype": str(dtype).removeprefix("torch."),
        "device": "cpu",
        "apply_b_dec_to_input": model.config.apply_b_dec_to_input,
        "normalize_activations": INPUT_NORMS[model.config.input_norm],
        "reshape_activations": "none",
        **theirs.config,
        "metadata": _metadata(model, theirs),
    }
    if "hook_z" in (config["metadata"]["hook_name"] or ""):
        config["reshape_activations"] = "hook_z"
    write_whole(folder, weights_file, {k: v.detach().to(dtype) for k, v in weights.items()}, config_file, config)


def _refuse(model: SparseAutoencoder) -> Theirs:
    raise SAEError(
        f"SAELens has no architecture for a {model.architecture} SAE (it has one for: {', '.join(sorted(EXPRESSED))}); "
        "save it as native"
    )


def _relu(model: SparseAutoencoder) -> Theirs:
    return Theirs("standard", _encoder(model), {})


def _jumprelu(model: SparseAutoencoder) -> Theirs:
    return Theirs("jumprelu", _encoder(model) | {"threshold": _tensor(model, "threshold")}, {})


def _chosen_by_batch(model: SparseAutoencoder) -> Theirs:
    """A common threshold becomes one per latent; one that was never set is a plain ReLU, which is the threshold 0."""
    threshold = _tensor(model, "threshold").clamp_min(0).expand(model.n_latents)
    trained = {"training_architecture": model.architecture, "training_architecture_details": {"k": _k(model)}}
    return Theirs("jumprelu", _encoder(model) | {"threshold": threshold}, {}, trained)


def _matryoshka(model: SparseAutoencoder) -> Theirs:
    config: Any = model.config
    details = {"k": _k(model), "matryoshka_widths": list(accumulate(config.sizes))}
    trained = {"training_architecture": "matryoshka_batchtopk", "training_architecture_details": details}
    return _chosen_by_batch(model)._replace(training=trained)


def _gba(model: SparseAutoencoder) -> Theirs:
    """A latent that fires above -b_enc with activation scale * u is a JumpReLU without bias."""
    scale, shift = _tensor(model, "scale"), _tensor(model, "b_enc")
    if (shift > 0).any() or (scale < 0).any():
        raise SAEError("SAELens' jumprelu is silent below zero, and this gba SAE is not (b_enc > 0 or scale < 0)")
    encoder = (model.encoder_rows * scale[:, None]).T
    return Theirs("jumprelu", {"W_enc": encoder, "b_enc": torch.zeros_like(shift), "threshold": -shift * scale}, {})


def _topk(model: SparseAutoencoder) -> Theirs:
    lengths = torch.linalg.vector_norm(model.W_dec, dim=1, dtype=torch.float64)
    unit = bool(((lengths - 1).abs() < UNIT).all())
    name = "abstopk" if model.architecture == "abstopk" else "topk"
    return Theirs(name, _encoder(model), {"k": _k(model), "rescale_acts_by_decoder_norm": unit})


def _gated(model: SparseAutoencoder) -> Theirs:
    return Theirs("gated", {"W_enc": model.W_enc, **{n: _tensor(model, n) for n in ("b_gate", "b_mag", "r_mag")}}, {})


def _matching_pursuit(model: SparseAutoencoder) -> Theirs:
    config = model.config_dict()
    return Theirs("matching_pursuit", {}, {
        "residual_threshold": float(_tensor(model, "residual_threshold")),
        "max_iterations": config["k"],
        "stop_on_duplicate_support": config["stop_on_duplicate_support"],
    })  # fmt: skip


EXPRESSED: dict[str, Callable[[SparseAutoencoder], Theirs]] = {
    "relu": _relu,
    "p_anneal": _relu,
    "jumprelu": _jumprelu,
    "batchtopk": _chosen_by_batch,
    "mutual_choice": _chosen_by_batch,
    "feature_choice": _chosen_by_batch,
    "matryoshka": _matryoshka,
    "gba": _gba,
    "topk": _topk,
    "gradient": _topk,
    "abstopk": _topk,
    "gated": _gated,
    "matching_pursuit": _matching_pursuit,
}


def _transcoder(model: SparseAutoencoder, theirs: Theirs) -> Theirs:
    """The transcoder of the same rule. SAELens' never subtract b_dec, so what that does goes into b_enc."""
    if theirs.architecture not in ("standard", "jumprelu"):
        raise SAEError(
            f"SAELens' transcoders are ReLU or JumpReLU, and this {model.architecture} SAE would be a "
            f"'{theirs.architecture}' one; save it as native or sparsify"
        )
    tensors = dict(theirs.tensors)
    if model.config.apply_b_dec_to_input:
        tensors["b_enc"] = tensors["b_enc"] - tensors["W_enc"].T @ model.b_dec
    name = "jumprelu_" if theirs.architecture == "jumprelu" else ""
    if model.config.skip:
        name, tensors["W_skip"] = f"{name}skip_", _tensor(model, "W_skip")
    config = {**theirs.config, "d_out": model.config.width_out, "apply_b_dec_to_input": False}
    return Theirs(f"{name}transcoder", tensors, config, theirs.training)


def _metadata(model: SparseAutoencoder, theirs: Theirs) -> dict[str, Any]:
    ours = model.metadata
    values: dict[str, Any] = {
        "sae_lens_version": LAYOUT,
        "sae_lens_training_version": None,
        "model_name": ours.model,
        "hook_name": transformer_lens_name(ours.hookpoint, ours.model),
        "hf_hook_name": hugging_face_name(ours.hookpoint, ours.model) if ours.hookpoint else None,
        "dataset_path": ours.dataset,
        "context_size": ours.context_length,
        "seqpos_slice": [ours.skip_first, None] if ours.skip_first else None,
        **(theirs.training or {}),
        "autointerp": asdict(ours),
    }
    if ours.target_hookpoint:
        values["hook_name_out"] = transformer_lens_name(ours.target_hookpoint, ours.model)
    if "l0" in ours.metrics:
        values["l0"] = ours.metrics["l0"]
    return values


def _encoder(model: SparseAutoencoder) -> dict[str, Tensor]:
    return {"W_enc": model.W_enc, "b_enc": _tensor(model, "b_enc")}


def _tensor(model: SparseAutoencoder, name: str) -> Tensor:
    """A parameter or buffer that the architecture adds to the common ones."""
    found: Tensor = model.state_dict()[name]
    return found


def _k(model: SparseAutoencoder) -> int:
    return int(model.config_dict()["k"])
