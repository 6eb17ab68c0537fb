"""OpenAI's sparse_autoencoder (Gao et al. 2024, arXiv 2406.04093): one state dict with its activation's name in it.

TopK files normalise each input; ReLU files do not.
"""

from __future__ import annotations

from pathlib import Path

from sae.base import SAEMetadata, SparseAutoencoder
from sae.errors import SAEError
from sae.formats._assemble import assemble
from sae.formats._tensors import Tensors, names_in, read_weights

LOOKS_FOR = "a .pt with pre_bias and latent_bias (OpenAI)"

NAMES = {"pre_bias", "latent_bias", "encoder.weight", "decoder.weight"}
STATISTICS = ("stats_last_nonzero", "latents_activation_frequency", "latents_mean_square")


def recognise(path: Path) -> bool:
    return path.suffix in (".pt", ".pth") and path.is_file() and names_in(path) >= NAMES


def read(path: Path) -> SparseAutoencoder:
    # A round trip through its own code leaves the activation's settings a second time, as activation.*.
    raw = {name: value for name, value in read_weights(path).items() if not name.startswith("activation.")}
    activation = raw.pop("activation", "ReLU")
    state = raw.pop("activation_state_dict", {})
    found = Tensors(path, raw)
    weights = {"b_enc": found.vector("latent_bias"), "b_dec": found.vector("pre_bias")}
    n_latents, width = len(weights["b_enc"]), len(weights["b_dec"])
    weights["encoder"] = found.directions("encoder.weight", n_latents, width, latents_first=True)
    weights["W_dec"] = found.directions("decoder.weight", n_latents, width, latents_first=False)
    found.drop(STATISTICS)
    found.finish()
    config = {"d_in": width, "n_latents": n_latents}
    metadata = SAEMetadata(extra={"format": "openai", "source": path.name})
    if activation == "ReLU":
        return assemble("relu", config, weights, metadata, path)
    k = state.get("k") if isinstance(state, dict) else None
    if activation != "TopK" or not isinstance(k, int) or state.get("postact_fn", "ReLU") != "ReLU":
        raise SAEError(
            f"{path}: its activation {activation!r} with {state!r} is not read (ReLU, and TopK with a k, are)"
        )
    return assemble("topk", config | {"k": k, "input_norm": "layer_norm"}, weights, metadata, path)
