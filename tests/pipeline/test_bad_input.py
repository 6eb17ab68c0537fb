"""Wrong usage and bad input: exit code 2, one line that says what, where, and what to do."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import sae


@pytest.fixture
def refuse(cli: Callable[..., Any], tmp_path: Path) -> Callable[..., str]:
    """Run a command that has to fail; returns its one line."""

    def run(*args: object) -> str:
        out = tmp_path / "out"
        ended = cli(*args, "--out", out)
        lines = [line for line in ended.err.splitlines() if line and not line.startswith("loading ")]
        assert ended.code == 2, ended.err
        assert len(lines) == 1, ended.err
        assert lines[0].startswith("error: ")
        assert "Traceback" not in ended.err
        return str(lines[0])

    return run


def test_no_sae(refuse: Callable[..., str]) -> None:
    line = refuse("explain", "--sae", "nowhere")
    assert "no SAE at 'nowhere'" in line
    assert "sae.json + weights.safetensors" in line
    assert "autointerp demo" in line


def test_empty_corpus(world: Any, refuse: Callable[..., str], tmp_path: Path) -> None:
    for name, text in (("a.txt", ""), ("b.txt", " \n\n "), ("c.jsonl", "")):
        (tmp_path / name).write_text(text)
        assert "is empty: it holds no text" in refuse("explain", "--sae", world.sae, "--dataset", tmp_path / name)


def test_corpus_shorter_than_a_context(world: Any, refuse: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text("the apple is on a river")
    line = refuse("explain", "--sae", world.sae, "--client", "fake", "--dataset", tmp_path / "short.txt")
    assert "fewer than one context of 256" in line
    assert "--context-length" in line


def test_unknown_hookpoint(world: Any, refuse: Callable[..., str]) -> None:
    line = refuse("explain", "--sae", world.sae, "--hookpoint", "layer.1.mlpp")
    assert "no hookpoint 'layer.1.mlpp'" in line
    assert "layers.1.mlp" in line
    assert "layers.0 to layers.1" in line


def test_model_without_weights(world: Any, refuse: Callable[..., str], tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    shutil.copytree(world.model, bare)
    (bare / "model.safetensors").unlink()
    line = refuse("explain", "--sae", world.sae, "--model", bare)
    assert f"no weights in '{bare}'" in line
    assert "save_pretrained" in line


def test_damaged_sae(world: Any, refuse: Callable[..., str], tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(world.sae, broken)
    weights = broken / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:200])
    assert "truncated or damaged" in refuse("explain", "--sae", broken)


def test_wrong_width(world: Any, refuse: Callable[..., str], tmp_path: Path) -> None:
    from sae.architectures import topk

    narrow = topk.create({"d_in": 8, "n_latents": 16, "k": 1}, sae.load(world.sae).metadata)
    narrow.initialise(0)
    sae.save(narrow, tmp_path / "narrow")
    line = refuse("explain", "--sae", tmp_path / "narrow")
    assert "64" in line
    assert "8" in line


def test_unknown_names(world: Any, refuse: Callable[..., str]) -> None:
    assert "did you mean 'default'" in refuse("explain", "--sae", world.sae, "--explainer", "defaul")
    assert "did you mean 'fake'" in refuse("explain", "--sae", world.sae, "--client", "fak")
    line = refuse("explain", "--sae", world.sae, "--set", "sampling.windw=3")
    assert "config error at sampling.windw" in line


def test_no_text_column(world: Any, refuse: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"sentence": "the apple"}\n')
    line = refuse("explain", "--sae", world.sae, "--dataset", tmp_path / "rows.jsonl")
    assert "it has sentence" in line
    assert "--text-column" in line


def test_nothing_is_written_before_the_input_is_checked(world: Any, refuse: Callable[..., str], tmp_path: Path) -> None:
    refuse("explain", "--sae", world.sae, "--hookpoint", "nope")
    assert not (tmp_path / "out").exists()


def test_latents_that_cannot_be(world: Any, refuse: Callable[..., str]) -> None:
    few = ("--client", "fake", "--tokens", 4000, "--context-length", 64)
    assert "none of 0:500" in refuse("explain", "--sae", world.sae, "--latents", "all", *few)
    assert "beyond this SAE's 16 latents" in refuse("explain", "--sae", world.sae, "--latents", "99", *few)


def test_scoring_without_explanations(refuse: Callable[..., str]) -> None:
    line = refuse("score", "--sae", "somewhere", "--method", "detection")
    assert "autointerp explain --sae somewhere" in line
