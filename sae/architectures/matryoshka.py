"""Matryoshka BatchTopK: prefixes of the dictionary have to reconstruct on their own (Bussmann et al. 2025,
arXiv 2503.17547).

Latents come in groups; the j-th reconstruction uses the first j groups, and the loss is the weighted sum of
all their errors, so that early latents stay general. Selection and inference are those of BatchTopK over all
latents; AuxK looks at what the last reconstruction leaves over. The published code weighs by 1/G and then
averages over the G groups once more; here the weights are what is written, and sum to one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, ClassVar

import torch
from torch import Tensor

from sae.architectures import batchtopk
from sae.base import SAEMetadata
from sae.errors import SAEError
from sae.sparse import Pairs
from sae.training import Batch, Gradients, StepContext, StepResult, add_encoder_gradients, variance_of


@dataclass(frozen=True, kw_only=True)
class Config(batchtopk.Config):
    groups: tuple[float, ...] = (1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2 + 1 / 32)
    """Shares of the latents that each group adds; they sum to 1."""
    group_sizes: tuple[int, ...] | None = None
    """Numbers of latents that each group adds, in the place of `groups`."""
    weights: tuple[float, ...] | None = None
    """Weight of each group's reconstruction error; they sum to 1. None: all the same."""

    def __post_init__(self) -> None:
        batchtopk.Config.__post_init__(self)
        for name in ("groups", "group_sizes", "weights"):
            given: Sequence[float] | None = getattr(self, name)
            if given is not None:  # lists, where they come from a file
                object.__setattr__(self, name, tuple(given))
        if self.group_sizes is None and abs(sum(self.groups) - 1) > 1e-6:
            raise SAEError(f"the shares in groups have to sum to 1, not {sum(self.groups):g}")
        sizes = self.sizes
        if min(sizes, default=0) < 1 or sum(sizes) != self.n_latents:
            raise SAEError(
                f"groups of {', '.join(map(str, sizes)) or 'nothing'} latents do not divide {self.n_latents}; "
                "every group needs at least one: change groups or group_sizes"
            )
        weights = self.group_weights
        if len(weights) != len(sizes) or min(weights) < 0 or abs(sum(weights) - 1) > 1e-6:
            raise SAEError(f"weights have to be {len(sizes)} non-negative numbers that sum to 1, not {weights}")

    @property
    def sizes(self) -> tuple[int, ...]:
        """Latents of each group."""
        if self.group_sizes is not None:
            return self.group_sizes
        ends = [round(share * self.n_latents) for share in accumulate(self.groups)]
        return tuple(end - start for start, end in zip([0, *ends], ends, strict=False))

    @property
    def group_weights(self) -> tuple[float, ...]:
        return self.weights if self.weights is not None else (1 / len(self.sizes),) * len(self.sizes)


class Matryoshka(batchtopk.BatchTopK):
    """f = u where u = (x - b_dec) W_enc + b_enc is positive and exceeds the threshold, else 0."""

    architecture: ClassVar[str] = "matryoshka"
    config: Config

    @torch.no_grad()
    def step(self, batch: Batch, context: StepContext) -> StepResult:
        """Loss of one batch; its gradients are written to `.grad`.

        A bag of pairs is a row's share of one group, so that one decode gives all the groups' parts:
        their running sums are the reconstructions, and a part's gradient is the sum over those that hold it.
        """
        config, n = self.config, batch.x.shape[0]
        inputs = self.encoder_input(batch.x)
        chosen, values = self.select(batch, inputs, context)
        pairs, values = self._bags(chosen, values)
        variance = variance_of(batch.y, context, context.rows_of(batch))

        parts = pairs.decode(values, self.W_dec)
        errors = parts.view(-1, n, config.width_out)
        constant = self.b_dec - batch.y
        if config.skip:
            constant.addmm_(batch.x, self.W_skip.T)
        errors[0] += constant
        for group in range(1, len(errors)):
            errors[group] += errors[group - 1]
        squared = torch.stack([torch.linalg.vector_norm(error).square() for error in errors])
        weights = squared.new_tensor(config.group_weights)
        loss = weights @ squared / variance

        rows = config.auxk_rows
        residual = errors[-1, ::rows].neg() if self._wants_auxk(context) else None
        errors *= (2.0 * weights / variance)[:, None, None]
        for group in range(len(errors) - 2, -1, -1):
            errors[group] += errors[group + 1]
        gradients, terms = Gradients(), {f"fvu_{group}": value for group, value in enumerate(squared / variance)}
        grad_values = pairs.pull(parts, self.W_dec)
        gradients.add("W_dec", pairs.sum_rows(values, parts))
        gradients.add("b_dec", errors[0].sum(dim=0))
        if config.skip:
            gradients.add("W_skip", errors[0].T @ batch.x)
        add_encoder_gradients(self, gradients, pairs.with_rows(pairs.rows % n), grad_values, inputs)
        if residual is not None:
            terms["auxk"] = self.auxk(gradients, inputs[::rows], residual, context)
            loss = loss + config.auxk_alpha * terms["auxk"]
        gradients.write(self)
        active = values != 0
        return StepResult(loss, squared[-1] / variance, pairs.count(active), active.sum(), terms)

    def _bags(self, pairs: Pairs, values: Tensor) -> tuple[Pairs, Tensor]:
        """The same pairs in bags `group * B + row`, in order, and their values."""
        sizes = self.config.sizes
        ends = torch.tensor(list(accumulate(sizes)), device=values.device)
        bags = torch.searchsorted(ends, pairs.latents, right=True) * pairs.n_rows + pairs.rows
        bags, order = torch.sort(bags, stable=True)
        return Pairs.of_rows(bags, pairs.latents[order], len(sizes) * pairs.n_rows, self.n_latents), values[order]


def create(config: dict[str, Any], metadata: SAEMetadata | None = None) -> Matryoshka:
    return Matryoshka(Config(**config), metadata)
