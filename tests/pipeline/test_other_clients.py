"""Explaining and scoring with clients other than one server for chats: embeddings and likelihoods behind an API,
several servers, and a chat model in this process."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from test_probes import SMALL

import autointerp
from autointerp.clients.fake import FakeClient
from autointerp.clients.fake_server import FakeServer


@pytest.fixture
def explained(world: Any, cli: Callable[..., Any], tmp_path: Path) -> Path:
    out = tmp_path / "run"
    ended = cli("explain", "--sae", world.sae, "--client", "fake", "--out", out, *SMALL, "--limit", 8)
    assert ended.code == 0, ended.err
    return out


def test_embeddings_and_likelihoods_behind_an_api(explained: Path, cli: Callable[..., Any]) -> None:
    with FakeServer(FakeClient()) as server:
        ended = cli(
            "score", "--run", explained, "--method", "embedding,surprisal", "--embedder", "openai:keyword",
            "--scorer-llm", "keyword", "--base-url", server.base_url, "--set", "score.likelihoods=client", "--plain",
        )  # fmt: skip
        assert ended.code == 0, ended.err
        paths = {logged.path for logged in server.log}
    assert {"/v1/embeddings", "/v1/completions", "/tokenize"} <= paths
    scores = autointerp.load_scores(explained)
    real = scores.query("metric == 'auroc' and control == 'none'")
    assert set(real["method"]) == {"embedding", "surprisal"} and set(real["scorer_model"]) == {"keyword"}
    # The fake's likelihoods know which windows hold the word that an explanation quotes.
    assert real.query("method == 'surprisal'")["value"].min() > 0.8
    usage = autointerp.load_table(explained, "usage").set_index("stage")
    assert usage.loc["score-embedding", "calls"] > 0 and usage.loc["score-surprisal", "calls"] > 0


def test_windows_near_in_meaning_by_an_embedder_behind_an_api(
    world: Any, cli: Callable[..., Any], tmp_path: Path
) -> None:
    with FakeServer(FakeClient()) as server:
        ended = cli(
            "explain", "--sae", world.sae, "--client", "fake", "--out", tmp_path / "run", *SMALL, "--embedder",
            "openai:keyword", "--set", f"score.base_url={server.base_url}", "--set",
            "sampling.explain_negatives=[embedding]", "--set", "sampling.embedding_pool=100",
        )  # fmt: skip
        assert ended.code == 0, ended.err
        assert any(logged.path == "/v1/embeddings" for logged in server.log)
    windows = autointerp.load_table(tmp_path / "run", "windows")
    assert "hard:embedding" in set(windows["kind"])
    assert autointerp.load_table(tmp_path / "run", "usage").set_index("stage").loc["sampling", "calls"] > 0


def test_two_servers_share_the_work_and_their_names_are_one(explained: Path, cli: Callable[..., Any]) -> None:
    with FakeServer(FakeClient()) as first, FakeServer(FakeClient()) as second:
        urls = f"{first.base_url},{second.base_url}"
        score = ("score", "--run", explained, "--method", "detection", "--scorer-llm", "keyword", "--plain",
                 "--set", "score.server=both", "--base-url")  # fmt: skip
        ended = cli(*score, urls)
        assert ended.code == 0, ended.err
        shares = [server.served for server in (first, second)]
        assert min(shares) > 0.2 * sum(shares)
        # Whatever one of them has answered is known under the name of both.
        for marker in (explained / "done" / "score-detection").glob("*.json"):
            marker.unlink()
        assert cli(*score, second.base_url).code == 0
    usage = autointerp.load_table(explained, "usage").set_index("stage").loc["score-detection"]
    assert usage["cached_calls"] == usage["calls"]


def test_a_chat_model_in_this_process(world: Any, cli: Callable[..., Any], tmp_path: Path) -> None:
    """The planted model knows 42 words and no JSON: every latent fails, each with a reason, and nothing breaks."""
    out = tmp_path / "run"
    ended = cli(
        "explain", "--sae", world.sae, "--client", "hf", "--llm", world.model, "--out", out, *SMALL, "--limit", 8,
        "--set", "sampling.explain_activating=2", "--set", "explain.options={max_tokens: 4}",
    )  # fmt: skip
    assert ended.code == 4, ended.err
    table = autointerp.load_explanations(out)
    assert len(table) == 8 and set(table["status"]) <= {"truncated", "unparsable", "empty", "context_overflow"}
    failures = autointerp.load_table(out, "failures")
    assert sorted(failures["latent"]) == sorted(table["latent"])
    assert autointerp.load_table(out, "usage").set_index("stage").loc["explain", "price"] == 0


def test_client_options_that_nobody_knows(world: Any, cli: Callable[..., Any], tmp_path: Path) -> None:
    ended = cli(
        "explain", "--sae", world.sae, "--llm", "m", "--base-url", "http://127.0.0.1:9/v1", "--out", tmp_path / "run",
        *SMALL, "--set", "explain.client_options={speed: high}",
    )  # fmt: skip
    assert ended.code == 2 and "client 'openai'" in ended.err and "speed" in ended.err
