"""The scoring stage: each method grades each explanation and its control on the same windows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from functools import partial
from types import ModuleType
from typing import Any

import pandas as pd

from autointerp.engine.drive import Finished, Router
from autointerp.engine.ledger import Ledger, work_key
from autointerp.errors import UserError
from autointerp.pipeline.clients import clients_for
from autointerp.pipeline.rows import failure_rows, usage_rows
from autointerp.pipeline.session import Session
from autointerp.pipeline.work import Unit, work_through
from autointerp.registries import SCORERS, configured, member
from autointerp.sampling.sampler import derangement, kind_of
from autointerp.types import Rows
from prompts import render
from scoring.types import Outcome, Subject

CONTROL = "shuffled_explanation"


Prepared = tuple[list[tuple[ModuleType, Any]], pd.DataFrame]
"""Scorers with their configs, and the explanations that they grade."""


def score(session: Session, prepared: Prepared, *, retry_failed: bool = False) -> None:
    """Score explanations with what `prepare` made. Finished units are not scored again."""
    scorers, explanations = prepared
    for scorer, config in scorers:
        _score_with(scorer, config, session, explanations, retry_failed)


def prepare(session: Session) -> Prepared:
    """The scorers, and what they grade; finds out whether both can be.

    Raises:
        UserError: an unknown scorer or option, or nothing to score.
    """
    wanted = [member(SCORERS, name) for name in dict.fromkeys(session.settings.score.methods)]
    scorers = [(scorer, _config(scorer, session)) for scorer in wanted]
    explanations = session.run.rows("explain", "explanations")
    if explanations.empty:
        raise UserError(
            f"no explanations in '{session.run.folder}': make them with `autointerp explain --sae "
            f"{session.settings.sae} --out {session.run.folder}`"
        )
    return scorers, explanations


def _config(scorer: ModuleType, session: Session) -> Any:
    options = session.settings.score.options.get(scorer.NAME, {})
    return configured(scorer, options, f"score.options.{scorer.NAME}")


def _score_with(
    scorer: ModuleType, config: Any, session: Session, explanations: pd.DataFrame, retry_failed: bool
) -> None:
    stage_name = f"score-{scorer.NAME}"
    router = Router(clients_for(scorer.NEEDS, session, session.settings.score))
    router.require(scorer.NEEDS, f"scorer '{scorer.NAME}'")
    model = router.model_for(scorer.NEEDS)
    session.run.keep_prompts(scorer.TEMPLATES)
    prompt_sha = render.joint_sha(scorer.TEMPLATES)
    by_latent = {int(row["latent"]): {str(k): v for k, v in row.items()} for row in explanations.to_dict("records")}
    told = [latent for latent, row in by_latent.items() if isinstance(row["text"], str)]
    partner = derangement(told, session.settings.seed)
    keys = {}
    for latent, row in by_latent.items():
        other = by_latent[partner[latent]]["text"] if latent in partner else None
        keys[latent] = work_key(
            stage_name, latent=latent, text=row["text"], control=other, version=scorer.VERSION, config=asdict(config),
            model=model, prompt=prompt_sha, sampling=session.sampling_sha, hookpoint=session.hookpoint,
        )  # fmt: skip
    ledger = Ledger(session.run.folder, stage_name)
    if retry_failed:
        before = ledger.rows("scores", set(keys.values()))
        ledger.forget(set(before.loc[before["n_failed"] > 0, "work_key"]))
    common = {
        **session.about_sae, "control": session.control,
        "method": scorer.NAME, "method_version": scorer.VERSION, "scorer_model": model,
        "prompt_sha": prompt_sha or None, "seed": session.settings.seed, "draw": 0,
    }  # fmt: skip
    for latent in by_latent.keys() - set(told):
        # An explanation that failed has no score: null, with its reason, never dropped.
        ledger.record(keys[latent], {"scores": [_unexplained(common, by_latent[latent], scorer.METRIC)]})
    todo = [latent for latent in told if keys[latent] not in ledger]

    def units() -> Iterator[Unit]:
        session.sampler.prepare(todo)
        for latent in todo:
            record = session.sampler.record(latent)
            subjects = [_subject(latent, by_latent[latent], session.control)]
            if latent in partner:
                subjects.append(_subject(latent, by_latent[partner[latent]], CONTROL))
            yield (
                keys[latent],
                partial(scorer.score, subjects, getattr(record, scorer.WINDOWS), config),
                partial(_rows, session, scorer, common, by_latent[latent], subjects),
            )

    done = len(told) - len(todo)
    work_through(scorer.NAME, units(), router, ledger, session.reporter, done=done, total=len(told))
    session.run.select(stage_name, list(keys.values()))


def _subject(latent: int, row: dict[str, Any], control: str) -> Subject:
    return Subject(latent, row["text"], row["explanation_id"], control)


def _unexplained(common: dict[str, Any], row: dict[str, Any], metric: str) -> dict[str, Any]:
    return {
        **common, "latent": row["latent"], "explanation_id": row["explanation_id"], "explainer": row["explainer"],
        "explainer_model": row["explainer_model"], "negatives": None, "metric": metric,
        "value": None, "n": 0, "n_failed": 0, "ci_low": None, "ci_high": None, "ci_method": None,
        "status": "no_explanation",
    }  # fmt: skip


def _rows(
    session: Session, scorer: ModuleType, common: dict[str, Any], row: dict[str, Any], subjects: list[Subject],
    finished: Finished,
) -> Rows:  # fmt: skip
    latent = int(row["latent"])
    scores, judgements = [], []
    outcomes: list[Outcome] = finished.result
    # A scorer grades on all of a latent's windows at once, whatever their sources.
    sources = [kind_of(name) for name in session.settings.sampling.score_negatives]
    negatives = None if scorer.WINDOWS != "score" else sources[0] if len(sources) == 1 else "mixed"
    for subject, outcome in zip(subjects, outcomes, strict=True):
        who = {"latent": latent, "explanation_id": subject.explanation_id, "control": subject.control}
        scores += [
            {
                **common, **who, "explainer": row["explainer"], "explainer_model": row["explainer_model"],
                "negatives": negatives, **asdict(metric),
            }
            for metric in outcome.metrics
        ]  # fmt: skip
        judgements += [
            {
                "run_id": session.run.run_id, "sae_id": session.sae_id, "method": scorer.NAME, **who,
                **asdict(judgement),
            }
            for judgement in outcome.judgements
        ]  # fmt: skip
    stage = f"score-{scorer.NAME}"
    return {
        "scores": scores,
        "judgements": judgements,
        "failures": failure_rows(session.run.run_id, stage, latent, finished),
        "usage": usage_rows(session.run.run_id, stage, finished),
    }
