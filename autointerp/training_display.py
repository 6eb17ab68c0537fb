"""Training as it goes: a table that lives in a terminal, log lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from autointerp.progress import LINE_EVERY, Reporter, clock
from sae.learner import Progress

BARS = " ▁▂▃▄▅▆▇█"
HISTORY = 24


class TrainingDisplay:
    """Takes the figures of every dictionary at each logged step. Base: says nothing."""

    def update(self, step: int, reports: Sequence[tuple[str, Progress]]) -> None:
        """`step` steps are done; reports by name, if this step was logged."""


class Lines(TrainingDisplay):
    def __init__(self, n_steps: int) -> None:
        self.n_steps = n_steps
        self._first: int | None = None
        self._began = self._spoke = time.monotonic()

    def update(self, step: int, reports: Sequence[tuple[str, Progress]]) -> None:
        now = time.monotonic()
        if self._first is None:
            self._first, self._began = step, now
        if not reports or (now - self._spoke < LINE_EVERY and step < self.n_steps):
            return
        self._spoke = now
        left = _left(step, self._first, self.n_steps, now - self._began)
        print(f"[train] {step:,}/{self.n_steps:,} steps ({100 * step / self.n_steps:.0f}%){left}", file=sys.stderr)
        for name, report in reports:
            print(
                f"[train]   {name}: fvu {report.fvu:.3f}, L0 {report.l0:.1f}, dead {report.dead_share:.0%}",
                file=sys.stderr, flush=True,
            )  # fmt: skip


class Live(TrainingDisplay):
    """A bar, and a line per dictionary with the course of its FVU."""

    def __init__(self, n_steps: int, live: Any) -> None:
        self.n_steps, self._live = n_steps, live
        self._first: int | None = None
        self._began = time.monotonic()
        self._last: dict[str, Progress] = {}
        self._fvu: dict[str, list[float]] = {}

    def update(self, step: int, reports: Sequence[tuple[str, Progress]]) -> None:
        if self._first is None:
            self._first, self._began = step, time.monotonic()
        for name, report in reports:
            self._last[name] = report
            self._fvu.setdefault(name, []).append(report.fvu)
        if reports or step == self.n_steps:
            self._live.update(self._picture(step))

    def _picture(self, step: int) -> Any:
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        left = _left(step, self._first or 0, self.n_steps, time.monotonic() - self._began)
        head = Text(f"training  {step:,}/{self.n_steps:,} steps{left}")
        table = Table(box=None, padding=(0, 2, 0, 0))
        for column in ("dictionary", "fvu", "L0", "dead", "loss", "lr", "fvu over time"):
            table.add_column(column, justify="left" if column in {"dictionary", "fvu over time"} else "right")
        for name, report in self._last.items():
            table.add_row(
                Text(name), f"{report.fvu:.3f}", f"{report.l0:.1f}", f"{report.dead_share:.0%}", f"{report.loss:.3f}",
                f"{report.lr:.1e}", sparkline(self._fvu[name]),
            )  # fmt: skip
        bar = Table.grid()  # a bar by itself does not end its line
        bar.add_row(ProgressBar(total=self.n_steps, completed=step, width=60))
        return Group(head, bar, table)


def sparkline(values: Sequence[float]) -> str:
    """The course of a figure in a few characters, 0 at the bottom, the first value shown at the top."""
    n = len(values)
    shown = [values[i * n // HISTORY] for i in range(HISTORY)] if n > HISTORY else list(values)
    top = max(shown, default=0.0) or 1.0
    return "".join(BARS[min(len(BARS) - 1, max(0, round(v / top * (len(BARS) - 1))))] for v in shown)


@contextmanager
def training_display(reporter: Reporter, n_steps: int) -> Iterator[TrainingDisplay]:
    if reporter.quiet:
        yield TrainingDisplay()
    elif reporter.plain:
        reporter.say(f"[train] {n_steps:,} steps to do")
        yield Lines(n_steps)
    else:
        from rich.console import Console
        from rich.live import Live as RichLive

        with RichLive(console=Console(stderr=True), refresh_per_second=4) as live:
            yield Live(n_steps, live)


def _left(step: int, first: int, n_steps: int, seconds: float) -> str:
    done = step - first
    return f", about {clock((n_steps - step) * seconds / done)} left" if done > 0 and seconds > 0 else ""
