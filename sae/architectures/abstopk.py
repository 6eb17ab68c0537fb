"""AbsTopK: keep the k pre-activations of largest size, with their sign (Zhu, Khalili and Zhu 2025, arXiv 2510.00404).

One signed latent serves both poles of an axis, where a non-negative code needs two. The paper derives the rule as
the proximal step of an l0 constraint without the sign constraint; settings it leaves open are those of TopK here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from sae.architectures import topk
from sae.base import SAEMetadata
from sae.largest import largest


@dataclass(frozen=True, kw_only=True)
class Config(topk.Config):
    """Settings of TopK."""


class AbsTopK(topk.TopK):
    """f = (x - b_dec) W_enc + b_enc where |f| is among the k largest, else 0. No ReLU anywhere."""

    architecture: ClassVar[str] = "abstopk"
    signed: ClassVar[bool] = True
    config: Config

    def choose(self, pre: Tensor, k: int) -> tuple[Tensor, Tensor]:
        _, latents = largest(pre.abs(), k)
        return pre.gather(1, latents), latents


def create(config: dict[str, Any], metadata: SAEMetadata | None = None) -> AbsTopK:
    return AbsTopK(Config(**config), metadata)
