"""What the README and the docs tell a user to run is run, as it stands there."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from autointerp.clients.fake import FakeClient
from autointerp.clients.fake_server import FakeServer

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), flags=re.MULTILINE | re.DOTALL)


def commands(page: Path, program: str) -> list[list[str]]:
    found = []
    for block in blocks(page, "bash"):
        for line in block.splitlines():
            words = shlex.split(line, comments=True)
            if words[: len(program.split())] == program.split():
                found.append(words)
    return found


@pytest.fixture
def place(world: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in which the README's paths mean something."""
    (tmp_path / "path" / "to").mkdir(parents=True)
    (tmp_path / "path" / "to" / "sae").symlink_to(world.sae)
    (tmp_path / "path" / "to" / "model").symlink_to(world.model)
    shutil.copy(world.corpus, tmp_path / "text.jsonl")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_own_sae_against_a_server(place: Path, cli: Callable[..., Any]) -> None:
    said = [c for c in commands(ROOT / "README.md", "autointerp") if "results/mine" in c]
    assert [c[1] for c in said] == ["explain", "score", "score", "report"]
    with FakeServer(FakeClient("keyword")) as server:
        for command in said:
            words = [w.replace("http://127.0.0.1:8000/v1", server.base_url) for w in command[1:]]
            if command[1] == "explain":
                # The planted corpus is smaller than what the defaults are made for, and so are its contexts.
                words += ["--context-length", "64", "--tokens", "30000"]
            ended = cli(*words)
            assert ended.code == 0, ended.err
        assert server.log
    page = place / "results" / "mine" / "report" / "index.html"
    assert page.is_file()


@pytest.mark.slow
def test_trying_it_on_the_demo(place: Path, small_demo: Path, cli: Callable[..., Any]) -> None:
    (place / "results").mkdir()
    (place / "results" / "demo").symlink_to(small_demo)
    (serve,) = commands(ROOT / "README.md", "python -m autointerp.clients.fake_server")
    (explain,) = [c for c in commands(ROOT / "README.md", "autointerp") if "results/tried" in c]
    port = serve[serve.index("--port") + 1]
    assert port in explain[explain.index("--base-url") + 1]
    command = [sys.executable, *serve[1:]]
    command[command.index("--port") + 1] = "0"  # any free one
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        found = re.search(r"http://127\.0\.0\.1:\d+/v1", server.stdout.readline())
        assert found
        words = [found.group() if w.startswith("http://") else w for w in explain[1:]]
        ended = cli(*words)
    finally:
        server.terminate()
        server.wait(10)
        server.stdout.close()
    assert ended.code == 0, ended.err
    assert "8 of 8 latents explained" in ended.out


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_blocks(page: Path, small_demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "demo").symlink_to(small_demo)
    monkeypatch.chdir(tmp_path)
    for block in blocks(page, "python"):
        exec(compile(block, f"{page.name}", "exec"), {})


def test_make_targets_exist() -> None:
    for words in commands(ROOT / "README.md", "make"):
        done = subprocess.run(["make", "-n", words[1]], cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


def test_every_verb_is_in_the_table(cli: Callable[..., Any]) -> None:
    from autointerp.cli._main import app

    assert cli("--help").code == 0  # registers them
    verbs = {command.name or command.callback.__name__ for command in app.registered_commands if command.callback}
    table = re.findall(r"^\| `autointerp (\w+)", (ROOT / "README.md").read_text(), flags=re.MULTILINE)
    assert set(table) == verbs
    for verb in verbs:
        assert cli(verb, "--help").code == 0


def test_links_lead_somewhere() -> None:
    for page in [*PAGES, ROOT / "CONTRIBUTING.md"]:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / target).is_file(), f"{page.name}: {target}"


def test_the_settings_page_is_current() -> None:
    from autointerp.cli.settings_page import settings_page

    assert settings_page() in (ROOT / "docs" / "config.md").read_text(), "run `make docs`"


def test_documents_stand_alone() -> None:
    for page in [*PAGES, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]:
        assert "../shared" not in page.read_text()


def test_the_training_page(place: Path, cli: Callable[..., Any]) -> None:
    said = commands(ROOT / "docs" / "training.md", "autointerp")
    assert [command[1] for command in said] == ["train", "explain"]
    # The planted corpus and model are smaller than what the defaults are made for.
    small = ["--context-length", "64"]
    fewer = ["--tokens", "20000", "--batch-size", "2048", "--set", "train.held_out=4"]
    ended = cli(*said[0][1:], *small, *fewer)
    assert ended.code == 0, ended.err
    assert len(list((place / "results" / "grid" / "saes").glob("*/sae.json"))) == 16
    ended = cli(*said[1][1:], *small, "--limit", "2", "--tokens", "20000")
    assert ended.code == 0, ended.err
    assert (place / "results" / "explained" / "explanations.parquet").is_file()


def test_the_collecting_page(place: Path, cli: Callable[..., Any]) -> None:
    said = commands(ROOT / "docs" / "collecting.md", "autointerp")
    assert [command[1] for command in said] == ["collect"] * 4 + ["explain", "doctor"] + ["collect"] * 2
    for words in said:
        # The planted corpus and model are smaller than what the defaults are made for; a shell would expand the star.
        small = ["--context-length", "64"] if words[1] != "doctor" else []
        expanded = [str(next(place.glob(word))) if "*" in word else word for word in words[1:]]
        ended = cli(*expanded, *small)
        assert ended.code == 0, f"{words}: {ended.err} {ended.out}"
    stores = sorted(path.parent.name for path in (place / "results").glob("*/store/*/*/manifest.json"))
    assert len(stores) == 2  # the two shards, which the next command reads as one
    explained = cli("explain", "--sae", "path/to/sae", "--dataset", "text.jsonl", "--tokens", "20000", *small_context(),
                    "--explainer", "tokens", "--limit", "2", "--out", "results/sharded")  # fmt: skip
    assert explained.code == 0, explained.err


def test_the_servers_page(place: Path, cli: Callable[..., Any]) -> None:
    said = commands(ROOT / "docs" / "servers.md", "autointerp")
    assert [command[1] for command in said] == ["explain", "cost"]
    with FakeServer(FakeClient("keyword")) as server:
        for command in said:
            words = [w.replace("http://127.0.0.1:8000/v1", server.base_url) for w in command[1:]]
            ended = cli(*words, *small_context(), "--tokens", "30000")
            assert ended.code == 0, ended.err
        assert server.log
    assert "for" in ended.out and "$" in ended.out, "the price of gpt-4o-mini is known"


def small_context() -> list[str]:
    return ["--context-length", "64"]


def test_every_architecture_is_on_the_training_page() -> None:
    from autointerp.registries import SAES

    page = (ROOT / "docs" / "training.md").read_text()
    assert [name for name in SAES.names if f"`{name}`" not in page] == []
