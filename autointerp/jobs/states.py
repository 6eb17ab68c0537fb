"""What each process that does a share of a stage says of itself, in a file of its own in the run folder.

Nobody else writes that file, and nothing is locked. Its times are those of its own host, for people; they are compared
with no other host's.
"""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from autointerp.config import RunSettings
from autointerp.files import write_json
from autointerp.shards import Shard
from prompts.requests import fingerprint

FOLDER = "shards"
RUNNING, DONE, FAILED, INTERRUPTED = "running", "done", "failed", "interrupted"
SHAPES_NOTHING = {"out", "slurm", "budget", "prices", "max_failed"}
"""Settings that may change between two tries of the same work."""


def mark(settings: RunSettings) -> str:
    """What the settings of a run are known by, as far as they shape its result."""
    return fingerprint(settings.model_dump(mode="json", exclude=SHAPES_NOTHING))


@dataclass(frozen=True)
class State:
    """Of one share of one stage, as its process last said."""

    stage: str
    index: int
    count: int
    state: str
    of: str
    """`mark` of the settings."""
    before: int = 0
    """Units of this share that were finished when it began."""
    host: str = ""
    job: str = ""
    """As Slurm calls it; empty elsewhere."""
    pid: int = 0
    began: str = ""
    """By the clock of that host, for people."""
    seconds: float = 0.0
    """It has run so long, by its own clock."""
    code: int | None = None
    """Exit code."""
    said: str = ""
    """Why it ended, where it did not end well."""

    def write(self, folder: Path) -> None:
        write_json(_path(folder, self.stage, Shard(self.index, self.count)), asdict(self))


def read_states(folder: Path) -> list[State]:
    """All that a run folder has; a file that cannot be read is passed over."""
    found = []
    for path in sorted((folder / FOLDER).glob("*-of-*.json")):
        with suppress(OSError, ValueError, TypeError):
            found.append(State(**json.loads(path.read_text(encoding="utf-8"))))
    return found


def forget(folder: Path, stage: str, shard: Shard) -> None:
    """What an earlier try said of itself is not about the one that is sent now."""
    _path(folder, stage, shard).unlink(missing_ok=True)


def divisions(states: list[State], stage: str) -> dict[int, int]:
    """Into how many shares a stage was divided, and how many of those have said something."""
    found: dict[int, int] = {}
    for state in states:
        if state.stage == stage:
            found[state.count] = found.get(state.count, 0) + 1
    return found


def _path(folder: Path, stage: str, shard: Shard) -> Path:
    return folder / FOLDER / f"{stage}-{shard.label}.json"
