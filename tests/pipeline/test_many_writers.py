"""Many processes at once in one run folder: merged, they are the rows of one process, each once."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from autointerp.tables.parts import write_final

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
COUNTS = ("units missing", "units done twice", "rows that differ from those of one process",
          "stages whose calls differ", "half-written files")  # fmt: skip


@pytest.mark.slow
def test_eight_at_once_lose_and_double_nothing(tmp_path: Path) -> None:
    """The benchmark at its small size: 8 forks write one folder at the same time."""
    words = [sys.executable, BENCHMARKS / "shards.py", "--size", "small", "--check", "--json", tmp_path / "found.json"]
    done = subprocess.run([*map(str, words)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["setting"]["processes"] == 8
    values = {line["name"]: line["value"] for line in found["figures"]}
    assert [values[name] for name in COUNTS] == [0] * 5
    assert values["one process, CPU-ms per unit"] > 0


def folder_with(path: Path, *parts: list[str], calls: int = 3, texts: tuple[str, ...] = ("a", "b", "c")) -> Path:
    """A merged run of three units; `parts` are the keys that its markers name."""
    for number, keys in enumerate(parts):
        (path / "done" / "explain").mkdir(parents=True, exist_ok=True)
        (path / "done" / "explain" / f"{number}.json").write_text(json.dumps({"keys": keys}))
    (path / "selected").mkdir()
    (path / "selected" / "explain.json").write_text(json.dumps(["k1", "k2", "k3"]))
    rows = pd.DataFrame({"run_id": path.name, "latent": range(len(texts)), "text": texts})
    for table in ("windows", "scores", "judgements", "failures"):
        write_final(path, table, pd.DataFrame())
    write_final(path, "explanations", rows)
    write_final(path, "usage", pd.DataFrame([{"run_id": path.name, "stage": "explain", "model": "m", "calls": calls}]))
    return path


def test_damage_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    shards: Any = __import__("shards")
    whole = folder_with(tmp_path / "whole", ["k1", "k2", "k3"])
    assert list(shards.damage(whole, whole)) == list(COUNTS)
    sound = folder_with(tmp_path / "sound", ["k1"], ["k2", "k3"])
    assert not any(shards.damage(sound, whole).values())
    lost = folder_with(tmp_path / "lost", ["k1", "k2"], texts=("a", "b"))
    doubled = folder_with(tmp_path / "doubled", ["k1", "k2"], ["k2", "k3"], calls=4)
    wrong = folder_with(tmp_path / "wrong", ["k1", "k2", "k3"], texts=("a", "b", "other"))
    (wrong / ".explanations.parquet.7.tmp").touch()
    assert [list(shards.damage(folder, whole).values()) for folder in (lost, doubled, wrong)] == [
        [1, 0, 1, 0, 0], [0, 1, 0, 1, 0], [0, 0, 1, 0, 1],
    ]  # fmt: skip
