"""Servers that announce themselves in the run folder, one of which is killed: nothing is lost, and nothing asked twice.

The servers are real processes, killed with all that belongs to them, so that their files stay behind.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from test_study import study_yaml

from autointerp.clients._announced import announced
from autointerp.clients._openai_probes import GREETING
from autointerp.config import resolve
from autointerp.pipeline.study import Study
from autointerp.progress import Reporter
from autointerp.tables.load import load_table

TABLES = ("explanations", "windows", "scores", "judgements", "failures")
Line = dict[str, Any]


class Server:
    """A fake server and what announces it."""

    def __init__(self, folder: Path, log: Path, latency: float) -> None:
        self.log = log
        announce = ["autointerp.clients.announce", folder, "--host", "127.0.0.1", "--port", 0, "--job", log.stem]
        fake = ["autointerp.clients.fake_server", "--port", "{port}", "--latency", latency, "--log", log]
        words = [sys.executable, "-m", *announce, "--", sys.executable, "-m", *fake]
        self.process = subprocess.Popen(
            [*map(str, words)], start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )

    def kill(self) -> None:
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def answered(self) -> list[str]:
        return self.answered_in(self.log)

    @staticmethod
    def answered_in(log: Path) -> list[str]:
        """Bodies of the requests that were answered, without probes."""
        found = lines(log)
        asked = {line["index"]: json.dumps(line["body"], sort_keys=True) for line in found if "index" in line}
        done = [asked[line["done"]] for line in found if "done" in line]
        return [body for body in done if GREETING[0].content not in body]


def lines(log: Path) -> list[Line]:
    """One for each request that came in, and one for each that was answered."""
    text = log.read_text() if log.is_file() else ""
    # The last line may be half written.
    return [json.loads(line) for line in text.splitlines() if line.endswith("}")]


@contextmanager
def servers(folder: Path, logs: Path, *names: str, latency: float = 0.05) -> Iterator[list[Server]]:
    started: list[Server] = []
    with ExitStack() as ends:
        for name in names:
            started.append(Server(folder, logs / f"{name}.jsonl", latency))
            ends.callback(_end, started[-1])
        deadline = time.monotonic() + 30
        while len({one.job for one in announced(folder)} & set(names)) < len(names):
            assert time.monotonic() < deadline, "the servers do not announce themselves"
            time.sleep(0.05)
        yield started


def _end(server: Server) -> None:
    if server.process.poll() is None:
        server.process.terminate()
        server.process.wait()


@contextmanager
def killed_after(server: Server, n: int) -> Iterator[None]:
    """Killed while the block runs, when it has answered so many requests."""
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.01):
            if len(server.answered()) >= n:
                server.kill()
                return

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
    assert server.process.poll() == -signal.SIGKILL, "it was not killed in time"


def config_in(world: Any, folder: Path) -> Path:
    asked = {"client": "openai", "llm": "keyword", "base_url": "servers:", "max_concurrency": 4, "server_wait": 1}
    return study_yaml(
        world, folder, sae=str(world.sae), limit=6, train={"hookpoints": []},
        explain=asked, score={**asked, "methods": ["detection"]}, study={"controls": [], "draws": 1, "once": []},
    )  # fmt: skip


@pytest.fixture(scope="module")
def whole(world: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An undisturbed run, in one process at one server."""
    folder = tmp_path_factory.mktemp("whole")
    with servers(folder / "out" / "servers", folder, "alone", latency=0.0):
        settings = resolve({}, config=config_in(world, folder), environ={})
        Study(settings, folder / "out", Reporter(quiet=True))()
    return folder / "out"


@pytest.fixture
def run(world: Any, tmp_path: Path, cli: Callable[..., Any]) -> Callable[..., Any]:
    config = config_in(world, tmp_path)
    return lambda *more: cli("run", "--config", config, "--out", tmp_path / "out", "--quiet", *more)


def same_tables(one: Path, other: Path) -> None:
    for table in TABLES:
        mine, theirs = (load_table(folder, table).drop(columns="run_id") for folder in (one, other))
        pd.testing.assert_frame_equal(mine, theirs, obj=table)


def test_one_of_two_servers_dies_and_the_other_takes_over(run: Callable[..., Any], whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    asked = set(Server.answered_in(whole.parent / "alone.jsonl"))
    with servers(out / "servers", tmp_path, "first", "second") as (first, second):
        with killed_after(first, 6):
            ended = run()
        assert ended.code == 0, ended.err
        assert len(announced(out / "servers")) == 2, "what the killed one said of itself is still there"
        one, other = first.answered(), second.answered()
    assert set(one) | set(other) == asked
    assert len(one) >= 2, "it was in the middle"
    assert len(other) == len(set(other)) and not set(one) & set(other), "what was answered is not asked again"
    same_tables(out, whole)
    mine, theirs = (load_table(folder, "usage").set_index("stage") for folder in (out, whole))
    for stage in ("explain", "score-detection"):
        assert mine.loc[stage, "calls"] - mine.loc[stage, "retries"] == theirs.loc[stage, "calls"]


def test_with_none_left_a_shard_waits_and_fails_and_goes_on_at_a_new_server(
    run: Callable[..., Any], whole: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    with servers(out / "servers", tmp_path, "first") as (first,):
        assert run("--only", "collect").code == 0
        assert run("--only", "explain").code == 0
        with killed_after(first, len(first.answered()) + 6):
            ended = run("--only", "score", "--shard", "0/2")
    assert ended.code == 1
    assert ended.err.count("\n") == 1 and "no server of 'keyword' is announced in" in ended.err
    assert "run the same command again" in ended.err
    again = run("--only", "score", "--shard", "0/2")
    assert again.code == 1 and "no server of 'keyword'" in again.err
    assert run("--only", "explain").code == 0, "where nothing is left to ask, no server is waited for"
    with servers(out / "servers", tmp_path, "second", latency=0.0) as (second,):
        for index in range(2):
            ended = run("--only", "score", "--shard", f"{index}/2")
            assert ended.code == 0, ended.err
    assert not set(first.answered()) & set(second.answered()), "another port is no other server"
    Study(resolve({"out": str(out)}, config=out / "config.yaml", environ={}), out, Reporter(quiet=True)).merge()
    same_tables(out, whole)


def test_a_server_that_comes_later_is_waited_for(run: Callable[..., Any], tmp_path: Path) -> None:
    out, late = tmp_path / "out", ExitStack()
    assert run("--only", "collect", "--set", "explain.client=fake", "--set", "explain.base_url=null").code == 0
    thread = threading.Timer(1.0, lambda: late.enter_context(servers(out / "servers", tmp_path, "late", latency=0.0)))
    thread.start()
    try:
        ended = run("--only", "explain", "--set", "explain.server_wait=60")
    finally:
        thread.join()
        late.close()
    assert ended.code == 0, ended.err
