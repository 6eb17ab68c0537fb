"""Send what is missing of a run, stage after stage, and nothing twice."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from autointerp.config import RunSettings, resolve, to_yaml
from autointerp.errors import UserError
from autointerp.files import write_text
from autointerp.jobs import book, queue
from autointerp.jobs.book import Place, Sent
from autointerp.jobs.progress import UNDIVIDED, Progress
from autointerp.jobs.queue import PENDING, Queued, SlurmGone
from autointerp.jobs.scripts import ARRAYS, CONFIG, END_SERVERS, FOLDER, LOGS, SERVERS, Scripts, servers_of, span
from autointerp.jobs.states import forget, mark
from autointerp.shards import Shard

ASKING = ("explain", "score")
"""Stages that ask servers."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Shares of one stage that go together: one job, or one array."""

    stage: str
    count: int
    indices: tuple[int, ...]
    waits_for: tuple[str, ...]
    """Stages, or full ids of jobs that are on their way already."""
    takes_back: tuple[str, ...] = ()
    """Jobs that wait for what will not come; these go in their place."""


@dataclass
class Plan:
    """What would be sent, and what is left alone."""

    batches: list[Batch] = field(default_factory=list)
    said: list[str] = field(default_factory=list)


def plan(
    progress: Progress, count: int, queued: dict[Place, Queued], *, only: str | None = None, servers: int = 0
) -> Plan:
    """What is missing and not on its way.

    Raises:
        UserError: `only` is no stage of this run.
    """
    if only is not None and only not in progress.stages:
        raise UserError(f"--only '{only}' is no stage of this run: {', '.join(progress.stages)}")
    found, anew = Plan(), False
    waits_for: tuple[str, ...] = ()
    for stage in progress.stages:
        live = {place: job for place, job in queued.items() if place[0] == stage}
        # Whoever waits for a share that failed would be cancelled, and the share that goes now is not that one.
        stale = [job.job for job in live.values() if anew and job.state == PENDING]
        kept = {place: job.job for place, job in live.items() if job.job not in stale}
        here = _division(progress, stage, count, kept, found)
        missing = progress.incomplete(stage, here)
        if stage == "merge" and found.batches and only is None:
            missing = [0]
        waiting = {place[2] for place in kept if place[1] == here}
        indices = tuple(i for i in missing if i not in waiting) if only in (None, stage) else ()
        if indices:
            found.batches.append(Batch(stage, here, indices, waits_for, tuple(stale)))
            anew = True
        if waiting:
            found.said.append(f"{stage}: {len(waiting)} of {here} are on their way already")
        if indices or kept:
            waits_for = (*((stage,) if indices else ()), *kept.values())
    return _with_servers(found, queued, servers, waits_for)


def _division(progress: Progress, stage: str, count: int, kept: dict[Place, str], found: Plan) -> int:
    """Into how many shares a stage is divided: as those that are on their way, or were collected, already are."""
    if stage in UNDIVIDED:
        return 1
    begun = progress.begun_division() if stage == "collect" else None
    here = begun or max((place[1] for place in kept), default=count)
    if here != count:
        why = "its stores are begun so" if begun else "they are on their way so"
        found.said.append(f"{stage}: in {here} shares, not {count}: {why}")
    return here


def _with_servers(found: Plan, queued: dict[Place, Queued], servers: int, last: tuple[str, ...]) -> Plan:
    """Servers go with the first stage that asks them, and end when the last stage has."""
    asking = [batch for batch in found.batches if batch.stage in ASKING]
    if not servers or not (asking or any(place[0] in ASKING for place in queued)):
        return found
    live = {place[2] for place in queued if place[0] == SERVERS}
    missing = tuple(i for i in range(servers) if i not in live)
    ending = tuple(job.job for place, job in queued.items() if place[0] == END_SERVERS)
    if missing:
        at = found.batches.index(asking[0]) if asking else 0
        found.batches.insert(at, Batch(SERVERS, servers, missing, asking[0].waits_for if asking else ()))
    found.batches.append(Batch(END_SERVERS, 1, (0,), last, ending))
    return found


def settings_of(folder: Path) -> RunSettings:
    """Those that a run's jobs have, or its last process had.

    Raises:
        UserError: there is no run.
    """
    for path in (folder / FOLDER / CONFIG, folder / "config.yaml"):
        if path.is_file():
            return resolve({}, config=path, environ={})
    raise UserError(f"no run in '{folder}': neither {FOLDER}/{CONFIG} nor config.yaml is there")


def submit(
    folder: Path, settings: RunSettings, count: int, *, only: str | None = None, servers: int = 0
) -> tuple[list[Sent], list[str]]:
    """Write the scripts and send them; returns what was sent, and lines about what was not.

    Raises:
        UserError: Slurm refuses, or jobs of this run with other settings are on their way.
        SlurmGone: there is none.
    """
    check(settings, servers)
    sent = book.read(folder)
    try:
        queued = book.queued(sent)
    except SlurmGone as error:
        raise SlurmGone(
            f"{error}: nothing was sent. `--print` shows the scripts; docs/hpc.md says how to run shares by hand"
        ) from error
    if queued and mark(settings_of(folder)) != mark(settings):
        jobs = " ".join(sorted({job.job.split("_")[0] for job in queued.values()}))
        raise UserError(
            f"jobs of this run with other settings are on their way: wait for them, or take them back with `scancel "
            f"{jobs}`, or name another --out"
        )
    todo = plan(Progress(folder, settings), count, queued, only=only, servers=servers)
    scripts = Scripts(folder, settings)
    texts = {batch.stage: scripts.text(batch.stage, batch.count) for batch in todo.batches}
    (folder / FOLDER / LOGS).mkdir(parents=True, exist_ok=True)
    # A copy: what is edited later is not what the waiting jobs were sent for.
    write_text(folder / FOLDER / CONFIG, to_yaml(settings))
    new: dict[str, Sent] = {}
    for batch in todo.batches:
        queue.take_back(batch.takes_back)
        new[batch.stage] = _send(scripts, batch, texts[batch.stage], new)
        # Written after each one: a job that nobody wrote down would be sent again.
        book.write(folder, [*sent, *new.values()])
        if batch.stage in (SERVERS, END_SERVERS):
            _name_servers(folder, [*sent, *new.values()], queued)
    return list(new.values()), todo.said


def _send(scripts: Scripts, batch: Batch, text: str, new: dict[str, Sent]) -> Sent:
    path = scripts.folder / FOLDER / f"{batch.stage}.sh"
    write_text(path, text)
    for index in batch.indices:
        forget(scripts.folder, batch.stage, Shard(index, batch.count))
    jobs = [new[one].job if one in new else one for one in batch.waits_for]
    # Servers end whatever became of those that asked them.
    kind = "afterany" if batch.stage == END_SERVERS else "afterok"
    depends = [f"{kind}:{':'.join(jobs)}"] if jobs else []
    at_once = scripts.settings.slurm.at_once if batch.stage in ARRAYS else None
    array = span(batch.indices, at_once) if batch.stage in (*ARRAYS, SERVERS) else None
    job = queue.send(str(path), array=array, depends=depends)
    return Sent(
        job, scripts.job_name(batch.stage), batch.stage, batch.count, batch.indices, tuple(depends),
        time.strftime("%Y-%m-%d %H:%M:%S%z"),
    )  # fmt: skip


def _name_servers(folder: Path, sent: Sequence[Sent], queued: dict[Place, Queued]) -> None:
    """Of those that run now, old and new."""
    live = {job.job.split("_")[0] for place, job in queued.items() if place[0] == SERVERS}
    last = [one.job for one in sent if one.stage == SERVERS][-1:]
    write_text(servers_of(folder), " ".join(sorted({*live, *last})) + "\n")


def check(settings: RunSettings, servers: int) -> None:
    """Raises:
    UserError: servers are wanted, and nobody would ask them.
    """
    asked = {settings.explain.base_url, settings.score.base_url}
    if servers and not any(str(url).startswith("servers:") for url in asked):
        raise UserError('nobody asks the servers: set explain.base_url (and score.base_url) to "servers:" in the YAML')


def written(folder: Path, settings: RunSettings, count: int, *, only: str | None = None, servers: int = 0) -> str:
    """The scripts that would be sent, from what the folder says alone; nothing is written or sent."""
    check(settings, servers)
    todo = plan(Progress(folder, settings), count, {}, only=only, servers=servers)
    scripts, parts = Scripts(folder, settings), []
    for batch in todo.batches:
        after = f", after {', '.join(batch.waits_for)}" if batch.waits_for else ""
        which = f", elements {span(batch.indices)}" if batch.stage in ARRAYS else ""
        head = f"# ---- {folder / FOLDER / batch.stage}.sh{which}{after}\n"
        parts.append(head + scripts.text(batch.stage, batch.count))
    return "\n".join(parts)
