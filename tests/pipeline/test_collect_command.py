"""`autointerp collect`: shards, several SAEs, kills, and what later commands make of the stores."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import autointerp
import sae
from autointerp.pipeline.dictionary import random_sae
from autointerp.store import layout
from autointerp.store.reader import LatentStore
from autointerp.tables.load import load_table

SMALL = ("--tokens", 20_000, "--context-length", 64, "--batch-tokens", 1024, "--plain")
EXPLAIN = (
    "--tokens", 20_000, "--context-length", 64, "--plain", "--client", "fake", "--set", "data.batch_tokens=1024",
    "--set", "sampling.window=16", "--set", "sampling.min_windows=5",
)  # fmt: skip


@pytest.fixture(scope="module")
def whole(world: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a store, collected by a process of its own."""
    out = tmp_path_factory.mktemp("whole") / "run"
    subprocess.run(command(world, out), check=True, capture_output=True)
    return out


def command(world: Any, out: Path) -> list[str]:
    return [sys.executable, "-m", "autointerp", "collect", "--sae", str(world.sae), "--out", str(out), *map(str, SMALL)]


def store_of(out: Path) -> Path:
    (folder,) = (out / "store").iterdir()
    return folder


def test_shards_are_read_as_one(world: Any, whole: Path, cli: Callable[..., Any], tmp_path: Path) -> None:
    out = tmp_path / "sharded"
    for shard in ("2/4", "0/4", "3/4"):
        ended = cli("collect", "--sae", world.sae, "--out", out, "--shard", shard, *SMALL)
        assert ended.code == 0 and f"shard {shard}" in ended.out, ended.err
    early = cli("explain", "--sae", world.sae, "--out", out, *EXPLAIN)
    assert early.code == 2 and "missing are 1" in early.err and "--shard 1/4" in early.err
    assert cli("collect", "--sae", world.sae, "--out", out, "--shard", "1/4", *SMALL).code == 0
    one, four = LatentStore.open(store_of(whole)), LatentStore.open(store_of(out), verify=True)
    assert len(four.shards) == 4
    np.testing.assert_array_equal(one.tokens, four.tokens)
    np.testing.assert_array_equal(one.documents, four.documents)
    for latent in range(one.n_latents):
        for mine, theirs in zip(one.of(latent), four.of(latent), strict=True):
            np.testing.assert_array_equal(mine, theirs)
    runs = [whole, out]
    for run in runs:
        ended = cli("explain", "--sae", world.sae, "--out", run, *EXPLAIN)
        assert ended.code == 0 and "collecting" not in ended.err, ended.err
    for table in ("explanations", "windows"):
        first, second = (load_table(run, table).drop(columns="run_id") for run in runs)
        pd.testing.assert_frame_equal(first, second)
    usage = [load_table(run, "usage").query("stage == 'collect'") for run in runs]
    assert [table["prompt_tokens"].tolist() for table in usage] == [[one.n_tokens], [one.n_tokens]]


def test_divisions_do_not_mix(world: Any, whole: Path, cli: Callable[..., Any], tmp_path: Path) -> None:
    onto_whole = cli("collect", "--sae", world.sae, "--out", whole, "--shard", "0/2", *SMALL)
    assert onto_whole.code == 2 and "not sharded" in onto_whole.err
    out = tmp_path / "run"
    assert cli("collect", "--sae", world.sae, "--out", out, "--shard", "0/2", *SMALL).code == 0
    onto_shards = cli("collect", "--sae", world.sae, "--out", out, *SMALL)
    assert onto_shards.code == 2 and "holds shards" in onto_shards.err
    fresh = cli("collect", "--sae", world.sae, "--out", out, "--shard", "1/2", "--fresh", *SMALL)
    assert fresh.code == 2 and "other shards" in fresh.err
    for wrong in ("2/2", "1", "-1/2", "0/0", "a/b"):
        ended = cli("collect", "--sae", world.sae, "--out", tmp_path / "none", "--shard", wrong, *SMALL)
        assert ended.code == 2 and "is no share" in ended.err
    many = cli("collect", "--sae", world.sae, "--out", tmp_path / "many", "--shard", "499/500", *SMALL)
    assert many.code in {0, 2}
    few = cli("collect", "--sae", world.sae, "--out", tmp_path / "few", "--shard", "0/500", *SMALL)
    assert few.code == 2 and "use fewer shards" in few.err


def test_several_saes_in_one_pass(world: Any, whole: Path, cli: Callable[..., Any], tmp_path: Path) -> None:
    other = sae.save(random_sae(sae.load(world.sae), seed=1), tmp_path / "other")
    out = tmp_path / "run"
    ended = cli("collect", "--sae", world.sae, "--sae", other, "--out", out, *SMALL)
    assert ended.code == 0, ended.err
    assert ended.err.count("loading") == 1 and "2 SAEs" in ended.err
    stores = {path.name: path for path in (out / "store").iterdir()}
    assert len(stores) == 2
    for name in layout.ARRAYS:
        assert (stores[store_of(whole).name] / name).read_bytes() == (store_of(whole) / name).read_bytes()
    # A third joins; those that are there are left alone.
    third = sae.save(random_sae(sae.load(world.sae), seed=2), tmp_path / "third")
    before = {path: path.stat().st_mtime_ns for folder in stores.values() for path in folder.iterdir()}
    assert cli("collect", "--sae", world.sae, "--sae", third, "--out", out, *SMALL).code == 0
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert len(list((out / "store").iterdir())) == 3
    ended = cli("explain", "--sae", other, "--out", out, *EXPLAIN, "--limit", 2)
    assert ended.code == 0 and "collecting" not in ended.err
    assert len(autointerp.load_explanations(out)) == 2


def test_other_settings_are_refused(world: Any, whole: Path, cli: Callable[..., Any], tmp_path: Path) -> None:
    ended = cli("explain", "--sae", world.sae, "--out", whole, *EXPLAIN, "--set", "data.skip_first=3")
    assert ended.code == 2
    assert "skip_first: 0 instead of 3" in ended.err or "skip_first: 1 instead of 3" in ended.err
    for more in (("--tokens", 9000), ("--set", "data.skip_first=3")):
        ended = cli("collect", "--sae", world.sae, "--out", whole, *SMALL, *more)
        assert ended.code == 2 and "holds a finished store of something else" in ended.err, ended.err
    model = tmp_path / "m"
    model.mkdir()
    ended = cli("collect", "--sae", world.sae, "--model", model, "--out", tmp_path / "x", *SMALL)
    assert ended.code == 2 and "no weights" in ended.err


@pytest.mark.parametrize("seconds", [1.5, 2.5, 3.5])
def test_a_killed_process_goes_on_to_the_same_bytes(world: Any, whole: Path, tmp_path: Path, seconds: float) -> None:
    out = tmp_path / "run"
    killed = subprocess.Popen(command(world, out), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    time.sleep(seconds)
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait()
    subprocess.run(command(world, out), check=True, capture_output=True)
    for name in (*layout.ARRAYS, layout.MANIFEST):
        assert (store_of(out) / name).read_bytes() == (store_of(whole) / name).read_bytes(), name
    assert not (store_of(out) / layout.PARTS).exists()
