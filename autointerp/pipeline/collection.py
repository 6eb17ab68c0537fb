"""The collecting stage: text, the subject model, and the latent stores of one or many SAEs in one pass."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from autointerp.collect.encode import Target, collect_stores
from autointerp.collect.tokenise import PLACE, tokenise
from autointerp.errors import UserError
from autointerp.pipeline.session import Session
from autointerp.shards import WHOLE, Shard
from autointerp.store import layout
from autointerp.store.writer import claim


def collect(sessions: Sequence[Session], shard: Shard = WHOLE) -> list[Path]:
    """Stores of every session's SAE, on the same tokens; returns their folders. Finished ones are left as they are.

    Raises:
        UserError: the SAEs do not read the same model and text, or a folder holds something else.
    """
    first = sessions[0]
    _agree(sessions)
    for session in sessions:
        _same_division(session.store_folder, shard)
    # Documents that any of the SAEs was trained on are left out for all.
    skip = max(session.skip_documents for session in sessions)
    targets = [
        Target(
            session.sae, session.hookpoint, layout.shard_folder(session.store_folder, shard),
            _identity(session, layout.shard_folder(session.store_folder, shard), skip),
        )
        for session in sessions
    ]  # fmt: skip
    # Refuses, before anything is read, what holds something else.
    todo = [target for target in targets if not claim(target.folder, target.identity)]
    if todo:
        _collect(first, todo, shard, skip)
    return [target.folder for target in targets]


def _collect(session: Session, targets: Sequence[Target], shard: Shard, skip: int) -> None:
    reporter, subject = session.reporter, session.subject
    resuming = (targets[0].folder / PLACE).is_file()
    many = f"{len(targets)} SAEs" if len(targets) > 1 else "this SAE"
    reporter.say(
        f"resuming the collection of activations in {targets[0].folder}"
        if resuming
        else f"no latent store for {many} yet: collecting activations of {session.dataset} first"
    )
    began = time.perf_counter()
    with reporter.stage("tokenise", session.data.tokens, "tokens") as stage:
        blocks = tokenise(
            subject, session.data, targets[0].folder, seed=session.corpus_seed, skip_documents=skip, shard=shard,
            on_tokens=stage.update,
        )  # fmt: skip
    with reporter.stage("collect", blocks.n_counted, "tokens") as stage:
        collect_stores(
            subject, targets, blocks, shard=shard, batch_tokens=session.data.batch_tokens, on_tokens=stage.update,
            say=reporter.say,
        )  # fmt: skip
    session.book("collect", blocks.n_counted, began, shard)


def _identity(session: Session, folder: Path, skip: int) -> dict[str, Any]:
    """What the store in a folder has to be of: with a finished one, that may have left out more documents."""
    if (folder / layout.MANIFEST).is_file():
        return session.acceptable(layout.read_manifest(folder)["identity"])
    return {**session.identity, "skip_documents": skip}


def _agree(sessions: Sequence[Session]) -> None:
    first = sessions[0]
    for session in sessions[1:]:
        for what, mine, theirs in (
            ("the model", session.subject.fingerprint, first.subject.fingerprint),
            ("the data set", session.dataset, first.dataset),
            ("the order of documents (corpus seed)", session.corpus_seed, first.corpus_seed),
        ):
            if mine != theirs:
                raise UserError(
                    f"'{session.sae_spec}' and '{first.sae_spec}' differ in {what} ({mine} and {theirs}); "
                    "name one for all, or collect them one by one"
                )


def _same_division(store: Path, shard: Shard) -> None:
    """Whole and sharded collections of one store do not mix."""
    other = (
        next(store.glob("shard-*-of-*"), None)
        if shard.whole
        else next((store / name for name in (layout.MANIFEST, layout.IDENTITY) if (store / name).exists()), None)
    )
    if other is not None:
        have = f"shards, such as {other.name}" if shard.whole else "a store that is not sharded"
        raise UserError(f"'{store}' holds {have} already; use --shard as before, or --fresh, or another --out")
