"""Skip transcoder: a transcoder beside a linear map of its input (Paulo, Shabalin and Belrose 2025, arXiv 2501.18823).

What is linear in the target is left to `W_skip`, which starts at zero and costs no sparsity; the latents
explain the rest. Attribution has to count the two apart.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from sae.architectures import transcoder
from sae.base import SAEMetadata

NEEDS_TARGET = True
"""What is reconstructed is not what is read, and has to be named."""


@dataclass(frozen=True, kw_only=True)
class Config(transcoder.Config):
    skip: bool = True
    """Add a linear map of the input, W_skip, to the reconstruction."""


class SkipTranscoder(transcoder.Transcoder):
    """f = the k largest of ReLU(x W_enc + b_enc); y = f W_dec + b_dec + x W_skip^T."""

    architecture: ClassVar[str] = "skip_transcoder"
    config: Config


def create(config: dict[str, Any], metadata: SAEMetadata | None = None) -> SkipTranscoder:
    return SkipTranscoder(Config(**config), metadata)
