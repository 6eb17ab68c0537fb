"""Explaining and scoring against a server, killed at ten random moments: the same tables, and nothing paid twice."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from zygote import Zygote

import autointerp
from autointerp.clients._openai_probes import GREETING
from autointerp.seeds import generator

KILLS, CONCURRENCY, LATENCY = 10, 4, 0.1
TABLES = ("explanations", "windows", "scores", "judgements", "failures", "latents", "sae_metrics")
Line = dict[str, Any]


@contextmanager
def server(log: Path) -> Iterator[str]:
    """In a process of its own, which outlives the killed ones."""
    command = [
        sys.executable, "-m", "autointerp.clients.fake_server", "--port", "0", "--latency", str(LATENCY), "--log",
        str(log),
    ]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield process.stdout.readline().strip()
    finally:
        process.terminate()
        process.wait()


def commands(world: Any, out: Path, url: str) -> list[tuple[object, ...]]:
    asked = ("--base-url", url, "--max-concurrency", CONCURRENCY, "--plain")
    sampling = [f"sampling.{name}" for name in ("window=16", "explain_activating=8", "explain_random=8",
                                                "score_activating=20", "score_random=20")]  # fmt: skip
    sets = [word for name in sampling for word in ("--set", name)]
    sizes = ("--tokens", 18_000, "--context-length", 64, "--llm", "keyword", "--out", out)
    return [
        ("explain", "--sae", world.sae, *sizes, *asked, *sets),
        ("score", "--run", out, "--method", "detection", "--scorer-llm", "keyword", *asked),
    ]


def lines(log: Path) -> list[Line]:
    """Requests that came in, in order, without probes: those ask what the server can do now, and belong to no run."""
    if not log.is_file():
        return []
    # The last line may be half written.
    found = [json.loads(line) for line in log.read_text().splitlines() if line.endswith("}")]
    return [line for line in found if "index" in line and line["body"]["messages"][0]["content"] != GREETING[0].content]


def run(zygote: Zygote, some: list[tuple[object, ...]], log: Path, target: int | None = None) -> bool:
    """Run the commands; with a target, until the server has been asked so often, then kill. Whether they ended."""
    for words in some:
        command = zygote.start(*words)
        while command.alive():
            if target is not None and len(lines(log)) >= target:
                os.kill(command.pid, signal.SIGKILL)
                break
            time.sleep(0.01)
        code = command.wait()
        if code == -signal.SIGKILL:
            return False
        assert code == 0, command.said
    return True


@pytest.mark.slow
def test_ten_kills_change_no_table_and_ask_nothing_twice(world: Any, tmp_path: Path) -> None:
    quiet, log = tmp_path / "quiet.jsonl", tmp_path / "log.jsonl"
    undisturbed, killed = tmp_path / "undisturbed" / "run", tmp_path / "killed" / "run"
    segments: list[list[Line]] = []
    with Zygote(tmp_path) as zygote:
        with server(quiet) as url:
            run(zygote, commands(world, undisturbed, url), quiet)
        total = len(lines(quiet))
        assert total > 100
        targets = sorted(generator(3, "kills").choice(range(1, total), size=KILLS, replace=False).tolist())
        with server(log) as url:
            seen = 0
            for target in targets:
                # What was in flight at earlier kills is asked again, on top of what an undisturbed run asks.
                assert not run(zygote, commands(world, killed, url), log, target + CONCURRENCY * len(segments))
                time.sleep(2 * LATENCY)
                segments.append(lines(log)[seen:])
                seen += len(segments[-1])
            assert run(zygote, commands(world, killed, url), log)
            segments.append(lines(log)[seen:])
    for table in TABLES:
        first, second = (pd.read_parquet(folder / f"{table}.parquet") for folder in (undisturbed, killed))
        pd.testing.assert_frame_equal(first, second, obj=table)

    bodies = [[json.dumps(line["body"], sort_keys=True) for line in segment] for segment in segments]
    assert {body for segment in bodies for body in segment} == {
        json.dumps(line["body"], sort_keys=True) for line in lines(quiet)
    }
    for i, segment in enumerate(bodies):
        assert len(set(segment)) == len(segment), "no process asks twice"
        later = {body for other in bodies[i + 1 :] for body in other}
        # All answers take equally long, so what was in flight are the last that came in.
        completed = segment[: max(0, len(segment) - CONCURRENCY)] if i < KILLS else segment
        assert later.isdisjoint(completed), "only what was in flight at the kill is asked again"
    usage, whole = (autointerp.load_table(folder, "usage").set_index("stage") for folder in (killed, undisturbed))
    for stage in ("explain", "score-detection"):
        assert usage.loc[stage, "calls"] == whole.loc[stage, "calls"], "each answer is booked once"
        assert usage.loc[stage, "prompt_tokens"] == whole.loc[stage, "prompt_tokens"]
    assert usage["cached_calls"].sum() > 0, "the reply cache was of use"
