"""What every benchmark here shares: interleaved timing, a table, JSON, and `--check`."""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
if "OMP_WAIT_POLICY" not in os.environ:
    # Two libraries that spin on the same cores slow each other down, and seconds of spinning count as work.
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
    # A benchmark that has loaded torch by now begins again: torch has read it already.
    if "torch" in sys.modules and Path(sys.argv[0]).resolve().parent == Path(__file__).resolve().parent:
        os.execv(sys.executable, [sys.executable, *sys.argv])


@dataclass(frozen=True)
class Line:
    """One figure against its acceptance line."""

    name: str
    value: float | None
    limit: float | None = None
    at_most: bool = True
    note: str = ""

    @property
    def holds(self) -> bool | None:
        """None where there is no limit, or nothing could be measured."""
        if self.limit is None or self.value is None:
            return None
        return self.value <= self.limit if self.at_most else self.value >= self.limit


@dataclass
class Figures:
    """The figures of one benchmark."""

    title: str
    lines: list[Line] = field(default_factory=list)
    setting: dict[str, Any] = field(default_factory=dict)

    def add(
        self, name: str, value: float | None, limit: float | None = None, *, at_most: bool = True, note: str = ""
    ) -> None:
        self.lines.append(Line(name, value, limit, at_most, note))

    def finish(self, arguments: argparse.Namespace) -> None:
        """Print everything, write JSON if asked, and end the process: 1 when `--check` finds a line missed."""
        print(f"\n{self.title}  {json.dumps(self.setting)}")
        width = max(len(line.name) for line in self.lines)
        for line in self.lines:
            value = "not measured" if line.value is None else f"{line.value:.3g}"
            limit = "" if line.limit is None else f"{'<=' if line.at_most else '>='} {line.limit:g}"
            verdict = {True: "ok", False: "MISSED", None: ""}[line.holds]
            print(f"  {line.name:<{width}}  {value:>12}  {limit:<9} {verdict:<6} {line.note}")
        if arguments.json:
            found = {"title": self.title, "setting": self.setting, "figures": [asdict(line) for line in self.lines]}
            Path(arguments.json).write_text(json.dumps(found, indent=2) + "\n")
        missed = [line.name for line in self.lines if line.holds is False]
        if missed:
            print(f"missed: {', '.join(missed)}")
        sys.exit(1 if arguments.check and missed else 0)


def peak_memory() -> float:
    """Largest resident memory of this process so far, in MB. Unlike `ru_maxrss`, it forgets the parent's."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


class AnonymousPeak:
    """Largest anonymous memory of this process while the block runs, in MB, looked at 50 times a second.

    What is mapped from files (a model's weights, libraries) is not in it: the kernel drops and fetches such pages as
    it likes, and resident memory swings by their hundreds of megabytes from run to run.
    """

    def __enter__(self) -> AnonymousPeak:
        self.peak, self._stop = 0.0, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._stop.wait(0.02):
            lines = Path("/proc/self/status").read_text().splitlines()
            self.peak = max(
                self.peak, int(next(line for line in lines if line.startswith("RssAnon")).split()[1]) / 1024
            )

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


def in_process(script: str, *arguments: object) -> dict[str, float]:
    """Run a benchmark again in a process of its own, for one measurement; its last line of output is JSON."""
    done = subprocess.run([sys.executable, script, *map(str, arguments)], stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def parser(description: str) -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=description)
    made.add_argument("--check", action="store_true", help="exit with 1 when a figure misses its acceptance line")
    made.add_argument("--json", help="also write the figures here")
    made.add_argument("--rounds", type=int, default=9, help="interleaved rounds; medians are taken")
    made.add_argument("--threads", type=int, default=2, help="threads of torch")
    return made


def interleaved(contestants: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each contestant, round by round: whatever else the machine does hits all of them alike."""
    for run in contestants.values():
        run()
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, run in contestants.items():
            began = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - began)
    return seconds


def ratio(seconds: Mapping[str, list[float]], over: str, under: str) -> float:
    """Median over rounds of one contestant's seconds over another's."""
    return statistics.median(a / b for a, b in zip(seconds[over], seconds[under], strict=True))
