"""What is finished stays finished: part files, markers, resumption, and a SIGKILL in between."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import uuid
from pathlib import Path
from typing import Any

import pytest

from autointerp.engine.ledger import Ledger, work_key


def rows(*messages: str) -> dict[str, list[dict[str, Any]]]:
    return {"failures": [{"stage": "s", "latent": 1, "kind": "error", "message": message} for message in messages]}


def messages(ledger: Ledger, *keys: str) -> list[str]:
    return sorted(ledger.rows("failures", set(keys))["message"])


def test_flushed_units_are_seen_by_the_next_ledger(tmp_path: Path) -> None:
    first = Ledger(tmp_path, "s")
    first.record("a", rows("a1", "a2"))
    first.record("b", rows("b1"))
    assert "a" not in first and not list((tmp_path / "done" / "s").glob("*"))
    first.flush()
    assert "a" in first and "b" in first
    second = Ledger(tmp_path, "s")
    assert "a" in second and "b" in second and "c" not in second
    second.record("c", rows("c1"))
    second.flush()
    third = Ledger(tmp_path, "s")
    assert messages(third, "a", "b", "c") == messages(second, "a", "b", "c") == ["a1", "a2", "b1", "c1"]
    assert len(list((tmp_path / "done" / "s").iterdir())) == len(list((tmp_path / "failures").iterdir())) == 2
    assert "a" not in Ledger(tmp_path, "other stage")


def test_rows_gives_the_wanted_units_only(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path, "s")
    for name in "abc":
        ledger.record(name, {**rows(f"{name}1"), "usage": [{"stage": "s", "model": name, "calls": 1}]})
    ledger.record("silent", {})
    ledger.flush()
    assert messages(ledger, "a", "c", "unknown") == ["a1", "c1"]
    assert messages(ledger, "silent") == [] and "silent" in ledger
    assert sorted(ledger.rows("usage", {"b", "c"})["model"]) == ["b", "c"]
    for nothing in (ledger.rows("failures", set()), ledger.rows("scores", {"a"})):
        assert nothing.empty and "work_key" in nothing


def test_a_part_without_marker_does_not_exist(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path, "s")
    ledger.record("a", rows("a1"))
    ledger.flush()
    ledger.record("b", rows("b1"))
    ledger.flush()
    markers = {json.loads(p.read_text())["keys"][0]: p for p in (tmp_path / "done" / "s").iterdir()}
    markers["b"].unlink()
    resumed = Ledger(tmp_path, "s")
    assert "a" in resumed and "b" not in resumed
    assert messages(resumed, "a", "b") == ["a1"]
    resumed.record("b", rows("b2"))
    resumed.flush()
    assert messages(Ledger(tmp_path, "s"), "a", "b") == ["a1", "b2"]


def test_a_key_of_two_parts_counts_once(tmp_path: Path) -> None:
    one, two = Ledger(tmp_path, "s"), Ledger(tmp_path, "s")
    one.record("a", rows("from one", "from one"))
    two.record("a", rows("from two", "from two"))
    two.record("b", rows("b"))
    one.flush()
    two.flush()
    found = messages(Ledger(tmp_path, "s"), "a", "b")
    assert found in (["b", "from one", "from one"], ["b", "from two", "from two"])


def test_a_key_recorded_twice_before_a_flush_counts_once(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path, "s")
    ledger.record("a", rows("a1"))
    ledger.record("a", rows("a1"))
    ledger.flush()
    assert messages(ledger, "a") == ["a1"]


@pytest.mark.parametrize(
    "parts",
    [
        pytest.param(("bbbb", "aaaa"), id="the new part sorts first"),
        pytest.param(
            ("aaaa", "bbbb"),
            id="the old part sorts first",
        ),
    ],
)
def test_a_retried_unit_replaces_the_failed_one_for_good(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, parts: tuple[str, str]
) -> None:
    names = iter(parts)

    class Named:
        @property
        def hex(self) -> str:
            return next(names)

    monkeypatch.setattr(uuid, "uuid4", Named)
    ledger = Ledger(tmp_path, "s")
    ledger.record("a", rows("failed"))
    ledger.flush()
    again = Ledger(tmp_path, "s")
    again.forget({"a"})
    assert "a" not in again
    again.record("a", rows("retried"))
    again.flush()
    assert messages(again, "a") == ["retried"]
    assert messages(Ledger(tmp_path, "s"), "a") == ["retried"], "also for whoever reads the run later"


def test_when_it_flushes(tmp_path: Path) -> None:
    by_number = Ledger(tmp_path, "n", flush_units=3, flush_seconds=1e9)
    for i, name in enumerate("abcde"):
        by_number.record(name, rows(name))
        assert len(list(by_number.folder.iterdir())) == (i + 1) // 3
    assert "c" in by_number and "d" not in by_number
    by_time = Ledger(tmp_path, "t", flush_units=1000, flush_seconds=0.02)
    by_time.record("a", rows("a"))
    time.sleep(0.03)
    by_time.record("b", rows("b"))
    assert "a" in Ledger(tmp_path, "t")
    by_time.flush()
    n = len(list(by_time.folder.iterdir()))
    by_time.flush()
    assert len(list(by_time.folder.iterdir())) == n, "an empty flush writes nothing"


@pytest.mark.parametrize(
    "where",
    [
        0,
        pytest.param(
            1,
        ),
    ],
)
def test_a_row_with_an_unknown_column_raises(tmp_path: Path, where: int) -> None:
    ledger = Ledger(tmp_path, "s")
    some = rows("m0", "m1")
    some["failures"][where]["colour"] = "red"
    ledger.record("a", some)
    with pytest.raises(ValueError, match="table failures has no column colour"):
        ledger.flush()
    assert "a" not in Ledger(tmp_path, "s")


def test_a_row_with_a_value_of_wrong_type_raises(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path, "s")
    ledger.record("a", {"failures": [{"latent": "seventeen"}]})
    with pytest.raises(Exception, match="seventeen"):
        ledger.flush()
    assert "a" not in Ledger(tmp_path, "s") and not list(tmp_path.rglob("*.tmp"))


WRITER = """
import sys
from pathlib import Path
from autointerp.engine.ledger import Ledger
ledger = Ledger(Path(sys.argv[1]), "s", flush_units=1)
for i in range(100_000):
    ledger.record(f"k{i}", {"failures": [{"message": f"{i}-{j}"} for j in range(3)], "usage": [{"calls": i}]})
"""


def test_a_sigkill_leaves_whole_units_only(tmp_path: Path) -> None:
    for _ in range(2):
        before = len(Ledger(tmp_path, "s").where)
        with subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)]) as child:
            deadline = time.monotonic() + 60
            while len(list((tmp_path / "done" / "s").glob("*.json"))) < before + 8:
                assert child.poll() is None and time.monotonic() < deadline
                time.sleep(0.005)
            child.kill()
        assert child.returncode == -9
        ledger = Ledger(tmp_path, "s")
        keys = set(ledger.where)
        assert len(keys) >= 8
        found = ledger.rows("failures", keys)
        assert found.groupby("work_key").size().to_dict() == dict.fromkeys(keys, 3)
        assert set(found["message"]) == {f"{key[1:]}-{j}" for key in keys for j in range(3)}
        assert sorted(ledger.rows("usage", keys)["calls"]) == sorted(int(key[1:]) for key in keys)


def test_work_keys() -> None:
    key = work_key("explain", latent=3, config={"a": 1, "b": 2})
    assert key == work_key("explain", config={"b": 2, "a": 1}, latent=3)
    others = [
        work_key("score", latent=3, config={"a": 1, "b": 2}),
        work_key("explain", latent=4, config={"a": 1, "b": 2}),
        work_key("explain", latent=3, config={"a": 1, "b": 3}),
        work_key("explain", latent=3, config={"a": 1, "b": 2}, model=None),
    ]
    assert len({key, *others}) == 5
