"""Members of the TopK family that keep the same number of latents of every token.

Because the number is fixed, a step never has to wait for the device to learn how many there are.
"""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor

from sae.codes import SparseCodes
from sae.selection import SelectingSAE
from sae.sparse import Pairs
from sae.training import Batch, StepContext


class FixedCountSAE(SelectingSAE):
    """A member says which k it keeps of a chunk of pre-activations."""

    @abstractmethod
    def choose(self, pre: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Values (after the ReLU, if any) and latents, both `[n, k]`, kept of pre-activations `[n, F]`."""

    def encode_rows(self, inputs: Tensor) -> SparseCodes:
        return SparseCodes.from_topk(*self.choose(self.preactivations(inputs), self.config.k), self.n_latents)

    def select(self, batch: Batch, inputs: Tensor, context: StepContext) -> tuple[Pairs, Tensor]:
        return self.keep(inputs, self.config.k)

    def keep(self, inputs: Tensor, k: int) -> tuple[Pairs, Tensor]:
        """Pairs and values kept of encoder inputs `[B, D]`, chunk by chunk."""
        n = inputs.shape[0]
        step = self.chunk_rows(n)
        values = inputs.new_empty(n, k)
        latents = torch.empty(n, k, dtype=torch.int64, device=inputs.device)
        buffer = inputs.new_empty(min(step, n), self.n_latents)
        for start in range(0, n, step):
            rows = inputs[start : start + step]
            pre = self.preactivations(rows, out=buffer[: len(rows)])
            values[start : start + step], latents[start : start + step] = self.choose(pre, k)
        return Pairs.of_topk(latents, self.n_latents), values.reshape(-1)
