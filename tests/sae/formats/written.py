"""SAEs of ours that other programs' formats can hold, and how to make each. Needs no test runner."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sae import SAEMetadata
from sae.formats.native import ARCHITECTURES

SHAPE = {"d_in": 12, "n_latents": 40}
TRANSCODER = {"apply_b_dec_to_input": False, "d_out": 9}
# What an SAE is, whether its decoder rows have unit length, and what SAELens calls it.
SAELENS: list[tuple[str, dict[str, Any], bool, str]] = [
    ("relu", {}, False, "standard"),
    ("relu", {"apply_b_dec_to_input": False, "input_norm": "layer_norm"}, True, "standard"),
    ("relu", TRANSCODER, False, "transcoder"),
    ("relu", {**TRANSCODER, "skip": True}, False, "skip_transcoder"),
    ("relu", {"skip": True}, False, "skip_transcoder"),
    ("p_anneal", {}, True, "standard"),
    ("jumprelu", {"input_norm": "constant_norm"}, False, "jumprelu"),
    ("jumprelu", TRANSCODER, False, "jumprelu_transcoder"),
    ("jumprelu", {"d_out": 12, "skip": True}, False, "jumprelu_skip_transcoder"),
    ("gba", {}, True, "jumprelu"),
    ("topk", {"k": 5}, True, "topk"),
    ("topk", {"k": 5}, False, "topk"),
    ("gradient", {"k": 5}, True, "topk"),
    ("abstopk", {"k": 5}, True, "abstopk"),
    ("abstopk", {"k": 5}, False, "abstopk"),
    ("batchtopk", {"k": 5}, True, "jumprelu"),
    ("mutual_choice", {"k": 5}, True, "jumprelu"),
    ("feature_choice", {"k": 5}, False, "jumprelu"),
    ("matryoshka", {"k": 5, "group_sizes": (8, 12, 20)}, True, "jumprelu"),
    ("gated", {}, False, "gated"),
    ("matching_pursuit", {"k": 5, "residual_threshold": 0.5, "stop_on_duplicate_support": True}, True, "matching_pursuit"),
]  # fmt: skip
SPARSIFY: list[tuple[str, dict[str, Any]]] = [
    ("topk", {"k": 5}),
    ("topk", {"k": 5, "multi_topk": True}),
    ("topk", {"k": 5, "skip": True}),
    ("gradient", {"k": 5}),
    ("transcoder", {"k": 5}),
    ("skip_transcoder", {"k": 5}),
    ("groupmax", {"k": 5}),
    ("groupmax", {"k": 5, "apply_b_dec_to_input": False, "skip": True}),
]


def make(architecture: str, config: dict[str, Any], unit: bool = True, metadata: SAEMetadata | None = None) -> Any:
    model = ARCHITECTURES[architecture].create({**SHAPE, **config}, metadata)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(0.4 * torch.randn(parameter.shape, generator=generator))
            if name in ("threshold", "scale"):
                parameter.abs_()
        if architecture == "gba":
            model.b_enc.abs_().neg_()
        if architecture in ("batchtopk", "matryoshka", "mutual_choice"):
            model.threshold.fill_(0.3)
        if architecture == "feature_choice":
            model.threshold.copy_(torch.linspace(-0.5, 0.8, 40))  # some were never set
        if unit:
            model.W_dec /= model.W_dec.norm(dim=1, keepdim=True)
    return model


def inputs() -> Tensor:
    return torch.randn(30, 12, generator=torch.Generator().manual_seed(1))
