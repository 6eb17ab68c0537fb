"""Progress of long work: bars with time left in a terminal, log lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

LINE_EVERY = 15.0
"""Seconds between log lines of one stage."""


@dataclass
class Stage:
    """One stretch of work. Work found done on resumption counts as done, but not towards the speed."""

    name: str
    total: int
    unit: str
    quiet: bool = False
    done: int = 0
    _began: float = field(default_factory=time.monotonic)
    _first: int | None = None
    _spoke: float = field(default_factory=time.monotonic)

    def update(self, done: int) -> None:
        self._begin(done)
        if not self.quiet and time.monotonic() - self._spoke >= LINE_EVERY:
            self._spoke = time.monotonic()
            print(self._line(), file=sys.stderr, flush=True)

    def _begin(self, done: int) -> None:
        # The clock starts with the first piece of work seen, so loading and skipping do not spoil the estimate.
        if self._first is None:
            self._first, self._began = done, time.monotonic()
        self.done = done

    def _line(self) -> str:
        seconds = time.monotonic() - self._began
        speed = (self.done - (self._first or 0)) / seconds if seconds > 0 else 0.0
        left = f", about {clock((self.total - self.done) / speed)} left" if speed > 0 else ""
        share = f"{100 * self.done / max(1, self.total):.0f}%"
        return f"[{self.name}] {self.done:,}/{self.total:,} {self.unit} ({share}){left}"

    def finish(self) -> None:
        if not self.quiet:
            print(f"[{self.name}] {self.total:,} {self.unit} done", file=sys.stderr, flush=True)


class Reporter:
    """Makes stages. `plain` prints lines even in a terminal, `quiet` prints nothing."""

    def __init__(self, *, plain: bool = False, quiet: bool = False) -> None:
        self.plain = plain or not sys.stderr.isatty()
        self.quiet = quiet

    def say(self, text: str) -> None:
        if not self.quiet:
            print(text, file=sys.stderr, flush=True)

    @contextmanager
    def stage(self, name: str, total: int, unit: str) -> Iterator[Stage]:
        if self.plain or self.quiet:
            stage = Stage(name, total, unit, self.quiet)
            self.say(f"[{name}] {total:,} {unit} to do")
            yield stage
            stage.finish()
            return
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (
            TextColumn("{task.description:<12}"), BarColumn(), MofNCompleteColumn(), TextColumn(unit),
            TextColumn("left"),
            TimeRemainingColumn(elapsed_when_finished=True),
        )  # fmt: skip
        with Progress(*columns, console=Console(stderr=True)) as bars:
            yield _Bar(name, total, unit, bars=bars, task=bars.add_task(name, total=total))


@dataclass
class _Bar(Stage):
    bars: object = None
    task: object = None

    def update(self, done: int) -> None:
        self._begin(done)
        self.bars.update(self.task, completed=done)  # type: ignore[attr-defined]


def clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}" if minutes >= 60 else f"{minutes}:{rest:02d}"
