"""`autointerp list`: every kind, every width of terminal, plugins that are broken."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

import autointerp.cli.commands  # noqa: F401  (registers the verbs)
import autointerp.registries as registries
from autointerp.cli._main import app
from autointerp.cli.listing import KINDS, config_fields, print_list
from autointerp.errors import UserError
from prompts import render
from sae import registry
from sae.architectures import topk
from sae.files import FORMATS

REPOSITORY = Path(__file__).resolve().parents[2]


def listed(kind: str) -> str:
    result = CliRunner().invoke(app, ["list", kind])
    assert result.exit_code == 0, result.exception
    return result.output


def on_terminal(kind: str, width: int) -> str:
    file = io.StringIO()
    print_list(kind, Console(file=file, force_terminal=True, width=width, color_system=None))
    return file.getvalue()


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("saes", ["(all)", *registries.SAES.names]),
        ("scorers", registries.SCORERS.names),
        ("explainers", registries.EXPLAINERS.names),
        ("clients", registries.CLIENTS.names),
        ("prompts", render.names()),
        ("formats", FORMATS.names),
    ],
)
def test_every_member_is_listed_once(kind: str, names: list[str]) -> None:
    output = listed(kind)
    first = [line.split(":")[0] for line in output.splitlines() if not line.startswith(" ")]
    assert first == names
    assert "CANNOT BE USED" not in output


def test_scorers_say_what_they_need() -> None:
    lines = {line.split(":")[0]: line for line in listed("scorers").splitlines()}
    assert "needs: Chat;" in lines["detection"] and "version: 2;" in lines["detection"]
    assert "needs: Likelihood, Steer;" in lines["intervention"] and "first activation" in lines["intervention"]
    assert "activating and other windows" in lines["surprisal"]


def test_prompts_come_with_their_sha() -> None:
    assert f"detection.v1: sha: {render.sha('detection.v1')}\n" in listed("prompts")


def test_fields_of_an_sae_config_are_documented() -> None:
    fields = {name: (default, what) for name, default, what in config_fields(topk.Config)}
    assert fields["k"] == ("32", "Latents kept per token (on average, where the batch shares them).")
    # Inherited, and without a default.
    assert fields["d_in"] == ("required", "Width of the activations that are encoded.")
    assert all(what for _, what in fields.values())


def test_what_architectures_share_is_listed_once() -> None:
    paragraphs = {text.split(":")[0]: text for text in re.split(r"\n(?! )", listed("saes"))}
    assert "  d_in (required): Width" in paragraphs["(all)"] and "  skip = False: " in paragraphs["(all)"]
    assert listed("saes").count("  d_in (required)") == 1
    assert "  k = 32: Latents kept per token" in paragraphs["topk"] and "d_in" not in paragraphs["topk"]
    # A default that an architecture changes stands under it.
    assert "  skip = True: " in paragraphs["skip_transcoder"] and "skip =" not in paragraphs["transcoder"]
    assert "  apply_b_dec_to_input = False: " in paragraphs["transcoder"]


def test_config_fields_of_anything_else() -> None:
    assert config_fields(None) == [] and config_fields(int) == []


@pytest.mark.parametrize("width", [20, 40, 71, 72, 100, 200])
@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_cut_off_at_any_width(kind: str, width: int, capsys: pytest.CaptureFixture[str]) -> None:
    shown = on_terminal(kind, width) + capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= width
    assert "…" not in shown
    words = "".join(listed(kind).replace(":", " ").split())
    for name in {"saes": ["topk", "auxk_rows"], "scorers": registries.SCORERS.names}.get(kind, []):
        assert name in words and name in "".join(shown.split())


@pytest.mark.parametrize(("kind", "hint"), [("scorer", "did you mean 'scorers'?"), ("zzz", "(known: saes,")])
def test_an_unknown_kind(kind: str, hint: str) -> None:
    result = CliRunner().invoke(app, ["list", kind])
    assert isinstance(result.exception, UserError)
    assert hint in str(result.exception)
    assert all(known in str(result.exception) for known in KINDS)


def test_an_unknown_kind_is_one_line_and_exit_code_2() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "autointerp", "list", "scorer\x1b[31m"], capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "PYTHONUTF8": "1"}, timeout=120,
    )  # fmt: skip
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.count("\n") == 1 and "scorers" in done.stderr and "\x1b" not in done.stderr


@pytest.fixture
def plugins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Scorers from elsewhere: a sound one, and every way to be broken."""
    good = '"""Good: a plugin that works."""\nVERSION, WINDOWS, NEEDS = "7", "other_windows", frozenset()\n'
    for name, source in {
        "plug_good": good,
        "plug_raises": "raise RuntimeError('no \\x1b[31m licence\\nsecond line')",
        "plug_exits": "raise SystemExit(3)",
        "plug_syntax": "def (",
        "plug_missing": "import no_such_package_at_all",
        "plug_bare": '"""Bare."""',
        "plug_class": '"""A module."""\nclass Thing: ...',
    }.items():
        (tmp_path / f"{name}.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    values = {name: name for name in ("plug_good", "plug_raises", "plug_exits", "plug_syntax", "plug_missing")}
    values |= {"plug_bare": "plug_bare", "plug_class": "plug_class:Thing"}
    points = [EntryPoint(name, value, "autointerp.scorers") for name, value in values.items()]
    monkeypatch.setattr(registry, "entry_points", lambda group: points if group == "autointerp.scorers" else [])
    fresh = registry.Registry("scorer", "scoring", "autointerp.scorers", exclude=registries.SCORERS.exclude)
    monkeypatch.setattr(registries, "SCORERS", fresh)


@pytest.mark.usefixtures("plugins")
def test_broken_plugins_are_listed_with_their_error() -> None:
    output = listed("scorers")
    lines = {line.split(":")[0]: line for line in output.splitlines()}
    assert lines["plug_good"].startswith("plug_good: Good: a plugin that works; version: 7; needs: nothing")
    for name, error in {
        "plug_raises": "RuntimeError: no \\x1b[31m licence second line",
        "plug_exits": "SystemExit: 3",
        "plug_syntax": "SyntaxError",
        "plug_missing": "ModuleNotFoundError: No module named 'no_such_package_at_all'",
        "plug_bare": "AttributeError",
        "plug_class": "UnknownName",
    }.items():
        assert f"CANNOT BE USED: {error}" in lines[name], lines[name]
    assert "detection" in lines
    assert "\x1b" not in output and "plug_raises" in on_terminal("scorers", 100)


def test_two_plugins_of_one_name(monkeypatch: pytest.MonkeyPatch) -> None:
    points = [EntryPoint("detection", "elsewhere", "autointerp.scorers")]
    monkeypatch.setattr(registry, "entry_points", lambda group: points)
    monkeypatch.setattr(registries, "SCORERS", registry.Registry("scorer", "scoring", "autointerp.scorers"))
    with pytest.raises(UserError, match="two scorers are called 'detection'"):
        print_list("scorers")
