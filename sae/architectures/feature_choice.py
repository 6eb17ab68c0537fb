"""Feature Choice: each latent takes the tokens it fits best, as many as its rank on a Zipf curve gives it
(Ayonrinde 2024, arXiv 2411.02124). Experimental.

That latents choose tokens, with quotas of Zipf's shape, is the paper's; the rest is our construction. For the
first part of training (`phase`) it is Mutual Choice. Then a Zipf curve is fitted to the densities found, and each
latent's rank on it fixes its quota for good: at least one token a batch, k x B in all. A latent with fewer
positive activations uses less. Inference keeps what exceeds the latent's threshold, a running mean of the
smallest activation it kept.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from sae.architectures import mutual_choice
from sae.base import SAEMetadata
from sae.batch_selection import LONGEST, NEVER_SET, follow, follow_smallest, largest_of_batch
from sae.errors import SAEError
from sae.sparse import Pairs
from sae.training import Batch, StepContext
from sae.zipf import divide


@dataclass(frozen=True, kw_only=True)
class Config(mutual_choice.Config):
    phase: float = 0.8
    """Share of training that is Mutual Choice, before latents get quotas. 0: the curve is the default one, by index."""

    def __post_init__(self) -> None:
        mutual_choice.Config.__post_init__(self)
        if not 0 <= self.phase <= 1:
            raise SAEError(f"phase lies between 0 and 1, not {self.phase}")


@dataclass(frozen=True, slots=True)
class Part:
    """Latents whose pre-activations are computed together."""

    latents: Tensor
    """`[n]`, in order of falling quota."""
    quotas: Tensor
    """Tokens each may keep, `[n]`."""
    most: int
    """The largest of the quotas."""
    places: Tensor
    """Where in the flattened `[n, most]` the tokens kept stand, `[sum of quotas]`."""
    owners: Tensor
    """Whose they are, `[sum of quotas]`."""


class FeatureChoice(mutual_choice.MutualChoice):
    """f = u where u = (x - b_dec) W_enc + b_enc is positive and exceeds its latent's threshold, else 0."""

    architecture: ClassVar[str] = "feature_choice"
    config: Config
    shares: Tensor
    """Density that each latent's quota stands for, `[F]`, sum k; below zero: not fixed yet."""

    def __init__(self, config: Config, metadata: SAEMetadata | None = None) -> None:
        super().__init__(config, metadata)
        self.register_buffer("threshold", torch.full((config.n_latents,), NEVER_SET))
        self.register_buffer("shares", torch.full((config.n_latents,), NEVER_SET), persistent=False)
        self._plan: tuple[int, list[Part]] | None = None

    def initialise(self, seed: int) -> None:
        super().initialise(seed)
        self.shares.fill_(NEVER_SET)
        self._plan = None

    def expected(self) -> Tensor:
        return super().expected() if self._plan is None else self.shares

    def select(self, batch: Batch, inputs: Tensor, context: StepContext) -> tuple[Pairs, Tensor]:
        config, n = self.config, inputs.shape[0]
        quota = config.k * n
        if config.phase < 1 and quota < self.n_latents:
            raise SAEError(
                f"feature_choice gives each latent a token of every batch: {n} tokens with k {config.k} are fewer "
                f"than {self.n_latents} latents; raise batch_size"
            )
        first = math.ceil(config.phase * context.n_steps)
        if context.step < first:
            pairs, values = largest_of_batch(self, inputs, quota, self.threshold.amin())
            follow_smallest(self.threshold, values, context)
            return pairs, values
        return self._by_latent(inputs, self._parts(n), context, context.step - first)

    def _by_latent(self, inputs: Tensor, parts: list[Part], context: StepContext, done: int) -> tuple[Pairs, Tensor]:
        """Each latent's largest pre-activations over the tokens `[B, D]`; never waits for the device."""
        n = inputs.shape[0]
        smallest = self.threshold.new_zeros(self.n_latents)
        values, tokens = [], []
        buffer = inputs.new_empty(max(len(part.latents) for part in parts), n)
        for part in parts:
            pre = self._columns(part.latents, inputs, buffer[: len(part.latents)])
            found, rows = pre.topk(part.most, dim=1)
            found = found.relu_()
            last = torch.minimum((found > 0).sum(dim=1), part.quotas) - 1
            least = found.gather(1, last.clamp_min(0)[:, None])[:, 0]
            smallest[part.latents] = least.to(smallest.dtype)
            values.append(found.flatten()[part.places])
            tokens.append(rows.flatten()[part.places])
        follow(self.threshold, smallest, smallest > 0, done, LONGEST, context)
        ordered, order = torch.sort(torch.cat(tokens), stable=True)
        owners = torch.cat([part.owners for part in parts])[order]
        return Pairs.of_rows(ordered, owners, n, self.n_latents), torch.cat(values)[order]

    def _columns(self, latents: Tensor, inputs: Tensor, out: Tensor) -> Tensor:
        """Pre-activations of some latents, `[n] -> [n, B]`: the encoder product, by latents rather than by tokens."""
        bias = self.b_enc[latents][:, None]
        if self._low_rows is None:
            return torch.addmm(bias, self.encoder_rows[latents], inputs.T, out=out)
        low = self._low_rows[latents] @ inputs.to(self._low_rows.dtype).T
        return torch.add(low, bias, out=out)

    def _parts(self, n: int) -> list[Part]:
        """How a batch of `n` tokens is divided among latents: worked out once, which waits for the device."""
        if self._plan is None and bool((self.shares < 0).any()):
            self.shares.copy_(self.expected())
        if self._plan is None or self._plan[0] != n:
            order = self.shares.sort(descending=True, stable=True).indices
            quotas = divide(self.shares[order].cpu(), self.config.k * n, n).to(order.device)
            step = max(1, self.chunk_rows(n) * self.n_latents // n)
            self._plan = n, [
                _part(*pair) for pair in zip(torch.split(order, step), torch.split(quotas, step), strict=True)
            ]  # fmt: skip
        return self._plan[1]


def _part(latents: Tensor, quotas: Tensor) -> Part:
    most, total = int(quotas.max()), int(quotas.sum())
    member = torch.repeat_interleave(torch.arange(len(latents), device=latents.device), quotas, output_size=total)
    within = torch.arange(total, device=latents.device) - (quotas.cumsum(0) - quotas)[member]
    return Part(latents, quotas, most, member * most + within, latents[member])


def create(config: dict[str, Any], metadata: SAEMetadata | None = None) -> FeatureChoice:
    return FeatureChoice(Config(**config), metadata)
