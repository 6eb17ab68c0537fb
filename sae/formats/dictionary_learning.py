"""dictionary_learning: `ae.pt` (or `checkpoints/ae_{step}.pt`) and `config.json`.

A backup of a run in progress has the same name and holds the state dict under "ae", in the units of the run's
normalised activations; its `norm_factor` takes it back to raw ones.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from sae.base import SAEMetadata, SparseAutoencoder
from sae.errors import SAEError
from sae.formats._assemble import assemble
from sae.formats._folders import peek_json, setting, told
from sae.formats._hook_names import hookpoint_of
from sae.formats._scales import unit_decoder
from sae.formats._tensors import Tensors, names_in, read_weights

CONFIG, WEIGHTS = "config.json", "ae.pt"
LOOKS_FOR = f"{WEIGHTS} + {CONFIG} (dictionary_learning)"

BACKUP = {"step", "ae"}
LINEAR = {"encoder.weight", "encoder.bias", "decoder.weight"}
SITES = {"resid_post": "hook_resid_post", "mlp": "hook_mlp_out", "attn": "hook_attn_out"}


class Rule(NamedTuple):
    """One of its dictionary classes."""

    keys: frozenset[str]
    """Tensors that it always has."""
    read: Callable[[Tensors, dict[str, Any]], tuple[str, dict[str, Tensor], dict[str, Any]]]
    """To our architecture, its tensors and its config."""


def recognise(path: Path) -> bool:
    path = path / WEIGHTS if path.is_dir() else path
    if path.suffix not in (".pt", ".pth") or not path.is_file():
        return False
    trainer = _config_for(path).get("trainer", {})
    if path.name == WEIGHTS and "dict_class" in trainer:
        return True
    names = names_in(path)
    fits = any(rule.keys <= names for rule in RULES.values()) and "latent_bias" not in names
    # Without its config the plain classes could be anybody's.
    return names >= BACKUP or bool(fits and (trainer or names & {"k", "bias", "gate_bias", "group_sizes"}))


def read(path: Path) -> SparseAutoencoder:
    path = path / WEIGHTS if path.is_dir() else path
    found = read_weights(path)
    trainer = _config_for(path).get("trainer", {})
    factor = None
    if found.keys() >= BACKUP:
        factor, trainer = found.get("norm_factor"), trainer or found.get("config", {})
        found = found["ae"]
        if not isinstance(found, dict):
            raise SAEError(f"{path}: its 'ae' is no state dict but a {type(found).__name__}")
    tensors = Tensors(path, found)
    name = _class(found.keys(), trainer, path)
    architecture, weights, config = RULES[name].read(tensors, trainer)
    tensors.finish()
    n_latents, d_in = weights["W_dec"].shape
    for key, value in (("activation_dim", d_in), ("dict_size", n_latents)):
        if setting(trainer, key, int, path, value) != value:
            raise SAEError(f"{path}: its config says {key} {trainer[key]}, but the weights have {value}")
    model = assemble(
        architecture, {"d_in": d_in, "n_latents": n_latents, **config}, weights, _metadata(trainer, path), path
    )
    if factor is not None and float(factor) != 1.0:
        model.rescale(1.0 / float(factor))
        model.metadata.normalization = {"kind": "root_mean_square", "scale": 1.0 / float(factor)}
    return model


def _config_for(path: Path) -> dict[str, Any]:
    """The run's config: beside the weights, or above `checkpoints/`."""
    for folder in path.parents[:2]:
        found = peek_json(folder / CONFIG)
        if isinstance(found.get("trainer"), dict):
            return found
    return {}


def _class(names: Any, trainer: dict[str, Any], path: Path) -> str:
    """Its dictionary class: from the config, or from the tensors where these are one class's alone."""
    named = trainer.get("dict_class")
    if named is not None:
        if named not in RULES:
            raise SAEError(f"{path}: dictionaries of class {named!r} are not read (known: {', '.join(RULES)})")
        return str(named)
    fitting = [name for name, rule in RULES.items() if rule.keys <= set(names)]
    if "group_sizes" in names:
        return "MatryoshkaBatchTopKSAE"
    if len(fitting) == 1:
        return fitting[0]
    raise SAEError(
        f"{path} could be {' or '.join(fitting) or 'anything'}: its {CONFIG} tells them apart; put it beside the file"
    )


def _linear(found: Tensors, bias: str) -> dict[str, Tensor]:
    """Weights of two `nn.Linear`, the encoder's with a bias."""
    weights = {"b_enc": found.vector("encoder.bias"), "b_dec": found.vector(bias)}
    return weights | _linear_weights(found, len(weights["b_enc"]), len(weights["b_dec"]))


def _linear_weights(found: Tensors, n_latents: int, width: int) -> dict[str, Tensor]:
    return {
        "encoder": found.directions("encoder.weight", n_latents, width, latents_first=True),
        "W_dec": found.directions("decoder.weight", n_latents, width, latents_first=False),
    }


def _matrices(found: Tensors) -> dict[str, Tensor]:
    weights = {"b_enc": found.vector("b_enc"), "b_dec": found.vector("b_dec")}
    n_latents, width = len(weights["b_enc"]), len(weights["b_dec"])
    weights["encoder"] = found.directions("W_enc", n_latents, width, latents_first=False)
    weights["W_dec"] = found.directions("W_dec", n_latents, width, latents_first=True)
    return weights


def _standard(found: Tensors, trainer: dict[str, Any]) -> tuple[str, dict[str, Tensor], dict[str, Any]]:
    """Loaded there with decoder rows brought to unit length, and so here."""
    weights = _linear(found, "bias")
    unit_decoder(weights)
    return "relu", weights, {}


def _standard_new(found: Tensors, trainer: dict[str, Any]) -> tuple[str, dict[str, Tensor], dict[str, Any]]:
    return "relu", _linear(found, "decoder.bias"), {"apply_b_dec_to_input": False}


def _topk(found: Tensors, trainer: dict[str, Any]) -> tuple[str, dict[str, Tensor], dict[str, Any]]:
    """Its threshold, which only an option of encode() uses, is left out."""
    weights = _linear(found, "b_dec")
    k = _k(found, trainer)
    found.drop(["threshold"])
    return "topk", weights, {"k": k}


def _batchtopk(found: Tensors, trainer: dict[str, Any]) -> tuple[str, dict[str, Tensor], dict[str, Any]]:
    weights = _linear(found, "b_dec") | {"threshold": found.take("threshold")}
    return "batchtopk", weights, {"k": _k(found, trainer)}


def _matryoshka(found: Tensors, trainer: dict[str, Any]) -> tuple[str, dict[str, Tensor], dict[str, Any]]:
    weights = _matrices(found) | {"threshold": found.take("threshold")}
    sizes = tuple(int(size) for size in found.vector("group_sizes"))
    return "matryoshka", weights, {"k": _k(found, trainer), "group_sizes": sizes}


def _jumprelu(found: Tensors, trainer: dict[str, Any]) -> tuple[str, dict[str, Tensor], dict[str, Any]]:
    weights = _matrices(found)
    weights["threshold"] = found.take("threshold", len(weights["b_enc"]))
    return "jumprelu", weights, {"apply_b_dec_to_input": False}


def _gated(found: Tensors, trainer: dict[str, Any]) -> tuple[str, dict[str, Tensor], dict[str, Any]]:
    weights = {"b_gate": found.vector("gate_bias"), "b_dec": found.vector("decoder_bias")}
    n_latents = len(weights["b_gate"])
    weights |= {"b_mag": found.take("mag_bias", n_latents), "r_mag": found.take("r_mag", n_latents)}
    return "gated", weights | _linear_weights(found, n_latents, len(weights["b_dec"])), {}


def _k(found: Tensors, trainer: dict[str, Any]) -> int:
    k = round(found.number("k")) if "k" in found else setting(trainer, "k", int, found.path)
    if k is None:
        raise SAEError(f"{found.path} does not say how many latents are kept (k), nor does its {CONFIG}")
    return int(k)


RULES = {
    "AutoEncoder": Rule(frozenset({"bias"} | LINEAR), _standard),
    "AutoEncoderNew": Rule(frozenset({"decoder.bias"} | LINEAR), _standard_new),
    "AutoEncoderTopK": Rule(frozenset({"b_dec"} | LINEAR), _topk),
    "BatchTopKSAE": Rule(frozenset({"b_dec", "threshold"} | LINEAR), _batchtopk),
    "MatryoshkaBatchTopKSAE": Rule(frozenset({"W_enc", "W_dec", "b_enc", "b_dec", "group_sizes"}), _matryoshka),
    "JumpReluAutoEncoder": Rule(frozenset({"W_enc", "W_dec", "b_enc", "b_dec", "threshold"}), _jumprelu),
    "GatedAutoEncoder": Rule(frozenset({"decoder_bias", "gate_bias", "mag_bias", "r_mag"}), _gated),
}


def _metadata(trainer: dict[str, Any], path: Path) -> SAEMetadata:
    buffer = _config_for(path).get("buffer")
    buffer = buffer if isinstance(buffer, dict) else {}
    model, layer = told(trainer, "lm_name", str), told(trainer, "layer", int)
    submodule = told(trainer, "submodule_name", str)
    site = next((hook for start, hook in SITES.items() if (submodule or "").startswith(start)), None)
    hookpoint = hookpoint_of(f"blocks.{layer}.{site}", model) if site and layer is not None else submodule
    if hookpoint and buffer.get("io") == "in":
        hookpoint += ":in"
    return SAEMetadata(
        model=model,
        hookpoint=hookpoint,
        context_length=told(buffer, "ctx_len", int),
        seed=told(trainer, "seed", int),
        extra={"format": "dictionary_learning", "source": {"trainer": trainer, "buffer": buffer}},
    )
