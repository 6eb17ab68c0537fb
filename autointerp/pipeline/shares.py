"""Which shares of a stage are done, so that a process that comes again for one loads neither model nor store."""

from __future__ import annotations

import json
from pathlib import Path

from autointerp.engine.ledger import Ledger
from autointerp.files import write_json
from autointerp.pipeline.run import Run
from prompts.requests import fingerprint


def settle(run: Run, stage: str, of: str) -> None:
    """Note that this process's share of `explain` or `score` is done; `of` is what the settings are known by."""
    write_json(_note(run, stage), {"of": of, "selected": _selected(run, stage)})


def settled(run: Run, stage: str, of: str) -> bool:
    """Whether it was done with these settings, for the same units, and all of it is still there."""
    path = _note(run, stage)
    if not path.is_file() or json.loads(path.read_text()) != {"of": of, "selected": _selected(run, stage)}:
        return False
    return all(set(_share(run, name)) <= Ledger(run.folder, name).where.keys() for name in _parts(run, stage))


def _note(run: Run, stage: str) -> Path:
    return run.folder / "shards" / run.shard.label / f"{stage}.json"


def _parts(run: Run, stage: str) -> list[str]:
    """Stages of the ledger: scoring has one for each scorer."""
    return [name for name in run.stages if name == stage or name.startswith(f"{stage}-")]


def _selected(run: Run, stage: str) -> str:
    """Scores are about explanations: with other ones, other units may be to be scored."""
    names = {"explain", *_parts(run, stage)}
    return fingerprint({name: sorted(run.selected(name)) for name in names})


def _share(run: Run, stage: str) -> list[str]:
    keys: list[str] = json.loads((run.folder / "selected" / f"{stage}.json").read_text())
    return [keys[at] for at in run.shard.of(len(keys))]
