"""The fixtures: what each is, and how to make changed copies of them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

FIXTURES = Path(__file__).parent / "fixtures"


class Fixture(NamedTuple):
    folder: str
    format: str
    architecture: str
    weights: str
    """The weight file in the folder."""


R1 = "fnlp__Llama-Scope-R1-Distill/400M-Slimpajama-400M-OpenR1-Math-220k/L0R"
LLAMA = "fnlp__Llama3_1-8B-Base-LXR-8x/Llama3_1-8B-Base-L0R-8x"
GEMMA = "google__gemma-scope-2b-pt-res/layer_0/width_16k/average_l0_4"
GEMMA_2 = "google__gemma-scope-2-270m-pt/resid_post/layer_0_width_16k_l0_small"
QWEN = "Qwen__SAE-Res-Qwen3-1.7B-Base-W32K-L0_4"
GOODFIRE = "Goodfire__Llama-3.1-8B-Instruct-SAE-l19"
SAELENS = {
    "abstopk": "abstopk", "batchtopk": "jumprelu", "gated": "gated", "jumprelu": "jumprelu",
    "jumprelu_skip_transcoder": "jumprelu", "jumprelu_transcoder": "jumprelu",
    "matching_pursuit": "matching_pursuit", "matryoshka_batchtopk": "jumprelu", "skip_transcoder": "relu",
    "standard": "relu", "standard_bf16": "relu", "standard_layernorm": "relu", "standard_nobdec": "relu",
    "standard_normexp": "relu", "topk": "topk", "topk_norescale": "topk", "transcoder": "relu",
}  # fmt: skip
SAELENS_TRAINING = {"batchtopk": "batchtopk", "matryoshka_batchtopk": "matryoshka"}
DICTIONARY_LEARNING = {
    "batchtopk": "batchtopk", "batchtopk_normalized": "batchtopk", "gated": "gated", "jumprelu": "jumprelu",
    "matryoshka_batchtopk": "matryoshka", "p_anneal": "relu", "standard": "relu", "standard_new": "relu",
    "topk": "topk",
}  # fmt: skip
SPARSIFY = {"groupmax": "groupmax", "multitopk": "topk", "skip_transcoder": "skip_transcoder", "topk": "topk"}

ALL = [
    *(Fixture(f"saelens_{name}", "saelens", ours, "sae_weights.safetensors") for name, ours in SAELENS.items()),
    *(
        Fixture(f"saelens_{name}/training", "saelens", SAELENS_TRAINING.get(name, ours), "sae_weights.safetensors")
        for name, ours in SAELENS.items()
        if "transcoder" not in name
    ),
    *(Fixture(f"sparsify_{name}/layers.0", "sparsify", ours, "sae.safetensors") for name, ours in SPARSIFY.items()),
    *(
        Fixture(f"dictionary_learning_{name}/trainer_0", "dictionary_learning", ours, "ae.pt")
        for name, ours in DICTIONARY_LEARNING.items()
    ),
    Fixture(GEMMA, "gemma_scope", "jumprelu", "params.npz"),
    Fixture(GEMMA_2, "gemma_scope_2", "jumprelu", "params.safetensors"),
    Fixture(LLAMA, "llama_scope", "jumprelu", "checkpoints/final.safetensors"),
    Fixture(R1, "openmoss", "jumprelu", "sae_weights.safetensors"),
    Fixture(QWEN, "qwen_scope", "topk", "layer0.sae.pt"),
    Fixture(GOODFIRE, "goodfire", "relu", "Llama-3.1-8B-Instruct-SAE-l19.pth"),
    Fixture("openai_topk", "openai", "topk", "autoencoder.pt"),
    Fixture("openai_relu", "openai", "relu", "autoencoder.pt"),
]
BY_FOLDER = {fixture.folder: fixture for fixture in ALL}


def recorded(folder: str) -> dict[str, Tensor]:
    """Inputs and the owner's outputs."""
    place = FIXTURES / folder.removesuffix("/training")
    return {name: tensor.float() for name, tensor in load_file(place / "io.safetensors").items()}


def copy(folder: str, to: Path) -> Path:
    """A copy that may be changed, below the same names and without the recorded outputs."""
    place = to / folder
    shutil.copytree(FIXTURES / folder, place, ignore=shutil.ignore_patterns("io.safetensors", "training"))
    return place


def rewrite(path: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Put a weight file back with changed contents."""
    if path.suffix == ".safetensors":
        save_file({name: tensor.contiguous() for name, tensor in change(load_file(path)).items()}, path)
    elif path.suffix == ".npz":
        with np.load(path) as archive:
            held = {name: torch.from_numpy(archive[name]) for name in archive.files}
        np.savez(path, **{name: tensor.numpy() for name, tensor in change(held).items()})
    else:
        torch.save(change(dict(torch.load(path, weights_only=True))), path)
