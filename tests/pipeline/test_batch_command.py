"""`--batch`: explaining and scoring through a batch API, and a run that ends while its batch is still open."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from test_probes import SMALL

import autointerp
from autointerp.clients._openai_batches import BatchAPI
from autointerp.clients.fake import FakeClient
from autointerp.clients.fake_server import FakeServer


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("autointerp.engine.batches.POLL", 0.02)


def posts(server: FakeServer, path: str) -> int:
    return sum(1 for logged in server.log if logged.path == f"/v1/{path}")


def test_explaining_and_scoring_in_batches_gives_the_same_tables(
    world: Any, cli: Callable[..., Any], tmp_path: Path
) -> None:
    tables = {}
    for name, how in (("straight", ()), ("batch", ("--batch",))):
        out = tmp_path / name / "run"
        with FakeServer(FakeClient()) as server:
            asked = ("--base-url", server.base_url, "--plain", *how, "--set", "prices={keyword: [1, 1]}")
            ended = cli("explain", "--sae", world.sae, "--llm", "keyword", "--out", out, *SMALL, "--limit", 8, *asked)
            assert ended.code == 0, ended.err
            ended = cli("score", "--run", out, "--method", "detection", "--scorer-llm", "keyword", *asked)
            assert ended.code == 0, ended.err
            if how:
                # Explanations are one batch, the judging of all latents another.
                assert posts(server, "batches") == 2 and posts(server, "files") == 2
                assert "requests submitted" in ended.err
        tables[name] = [pd.read_parquet(out / f"{table}.parquet") for table in ("explanations", "scores", "judgements")]
        tables[f"{name} usage"] = autointerp.load_table(out, "usage").set_index("stage")
    for straight, batch in zip(tables["straight"], tables["batch"], strict=True):
        pd.testing.assert_frame_equal(straight, batch)
    for stage in ("explain", "score-detection"):
        straight, batch = tables["straight usage"].loc[stage], tables["batch usage"].loc[stage]
        assert batch["calls"] == straight["calls"] and batch["prompt_tokens"] == straight["prompt_tokens"]
        assert batch["price"] == pytest.approx(straight["price"] / 2)


def test_a_run_that_ends_meanwhile_finds_its_batch_again(
    world: Any, cli: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    look = BatchAPI.look

    async def interrupted(self: BatchAPI, batch: str) -> Any:
        raise ConnectionError("the network is gone")

    with FakeServer(FakeClient()) as server:
        explain = ("explain", "--sae", world.sae, "--llm", "keyword", "--base-url", server.base_url, "--out", out,
                   *SMALL, "--limit", 8, "--batch", "--budget", "1Mtok")  # fmt: skip
        monkeypatch.setattr(BatchAPI, "look", interrupted)
        ended = cli(*explain)
        assert ended.code == 1 and "run the same command again to go on" in ended.err
        assert posts(server, "batches") == 1 and len(list((out / "batches").glob("*.json"))) == 1
        monkeypatch.setattr(BatchAPI, "look", look)
        ended = cli(*explain)
        assert ended.code == 0, ended.err
        assert posts(server, "batches") == 1, "nothing is submitted twice"
    assert (autointerp.load_explanations(out)["status"] == "ok").all()
    usage = autointerp.load_table(out, "usage").set_index("stage")
    assert usage.loc["explain", "calls"] == 8 and "killed" not in usage.index


def test_a_budget_that_holds_no_request(world: Any, cli: Callable[..., Any], tmp_path: Path) -> None:
    with FakeServer(FakeClient()) as server:
        ended = cli("explain", "--sae", world.sae, "--llm", "keyword", "--base-url", server.base_url, "--out",
                    tmp_path / "run", *SMALL, "--batch", "--budget", "100tok")  # fmt: skip
    assert ended.code == 3, "the smallest request does not fit"
