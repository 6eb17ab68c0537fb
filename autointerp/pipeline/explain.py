"""The explaining stage: windows of each chosen latent, and what an explainer says of them."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from types import ModuleType
from typing import Any

import numpy as np

from autointerp.engine.drive import Finished
from autointerp.engine.ledger import Ledger, work_key
from autointerp.explain._proposal import Proposal
from autointerp.files import write_json
from autointerp.pipeline.cells import CHOSEN
from autointerp.pipeline.clients import Asked, asked_of
from autointerp.pipeline.latents import choose, parse, states, targets, write_latents
from autointerp.pipeline.rows import failure_rows
from autointerp.pipeline.session import Session
from autointerp.pipeline.work import Unit, first_requests, work_through
from autointerp.registries import EXPLAINERS, configured, member, needs_of
from autointerp.store import layout
from autointerp.types import LatentRecord, Rows
from prompts import render
from prompts.requests import Effects, fingerprint
from scoring.types import Window

STAGE = "explain"


Prepared = tuple[ModuleType, Any, Asked]
"""An explainer, its config, and who answers it."""


def explain(session: Session, prepared: Prepared, *, retry_failed: bool = False) -> list[int]:
    """Explain the chosen latents, each pole for itself, with what `prepare` made; returns the latents.

    Finished ones are not asked again.
    """
    explainer, config, asked = prepared
    session.run.account.cache.again = retry_failed
    state, counts = states(session, keep=True)
    if session.run.shard.index == 0 or not (session.run.folder / "latents.parquet").is_file():
        write_latents(session, state, counts)
    latents = choose(session, state)
    write_json(session.run.folder / CHOSEN, latents)
    poles = targets(session, latents)
    session.run.keep_prompts(explainer.TEMPLATES)
    model = asked.model
    prompt_sha, weights = render.joint_sha(explainer.TEMPLATES), asked.weights
    keys = {
        (latent, pole): work_key(
            STAGE, latent=latent, pole=pole, explainer=explainer.NAME, config=config, model=model,
            weights=weights, prompt=prompt_sha, sampling=session.sampling_sha,
        )
        for latent, pole in poles
    }  # fmt: skip
    ledger = Ledger(session.run.folder, STAGE)
    if retry_failed:
        earlier = ledger.rows("explanations", set(keys.values()))
        ledger.forget(set(earlier.loc[earlier["status"] != "ok", "work_key"]))
    mine = [poles[at] for at in session.run.shard.of(len(poles))]
    todo = [target for target in mine if keys[target] not in ledger]
    done = len(mine) - len(todo)
    if done:
        session.reporter.say(f"{done} of {len(mine)} latents are explained already")

    if todo:
        session.sampler.prepare(sorted({latent for latent, _ in todo}))
        asked.examine()
        asked.check_length(lambda: first_requests(explainer.explain(session.sampler.record(*todo[0]), config)))

    def units() -> Iterator[Unit]:
        for target in todo:
            record = session.sampler.record(*target)
            yield (
                keys[target],
                partial(explainer.explain, record, config),
                partial(_rows, session, record, explainer, model, prompt_sha),
            )

    router = asked.router(session.run.account, STAGE)
    # Selected first: what is finished by then is the result of a run that stops at its budget, too.
    before = session.run.selected(STAGE)
    session.run.select(STAGE, list(keys.values()))
    if before and before != set(keys.values()) and session.run.unselect("score-"):
        # Scores of other explanations, or controls drawn from them, would stand beside these as if they were theirs.
        session.reporter.say("the explanations changed: earlier scores are left out until they are scored again")
    work_through(STAGE, units(), router, ledger, session.reporter, done=done, total=len(mine))
    return latents


def prepare(session: Session) -> Prepared:
    """The explainer and who answers it; finds out whether they, and the latents asked for, can be.

    Raises:
        UserError: an unknown name, no model, no key, or a selection that cannot be read.
    """
    settings = session.settings
    explainer = member(EXPLAINERS, settings.explain.explainer)
    config = configured(explainer, settings.explain.options, "explain.options")
    if settings.latents:
        parse(settings.latents, np.arange(0), session.sae.n_latents, settings.seed)
    who = f"explainer '{explainer.NAME}'"
    asked = asked_of(session, who, "explain", settings.explain, needs_of(explainer, config), config)
    if not layout.finished(session.store_folder):
        # Collecting takes long; what would stop the run after it is found out before.
        asked.examine()
    return explainer, config, asked


def _rows(
    session: Session, record: LatentRecord, explainer: ModuleType, model: str, prompt_sha: str, finished: Finished
) -> Rows:
    latent = record.latent
    proposal: Proposal = finished.result
    about = {
        "run_id": session.run.run_id, "sae_id": session.sae_id, "latent": latent, "pole": record.pole,
        "draw": session.settings.draw, "corpus": session.corpus,
    }  # fmt: skip
    explanation = {
        **about,
        "explanation_id": fingerprint([session.sae_id, latent, record.pole, explainer.NAME, model, proposal.text]),
        "explainer": explainer.NAME,
        "explainer_model": model,
        "text": proposal.text,
        "status": proposal.status,
        "prompt_sha": prompt_sha or None,
        "n_windows": len(record.explain),
        "seed": session.settings.seed,
        "prompt_tokens": finished.usage.prompt_tokens,
        "completion_tokens": finished.usage.completion_tokens,
    }
    windows = [
        window_row(about, split, window)
        for split, some in (
            ("explain", record.explain), ("score", record.score), ("prompt", record.prompts),
            # Drawn only for explainers that steer.
            *([("explain_prompt", record.explain_prompts)] if Effects in explainer.NEEDS else []),
        )
        for window in some
    ]  # fmt: skip
    return {
        "explanations": [explanation],
        "windows": windows,
        "failures": failure_rows(session.run.run_id, STAGE, latent, finished),
    }


def window_row(about: dict[str, Any], split: str, window: Window) -> dict[str, Any]:
    return {
        **about,
        "split": split,
        "window_id": window.window_id,
        "document": window.document,
        "start": window.start,
        "kind": window.kind,
        "quantile": window.quantile,
        "tokens": list(window.tokens),
        "pieces": list(window.pieces),
        "activations": list(window.activations),
        "text": window.text,
    }
