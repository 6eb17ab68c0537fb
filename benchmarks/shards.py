"""Many processes that write one run folder: nothing lost, nothing doubled, and what the dividing costs.

    python benchmarks/shards.py --check

64 processes at once each do their share of explaining and scoring (`autointerp run --only explain --shard i/64`), and
one process does the same alone; the subject model is tiny, the codes are synthetic, and the fake client answers at
once, so that what is left is this program: windows, prompts, answers read, part files, markers, the merge. All are
forked from a process that has imported everything and has run nothing, and have one thread each.

The efficiency of the line is that of two cores: the time of one process, over twice the time of 64 on both, without
what a process pays before its first unit and after its last. That is measured by running the same shards again when all
is done: they open the run (settings, model, store, the keys of all units, the explanations of all others) and find
nothing to do. It grows with the number of latents and is paid by every shard, and here a unit takes 8 ms of CPU where
one that asks a language model takes seconds; so the efficiency with it and with the merge, and that with the imports of
new Python processes, are printed too: they are what a user pays at this size. Where the machine has other work to do,
wall times mean nothing, and the same ratios of CPU-seconds, which cannot see waiting, are what is left.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from _bench import Figures, in_process, parser

CORES, LINE = 2, 0.85
SIZES = {"full": (8192, 800_000, 64), "small": (64, 10_000, 8)}
"""Latents, tokens, processes."""
STAGES = ("explain", "score")
TABLES = ("explanations", "windows", "scores", "judgements", "failures")
Words = Sequence[object]


@dataclass(frozen=True)
class Took:
    """Seconds of some processes together."""

    wall: float
    cpu: float

    def __add__(self, other: Took) -> Took:
        return Took(self.wall + other.wall, self.cpu + other.cpu)

    def __sub__(self, other: Took) -> Took:
        return Took(self.wall - other.wall, self.cpu - other.cpu)


def imported() -> Callable[[], None]:
    """The command line, with everything that a stage imports."""
    import dotenv
    import jsonschema
    import scipy.stats
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerFast

    import autointerp.cli.commands
    import autointerp.cli.running
    import autointerp.clients.fake
    import autointerp.explain.default
    import autointerp.pipeline.study
    import autointerp.report
    import sae.architectures.topk
    import sae.formats.native
    import scoring.detection
    from autointerp.cli import main

    # Named, so that transformers loads what they need now.
    assert all((AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerFast))
    assert all((dotenv, jsonschema, scipy.stats, torch, autointerp, sae, scoring))
    return main


def forked(main: Callable[[], None], commands: Sequence[Words], log: Path, at_once: int) -> Took:
    """Run commands in forks of this process. All have to end well."""
    import torch

    waiting, running, cpu, began = list(commands), set[int](), 0.0, time.perf_counter()
    while waiting or running:
        while waiting and len(running) < at_once:
            words = waiting.pop(0)
            pid = os.fork()
            if pid == 0:
                _become(main, words, log, lambda: torch.set_num_threads(1))
            running.add(pid)
        pid, status, used = os.wait4(-1, 0)
        running.discard(pid)
        cpu += used.ru_utime + used.ru_stime
        if os.waitstatus_to_exitcode(status):
            raise SystemExit(f"a process failed:\n{log.read_text()[-2000:]}")
    return Took(time.perf_counter() - began, cpu)


def _become(main: Callable[[], None], words: Words, log: Path, first: Callable[[], None]) -> None:
    code = 1
    try:
        with log.open("a") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        first()
        sys.argv = ["autointerp", *map(str, words)]
        main()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def shards(config: Path, out: Path, stage: str, count: int) -> list[Words]:
    how = ("run", "--config", config, "--out", out, "--quiet", "--only", stage, "--shard")
    return [(*how, f"{index}/{count}") for index in range(count)]


def damage(out: Path, whole: Path) -> dict[str, int]:
    """What is wrong with a folder that many have written, after the merge."""
    import pandas as pd

    from autointerp.tables.load import load_table

    done = Counter[tuple[str, str]]()
    for marker in out.glob("done/*/*.json"):
        done.update((marker.parent.name, key) for key in json.loads(marker.read_text())["keys"])
    selected = {(path.stem, key) for path in out.glob("selected/*.json") for key in json.loads(path.read_text())}
    rows = 0
    for table in TABLES:
        mine, theirs = (load_table(folder, table).drop(columns="run_id") for folder in (out, whole))
        try:
            pd.testing.assert_frame_equal(mine, theirs)
        except AssertionError:
            rows += max(1, abs(len(mine) - len(theirs)))
    calls = [load_table(folder, "usage").set_index("stage")["calls"].to_dict() for folder in (out, whole)]
    return {
        "units missing": len(selected - done.keys()),
        "units done twice": sum(n - 1 for n in done.values()),
        "rows that differ from those of one process": rows,
        "stages whose calls differ": sum(calls[0].get(stage) != calls[1].get(stage) for stage in calls[0] | calls[1]),
        "half-written files": len(list(out.rglob("*.tmp"))),
    }


def started(words: Words) -> float:
    """CPU-seconds of a command in a new process."""
    before = os.times()
    code = "import sys; from autointerp.cli import main; main()"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run(
        [sys.executable, "-c", code, *map(str, words)], check=True, stdout=subprocess.DEVNULL, env=environment,
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    after = os.times()
    return after.children_user + after.children_system - before.children_user - before.children_system


def main() -> None:
    made = parser(__doc__ or "")
    made.add_argument("--size", choices=SIZES, default="full", help="small: seconds instead of minutes")
    made.add_argument("--prepare", nargs=3, metavar=("FOLDER", "LATENTS", "TOKENS"), help="make what is read, and end")
    made.set_defaults(rounds=None)
    options = made.parse_args()
    options.rounds = options.rounds or (3 if options.size == "full" else 1)
    if options.prepare:
        from _tiny import prepare

        prepare(Path(options.prepare[0]), *map(int, options.prepare[1:]))
        print("{}")
        return
    n_latents, tokens, count = SIZES[options.size]
    folder = Path(tempfile.mkdtemp(prefix="autointerp-bench-"))
    try:
        measure(options, folder, n_latents, tokens, count).finish(options)
    finally:
        shutil.rmtree(folder)


def measure(options: argparse.Namespace, folder: Path, n_latents: int, tokens: int, count: int) -> Figures:
    in_process(__file__, "--prepare", folder, n_latents, tokens)
    config, log, command = folder / "run.yaml", folder / "log.txt", imported()
    rounds, small = options.rounds, options.size == "small"
    opened, finished, merged = [], [], []
    worst: Counter[str] = Counter()
    starting: float | None = None
    # All runs go by one name: it stands in their rows.
    whole, out = folder / "whole" / "run", folder / "shared" / "run"
    for number in range(rounds):
        for path in (whole, out):
            shutil.rmtree(path, ignore_errors=True)
        passes = []
        for again in (False, True):
            # Without these notes a shard opens the run before it finds nothing to do.
            for path in (*out.glob("shards/*/*.json"), whole / "finished.json") if again else ():
                if path.stem in (*STAGES, "finished"):
                    path.unlink()
            one, many = Took(0, 0), Took(0, 0)
            for stage in STAGES:
                one += forked(command, shards(config, whole, stage, 1), log, 1)
                many += forked(command, shards(config, out, stage, count), log, count)
            passes.append((one, many))
            print(
                f"one process: {one.wall:.1f} s, {one.cpu:.1f} CPU-s; {count}: {many.wall:.1f} s, {many.cpu:.1f} CPU-s"
            )
        finished.append(passes[0])
        opened.append(passes[1])
        if number == 0 and not small:
            nothing = [shards(config, out, stage, count)[1] for stage in STAGES]
            starting = sum(map(started, nothing)) - forked(command, nothing, log, 1).cpu
        merged.append(forked(command, [("merge", out, "--quiet")], log, 1))
        worst.update(damage(out, whole))

    def median(ratio: Callable[[Took, Took], float], *, work: bool = False) -> float:
        """Of one process and many, with what they pay to open the run and to merge, or without."""
        rounds = zip(finished, opened, merged, strict=True)
        return statistics.median(
            ratio(one - first, many - others) if work else ratio(one, many + merging)
            for (one, many), (first, others), merging in rounds
        )

    setting = {"latents": n_latents, "tokens": tokens, "processes": count, "rounds": rounds}
    figures = Figures("shards", setting=setting)
    line = None if small else LINE  # too little work for each process
    units = len(STAGES) * n_latents
    figures.add("one process, CPU-ms per unit", median(lambda one, many: 1000 * one.cpu / units, work=True))
    figures.add(
        f"efficiency of {CORES} cores after opening, wall", median(_wall, work=True), line, at_most=False,
        note="only on a machine that does nothing else",
    )  # fmt: skip
    figures.add("the same in CPU-seconds", median(_cpu, work=True), line, at_most=False)
    figures.add("opening a run, CPU-s per shard and stage",
                statistics.median(many.cpu for _, many in opened) / count / len(STAGES))  # fmt: skip
    figures.add("merging, CPU-s", statistics.median(took.cpu for took in merged))
    figures.add("efficiency with opening and merging, wall", median(_wall))
    figures.add("the same in CPU-seconds ", median(_cpu))
    counted: float | None = None
    if starting is not None:
        more = starting
        counted = median(lambda one, many: (one.cpu + more) / (many.cpu + count * more))
    figures.add("imports, CPU-s per process", None if starting is None else starting / len(STAGES))
    figures.add("efficiency with imports too, CPU-seconds", counted)
    for name in damage(whole, whole):
        figures.add(name, worst[name], 0)
    return figures


def _wall(one: Took, many: Took) -> float:
    return one.wall / (CORES * many.wall)


def _cpu(one: Took, many: Took) -> float:
    return one.cpu / many.cpu


if __name__ == "__main__":
    main()
