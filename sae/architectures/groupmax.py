"""GroupMax: latents come in k groups of neighbours, and each group keeps its largest (as in EleutherAI's sparsify).

Cheaper than TopK's selection and never more than one latent a group; the loss is that of TopK.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from sae.base import SAEMetadata
from sae.errors import SAEError
from sae.fixed_count import FixedCountSAE
from sae.selection import SelectionConfig


@dataclass(frozen=True, kw_only=True)
class Config(SelectionConfig):
    """Settings of the TopK family; `k` is the number of groups."""

    def __post_init__(self) -> None:
        SelectionConfig.__post_init__(self)
        if self.n_latents % self.k:
            raise SAEError(f"n_latents ({self.n_latents}) has to be a multiple of k ({self.k}), the number of groups")


class GroupMax(FixedCountSAE):
    """f = ReLU((x - b_dec) W_enc + b_enc) where it is the largest of its n_latents / k neighbours, else 0."""

    architecture: ClassVar[str] = "groupmax"
    config: Config

    def choose(self, pre: Tensor, k: int) -> tuple[Tensor, Tensor]:
        size = self.n_latents // k
        values, places = pre.view(-1, k, size).max(dim=2)
        return values.relu_(), places + torch.arange(0, self.n_latents, size, device=pre.device)


def create(config: dict[str, Any], metadata: SAEMetadata | None = None) -> GroupMax:
    return GroupMax(Config(**config), metadata)
