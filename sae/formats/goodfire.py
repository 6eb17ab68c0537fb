"""Goodfire: a lone state dict of two `nn.Linear`, ReLU, also by the names of their DeepSeek-R1 SAEs."""

from __future__ import annotations

import re
from pathlib import Path

from sae.base import SAEMetadata, SparseAutoencoder
from sae.formats import dictionary_learning
from sae.formats._assemble import assemble
from sae.formats._tensors import Tensors, names_in, read_weights

LOOKS_FOR = "a .pth or .pt with encoder and decoder (Goodfire)"

NAMINGS = (("encoder_linear", "decoder_linear"), ("encoder", "decoder"))


def recognise(path: Path) -> bool:
    if path.suffix not in (".pt", ".pth") or not path.is_file() or dictionary_learning.recognise(path):
        return False
    names = names_in(path)
    return any(names == _names(*naming) for naming in NAMINGS)


def read(path: Path) -> SparseAutoencoder:
    raw = read_weights(path)
    encoder, decoder = next((naming for naming in NAMINGS if f"{naming[0]}.weight" in raw), NAMINGS[0])
    found = Tensors(path, raw)
    weights = {"b_enc": found.vector(f"{encoder}.bias"), "b_dec": found.vector(f"{decoder}.bias")}
    n_latents, width = len(weights["b_enc"]), len(weights["b_dec"])
    weights["encoder"] = found.directions(f"{encoder}.weight", n_latents, width, latents_first=True)
    weights["W_dec"] = found.directions(f"{decoder}.weight", n_latents, width, latents_first=False)
    found.finish()
    named = re.fullmatch(r"(?P<model>.+)-SAE-l(?P<layer>\d+)", path.stem)
    layer = named["layer"] if named else None
    if layer is None and (found_layer := re.search(r"(?:^|[-_])l(\d+)(?:$|[-_])", path.stem)):
        layer = found_layer.group(1)
    model = named["model"] if named else None
    metadata = SAEMetadata(
        model=f"meta-llama/{model}" if model and model.startswith("Llama-") else model,
        hookpoint=f"layers.{layer}" if layer else None,
        extra={"format": "goodfire", "source": path.name},
    )
    config = {"d_in": width, "n_latents": n_latents, "apply_b_dec_to_input": False}
    return assemble("relu", config, weights, metadata, path)


def _names(encoder: str, decoder: str) -> set[str]:
    return {f"{module}.{tensor}" for module in (encoder, decoder) for tensor in ("weight", "bias")}
