"""No API key is ever written or shown, whatever goes wrong."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from test_probes import SMALL

from autointerp.clients.fake import FakeClient
from autointerp.clients.fake_server import FakeServer, Fault

KEY = "Sekrit-0123456789-abcdef"


def run(*args: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    environ = {**os.environ, "OPENAI_API_KEY": KEY, "OPENAI_LOG": "debug"}
    command = [sys.executable, "-m", "autointerp", *map(str, args)]
    return subprocess.run(command, env=environ, cwd=cwd, capture_output=True, text=True, check=False)


def holders(folder: Path) -> list[str]:
    """Files below `folder` that hold the key, inside of parquet's compression too."""
    found = []
    for path in folder.rglob("*"):
        if not path.is_file():
            continue
        text = path.read_bytes().decode("latin-1")
        if path.suffix == ".parquet":
            text += str(pq.read_table(path).to_pydict())
        if KEY in text:
            found.append(str(path))
    return found


def echo(index: int, body: dict[str, Any]) -> Fault | None:
    """A server that quotes the key in every second answer to a window, in all the ways there are."""
    if "window" not in str(body["messages"][-1]):
        return None
    kinds = [
        Fault("finish", message='{"explanation": "fine"}', code="stop"),
        Fault(status=422, message=f"bad key {KEY}"),
        Fault("refusal", message=f"Bearer {KEY}"),
        Fault("wrong_json", content={"error": {"message": f"key {KEY}"}}),
        Fault("finish", message=f"no JSON but {KEY}", code="stop"),
    ]
    return kinds[index % len(kinds)]


def test_a_run_leaves_no_key_anywhere(world: Any, tmp_path: Path) -> None:
    with FakeServer(FakeClient(), faults=echo) as server:
        asked = ("--base-url", server.base_url, "--plain")
        explained = run(
            "explain", "--sae", world.sae, "--llm", "keyword", "--out", "run", *SMALL, "--limit", 8, *asked,
            "--set", "explain.retries=1", cwd=tmp_path,
        )  # fmt: skip
        scored = run(
            "score", "--run", "run", "--method", "detection", "--scorer-llm", "keyword", "--max-failed", 1, *asked,
            "--set", "score.retries=1", cwd=tmp_path,
        )  # fmt: skip
        assert any(logged.authorized for logged in server.log), "the key was really sent"
    assert explained.returncode in (0, 4) and scored.returncode in (0, 4), (explained.stderr, scored.stderr)
    assert "DEBUG" in explained.stderr, "the SDK did log"
    assert KEY not in explained.stdout + explained.stderr + scored.stdout + scored.stderr
    assert (tmp_path / "run" / "failures.parquet").is_file()
    assert holders(tmp_path) == []


@pytest.mark.parametrize("where", ["_post", "read_chat"])
def test_a_traceback_shows_no_key_even_with_its_locals(where: str, tmp_path: Path) -> None:
    """An error of ours, in the middle of a request; every frame's locals are printed, as some tools do it."""
    code = f"""
import asyncio, traceback
import autointerp.clients.openai as module
from prompts.requests import Chat, Message

def boom(*args, **kwargs):
    raise KeyboardInterrupt("forced")

client = module.OpenAIClient("keyword", "http://127.0.0.1:9/v1")
if "{where}" == "_post":
    client._openai._base_client.AsyncAPIClient._build_request = boom
else:
    client._explain = boom
try:
    asyncio.run(client.attempt(Chat((Message("user", "hi"),))))
except BaseException as error:
    print("".join(traceback.TracebackException.from_exception(error, capture_locals=True).format()))
    print(repr(client), vars(client))
"""
    environ = {**os.environ, "OPENAI_API_KEY": KEY}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], env=environ, capture_output=True, text=True, check=False
    )
    assert "forced" in done.stdout and "attempt" in done.stdout, done.stderr
    assert KEY not in done.stdout + done.stderr
