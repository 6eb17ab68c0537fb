"""Train a grid of SAEs in one pass of the subject model, evaluate them on text held out, and save them.

Activations are cached on disk, shuffled, and replayed; or they stream through a mixing buffer. Either
way every batch is read once for all dictionaries, and a killed run ends with the same weights.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import sae as sae_package
from autointerp.collect.cache import cached_rows, digest
from autointerp.collect.stream import activation_stream
from autointerp.collect.tokenise import tokenise
from autointerp.collect.tokens import TokenBlocks
from autointerp.errors import UserError
from autointerp.pipeline.evaluate import Figure, Placed, evaluate
from autointerp.pipeline.grid import Case
from autointerp.pipeline.job import Job, agree
from autointerp.progress import Reporter
from autointerp.subject.load import SubjectModel
from autointerp.tracking import Tracker
from autointerp.training_display import training_display
from sae.base import SAEMetadata, SparseAutoencoder
from sae.errors import SAEError
from sae.learner import CHECKPOINT, LearnConfig, Learner, Progress
from sae.mixing import MixingBuffer
from sae.sources import Replay, Source
from sae.trainer import train_all
from sae.world import ALONE, World

LARGEST_BLOCK = 64
"""Neighbouring rows of the (shuffled) cache that are read together."""
STREAM = "stream"


def train(subject: SubjectModel, job: Job, reporter: Reporter, world: World = ALONE) -> list[Path]:
    """Folders of the trained dictionaries; each is made once, and resumed wherever it was left.

    Raises:
        UserError: too little text, or settings that do not fit together.
        SAEError: training diverged, or a checkpoint belongs to something else.
    """
    if world.leads:
        agree(subject, job)
    world.wait()
    todo = job.unfinished
    if todo:
        tracker = Tracker(job.settings.track if world.leads else None, job.saes.parent.name, job.settings.model_dump())
        if world.leads:
            # One process reads the text; the others find its blocks.
            _tokenise(subject, job)
        world.wait()
        blocks = _tokenise(subject, job)
        seen, held_out = _split(blocks, job)
        source = _source(subject, seen, job, todo, reporter, world)
        learners = [_learner(subject, case, job, source, seen, world) for case in todo]
        _run(job, todo, learners, source, reporter, world, tracker)
        models = [learner.finish() for learner in learners]
        if world.leads:
            _evaluate(subject, job, todo, models, held_out, reporter)
            for case, model in zip(todo, models, strict=True):
                sae_package.save(model, job.folder(case))
        tracker.finish()
        world.wait()
    if world.leads:
        _tidy(job)
    return [job.folder(case) for case in job.cases]


def _tokenise(subject: SubjectModel, job: Job) -> TokenBlocks:
    return tokenise(subject, job.data, job.work, seed=job.seed, skip_documents=job.data.skip_documents or 0)


def _split(blocks: TokenBlocks, job: Job) -> tuple[TokenBlocks, TokenBlocks]:
    """Blocks to train on, and the last ones, which are held out."""
    n = min(job.settings.held_out, len(blocks.tokens) // 5)
    if n == 0:
        raise UserError(
            f"'{job.data.dataset}' fills {len(blocks.tokens)} contexts of {job.data.context_length} tokens; "
            "five are the least, of which one is held out: bring more text or lower --context-length"
        )
    cut = len(blocks.tokens) - n
    return (
        TokenBlocks(blocks.tokens[:cut], blocks.documents[:cut]),
        TokenBlocks(blocks.tokens[cut:], blocks.documents[cut:]),
    )


def _sites(cases: Sequence[Case]) -> list[str]:
    named = {site for case in cases for site in (case.reads.x, case.reads.target, case.reads.gradient)}
    return sorted(site for site in named if site)


def _source(
    subject: SubjectModel, blocks: TokenBlocks, job: Job, todo: Sequence[Case], reporter: Reporter, world: World
) -> Source:
    settings = job.settings
    if settings.batch_size % world.size:
        raise UserError(f"train.batch_size of {settings.batch_size} does not divide into {world.size} processes")
    share = settings.batch_size // world.size
    try:
        if settings.stream:
            stream, n_rows = activation_stream(subject, blocks, _sites(todo), epochs=settings.epochs, world=world)
            if n_rows < share:
                raise UserError(f"{n_rows} tokens are fewer than one batch of {share}; bring more text")
            buffer = MixingBuffer(
                stream, n_steps=n_rows // share, capacity=settings.buffer * share, batch_size=share, seed=job.seed,
                identity=" ".join([digest(blocks), *(case.name for case in job.cases)]),
            )  # fmt: skip
            state = _state(job, world)
            if state.is_file():
                buffer.restore(state)
            return buffer
        with reporter.stage("activations", blocks.n_counted, "tokens") as stage:
            rows = cached_rows(
                subject, blocks, _sites(todo), _cache(job), seed=job.seed, dtype=settings.cache_dtype, world=world,
                on_tokens=stage.update,
            )  # fmt: skip
        return Replay(
            rows, batch_size=settings.batch_size, epochs=settings.epochs, seed=job.seed,
            block=math.gcd(share, LARGEST_BLOCK), world=world,
        )  # fmt: skip
    except SAEError as error:
        raise UserError(str(error)) from error


def _learner(subject: SubjectModel, case: Case, job: Job, source: Source, blocks: TokenBlocks, world: World) -> Learner:
    data, settings = job.data, job.settings
    metadata = SAEMetadata(
        model=subject.name,
        hookpoint=case.hookpoint,
        target_hookpoint=case.target,
        dataset=data.dataset,
        context_length=data.context_length,
        skip_first=data.skip_first,
        seed=case.seed,
        extra={
            "n_documents": blocks.n_documents,
            "corpus_seed": job.seed,
            "mode": data.mode,
            # Later stages then read this SAE on the same random model.
            **({"random_model_seed": subject.random_seed} if subject.null else {}),
        },
    )
    config = LearnConfig(
        batch_size=settings.batch_size, lr=settings.lr, warmup_steps=settings.warmup_steps,
        decay_share=settings.decay_share, clip=settings.clip, dead_after=settings.dead_after,
        log_every=settings.log_every, product=settings.product, seed=case.seed,
    )  # fmt: skip
    label = f"{subject.fingerprint} {digest(blocks)} {'stream' if settings.stream else settings.cache_dtype} {job.seed}"
    return Learner(
        case.create(metadata), config, source.n_steps, reads=case.reads, data=label, folder=job.folder(case),
        world=world, device=subject.device,
    )  # fmt: skip


def _run(
    job: Job,
    todo: Sequence[Case],
    learners: Sequence[Learner],
    source: Source,
    reporter: Reporter,
    world: World,
    tracker: Tracker,
) -> None:
    names = {id(learner): case.name for case, learner in zip(todo, learners, strict=True)}
    quiet = Reporter(quiet=True)
    with training_display(reporter if world.leads else quiet, source.n_steps) as display:

        def show(step: int, reports: list[tuple[Learner, Progress]]) -> None:
            named = [(names[id(learner)], progress) for learner, progress in reports]
            display.update(step, named)
            tracker.log(named)

        def keep(step: int) -> None:
            # Last, so that a kill leaves the stream behind the dictionaries, never ahead of them.
            if isinstance(source, MixingBuffer):
                world.wait()
                source.save(_state(job, world))

        train_all(
            learners, source, checkpoint_every=job.settings.checkpoint_every, on_progress=show, on_checkpoint=keep
        )  # fmt: skip


def _evaluate(
    subject: SubjectModel,
    job: Job,
    todo: Sequence[Case],
    models: Sequence[SparseAutoencoder],
    held_out: TokenBlocks,
    reporter: Reporter,
) -> None:
    placed = {case.name: Placed(model, case.hookpoint, case.target) for case, model in zip(todo, models, strict=True)}
    with reporter.stage("evaluate", len(held_out.tokens), "contexts") as stage:
        figures = evaluate(subject, placed, held_out, on_block=stage.update)
    for case, model in zip(todo, models, strict=True):
        record(model, figures[case.name])


def record(model: SparseAutoencoder, figures: Mapping[str, Figure]) -> None:
    """Keep figures with the dictionary: values by name, and their intervals."""
    finite = {name: figure for name, figure in figures.items() if math.isfinite(figure.value)}
    model.metadata.metrics = {name: figure.value for name, figure in finite.items()}
    model.metadata.extra["intervals"] = {
        name: [figure.low, figure.high] for name, figure in finite.items() if math.isfinite(figure.low)
    }
    model.metadata.extra["evaluated_tokens"] = next(iter(figures.values())).n_tokens if figures else 0


def recorded(model: SparseAutoencoder) -> dict[str, Figure]:
    """The figures of the evaluation that ended a dictionary's training."""
    extra: dict[str, Any] = model.metadata.extra
    found = {}
    for name, value in model.metadata.metrics.items():
        low, high = extra.get("intervals", {}).get(name, (math.nan, math.nan))
        found[name] = Figure(value, low, high, extra.get("evaluated_tokens", 0))
    return found


def _cache(job: Job) -> Path:
    return Path(job.settings.cache).expanduser() if job.settings.cache else job.own_cache


def _state(job: Job, world: World) -> Path:
    return job.work / f"{STREAM}.{world.rank}-of-{world.size}.safetensors"


def _tidy(job: Job) -> None:
    """Once the dictionaries stand, checkpoints and the run's own cache are only large; the logs stay."""
    for case in job.cases:
        (job.folder(case) / CHECKPOINT).unlink(missing_ok=True)
    for path in job.work.glob(f"{STREAM}.*"):
        path.unlink()
    shutil.rmtree(job.own_cache, ignore_errors=True)
