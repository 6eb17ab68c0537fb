"""One model three times: behind a vLLM server, in a vLLM engine, and in transformers. Run by `make test-vllm`."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

import pytest

from autointerp.clients.hf import HFClient
from autointerp.pipeline.demo_model import demo_subject
from autointerp.subject.load import load_subject

CONTEXT = 2048
"""Tokens."""
START_SECONDS = 600
STOP_SECONDS = 60
# Read by the server and by the engine in this process alike.
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "2")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """vLLM, and what it imports, warn of their own affairs; elsewhere a warning is an error."""
    for item in items:
        if item.path.parent == Path(__file__).parent:
            item.add_marker(pytest.mark.filterwarnings("ignore"))


@pytest.fixture(scope="session")
def model_folder() -> Path:
    return demo_subject()


@pytest.fixture(scope="session")
def reference(model_folder: Path) -> HFClient:
    """Transformers on the same weights."""
    return HFClient(load_subject(str(model_folder)))


@pytest.fixture(scope="session")
def client(request: pytest.FixtureRequest, model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The `openai` client of a server, or the `vllm` client; pytest ends one before it starts the other."""
    make = {"openai": _served, "vllm": _in_process}[request.param]
    yield from make(model_folder, tmp_path_factory.mktemp("vllm"))


def _served(model: Path, folder: Path) -> Iterator[Any]:
    from autointerp.clients.openai import OpenAIClient

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = folder / "server.log"
    command = [
        sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model),
        "--served-model-name", "smollm2", "--dtype", "float32", "--max-model-len", str(CONTEXT), "--enforce-eager",
        "--host", "127.0.0.1", "--port", str(port), "--generation-config", "vllm",
        "--structured-outputs-config", '{"backend": "xgrammar", "disable_any_whitespace": true}',
    ]  # fmt: skip
    with log.open("wb") as out:
        server = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT)
    try:
        _wait(server, f"http://127.0.0.1:{port}/v1/models", log)
        yield OpenAIClient("smollm2", base_url=f"http://127.0.0.1:{port}/v1", timeout=600)
    finally:
        server.terminate()
        try:
            server.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def _wait(server: subprocess.Popen[bytes], url: str, log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and server.poll() is None:
        try:
            with urlopen(url, timeout=10):
                return
        except (URLError, OSError):
            time.sleep(1)
    tail = log.read_text(encoding="utf-8", errors="replace")[-4000:]
    pytest.fail(f"the server is not up (exit code {server.poll()}):\n{tail}")


def _in_process(model: Path, folder: Path) -> Iterator[Any]:
    import asyncio

    from autointerp.clients.vllm import VLLMClient

    class Kept(VLLMClient):
        """Not closed by everyone who asks it: an engine takes a minute to start."""

        async def close(self) -> None:
            pass

    client = Kept(str(model), dtype="float32", enforce_eager=True, max_model_len=CONTEXT)
    try:
        yield client
    finally:
        asyncio.run(VLLMClient.close(client))
