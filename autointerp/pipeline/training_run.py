"""A training run: the grid of one run folder, with the table of its figures on text held out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import sae
from autointerp.config import RunSettings
from autointerp.errors import AutointerpError, UserError
from autointerp.pipeline.dictionary import RANDOM_SAE, random_model_seed
from autointerp.pipeline.evaluate import Figure
from autointerp.pipeline.grid import Case, grid
from autointerp.pipeline.job import Job
from autointerp.pipeline.metrics import metric_rows, write_metrics
from autointerp.pipeline.models import Models
from autointerp.pipeline.names import sae_id
from autointerp.pipeline.run import Run
from autointerp.pipeline.train import recorded, train
from autointerp.progress import Reporter
from autointerp.subject.load import SubjectModel
from sae.errors import SAEError
from sae.world import ALONE, World


@dataclass(frozen=True)
class Trained:
    case: Case
    folder: Path
    figures: dict[str, Figure]


def subject_to_train_on(
    settings: RunSettings, reporter: Reporter, world: World = ALONE, models: Models | None = None
) -> SubjectModel:
    """Raises:
    UserError: no model or no text is named, or a control that is not trained.
    """
    if settings.subject.model is None:
        raise UserError("no subject model: name one with --model (a folder or a hub id)")
    if settings.data.dataset is None:
        raise UserError("no text: name some with --dataset (a .txt, .jsonl or .parquet file, a hub id, or docstrings)")
    if settings.null == RANDOM_SAE:
        raise UserError("a random SAE is one that is not trained: give --null random_sae to collect or explain")
    device = settings.subject.device
    own = f"cuda:{world.local_rank}" if device == "cuda" and world.size > 1 else device
    return (models or Models()).subject(
        settings.subject.model, settings.subject, random_model_seed(settings), device=own, say=reporter.say
    )


def cases_of(settings: RunSettings, subject: SubjectModel) -> list[Case]:
    hookpoints = settings.train.hookpoints or ((settings.subject.hookpoint,) if settings.subject.hookpoint else ())
    return grid(subject, settings.train, hookpoints)


def train_run(
    run: Run, subject: SubjectModel, reporter: Reporter, *, world: World = ALONE, fresh: bool = False
) -> list[Trained]:
    """Train the run's grid, write `sae_metrics.parquet`; empty but on the leading process.

    Raises:
        UserError: settings that do not fit.
        AutointerpError: training diverged, or a checkpoint is of something else.
    """
    settings = run.settings
    cases = cases_of(settings, subject)
    if world.leads:
        run.open(fresh=fresh, own_sae=True)
    world.wait()
    job = Job(
        cases=cases, settings=settings.train, data=settings.data, seed=settings.seed,
        saes=run.folder / "saes", work=run.folder / "work",
    )  # fmt: skip
    try:
        folders = train(subject, job, reporter, world)
    except SAEError as error:
        raise AutointerpError(str(error)) from error
    if not world.leads:
        return []
    found, rows = [], []
    for case, folder in zip(cases, folders, strict=True):
        model = sae.load(folder)
        figures = recorded(model)
        found.append(Trained(case, folder, figures))
        rows += metric_rows(run.run_id, sae_id(model, case.hookpoint), model, case.hookpoint, figures)
    write_metrics(run.folder, rows)
    return found
