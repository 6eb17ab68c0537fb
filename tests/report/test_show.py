"""`autointerp show`: the page's card in the terminal, harmless whatever is in it."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console
from synthetic_run import FAILED, HOSTILE, LATENTS, SAE, SIGNED, explanation_of
from synthetic_study import DRAWS, build_study, sae_of

from autointerp.cli import showing
from autointerp.errors import UserError
from autointerp.report.content import read_content
from autointerp.report.terminal import BLOCKS, find, print_card
from autointerp.report.text import visible


def shown(run: Path, latent: int, sae: str | None = None, *, terminal: bool = False) -> str:
    console = Console(
        file=io.StringIO(),
        width=160,
        highlight=False,
        force_terminal=terminal,
        color_system="truecolor" if terminal else None,
    )
    print_card(find(run, latent, sae), console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_study(tmp_path_factory.mktemp("study") / "study")


def test_card_is_that_of_the_page(run: Path) -> None:
    content = read_content([run])
    cards = dict(zip(LATENTS, content.cards(), strict=True))
    assert find(run, 17).card == cards[17]


def test_card_says_what_the_page_says(run: Path) -> None:
    text = shown(run, 8)
    assert explanation_of(8) in text
    assert re.search(r"detection +balanced accuracy +0\.\d\d +\[0\.\d\d, \d\.\d\d\] +0\.\d\d +\[", text)
    assert re.search(f"activations 0.00 [ {BLOCKS}]+ 8.00", text)
    assert "activating, quantile 5 of 5, strongest (12 of 20 shown)" in text
    assert re.search(r"detection: (yes|no) 0\.\d+ [✓✗] +surprisal: (yes|no) 0\.\d+ [✓✗]", text)
    assert "clean" in text and "The committee met by the river" in text
    assert "prompts: explain 01234567" in text
    assert "«" in text


def test_tokens_are_marked_by_style_in_a_terminal_and_by_brackets_elsewhere(run: Path) -> None:
    assert "«" not in shown(run, 8, terminal=True)
    assert re.search(r"\x1b\[1;4;\d+m [a-z]+", shown(run, 8, terminal=True))
    assert "\x1b" not in shown(run, 8)


@pytest.mark.parametrize("latent", LATENTS)
def test_no_text_of_the_run_reaches_the_terminal_as_a_command(run: Path, latent: int) -> None:
    text = shown(run, latent)
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u202e]", text)


def test_hostile_text_is_shown_as_it_is(run: Path) -> None:
    everything = "".join(shown(run, latent) for latent in LATENTS).replace("\n", "")
    for text in HOSTILE[:5]:  # markup, of rich's kind or HTML's, is none here
        assert visible(text)[:20] in everything
    assert "␛" in everything and "⟨U+202E⟩" in everything


def test_failed_explanations_and_negative_activations_are_said(run: Path) -> None:
    assert "no explanation: failed" in shown(run, FAILED)
    assert re.search(r"−8\.00  ", shown(run, SIGNED))


def test_draws_are_named(study: Path) -> None:
    text = shown(study, 10, sae_of("topk", 6))
    assert [f"topk 6 10 draw {draw} pole 1" in text for draw in range(DRAWS)] == [True] * DRAWS
    assert f"detection, mean and range of {DRAWS}" in text
    assert "held-out windows to score on (of draw 0)" in text


def test_sae_is_asked_for_where_several_have_the_latent(study: Path) -> None:
    with pytest.raises(UserError, match=r"4 SAEs in .* have a latent 10; name one with --sae: .*topk-layers\.6"):
        find(study, 10)
    with pytest.raises(UserError, match=r"2 SAEs in .* name one with --sae"):
        find(study, 10, "random_sae")
    with pytest.raises(UserError, match=r"no SAE 'gated' with a latent 10 in .*--sae"):
        find(study, 10, "gated")
    assert find(study, 10, "topk-layers.9").label == sae_of("topk", 9)


def test_latent_that_is_not_there_names_those_that_are(run: Path) -> None:
    with pytest.raises(
        UserError, match=r"latent 60 was neither explained nor scored .* 3, 4, 5, .*20 in all.*--latents 60"
    ):
        find(run, 60)


def test_default_is_the_run_that_was_scored_last(
    run_builder: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"no run under results/ has scores; .*--run"):
        showing.show(3)
    (tmp_path / "results").mkdir()
    for age, name in ((50, "old"), (10, "new"), (0, "unscored")):
        folder = run_builder(latents=range(3, 5)).rename(tmp_path / "results" / name)
        os.utime(folder / "scores.parquet", (1e9 - age, 1e9 - age))
    (tmp_path / "results" / "unscored" / "scores.parquet").unlink()
    showing.show(3)
    out = capsys.readouterr().out
    assert out.startswith("run: results/new\n")
    assert f"latent 3 of {SAE}" in out
