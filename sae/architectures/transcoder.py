"""Transcoder: TopK that reads one activation and reconstructs another, such as an MLP's input and output.

The encoder reads x itself; `d_out` is the target's width and the loss is that of TopK on the target
(Dunefsky, Chlenski and Nanda 2024, arXiv 2406.11944, with TopK in the place of ReLU and L1).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from sae.architectures import topk
from sae.base import SAEMetadata

NEEDS_TARGET = True
"""What is reconstructed is not what is read, and has to be named."""


@dataclass(frozen=True, kw_only=True)
class Config(topk.Config):
    apply_b_dec_to_input: bool = False
    """Encode x - b_dec rather than x; needs an input and a target of one width."""


class Transcoder(topk.TopK):
    """f = the k largest of ReLU(x W_enc + b_enc); y = f W_dec + b_dec."""

    architecture: ClassVar[str] = "transcoder"
    config: Config


def create(config: dict[str, Any], metadata: SAEMetadata | None = None) -> Transcoder:
    return Transcoder(Config(**config), metadata)
