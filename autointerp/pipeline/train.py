"""Train one SAE on a subject model's activations: one pass to cache them, then epochs over the cache."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

import sae as sae_package
from autointerp.collect.activations import cache_activations, width_at
from autointerp.collect.tokens import tokenise
from autointerp.config import DataSettings
from autointerp.progress import Reporter
from autointerp.registries import SAES
from autointerp.subject.load import SubjectModel
from sae.base import SAEMetadata
from sae.metrics import Reconstruction
from sae.trainer import TrainConfig, Trainer

HELD_OUT = 0.05
"""Share of the cached activations, the last ones, that training leaves out and the final metrics are taken on."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What to train, and on what."""

    architecture: str
    expansion: int
    k: int
    hookpoint: str
    data: DataSettings
    train: TrainConfig


def train(subject: SubjectModel, recipe: Recipe, folder: Path, work: Path, reporter: Reporter) -> Path:
    """Folder of the trained SAE; made once, and resumed wherever it was left."""
    if (folder / "sae.json").is_file():
        _tidy(work)
        return folder
    blocks = tokenise(subject, recipe.data, work, seed=recipe.train.seed, skip_documents=0)
    with reporter.stage("activations", blocks.n_counted, "tokens") as stage:
        activations = cache_activations(
            subject, blocks, recipe.hookpoint, work, on_tokens=lambda done, _: stage.update(done)
        )
    width = width_at(subject, recipe.hookpoint)
    metadata = SAEMetadata(
        model=subject.name,
        hookpoint=recipe.hookpoint,
        dataset=recipe.data.dataset,
        context_length=recipe.data.context_length,
        skip_first=recipe.data.skip_first,
        seed=recipe.train.seed,
        extra={"n_documents": blocks.n_documents},
    )
    config = {"d_in": width, "n_latents": width * recipe.expansion, "k": recipe.k}
    model = SAES[recipe.architecture].create(config, metadata)
    n_train = len(activations) - max(1, int(len(activations) * HELD_OUT))
    trainer = Trainer(model, activations[:n_train], recipe.train, work)
    with reporter.stage("train", trainer.n_steps, "steps") as stage:
        trainer.run(lambda progress: stage.update(progress.step))
    metadata.n_tokens = trainer.n_steps * recipe.train.batch_size
    held_out = Reconstruction(model)
    for rows in np.array_split(activations[n_train:], max(1, (len(activations) - n_train) // 2048)):
        held_out.add(torch.from_numpy(rows.astype(np.float32)))
    metadata.metrics = held_out.figures()
    sae_package.save(model, folder)
    _tidy(work)
    return folder


def _tidy(work: Path) -> None:
    """Once the SAE stands, the cached activations and the last checkpoint are only large; the log stays."""
    for name in ("activations.npy", "progress.json", "checkpoint.safetensors"):
        (work / name).unlink(missing_ok=True)
