"""A disk that fills up under one shard of a run: one line, nothing half-written, and after making room the same tables
as without it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
import pytest
from small_disk import Disk, small_disk
from test_study import study_yaml

from autointerp.config import resolve
from autointerp.engine.ledger import Ledger
from autointerp.pipeline.study import Study
from autointerp.progress import Reporter
from autointerp.tables.load import load_table

TABLES = ("explanations", "windows", "scores", "judgements", "failures")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    with small_disk(tmp_path / "disk") as made:
        yield made


def config_in(world: Any, folder: Path) -> Path:
    return study_yaml(
        world, folder, sae=str(world.sae), stores=str(folder / "stores"), limit=8, train={"hookpoints": []},
        score={"client": "fake", "llm": "keyword", "methods": ["detection"]},
        study={"controls": [], "draws": 1, "once": []},
    )  # fmt: skip


@pytest.fixture(scope="module")
def whole(world: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    Study(resolve({}, config=config_in(world, folder), environ={}), folder / "out", Reporter(quiet=True))()
    return folder / "out"


@pytest.fixture
def config(world: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    # A part file for each unit, so that the disk fills up between two of them.
    monkeypatch.setattr(Ledger.__init__, "__kwdefaults__", {"flush_units": 1, "flush_seconds": 10.0})
    return config_in(world, tmp_path)


def finished(out: Path, stage: str) -> Counter[str]:
    """Units that a stage has finished, each with its rows where they belong."""
    found: Counter[str] = Counter()
    for marker in (out / "done" / stage).glob("*.json"):
        told = json.loads(marker.read_text())
        found.update(told["keys"])
        for table in told["tables"]:
            assert pq.read_table(out / table / f"{stage}-{marker.stem}.parquet").num_rows >= 0
    assert not [path for path in out.rglob("*") if path.name.endswith(".tmp")], "nothing is half-written"
    return found


@pytest.mark.parametrize("room", [0.0, 0.02, 0.1])
def test_a_shard_that_fills_the_disk(
    disk: Disk, config: Path, whole: Path, cli: Callable[..., Any], room: float
) -> None:
    out = disk.folder / "out"

    def run(stage: str, shard: str) -> Any:
        return cli("run", "--config", config, "--out", out, "--quiet", "--only", stage, "--shard", shard)

    for stage, done in (("explain", "explain"), ("score", "score-detection")):
        disk.resize(16)
        assert run(stage, "0/2").code == 0
        first = finished(out, done)
        disk.resize(disk.used + room)
        partly = first
        for _ in range(2):
            ended = run(stage, "1/2")
            assert ended.code == 1, ended.err
            assert ended.err.count("\n") == 1 and ended.err.startswith("error: "), ended.err
            assert "full" in ended.err or "no room" in ended.err
            assert "free some space and run the same command" in ended.err
            now = finished(out, done)
            assert first <= partly <= now and max(now.values()) == 1, "what is finished stays"
            partly = now
        assert len(first) <= len(partly) < 8
        if room == 0.1:
            assert len(partly) > len(first), "it was in the middle"
        # Somebody has made room: the other shard has lost nothing, and this one does what is left.
        disk.resize(16)
        assert run(stage, "0/2").code == 0 and finished(out, done) == partly
        assert run(stage, "1/2").code == 0
        assert sorted(finished(out, done).values()) == [1] * 8
    ended = cli("merge", out, "--quiet")
    assert ended.code == 0, ended.err
    for table in TABLES:
        pd.testing.assert_frame_equal(load_table(out, table), load_table(whole, table), obj=table)
    calls = [load_table(folder, "usage").set_index("stage")["calls"] for folder in (out, whole)]
    for stage in ("explain", "score-detection"):
        assert calls[0][stage] == calls[1][stage], "no answer was asked for twice"
