"""`jobs.json`: which jobs were sent for which shares of a run.

What became of them is in the run folder and in the queue.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from autointerp.errors import UserError
from autointerp.files import write_json
from autointerp.jobs import queue
from autointerp.jobs.queue import Queued
from autointerp.jobs.scripts import ARRAYS, FOLDER, SERVERS

JOBS = "jobs.json"
Place = tuple[str, int, int]
"""Stage, number of shares, share."""


@dataclass(frozen=True, slots=True)
class Sent:
    """One job, or one array."""

    job: str
    name: str
    stage: str
    count: int
    """Shares that the stage is divided into."""
    indices: tuple[int, ...]
    """Those that this job does."""
    depends: tuple[str, ...]
    at: str
    """By the clock of the host that sent it, for people."""

    @property
    def elements(self) -> dict[Place, str]:
        """Full ids by what they are about."""
        array = self.stage in (*ARRAYS, SERVERS)
        return {(self.stage, self.count, i): f"{self.job}_{i}" if array else self.job for i in self.indices}


def path_of(folder: Path) -> Path:
    return folder / FOLDER / JOBS


def read(folder: Path) -> list[Sent]:
    """What was sent, in order; nothing where nothing was.

    Raises:
        UserError: the file is damaged.
    """
    path = path_of(folder)
    if not path.is_file():
        return []
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        return [Sent(**{**one, "indices": tuple(one["indices"]), "depends": tuple(one["depends"])}) for one in told]
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(
            f"'{path}' is damaged: see with squeue that no job of this run is left, remove the file, and submit again"
        ) from error


def write(folder: Path, sent: Iterable[Sent]) -> None:
    write_json(path_of(folder), [asdict(one) for one in sent])


def elements(sent: Iterable[Sent]) -> dict[Place, str]:
    """The last job that was sent for each share."""
    return {place: job for one in sent for place, job in one.elements.items()}


def queued(sent: list[Sent]) -> dict[Place, Queued]:
    """What of it Slurm still has. A job of another name has got its number after a new beginning of Slurm.

    Raises:
        SlurmGone: Slurm is not there to say.
    """
    there = queue.queued(one.job for one in sent)
    named = {job: one.name for one in sent for job in one.elements.values()}
    places = {job: place for one in sent for place, job in one.elements.items()}
    return {places[job]: live for job, live in there.items() if job in places and live.name == named[job]}
