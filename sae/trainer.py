"""Train dictionaries on one source of batches: one or many, each batch read once for all of them.

Resumes bit for bit: the batch of a step depends on the step alone, and each dictionary's checkpoint
holds all that its next step depends on. Knows nothing of language models.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from torch import Tensor

from sae.base import SparseAutoencoder
from sae.errors import SAEError
from sae.learner import LearnConfig, Learner, Progress
from sae.sources import Replay, Rows, Source

OnProgress = Callable[[int, list[tuple[Learner, Progress]]], None]
"""Called with the steps done, and the figures of those that were logged at this step."""


def train_all(
    learners: Sequence[Learner],
    source: Source,
    *,
    checkpoint_every: int = 100,
    on_progress: OnProgress | None = None,
    on_checkpoint: Callable[[int], None] | None = None,
) -> None:
    """Train every learner on every batch, from wherever each of them was left.

    `on_checkpoint` is called after all learners have saved theirs. Learners that a kill left a checkpoint
    ahead of the others wait until these have caught up.
    """
    begun = [learner.restore() for learner in learners]
    if not all(begun):
        sample = source.sample()
        for learner, restored in zip(learners, begun, strict=True):
            if not restored:
                learner.begin(sample)
    n_steps = source.n_steps
    for step in range(min((learner.step_done for learner in learners), default=n_steps), n_steps):
        rows = source.batch(step)
        reports = _learn(learners, rows, step)
        del rows
        if on_progress:
            on_progress(step + 1, reports)
        if (step + 1) % checkpoint_every == 0 or step + 1 == n_steps:
            for learner in learners:
                if learner.step_done == step + 1:
                    learner.save_checkpoint()
            if on_checkpoint:
                on_checkpoint(step + 1)


def _learn(learners: Sequence[Learner], rows: Mapping[str, Tensor], step: int) -> list[tuple[Learner, Progress]]:
    reports = []
    for learner in learners:
        if learner.step_done == step:
            result = learner.learn(rows)
            if learner.step_done % learner.config.log_every == 0 or learner.step_done == learner.n_steps:
                reports.append((learner, learner.report(result)))
    return reports


@dataclass(frozen=True, kw_only=True)
class TrainConfig(LearnConfig):
    batch_size: int = 1024
    """Tokens per step."""
    dead_after: int = 100_000
    """A latent is dead when it has not fired for this many tokens."""
    epochs: int = 4
    """Passes over the activations, each in a new order."""
    checkpoint_every: int = 100
    """Steps between checkpoints."""

    def learning(self) -> LearnConfig:
        """The part that shapes what is learned."""
        return LearnConfig(**{field.name: getattr(self, field.name) for field in fields(LearnConfig)})


class Trainer:
    """Trains one SAE on an array `[N, D]` in memory or memory-mapped. `folder` is as a `Learner`'s."""

    def __init__(
        self,
        model: SparseAutoencoder,
        activations: NDArray[Any],
        config: TrainConfig,
        folder: Path | None = None,
        *,
        device: str = "cpu",
    ) -> None:
        if activations.shape[1] != model.d_in:
            raise SAEError(f"activations are {activations.shape[1]} wide, the SAE reads {model.d_in}")
        self.config = config
        self.source = Replay(
            {"x": Rows(activations)}, batch_size=config.batch_size, epochs=config.epochs, seed=config.seed
        )
        digest = hashlib.sha256(self.source.sample()["x"].numpy().tobytes()).hexdigest()[:16]
        self.learner = Learner(
            model, config.learning(), self.source.n_steps, data=digest, folder=folder, device=device
        )  # fmt: skip

    @property
    def n_steps(self) -> int:
        return self.source.n_steps

    def run(self, on_progress: Callable[[Progress], None] | None = None) -> None:
        """Train to the end, from the last checkpoint if there is one, then fold the input scale in.

        Raises:
            Diverged: the loss or a weight is no number any more; the message names the last good checkpoint.
            SAEError: the trainer has run before.
        """
        if self.learner.finished:
            raise SAEError("this trainer has run; make a new one to train again")

        def pass_on(step: int, reports: list[tuple[Learner, Progress]]) -> None:
            for _, progress in reports:
                if on_progress:
                    on_progress(progress)

        train_all(
            [self.learner], self.source, checkpoint_every=self.config.checkpoint_every, on_progress=pass_on
        )  # fmt: skip
        self.learner.finish()
