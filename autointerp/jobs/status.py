"""How far a run is: every share of every stage, what it has said, how fast it goes and what was spent.

The run folder says what is done; the queue, where there is one, says what waits and runs. Nothing is written.
"""

from __future__ import annotations

import socket
import sqlite3
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from autointerp.config import RunSettings
from autointerp.engine.replies import spent_in
from autointerp.errors import AutointerpError
from autointerp.jobs import book
from autointerp.jobs.book import Place, Sent
from autointerp.jobs.progress import ALL, Progress, Share
from autointerp.jobs.queue import PENDING, Queued, SlurmGone
from autointerp.jobs.scripts import Scripts
from autointerp.jobs.states import DONE, FAILED, INTERRUPTED, RUNNING, State
from autointerp.shards import Shard

LOST, WAITING, UNSENT = "lost", "pending", "not sent"
STATES = (DONE, RUNNING, WAITING, FAILED, INTERRUPTED, LOST, UNSENT)
"""What an element can be, as it is printed. `lost`: it was killed, or never came to say anything."""
TAIL = 4096
"""Bytes of a log that are looked at for its last line."""


@dataclass(frozen=True)
class Element:
    """One share of one stage."""

    index: int
    state: str
    done: int
    of: int | None
    job: str = ""
    host: str = ""
    code: int | None = None
    said: str = ""
    """Why it ended, or the last line of its log."""
    per_second: float | None = None
    """Units, while it runs; None before the first."""


@dataclass(frozen=True)
class StageStatus:
    stage: str
    elements: list[Element] = field(default_factory=list)

    def count(self, state: str) -> int:
        return sum(one.state == state for one in self.elements)

    @property
    def units(self) -> Share:
        total = Share(0, 0)
        for one in self.elements:
            total += Share(one.done, one.of)
        return total

    @property
    def per_second(self) -> float | None:
        """Of all that run now."""
        known = [one.per_second for one in self.elements if one.per_second]
        return sum(known) if known else None

    @property
    def eta_seconds(self) -> float | None:
        """Until all units are done at this speed; None where nothing runs or nobody knows how many there are."""
        units, speed = self.units, self.per_second
        return (units.of - units.done) / speed if speed and units.of is not None else None


@dataclass(frozen=True)
class Status:
    run: str
    slurm: str
    """`here`, or why it could not be asked."""
    stages: list[StageStatus]
    spent: list[dict[str, Any]]
    """One row per stage and model, over all reply caches that could be read."""
    unread: int
    """Reply caches that could not, because a process is writing them."""

    def as_dict(self) -> dict[str, Any]:
        stages = [
            {
                "stage": one.stage, "shards": len(one.elements), **{state: one.count(state) for state in STATES},
                "units_done": one.units.done, "units": one.units.of, "per_second": one.per_second,
                "eta_seconds": one.eta_seconds, "elements": [asdict(element) for element in one.elements],
            }
            for one in self.stages
        ]  # fmt: skip
        return {
            "run": self.run, "slurm": self.slurm, "stages": stages, "spent": self.spent, "unread_caches": self.unread,
        }  # fmt: skip


def status(folder: Path, settings: RunSettings) -> Status:
    """Of a run folder, now."""
    progress, sent = Progress(folder, settings, to_show=True), book.read(folder)
    queued: dict[Place, Queued] | None = None
    slurm = "here"
    try:
        queued = book.queued(sent)
    except SlurmGone as error:
        slurm = str(error)
    look = _Look(progress, Scripts(folder, settings), sent, queued)
    spent, unread = spending(folder)
    return Status(str(folder), slurm, [StageStatus(s, list(look.elements(s))) for s in look.stages], spent, unread)


@dataclass
class _Look:
    progress: Progress
    scripts: Scripts
    sent: list[Sent]
    queued: dict[Place, Queued] | None
    """None where Slurm could not be asked."""

    @property
    def stages(self) -> list[str]:
        whole = self.progress.state(ALL, Shard())
        return [*([ALL] if whole is not None else []), *self.progress.stages]

    def elements(self, stage: str) -> Iterator[Element]:
        count = self._division(stage)
        jobs = book.elements(self.sent)
        for index in range(count):
            yield self._element(stage, Shard(index, count), jobs.get((stage, count, index), ""))

    def _division(self, stage: str) -> int:
        """As it was sent last, or as the folder tells."""
        last = next((one.count for one in reversed(self.sent) if one.stage == stage), None)
        return last or self.progress.division(stage) or 1

    def _element(self, stage: str, shard: Shard, job: str) -> Element:
        state = self.progress.state(stage, shard)
        if state is not None and job and state.job and state.job != job:
            state = None  # of an earlier try
        job = job or (state.job if state else "")
        share = self._share(stage, shard, state)
        code = _exit_code(self.scripts.log_of(stage, job, "exit"))
        found = self._state(stage, shard, share, state, job, code)
        said = "" if found == DONE else (state.said if state else "") or _last_line(self.scripts.log_of(stage, job))
        if found == LOST and not said:
            said = "it never began: what it waited for failed, or it was cancelled"
        fresh = share.done - state.before if state else 0
        speed = fresh / state.seconds if found == RUNNING and state and state.seconds and fresh > 0 else None
        if found in (RUNNING, WAITING):
            code = None
        elif code is None and state is not None:
            code = state.code
        return Element(
            shard.index, found, share.done, share.of, job, state.host if state else "", code, said, speed
        )  # fmt: skip

    def _share(self, stage: str, shard: Shard, state: State | None) -> Share:
        if stage == ALL:
            return Share(int(state is not None and state.state == DONE), 1)
        return self.progress.share(stage, shard)

    def _state(
        self, stage: str, shard: Shard, share: Share, state: State | None, job: str, code: int | None
    ) -> str:  # fmt: skip
        live = self.queued.get((stage, shard.count, shard.index)) if self.queued is not None else None
        if live is not None:
            return WAITING if live.state == PENDING else RUNNING
        if share.complete:
            return DONE
        if state is not None and state.state in (FAILED, INTERRUPTED):
            return state.state
        if code:
            # Its script says that it ended; it itself does not say how: it was killed, or never began.
            return FAILED
        if state is not None and state.state == RUNNING:
            return LOST if self._gone(state) else RUNNING
        if state is not None or not job:
            return UNSENT
        # It was sent, and is gone without a word; where Slurm cannot be asked it may as well wait.
        return LOST if self.queued is not None else WAITING

    def _gone(self, state: State) -> bool:
        """Whether a process that said that it runs does not, as far as can be told from here."""
        if state.job:
            return self.queued is not None
        return state.host == socket.gethostname() and not Path(f"/proc/{state.pid}").exists()


def _exit_code(path: Path) -> int | None:
    try:
        return int(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _last_line(path: Path) -> str:
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - TAIL))
            lines = file.read().decode("utf-8", "replace").split("\n")
    except OSError:
        return ""
    return next((" ".join(line.split()) for line in reversed(lines) if line.strip()), "")


def spending(folder: Path) -> tuple[list[dict[str, Any]], int]:
    """What reply caches have booked, by stage and model, and how many could not be read.

    One that a process is writing shows what it had booked a while ago.
    """
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    unread = 0
    for path in sorted(folder.glob("replies*.sqlite")):
        try:
            found = spent_in(path)
        except (AutointerpError, OSError, sqlite3.Error):
            unread += 1
            continue
        for row in found:
            total = rows.setdefault((row["stage"], row["model"]), {"stage": row["stage"], "model": row["model"]})
            for name, amount in row.items():
                if name not in ("stage", "model"):
                    # A price that is unknown makes the sum unknown.
                    before = total.get(name, 0)
                    total[name] = None if before is None or amount is None else before + amount
    return [rows[key] for key in sorted(rows)], unread
