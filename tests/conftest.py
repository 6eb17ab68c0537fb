"""Fixtures: a planted world (tiny model, corpus, SAE with known latents), and the command line in-process."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import planted
from demo_process import finish_demo
from filelock import FileLock


@dataclass(frozen=True)
class World:
    model: Path
    corpus: Path
    sae: Path


@dataclass(frozen=True)
class Ended:
    code: int
    out: str
    err: str


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("planted")
    model = planted.build_model(folder / "model")
    corpus = planted.build_corpus(folder / "corpus.jsonl")
    return World(model, corpus, planted.build_sae(folder / "sae", model, corpus))


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., Ended]:
    """The `autointerp` command, run in this process: exit code and what it printed."""
    from autointerp.cli import main

    def run(*args: object) -> Ended:
        monkeypatch.setattr(sys, "argv", ["autointerp", *map(str, args)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as end:
            main()
        captured = capfd.readouterr()
        code = end.value.code
        return Ended(code if isinstance(code, int) else 0 if code is None else 1, captured.out, captured.err)

    return run


@pytest.fixture(scope="session")
def small_demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder of the demo at reduced size, on the real subject model. Nobody may change it."""
    base = tmp_path_factory.getbasetemp()
    # Processes that share the tests share it: it takes a minute.
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    out, done = shared / "small" / "demo", shared / "small-demo.done"
    with FileLock(shared / "small-demo.lock"):
        if not done.exists():
            printed = finish_demo(out)
            assert "explanations against their shuffled control" in printed
            assert "left" in printed or "done" in printed
            done.touch()
    return out
