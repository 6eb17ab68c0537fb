"""Servers that do not do what they say are found out before anything is spent, in one line."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from autointerp.clients.fake import FakeClient
from autointerp.clients.fake_server import FakeServer, Fault
from autointerp.clients.openai import OpenAIClient
from autointerp.types import Finding

SMALL = (
    "--tokens", 20_000, "--context-length", 64, "--set", "sampling.explain_activating=8",
    "--set", "sampling.explain_random=8", "--set", "sampling.score_activating=8", "--set", "sampling.score_random=8",
    "--set", "sampling.window=16", "--limit", 2, "--plain",
)  # fmt: skip


def probed(features: set[str], **server: Any) -> dict[str, Finding]:
    async def run(url: str) -> list[Finding]:
        client = OpenAIClient("keyword", url)
        try:
            return await client.probe(frozenset(features))
        finally:
            await client.close()

    with FakeServer(FakeClient(), **server) as fake:
        return {finding.feature: finding for finding in asyncio.run(run(fake.base_url))}


ALL = {"chat", "schema", "choice", "likelihood", "seed", "context"}


def test_a_good_server_passes_every_probe() -> None:
    found = probed(ALL, context_length=777)
    assert set(found) == ALL
    assert all(finding.ok for finding in found.values()), found
    assert found["context"].value == 777
    assert sum(finding.usage.prompt_tokens for finding in found.values()) < 500, "probes are tiny"


@pytest.mark.parametrize(
    ("habit", "bad"),
    [
        ("shifted_logprobs", {"likelihood": "not those of the prompt's tokens"}),
        ("schema_ignored", {"schema": "ignores it"}),
        ("schema_refused", {"schema": "fails on a JSON schema"}),
        ("no_logprobs", {"choice": "no log-probabilities", "likelihood": "no log-probabilities"}),
        ("seed_ignored", {"seed": "different samples"}),
        ("no_completions", {"likelihood": "404"}),
    ],
)
def test_each_fault_is_found_and_no_other(habit: str, bad: dict[str, str]) -> None:
    found = probed(ALL, imitate=frozenset({habit}))
    assert {name: finding.ok for name, finding in found.items()} == {name: name not in bad for name in ALL}
    for name, said in bad.items():
        assert said in found[name].said


@pytest.fixture
def refused(world: Any, cli: Callable[..., Any], tmp_path: Path) -> Callable[..., str]:
    def run(url: str, *more: object) -> str:
        out = tmp_path / "run"
        ended = cli("explain", "--sae", world.sae, "--llm", "keyword", "--base-url", url, "--out", out, *SMALL, *more)
        assert ended.code == 2, (ended.code, ended.err)
        errors = [line for line in ended.err.splitlines() if line.startswith("error:")]
        assert len(errors) == 1 and "Traceback" not in ended.err
        assert not out.exists(), "found out before anything was written or collected"
        return str(errors[0])

    return run


def test_a_server_that_ignores_schemas_is_refused(refused: Callable[..., str]) -> None:
    with FakeServer(FakeClient(), imitate=frozenset({"schema_ignored"})) as server:
        line = refused(server.base_url)
    assert "explainer 'default' needs (schema: it accepts a JSON schema and ignores it)" in line
    assert "--set explain.schemas=false" in line and server.base_url in line


def test_without_schemas_it_can_be_used_and_counted(world: Any, cli: Callable[..., Any], tmp_path: Path) -> None:
    out = tmp_path / "run"
    with FakeServer(FakeClient(), imitate=frozenset({"schema_ignored"})) as server:
        ended = cli(
            "explain", "--sae", world.sae, "--llm", "keyword", "--base-url", server.base_url, "--out", out, *SMALL,
            "--set", "explain.schemas=false", "--max-failed", 1,
        )  # fmt: skip
        sent = [logged.body for logged in server.log if logged.path.endswith("completions")]
    assert ended.code == 0, ended.err
    assert sent and not any("response_format" in body for body in sent)


def test_shifted_log_probabilities_are_refused(world: Any, cli: Callable[..., Any], tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert cli("explain", "--sae", world.sae, "--client", "fake", "--out", out, *SMALL).code == 0
    with FakeServer(FakeClient(), imitate=frozenset({"shifted_logprobs"})) as server:
        ended = cli(
            "score", "--run", out, "--method", "embedding,surprisal", "--scorer-llm", "keyword", "--base-url",
            server.base_url, "--set", "score.likelihoods=client", "--plain",
        )  # fmt: skip
    assert ended.code == 2
    (line,) = [line for line in ended.err.splitlines() if line.startswith("error:")]
    assert "scorer 'surprisal' needs (likelihood: its log-probabilities of a prompt are not those" in line
    assert "score.likelihoods=local" in line
    assert not (out / "scores.parquet").is_file() or not len(list((out / "done").glob("score-*/*.json"))), (
        "the embedding scorer, which could have run, has not begun"
    )


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (Fault(status=401, message="Incorrect API key"), "set OPENAI_API_KEY"),
        (Fault(status=404, message="no such model"), "check the model name keyword"),
        (Fault(status=429, code="insufficient_quota", message="no money left"), "no money left"),
    ],
)
def test_what_cannot_work_is_said_before_the_collection(refused: Callable[..., str], fault: Fault, said: str) -> None:
    with FakeServer(FakeClient(), faults=lambda index, body: fault) as server:
        assert said in refused(server.base_url)


def test_no_server_there(refused: Callable[..., str]) -> None:
    assert "Is the server up" in refused("http://127.0.0.1:9/v1")


def test_too_short_a_context_is_said(world: Any, cli: Callable[..., Any], tmp_path: Path) -> None:
    with FakeServer(FakeClient(), context_length=150) as server:
        ended = cli(
            "explain", "--sae", world.sae, "--llm", "keyword", "--base-url", server.base_url, "--out",
            tmp_path / "run", *SMALL,
        )  # fmt: skip
        chats = [logged for logged in server.log if "window" in str(logged.body)]
    assert ended.code == 2 and "tokens of context" in ended.err and "has 150" in ended.err
    assert chats == []
