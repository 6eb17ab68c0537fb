"""Slurm, as far as it is needed: what waits or runs (squeue), sending (sbatch) and taking back (scancel).

No accounting is asked: sacct needs a database that many clusters keep from their users.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from autointerp.errors import AutointerpError, UserError

PENDING, RUNNING = "pending", "running"
ENDED = frozenset({
    "BOOT_FAIL", "CANCELLED", "COMPLETED", "COMPLETING", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY",
    "REVOKED", "TIMEOUT",
})  # fmt: skip
"""States in which squeue may still show what will do nothing more. One that queues again is PENDING."""
WAITING = frozenset({"PENDING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "PREEMPTED", "RESV_DEL_HOLD"})
NEVER = "DependencyNeverSatisfied"
TIMEOUT = 60.0
"""Seconds for one command; a controller that is down is noticed later than one that refuses."""


class SlurmGone(AutointerpError):
    """There is no Slurm here, or it does not answer."""


@dataclass(frozen=True, slots=True)
class Queued:
    """An element that Slurm still has: pending or running."""

    job: str
    """As squeue shows it: 17, or 17_3 of an array."""
    name: str
    state: str
    reason: str


def here() -> bool:
    return shutil.which("squeue") is not None and shutil.which("sbatch") is not None


def queued(jobs: Iterable[str]) -> dict[str, Queued]:
    """Those elements of these jobs (ids without the element) that Slurm still has, by their full id.

    Raises:
        SlurmGone: Slurm is not there to say.
    """
    ids = sorted(set(jobs))
    if not here():
        raise SlurmGone("there is no Slurm here (no squeue and sbatch)")
    if not ids:
        return {}
    try:
        said = _ask(["squeue", "--noheader", "--array", "--jobs", ",".join(ids), "--format", "%i|%T|%r|%j"])
    except SlurmGone as error:
        # With a single job that it has forgotten, squeue fails rather than show nothing.
        if "invalid job id" in str(error).lower():
            return {}
        raise
    found = {}
    for line in said.splitlines():
        job, state, reason, name = line.strip().split("|", 3)
        if state not in ENDED and NEVER not in reason:
            found[job] = Queued(job, name, PENDING if state in WAITING else RUNNING, reason)
    return found


def send(script: str, *, array: str | None = None, depends: Sequence[str] = ()) -> str:
    """Submit a script; returns the id of the job.

    Raises:
        UserError: Slurm refuses it.
    """
    words = ["sbatch", "--parsable"]
    words += ["--array", array] if array is not None else []
    words += ["--dependency", ",".join(depends), "--kill-on-invalid-dep=yes"] if depends else []
    try:
        # 17, or 17;cluster
        return _ask([*words, script]).strip().split(";")[0]
    except SlurmGone as error:
        raise UserError(f"Slurm does not take {script}: {error}; the section `slurm` says what is asked for") from error


def take_back(jobs: Sequence[str]) -> None:
    """Cancel; those that are gone already do not matter."""
    if jobs:
        _ask(["scancel", "--quiet", *jobs])


def _ask(words: list[str]) -> str:
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=TIMEOUT, check=False)
    except OSError as error:
        raise SlurmGone(f"there is no Slurm here (no {words[0]})") from error
    except subprocess.TimeoutExpired as error:
        raise SlurmGone(f"Slurm does not answer ({words[0]} took longer than {TIMEOUT:.0f} s)") from error
    if done.returncode:
        raise SlurmGone(" ".join(done.stderr.split()) or f"{words[0]} ended with code {done.returncode}")
    return done.stdout
