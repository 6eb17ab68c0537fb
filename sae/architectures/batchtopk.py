"""BatchTopK: a batch keeps its k x B largest activations, so tokens take what they need (Bussmann et al. 2024,
arXiv 2412.06410).

Loss: that of TopK. Inference cannot see a batch and keeps what exceeds `threshold`, a running mean of the
smallest activation that a batch of training kept. The mean starts with the first batch's value, and its
memory grows with training from a tenth of the steps so far to 1,000 steps: short runs get a threshold of
their trained end rather than of their start. With several processes each fills a quota of its own share.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from sae.base import SAEMetadata
from sae.batch_selection import NEVER_SET, follow_smallest, largest_of_batch
from sae.codes import SparseCodes
from sae.selection import SelectingSAE, SelectionConfig
from sae.sparse import Pairs
from sae.training import Batch, StepContext


@dataclass(frozen=True, kw_only=True)
class Config(SelectionConfig):
    """Settings of the TopK family; `k` is the mean over the batch's tokens."""


class BatchTopK(SelectingSAE):
    """f = u where u = (x - b_dec) W_enc + b_enc is positive and exceeds the threshold, else 0."""

    architecture: ClassVar[str] = "batchtopk"
    units: ClassVar[tuple[str, ...]] = ("b_enc", "threshold")
    config: SelectionConfig
    threshold: Tensor
    """What an activation has to exceed in inference, float32 []; below zero: never set, and a plain ReLU."""

    def __init__(self, config: SelectionConfig, metadata: SAEMetadata | None = None) -> None:
        super().__init__(config, metadata)
        self.register_buffer("threshold", torch.tensor(NEVER_SET))

    def initialise(self, seed: int) -> None:
        super().initialise(seed)
        self.threshold.fill_(NEVER_SET)

    def encode_rows(self, inputs: Tensor) -> SparseCodes:
        pre = self.preactivations(inputs)
        return SparseCodes.from_mask(pre, pre > self.threshold.clamp_min(0.0))

    def select(self, batch: Batch, inputs: Tensor, context: StepContext) -> tuple[Pairs, Tensor]:
        pairs, values = largest_of_batch(self, inputs, self.config.k * inputs.shape[0], self.threshold)
        follow_smallest(self.threshold, values, context)
        return pairs, values


def create(config: dict[str, Any], metadata: SAEMetadata | None = None) -> BatchTopK:
    return BatchTopK(Config(**config), metadata)
