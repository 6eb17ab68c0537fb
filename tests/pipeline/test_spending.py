"""Budgets, estimates, the reply cache and second tries, through the command line, against a server that counts."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from test_probes import SMALL

import autointerp
from autointerp.clients._openai_probes import GREETING
from autointerp.clients.fake import FakeClient
from autointerp.clients.fake_server import FakeServer, Fault


@pytest.fixture
def explain(world: Any, cli: Callable[..., Any], tmp_path: Path) -> Callable[..., Any]:
    def run(url: str, *more: object) -> Any:
        return cli(
            "explain", "--sae", world.sae, "--llm", "keyword", "--base-url", url, "--out", tmp_path / "run", *SMALL,
            "--limit", 8, *more,
        )  # fmt: skip

    return run


def asked(server: FakeServer) -> list[str]:
    """Conversations in order, without probes."""
    talks = [logged.body["messages"] for logged in server.log if "messages" in logged.body]
    return [json.dumps(talk) for talk in talks if talk[0]["content"] != GREETING[0].content]


def test_a_budget_ends_the_run_with_3_and_a_larger_one_finishes_it(
    explain: Callable[..., Any], cli: Callable[..., Any], tmp_path: Path
) -> None:
    out = tmp_path / "run"
    with FakeServer(FakeClient()) as server:
        ended = explain(server.base_url, "--budget", "3ktok", "--max-concurrency", 64)
        assert ended.code == 3, ended.err
        (line,) = [line for line in ended.err.splitlines() if line.startswith("error:")]
        assert "the budget of 3ktok is used up" in line and "larger --budget" in line
        first = asked(server)
        done = autointerp.load_explanations(out)
        assert 0 < len(done) < 8 and (done["status"] == "ok").all(), "what was paid for is in the tables"
        usage = autointerp.load_table(out, "usage")
        spent = usage[usage["stage"].isin(["explain", "probe"])]
        assert spent[["prompt_tokens", "completion_tokens"]].sum().sum() <= 3000
        # The same budget is used up already: nothing is asked at all.
        assert explain(server.base_url, "--budget", "3ktok").code == 3 and asked(server) == first
        ended = explain(server.base_url, "--budget", "1Mtok")
        assert ended.code == 0, ended.err
        assert len(autointerp.load_explanations(out)) == 8
        assert len(set(asked(server))) == len(asked(server)) == 8, "what was paid for was not asked again"


def test_an_unknown_price_is_no_price(explain: Callable[..., Any], tmp_path: Path) -> None:
    with FakeServer(FakeClient()) as server:
        ended = explain(server.base_url, "--budget", "1usd")
        assert ended.code == 2 and "price of keyword" in ended.err and "--budget 2Mtok" in ended.err
        assert asked(server) == []
        ended = explain(server.base_url, "--budget", "1usd", "--set", "prices={keyword: [1.0, 10.0]}")
        assert ended.code == 0, ended.err
    usage = autointerp.load_table(tmp_path / "run", "usage").set_index("stage").loc["explain"]
    expected = (usage["prompt_tokens"] * 1.0 + usage["completion_tokens"] * 10.0) / 1e6
    assert usage["price"] == pytest.approx(expected) and usage["calls"] == 8


@pytest.mark.parametrize("text", ["5", "usd", "-1usd", "0tok", "5eur", "1.2.3usd"])
def test_what_is_no_budget(explain: Callable[..., Any], text: str) -> None:
    ended = explain("http://127.0.0.1:9/v1", "--budget", text)
    assert ended.code == 2 and "--budget wants an amount such as 5usd" in ended.err


def test_without_a_price_usage_says_unknown(explain: Callable[..., Any], tmp_path: Path) -> None:
    with FakeServer(FakeClient()) as server:
        assert explain(server.base_url).code == 0
        usage = autointerp.load_table(tmp_path / "run", "usage").set_index("stage")
        assert pd.isna(usage.loc["explain", "price"]) and usage.loc["collect", "price"] == 0
        # The work is forgotten, the replies are not: the same questions cost nothing.
        for marker in (tmp_path / "run" / "done" / "explain").glob("*.json"):
            marker.unlink()
        before = autointerp.load_explanations(tmp_path / "run")
        n = len(asked(server))
        assert explain(server.base_url).code == 0 and len(asked(server)) == n
    pd.testing.assert_frame_equal(before, autointerp.load_explanations(tmp_path / "run"))
    again = autointerp.load_table(tmp_path / "run", "usage").set_index("stage").loc["explain"]
    assert again["cached_calls"] == 8 and again["calls"] == 8
    assert again["saved_tokens"] == again["prompt_tokens"] + again["completion_tokens"]


def test_changed_sampling_of_answers_gets_no_old_reply(explain: Callable[..., Any]) -> None:
    with FakeServer(FakeClient()) as server:
        assert explain(server.base_url).code == 0
        n = len(asked(server))
        assert explain(server.base_url, "--set", "explain.options={max_tokens: 150}").code == 0
        assert len(asked(server)) == 2 * n
        assert explain(server.base_url).code == 0 and len(asked(server)) == 2 * n, "both are remembered"


def test_failed_answers_are_asked_again_only_when_wanted(explain: Callable[..., Any], tmp_path: Path) -> None:
    moody = {"bad": True}

    def faults(index: int, body: dict[str, Any]) -> Fault | None:
        if body["messages"][0]["content"] == GREETING[0].content or not moody["bad"]:
            return None
        place = int.from_bytes(body["messages"][-1]["content"].encode()[-3:], "big") % 3
        return [Fault("refusal"), Fault("finish", message="no JSON", code="stop"), None][place]

    out = tmp_path / "run"
    with FakeServer(FakeClient(), faults=faults) as server:
        assert explain(server.base_url, "--max-failed", 1).code == 0
        failed = autointerp.load_explanations(out).query("status != 'ok'")
        kinds = set(failed["status"])
        assert kinds and kinds <= {"refused", "unparsable"}
        assert set(autointerp.load_table(out, "failures")["kind"]) == kinds
        moody["bad"] = False
        n = len(asked(server))
        assert explain(server.base_url, "--max-failed", 1).code == 0
        assert len(asked(server)) == n, "without --retry-failed nothing is asked"
        assert explain(server.base_url, "--retry-failed").code == 0
        assert len(asked(server)) == n + len(failed), "exactly the failed ones"
    assert (autointerp.load_explanations(out)["status"] == "ok").all()
    assert len(autointerp.load_table(out, "failures")) == 0


def test_fresh_asks_anew_and_keeps_the_books(
    explain: Callable[..., Any], cli: Callable[..., Any], tmp_path: Path
) -> None:
    out = tmp_path / "run"
    with FakeServer(FakeClient()) as server:
        assert explain(server.base_url).code == 0 and explain(server.base_url, "--fresh").code == 0
        assert len(asked(server)) == 16
        assert autointerp.load_table(out, "usage").set_index("stage").loc["explain", "calls"] == 16
        score = (
            "score",
            "--run",
            out,
            "--method",
            "detection",
            "--scorer-llm",
            "keyword",
            "--base-url",
            server.base_url,
        )
        assert cli(*score, "--plain").code == 0
        n = len(asked(server)) - 16
        assert cli(*score, "--plain").code == 0 and len(asked(server)) == 16 + n
        assert cli(*score, "--plain", "--fresh").code == 0 and len(asked(server)) == 16 + 2 * n


def test_cost_counts_what_the_run_then_asks(
    explain: Callable[..., Any], cli: Callable[..., Any], tmp_path: Path
) -> None:
    """The prompts are the real ones: on the same store, calls and tokens come out as the server counts them."""
    out = tmp_path / "run"
    with FakeServer(FakeClient()) as server:
        assert explain(server.base_url).code == 0
        n = len(asked(server))
        priced = ("--set", "prices={keyword: [1.0, 2.0]}")
        ended = cli(
            "cost", "--run", out, "--method", "detection,surprisal", "--llm", "keyword", "--base-url", server.base_url,
            "--json", tmp_path / "cost.json", "--speed", "1000,100", *priced,
        )  # fmt: skip
        assert ended.code == 0, ended.err
        assert len(asked(server)) == n, "nothing is asked"
        score = (
            "score",
            "--run",
            out,
            "--method",
            "detection",
            "--scorer-llm",
            "keyword",
            "--base-url",
            server.base_url,
        )
        assert cli(*score, "--plain").code == 0
        calls = len(asked(server)) - n
    stages = {stage["stage"]: stage for stage in json.loads((tmp_path / "cost.json").read_text())["stages"]}
    assert set(stages) == {"explain", "score-detection", "score-surprisal"}
    assert stages["score-detection"]["calls"] == calls and stages["explain"]["calls"] == 8
    assert stages["score-surprisal"]["asks"] == "this process" and stages["score-surprisal"]["price"] == [0, 0, 0]
    low, likely, high = stages["score-detection"]["price"]
    assert 0 < low <= likely <= high and stages["score-detection"]["gpu_hours"] > 0
    usage = autointerp.load_table(out, "usage").set_index("stage")
    # The planted model's tokenizer knows 42 words and cuts all others to <unk>; the fake counts words.
    for stage in ("explain", "score-detection"):
        assert stages[stage]["prompt_tokens"] == pytest.approx(usage.loc[stage, "prompt_tokens"], rel=0.25)
    assert "cap it with --budget" in ended.out and "this process" in ended.out


def test_cost_without_a_store_collects_a_pilot_and_writes_nothing(
    world: Any, cli: Callable[..., Any], tmp_path: Path
) -> None:
    out = tmp_path / "run"
    ended = cli(
        "explain", "--sae", world.sae, "--llm", "m", "--base-url", "http://127.0.0.1:9/v1", "--out", out, *SMALL,
        "--dry-run",
    )  # fmt: skip
    assert ended.code == 0, ended.err
    assert "collect" in ended.out and "explain" in ended.out and "price unknown" in ended.out
    assert "pilot of" in ended.out and not out.exists()
