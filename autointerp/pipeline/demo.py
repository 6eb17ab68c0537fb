"""The whole pipeline on parts that come with the installation: no network, no key, two CPU cores.

SmolLM2-135M-Instruct reads docstrings; a TopK SAE is trained on layer 9; its latents are explained
without a language model, and scored with likelihoods, embeddings and interventions.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from autointerp.config import DataSettings, RunSettings, TrainSettings, resolve
from autointerp.pipeline.demo_model import demo_subject
from autointerp.pipeline.explain import explain
from autointerp.pipeline.explain import prepare as prepare_explain
from autointerp.pipeline.grid import grid
from autointerp.pipeline.job import Job
from autointerp.pipeline.lens import write_lens
from autointerp.pipeline.metrics import write_sae_metrics
from autointerp.pipeline.run import Run
from autointerp.pipeline.score import prepare as prepare_score
from autointerp.pipeline.score import score
from autointerp.pipeline.session import Session
from autointerp.pipeline.train import train
from autointerp.progress import Reporter
from autointerp.subject.load import load_subject


@dataclass(frozen=True, kw_only=True)
class Size:
    """How much of everything. `SMALL` runs the same code on the same model in about a minute, for tests."""

    train_tokens: int = 153_000
    epochs: int = 5
    expansion: int = 8
    k: int = 32
    collect_tokens: int = 153_000
    latents: int = 26
    explain_activating: int = 120
    explain_random: int = 200
    score_windows: int = 50
    surprisal_windows: int = 10
    prompts: int = 6
    prompt_tokens: int = 32
    dead_after: int = 100_000
    batch_size: int = 1024
    checkpoint_every: int = 100
    held_out: int = 8


FULL = Size()
SMALL = Size(
    train_tokens=12_000, epochs=2, expansion=2, collect_tokens=12_000, latents=4, explain_activating=20,
    explain_random=20, score_windows=12, surprisal_windows=6, prompts=3, batch_size=512, checkpoint_every=10,
    held_out=2,
)  # fmt: skip

HOOKPOINT = "layers.9"
CONTEXT = 256


def settings_for(size: Size, sae: Path, out: Path, seed: int) -> RunSettings:
    """The run's settings; the same could stand in a YAML file for `explain` and `score`."""
    base: dict[str, Any] = {
        "out": str(out), "sae": str(sae), "seed": seed, "limit": size.latents,
        "data.dataset": "docstrings", "data.tokens": size.collect_tokens, "data.context_length": CONTEXT,
        "sampling.explain_activating": size.explain_activating, "sampling.explain_random": size.explain_random,
        "sampling.score_activating": size.score_windows, "sampling.score_random": size.score_windows,
        "sampling.prompts": size.prompts, "sampling.prompt_tokens": size.prompt_tokens, "explain.explainer": "tokens",
        # One control is enough for a first look, and the demo is to take ten minutes.
        "score.controls": ["shuffled_explanation"],
        "score.options": {
            "surprisal": {"windows": size.surprisal_windows},
            "embedding": {"windows": size.score_windows},
        },
    }  # fmt: skip
    return resolve({}, base=base, environ={})


def demo(out: Path, size: Size, reporter: Reporter, *, seed: int = 0, fresh: bool = False) -> Session:
    """Run or resume the demo in `out`; the caller writes the report."""
    settings = settings_for(size, out / "sae", out, seed)
    run = Run(out, settings)
    run.open(fresh=fresh, own_sae=True)
    if not (out / "sae" / "sae.json").is_file():
        reporter.say("preparing the subject model")
        subject = load_subject(str(demo_subject()))
        training = TrainSettings(
            expansions=(size.expansion,), k=(size.k,), epochs=size.epochs, batch_size=size.batch_size, lr=1.6e-3,
            warmup_steps=50, dead_after=size.dead_after, checkpoint_every=size.checkpoint_every,
            held_out=size.held_out,
        )  # fmt: skip
        (case,) = grid(subject, training, [HOOKPOINT])
        job = Job(
            cases=[replace(case, name="sae", seed=seed)], settings=training, seed=seed, saes=out, work=out / "work",
            data=DataSettings(dataset="docstrings", tokens=size.train_tokens, context_length=CONTEXT),
        )  # fmt: skip
        train(subject, job, reporter)
    session = Session(run, reporter)
    if not (out / "sae_metrics.parquet").is_file():
        write_sae_metrics(session)
    explain(session, prepare_explain(session))
    score(session, prepare_score(session))
    run.merge()
    write_lens(session)
    run.close()
    return session
