"""Group bias adaptation: biases are steered until each latent fires as often as its group may (Chen et al. 2025,
arXiv 2506.14002). No sparsity penalty and no gradient of the biases.

Loss: squared error / variance. Latents form groups with target frequencies in geometric order. Every `adapt_every`
steps a latent that fired more often than its group's target has its bias lowered, one that was silent has it raised.

Experimental in what the paper leaves open to us: biases start at `initial_bias`; `scale` (their a_m) is learned by
gradient like the directions and kept from turning negative; a latent below `dead_below` counts as silent.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from sae.base import SAEConfig, SAEMetadata, SparseAutoencoder
from sae.codes import SparseCodes
from sae.errors import SAEError
from sae.training import (
    Batch,
    Gradients,
    StepContext,
    StepResult,
    add_decoder_gradients,
    add_encoder_gradients,
    miss,
    slabs,
    variance_of,
)


@dataclass(frozen=True, kw_only=True)
class Config(SAEConfig):
    n_groups: int = 10
    """Groups of latents, each with a target frequency of its own."""
    highest_frequency: float = 0.1
    """Share of tokens on which a latent of the first group may fire."""
    lowest_frequency: float = 0.001
    """The same for the last group. `adapt_every` batches should hold ten times its inverse in tokens, or more."""
    bias_step: float = 0.01
    """How far a bias moves, as a share of the peak it is compared with (their gamma, the same both ways)."""
    adapt_every: int = 50
    """Steps between adaptations."""
    initial_bias: float = 0.0
    """Bias before training, from -1 to 0. At 0 half of the latents fire at first, which makes the first steps slow;
    where no latent of a group ever fires, there is no peak to raise biases by."""
    dead_below: float = 1e-6
    """A latent that fires on a smaller share of tokens has its bias raised."""

    def __post_init__(self) -> None:
        SAEConfig.__post_init__(self)
        if not 1 <= self.n_groups <= self.n_latents:
            raise SAEError(f"n_groups has to lie between 1 and n_latents ({self.n_latents}), not {self.n_groups}")
        if not 0 < self.dead_below <= self.lowest_frequency <= self.highest_frequency <= 1:
            raise SAEError(
                "frequencies need 0 < dead_below <= lowest_frequency <= highest_frequency <= 1, not "
                f"{self.dead_below}, {self.lowest_frequency} and {self.highest_frequency}"
            )
        if self.bias_step <= 0 or self.adapt_every < 1 or not -1 <= self.initial_bias <= 0:
            raise SAEError(
                "bias_step and adapt_every have to be positive and initial_bias lies in -1..0, not "
                f"{self.bias_step}, {self.adapt_every} and {self.initial_bias}"
            )

    def frequencies(self) -> list[float]:
        """Target frequency of each group, highest first, at a constant ratio."""
        ratio = self.lowest_frequency / self.highest_frequency
        return [self.highest_frequency * ratio ** (k / max(1, self.n_groups - 1)) for k in range(self.n_groups)]


class GBA(SparseAutoencoder):
    """f = scale * w.(x - b_dec) where w.(x - b_dec) + b_enc > 0, else 0; w is the decoder's own row.

    The bias decides whether a latent fires and leaves its activation alone. Groups are consecutive latents.
    """

    architecture: ClassVar[str] = "gba"
    tied: ClassVar[bool] = True
    input_length: ClassVar[float | None] = 1.0
    config: Config
    target: Tensor
    """Frequency that each latent may have, `[F]`."""
    n_seen: Tensor
    """Tokens since the last adaptation, over all processes, int64 []."""
    n_fired: Tensor
    """Of these, the tokens on which each latent fired, int64 [F]."""
    peak: Tensor
    """Largest w.(x - b_dec) + b_enc of these, or 0 if none was positive, [F]."""

    def __init__(self, config: Config, metadata: SAEMetadata | None = None) -> None:
        super().__init__(config, metadata)
        self.scale = nn.Parameter(torch.ones(config.n_latents))
        groups = torch.arange(config.n_latents).tensor_split(config.n_groups)
        of_each = [torch.full((len(group),), p) for group, p in zip(groups, config.frequencies(), strict=True)]
        self.register_buffer("target", torch.cat(of_each), persistent=False)
        self.register_buffer("n_seen", torch.zeros((), dtype=torch.int64), persistent=False)
        self.register_buffer("n_fired", torch.zeros(config.n_latents, dtype=torch.int64), persistent=False)
        self.register_buffer("peak", torch.zeros(config.n_latents), persistent=False)

    def initialise(self, seed: int) -> None:
        super().initialise(seed)
        with torch.no_grad():
            self.scale.fill_(1)
            self.b_enc.fill_(self.config.initial_bias)

    def after_update(self) -> None:
        super().after_update()
        self.scale.clamp_min_(0)

    def encode_rows(self, inputs: Tensor) -> SparseCodes:
        shifted = self.preactivations(inputs)
        fires = shifted > 0
        return SparseCodes.from_mask(shifted.sub_(self.b_enc).mul_(self.scale), fires)

    @torch.no_grad()
    def step(self, batch: Batch, context: StepContext) -> StepResult:
        """Loss of one batch; its gradients are written to `.grad`. Every `adapt_every` steps biases move."""
        inputs = self.encoder_input(batch.x)
        n_rows = context.rows_of(batch)
        variance = variance_of(batch.y, context, n_rows)
        gradients = Gradients()
        squared = inputs.new_zeros(())
        fires = torch.zeros(self.n_latents, dtype=torch.int64, device=inputs.device)
        # Biases follow how often a latent fires and how strongly: what is silent adds to neither.
        peak = inputs.new_zeros(self.n_latents)
        for slab in slabs(self, inputs, lambda shifted: shifted > 0):
            x, y, pairs = batch.x[slab.rows], batch.y[slab.rows], slab.pairs
            scale = self.scale[pairs.latents]
            reading = slab.pre - self.b_enc[pairs.latents]
            values = reading * scale
            missed, grad_out = miss(self, pairs, values, Batch(x, y), variance)
            squared += missed
            grad_values = pairs.pull(grad_out, self.W_dec)
            gradients.add("scale", pairs.sum_weights(grad_values * reading))
            add_encoder_gradients(self, gradients, pairs, grad_values.mul_(scale), inputs[slab.rows])
            add_decoder_gradients(self, gradients, pairs, values, grad_out, x)
            fires += pairs.count(slab.pre > 0)
            peak.scatter_reduce_(0, pairs.latents, slab.pre, "amax")
        del gradients.sums["b_enc"]
        gradients.write(self)
        self.n_seen += n_rows
        self.n_fired += context.total(fires)
        torch.maximum(self.peak, context.largest(peak), out=self.peak)
        if (context.step + 1) % self.config.adapt_every == 0:
            self.adapt()
        fvu = squared / variance
        fired = fires * (self.scale != 0)
        return StepResult(fvu, fvu, fired, fired.sum(), {})

    @torch.no_grad()
    def adapt(self) -> None:
        """Move biases by what was seen since the last time (their Algorithm 1), and forget it."""
        frequency = self.n_fired / self.n_seen
        by_group = self.peak.tensor_split(self.config.n_groups)
        typical = torch.cat([group.mean().expand_as(group) for group in by_group])
        # Clamped to [-1, 0], as the text has it; their algorithm as printed has min and max the other way round.
        lower = (self.b_enc - self.config.bias_step * self.peak).clamp_min_(-1)
        higher = (self.b_enc + self.config.bias_step * typical).clamp_max_(0)
        moved = torch.where(frequency < self.config.dead_below, higher, self.b_enc)
        self.b_enc.copy_(torch.where(frequency > self.target, lower, moved))
        for seen in (self.n_seen, self.n_fired, self.peak):
            seen.zero_()


def create(config: dict[str, Any], metadata: SAEMetadata | None = None) -> GBA:
    return GBA(Config(**config), metadata)
