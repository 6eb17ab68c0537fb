"""Where a step's rows come from: arrays that can be read anywhere, epoch after epoch.

A source holds named sites (a hookpoint's activations, a transcoder's targets, gradients), all in the same
order of tokens. The batch of a step depends on the step alone, so training resumes anywhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sae.errors import SAEError
from sae.world import ALONE, World

SAMPLE_ROWS = 8192


class Source(Protocol):
    """Anything that yields the batches of steps 0, 1, 2, ..."""

    n_steps: int

    def batch(self, step: int) -> Mapping[str, Tensor]:
        """Rows of each site, `[n, D]` as stored: this process's share of the batch."""
        ...

    def sample(self) -> Mapping[str, Tensor]:
        """Some rows of each site, the same in every process, for scales and biases to start from."""
        ...


@dataclass(frozen=True, slots=True)
class Rows:
    """`[N, D]` values, in 8 bits with a scale `[N]` per row or in any float dtype."""

    values: NDArray[Any]
    scales: NDArray[Any] | None = None

    def __len__(self) -> int:
        return len(self.values)

    def read(self, index: NDArray[np.int64]) -> Tensor:
        """A copy of these rows."""
        # A memory map that is read with an index gives an array of its own.
        rows = torch.from_numpy(self.values[index])
        if self.scales is None:
            return rows
        return rows.float().mul_(torch.from_numpy(self.scales[index])[:, None])


class Replay:
    """Batches from arrays, each epoch in a new seeded order of blocks of `block` neighbouring rows.

    Arrays whose rows lie in no meaningful order can be read in blocks, which is faster by far; `block=1`
    shuffles single rows. What does not fill a last batch waits for the next epoch's order.
    """

    def __init__(
        self,
        sites: Mapping[str, Rows],
        *,
        batch_size: int,
        epochs: int,
        seed: int,
        block: int = 1,
        world: World = ALONE,
    ) -> None:
        lengths = {name: len(rows) for name, rows in sites.items()}
        if len(set(lengths.values())) != 1:
            raise SAEError(f"sites have to hold the same tokens; they have {lengths} rows")
        self.n_rows = next(iter(lengths.values()))
        if self.n_rows < batch_size:
            raise SAEError(
                f"{self.n_rows} tokens are fewer than one batch of {batch_size}; "
                "bring more text or a smaller batch size"
            )
        if batch_size % (block * world.size):
            raise SAEError(
                f"a batch of {batch_size} does not divide into {world.size} processes of blocks of {block} rows"
            )
        self.sites, self.batch_size, self.seed, self.block, self.world = sites, batch_size, seed, block, world
        self.steps_per_epoch = (self.n_rows // block) // (batch_size // block)
        self.n_steps = self.steps_per_epoch * epochs
        self._epoch = -1
        self._order = np.empty(0, dtype=np.int64)

    def batch(self, step: int) -> Mapping[str, Tensor]:
        epoch, index = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:
            self._order = np.random.default_rng([self.seed, 2, epoch]).permutation(self.n_rows // self.block)
            self._epoch = epoch
        size = self.batch_size // self.block
        blocks = self._order[index * size : (index + 1) * size][self.world.rank :: self.world.size]
        # Sorted, the rows are read in the order they lie in.
        blocks = np.sort(blocks)
        picked = (blocks[:, None] * self.block + np.arange(self.block)).ravel()
        return {name: rows.read(picked) for name, rows in self.sites.items()}

    def sample(self) -> Mapping[str, Tensor]:
        rng = np.random.default_rng([self.seed, 1])
        index = np.sort(rng.choice(self.n_rows, size=min(SAMPLE_ROWS, self.n_rows), replace=False))
        return {name: rows.read(index) for name, rows in self.sites.items()}
