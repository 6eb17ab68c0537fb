"""The scoring stage: each method grades each explanation and its control on the same windows."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd

from autointerp.config import ScoreSettings
from autointerp.engine.drive import Finished
from autointerp.engine.ledger import Ledger, work_key
from autointerp.errors import UserError
from autointerp.pipeline.clients import Asked, asked_of
from autointerp.pipeline.latents import Target
from autointerp.pipeline.rows import failure_rows
from autointerp.pipeline.session import Session
from autointerp.pipeline.work import Unit, first_requests, work_through
from autointerp.registries import SCORERS, configured, member, needs_of
from autointerp.sampling.sampler import derangement
from autointerp.seeds import generator
from autointerp.types import LatentRecord, Rows
from prompts import render
from prompts.requests import Request, fingerprint
from scoring.types import GENERIC, SHUFFLED, Outcome, Subject

GENERIC_TEXT = "common words and phrases of ordinary text"
"""An explanation that fits any text; what it scores, a method gives away."""


Control = tuple[str, str, str]
"""Text, id and name of the control."""
Prepared = tuple[list[tuple[ModuleType, Any]], pd.DataFrame]
"""Scorers with their configs, and the explanations that they grade."""


@dataclass(frozen=True)
class Plan:
    """What one scorer has to do, and who answers it."""

    scorer: ModuleType
    config: Any
    asked: Asked
    ledger: Ledger
    keys: dict[Target, str]
    """Work keys by latent and pole, as everything here."""
    controls: dict[Target, list[Control]]
    """What is graded beside an explanation."""
    explanations: dict[Target, dict[str, Any]]
    common: dict[str, Any]
    """Columns that all scores share."""
    told: list[Target]
    """Those that have an explanation."""
    mine: frozenset[Target]
    """This process's share of them all."""

    @property
    def stage(self) -> str:
        return stage_of(self.scorer.NAME)

    @property
    def todo(self) -> list[Target]:
        return [target for target in self.told if target in self.mine and self.keys[target] not in self.ledger]


def stage_of(method: str) -> str:
    return f"score-{method}"


def score(session: Session, prepared: Prepared, *, fresh: bool = False, retry_failed: bool = False) -> None:
    """Score explanations with what `prepare` made. Finished units are not scored again, except when `fresh`."""
    scorers, explanations = prepared
    session.run.account.cache.again = retry_failed
    plans = [plan(scorer, config, session, explanations) for scorer, config in scorers]
    for each in plans:
        if retry_failed:
            before = each.ledger.rows("scores", set(each.keys.values()))
            each.ledger.forget(set(before.loc[before["n_failed"] > 0, "work_key"]))
        if fresh:
            each.ledger.forget(set(each.keys.values()))
            session.run.account.cache.forget_replies(each.stage)
        for target in (each.explanations.keys() & each.mine) - set(each.told):
            # An explanation that failed has no score: null, with its reason, never dropped.
            row = _unexplained(each.common, each.explanations[target], each.scorer.METRIC)
            each.ledger.record(each.keys[target], {"scores": [row]})
    # What a server lacks for any scorer is reported before the first of them spends anything.
    for each in plans:
        if each.todo:
            each.asked.examine()
            each.asked.check_length(partial(_first_requests, each, session))
    for each in plans:
        todo, total = each.todo, len(each.mine & set(each.told))
        session.run.keep_prompts(each.scorer.TEMPLATES)
        session.run.select(each.stage, [each.keys[target] for target in sorted(each.keys)])
        router = each.asked.router(session.run.account, each.stage)
        work_through(
            each.scorer.NAME, units(each, session, todo), router, each.ledger, session.reporter,
            done=total - len(todo), total=total,
        )  # fmt: skip


def _first_requests(plan: Plan, session: Session) -> list[Request]:
    _, begin, _ = next(units(plan, session, plan.todo[:1]))
    return first_requests(begin())


def prepare(session: Session) -> Prepared:
    """The scorers, and what they grade; finds out whether both can be.

    Raises:
        UserError: an unknown scorer or option, or nothing to score.
    """
    wanted = [member(SCORERS, name) for name in dict.fromkeys(session.settings.score.methods)]
    scorers = [(scorer, config_of(scorer, session.settings.score)) for scorer in wanted]
    explanations = session.run.rows("explain", "explanations")
    unfinished = 0 if session.run.shard.whole else session.run.unfinished("explain")
    if unfinished:
        raise UserError(
            f"{unfinished} of the latents in '{session.run.folder}' are not explained yet, and controls are other "
            "latents' explanations: finish `explain`, all shards of it, and score then"
        )
    if explanations.empty:
        raise UserError(
            f"no explanations in '{session.run.folder}': make them with `autointerp explain --sae "
            f"{session.settings.sae} --out {session.run.folder}`"
        )
    return scorers, explanations


def config_of(scorer: ModuleType, settings: ScoreSettings) -> Any:
    """The scorer's options, and those of the section that it takes."""
    options = dict(settings.options.get(scorer.NAME, {}))
    if settings.ci_halfwidth is not None and "ci_halfwidth" in scorer.Config.__dataclass_fields__:
        options.setdefault("ci_halfwidth", settings.ci_halfwidth)
    return configured(scorer, options, f"score.options.{scorer.NAME}")


def plan(scorer: ModuleType, config: Any, session: Session, explanations: pd.DataFrame) -> Plan:
    """Nothing is asked or written yet."""
    stage_name = stage_of(scorer.NAME)
    who = f"scorer '{scorer.NAME}'"
    asked = asked_of(session, who, "score", session.settings.score, needs_of(scorer, config), config)
    model = asked.model
    prompt_sha, weights, settled = render.joint_sha(scorer.TEMPLATES), asked.weights, asdict(config)
    by_target = {
        (int(row["latent"]), int(row["pole"])): {str(k): v for k, v in row.items()}
        for row in explanations.to_dict("records")
    }
    told = [target for target, row in by_target.items() if isinstance(row["text"], str)]
    controls = _controls(session, told, by_target)
    keys = {}
    for target, row in by_target.items():
        keys[target] = work_key(
            stage_name, latent=target[0], pole=target[1], text=row["text"], control=controls.get(target),
            version=scorer.VERSION, config=settled, model=model, weights=weights, prompt=prompt_sha,
            sampling=session.sampling_sha, hookpoint=session.hookpoint,
        )  # fmt: skip
    ledger = Ledger(session.run.folder, stage_name)
    common = {
        **session.about_sae, "control": session.control,
        "method": scorer.NAME, "method_version": scorer.VERSION, "scorer_model": model,
        "prompt_sha": prompt_sha or None, "seed": session.settings.seed,
        "draw": session.settings.draw, "corpus": session.corpus,
    }  # fmt: skip
    places = sorted(by_target)
    mine = frozenset(places[at] for at in session.run.shard.of(len(places)))
    return Plan(scorer, config, asked, ledger, keys, controls, by_target, common, told, mine)


def _controls(
    session: Session, told: list[Target], explanations: dict[Target, dict[str, Any]]
) -> dict[Target, list[Control]]:
    """Of a seeded sample of the latents that have an explanation."""
    settings, seed = session.settings.score, session.settings.seed
    latents = sorted({latent for latent, _ in told})
    order = generator(seed, "controls").permutation(np.array(latents, dtype=np.int64))
    chosen = set(order[: settings.control_latents].tolist())
    partner = derangement(latents, seed) if SHUFFLED in settings.controls else {}
    known, found = set(told), {}
    for latent, pole in told:
        if latent not in chosen:
            continue
        mine: list[Control] = []
        if latent in partner:
            # Another latent's, of the same pole where it has one: a latent's other pole is not just any explanation.
            same, opposite = ((partner[latent], sign) for sign in (pole, -pole))
            other = explanations[same if same in known else opposite]
            mine.append((other["text"], other["explanation_id"], SHUFFLED))
        if GENERIC in settings.controls:
            mine.append((GENERIC_TEXT, fingerprint(GENERIC_TEXT), GENERIC))
        found[latent, pole] = mine
    return found


EXTRAS: dict[str, Callable[[Session, LatentRecord], Any]] = {
    "frequency": lambda session, record: session.token_shares,
    "base_rate": lambda session, record: record.window_rate,
}
"""What the windows of one latent cannot tell, for scorers that take an argument of that name."""


def units(plan: Plan, session: Session, targets: list[Target]) -> Iterator[Unit]:
    """What is asked about these: an explanation and its controls, on the same windows."""
    scorer = plan.scorer
    session.sampler.prepare(sorted({latent for latent, _ in targets}))
    takes = inspect.signature(scorer.score).parameters
    wanted = {name: find for name, find in EXTRAS.items() if name in takes}
    for target in targets:
        record, row = session.sampler.record(*target), plan.explanations[target]
        told: list[Control] = [(row["text"], row["explanation_id"], session.control), *plan.controls.get(target, [])]
        subjects = [Subject(target[0], *each, pole=target[1]) for each in told]
        yield (
            plan.keys[target],
            partial(
                scorer.score, subjects, getattr(record, scorer.WINDOWS), plan.config,
                **{name: find(session, record) for name, find in wanted.items()},
            ),
            partial(_rows, session, scorer, plan.common, row, subjects),
        )  # fmt: skip


def _unexplained(common: dict[str, Any], row: dict[str, Any], metric: str) -> dict[str, Any]:
    return {
        **common, "latent": row["latent"], "pole": row["pole"], "explanation_id": row["explanation_id"],
        "explainer": row["explainer"], "explainer_model": row["explainer_model"], "negatives": None, "metric": metric,
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
    for subject, outcome in zip(subjects, outcomes, strict=True):
        who = {
            "latent": latent,
            "pole": subject.pole,
            "explanation_id": subject.explanation_id,
            "control": subject.control,
        }
        scores += [
            {
                **common, **who, "explainer": row["explainer"], "explainer_model": row["explainer_model"],
                **asdict(metric),
            }
            for metric in outcome.metrics
        ]  # fmt: skip
        judgements += [
            {
                "run_id": session.run.run_id, "sae_id": session.sae_id, "method": scorer.NAME, **who,
                **asdict(judgement), "draw": common["draw"], "corpus": common["corpus"],
            }
            for judgement in outcome.judgements
        ]  # fmt: skip
    stage = stage_of(scorer.NAME)
    return {
        "scores": scores,
        "judgements": judgements,
        "failures": failure_rows(session.run.run_id, stage, latent, finished),
    }
