"""A shard that comes again with nothing to do loads nothing; one with something to do, or with other settings, does."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_study import study_yaml

from autointerp.pipeline.models import Models
from autointerp.sampling.sampler import Sampler
from autointerp.store.reader import LatentStore


@pytest.fixture
def run(world: Any, tmp_path: Path, cli: Callable[..., Any]) -> Callable[..., Any]:
    config = study_yaml(
        world, tmp_path, sae=str(world.sae), limit=4, train={"hookpoints": []},
        score={"client": "fake", "llm": "keyword", "methods": ["detection"]},
        study={"controls": [], "draws": 1, "once": []},
    )  # fmt: skip

    def run(stage: str, shard: str, *more: object) -> Any:
        return cli("run", "--config", config, "--out", tmp_path / "out", "--only", stage, "--shard", shard, *more)

    return run


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Models that were asked for."""
    found: list[str] = []
    load = Models.subject

    def counted(self: Models, name: str, *rest: Any, **more: Any) -> Any:
        found.append(name)
        return load(self, name, *rest, **more)

    monkeypatch.setattr(Models, "subject", counted)
    return found


def test_a_shard_that_is_done_loads_nothing(run: Callable[..., Any], loads: list[str], tmp_path: Path) -> None:
    for stage in ("explain", "score"):
        for index in range(2):
            assert run(stage, f"{index}/2").code == 0
        loads.clear()
        ended = run(stage, "1/2")
        assert ended.code == 0 and "shard 1/2 is done already" in ended.err and not loads
        # Another number of shards is another share, which nobody has noted.
        assert run(stage, "0/3").code == 0 and loads
    loads.clear()
    assert run("explain", "1/2", "--set", "explain.timeout=60").code == 0 and loads, "settings may shape anything"


def test_what_is_missing_is_done_again(run: Callable[..., Any], loads: list[str], tmp_path: Path) -> None:
    assert run("explain", "0/2").code == 0 and run("explain", "1/2").code == 0
    selected = json.loads((tmp_path / "out" / "selected" / "explain.json").read_text())
    for marker in (tmp_path / "out" / "done" / "explain").glob("*.json"):
        if selected[-1] in json.loads(marker.read_text())["keys"]:
            marker.unlink()
    loads.clear()
    assert run("explain", "0/2").code == 0 and not loads, "the other half has lost nothing"
    assert run("explain", "1/2").code == 0 and loads
    done = [json.loads(path.read_text())["keys"] for path in (tmp_path / "out" / "done" / "explain").glob("*.json")]
    assert sorted(key for keys in done for key in keys) == sorted(selected)


def test_scores_of_explanations_that_changed_are_not_taken_for_done(
    run: Callable[..., Any], loads: list[str], tmp_path: Path
) -> None:
    for stage in ("explain", "score"):
        assert run(stage, "0/2").code == 0 and run(stage, "1/2").code == 0
    path = tmp_path / "out" / "selected" / "explain.json"
    path.write_text(json.dumps(json.loads(path.read_text())[:-1]))
    loads.clear()
    assert run("score", "0/2").code == 0 and loads


def test_only_the_first_shard_reads_the_store_through_and_windows_are_counted_once(
    run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run("collect", "0/1").code == 0
    verified, counted = [], []
    opened, count = LatentStore.open.__func__, Sampler.window_counts  # type: ignore[attr-defined]

    def noted(cls: Any, folder: Path, *, verify: bool = False) -> Any:
        verified.append(verify)
        return opened(cls, folder, verify=verify)

    def counting(self: Sampler) -> Any:
        counted.append(count(self))
        return counted[-1]

    monkeypatch.setattr(LatentStore, "open", classmethod(noted))
    monkeypatch.setattr(Sampler, "window_counts", counting)
    for index in range(3):
        assert run("explain", f"{index}/3").code == 0
    assert verified[0] and not any(verified[1:]) and len(counted) == 1
    assert np.count_nonzero(counted[0]) > 0
