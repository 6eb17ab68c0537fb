"""What the tests ask of Slurm: wait, look, tell."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

PATIENCE = 600.0
"""Seconds after which a test gives up; this says nothing about how long anything takes."""


def squeue() -> dict[str, str]:
    """State of every element that Slurm still has, by its full id."""
    said = subprocess.run(
        ["squeue", "--noheader", "--array", "--format", "%i|%T"], check=True, capture_output=True, text=True
    ).stdout
    return dict(line.strip().split("|") for line in said.splitlines())


def scontrol(job: str) -> str:
    return subprocess.run(["scontrol", "show", "job", job], check=True, capture_output=True, text=True).stdout


def until(true: Callable[[], Any], what: str) -> Any:
    ends = time.monotonic() + PATIENCE
    while time.monotonic() < ends:
        if found := true():
            return found
        time.sleep(0.05)
    raise AssertionError(f"waited {PATIENCE:.0f} s for {what}")


def all_ended() -> None:
    until(lambda: not squeue(), "the queue to be empty")


def state(run: Path, stage: str, index: int, count: int) -> dict[str, Any]:
    path = run / "shards" / f"{stage}-{index}-of-{count}.json"
    return json.loads(path.read_text()) if path.is_file() else {}


def sent(run: Path) -> list[tuple[str, int, list[int]]]:
    """Stage, shares, and those that were sent, job by job."""
    jobs = json.loads((run / "slurm" / "jobs.json").read_text())
    return [(job["stage"], job["count"], job["indices"]) for job in jobs]
