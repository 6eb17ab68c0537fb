"""`autointerp train` at the command line: what it refuses, how it fails, what it shows, and where figures go."""

from __future__ import annotations

import importlib.util
import io
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from rich.console import Console

from autointerp.progress import Reporter
from autointerp.tracking import Tracker
from autointerp.training_display import Lines, Live, sparkline, training_display
from sae.learner import Progress

REPORT = Progress(step=10, n_steps=100, loss=0.5, fvu=0.4321, l0=31.96, dead_share=0.125, lr=1e-3)


@pytest.fixture
def flags(world: Any, tmp_path: Path) -> dict[str, Any]:
    return {
        "model": world.model, "dataset": world.corpus, "hookpoint": "layers.0", "width": 32, "k": 2, "tokens": 6000,
        "context_length": 16, "batch_size": 256, "out": tmp_path / "out",
    }  # fmt: skip


def words(flags: dict[str, Any], *more: object) -> list[object]:
    given = [part for name, value in flags.items() for part in (f"--{name.replace('_', '-')}", value)]
    return ["train", *given, "--plain", *more]


@pytest.fixture
def refused(cli: Callable[..., Any], flags: dict[str, Any]) -> Callable[..., str]:
    """The one line of a command that has to end with exit code 2."""

    def run(*more: object, without: tuple[str, ...] = (), **changes: object) -> str:
        kept = {name: value for name, value in {**flags, **changes}.items() if name not in without}
        ended = cli(*words(kept, *more))
        lines = [line for line in ended.err.splitlines() if line and not line.startswith(("loading ", "[activations]"))]
        assert ended.code == 2, ended.err
        assert len(lines) == 1 and lines[0].startswith("error: ") and "Traceback" not in ended.err, ended.err
        assert not list(Path(str(kept["out"])).rglob("sae.json"))
        return str(lines[0])

    return run


@pytest.mark.parametrize(
    ("changes", "more", "parts"),
    [
        ({"architecture": "topkk"}, [], ["unknown SAE architecture 'topkk'", "did you mean 'topk'?", "known: abstopk"]),
        ({"hookpoint": "layers.0.mpl"}, [], ["no hookpoint 'layers.0.mpl'", "near matches: layers.0.mlp", "layers.0 to layers.1"]),
        ({"hookpoint": "layers.0,layers.9"}, [], ["no hookpoint 'layers.9'"]),
        ({"hookpoint": "layers"}, [], ["'layers' is not a module that model runs", "e.g. layers.0"]),
        ({}, ["--set", "train.options={topk: {auxk_alpa: 1}}"], ["train.options.topk.auxk_alpa", "did you mean 'auxk_alpha'?", "multi_topk"]),
        ({}, ["--set", "train.options={jumprelu: {l0: 1}}"], ["train.options.jumprelu: this architecture is not trained here"]),
        ({}, ["--set", "train.batchsize=3"], ["config error at train.batchsize"]),
        ({"k": 33}, [], ["topk-layers.0-32-k33-s0: k has to lie between 1 and n_latents (32), not 33"]),
        ({"k": "2,many"}, [], ["--k wants whole numbers joined by commas, not '2,many'"]),
        ({"seeds": "0,1,0"}, [], ["the grid holds 'topk-layers.0-32-k2-s0' 2 times"]),
        ({"k": "2,3"}, ["--set", "train.options={topk: {k: 4}}"], ["the grid holds 'topk-layers.0-32-k4-s0' 2 times"]),
        ({"architecture": "transcoder"}, [], ["'transcoder' reads one activation and reconstructs another", "--target layers.9.mlp"]),
        ({"architecture": "topk,skip_transcoder"}, [], ["'skip_transcoder' reads one", "--target"]),
        ({"architecture": "transcoder", "target": "layers.0.mpl"}, [], ["no hookpoint 'layers.0.mpl'"]),
        ({"track": "tensorboard"}, [], ["config error at train.track"]),
        ({"batch_size": 6000}, [], ["tokens are fewer than one batch of 6000", "bring more text"]),
        ({"batch_size": 6000}, ["--stream"], ["tokens are fewer than one batch of 6000", "bring more text"]),
        ({"tokens": 64}, [], ["fills 4 contexts of 16 tokens; five are the least", "--context-length"]),
        ({"mode": "dialogues"}, [], ["model has no chat template", "data.mode=packed"]),
        ({"mode": "chat"}, [], ["config error at data.mode"]),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_in_one_line(
    refused: Callable[..., str], changes: dict[str, Any], more: list[str], parts: list[str]
) -> None:
    line = refused(*more, **changes)
    assert all(part in line for part in parts), line


def test_what_has_to_be_named_is_asked_for(refused: Callable[..., str]) -> None:
    assert "no subject model: name one with --model" in refused(without=("model",))
    assert "no text: name some with --dataset" in refused(without=("dataset",))
    assert "no hookpoint: say where to train with --hookpoint" in refused(without=("hookpoint",))


def test_too_little_text(refused: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text("the apple is on a river")
    assert "fewer than one context of 16" in refused(dataset=tmp_path / "short.txt")
    (tmp_path / "empty.txt").write_text("\n\n")
    # What nothing was trained with yet can be mended in the same folder.
    assert "is empty: it holds no text" in refused(dataset=tmp_path / "empty.txt")


def failed(ended: Any) -> str:
    """The one error line of a command that ended with exit code 1."""
    assert ended.code == 1, ended.err
    lines = [line for line in ended.err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and ended.err.splitlines()[-1] == lines[0] and "Traceback" not in ended.err, ended.err
    return str(lines[0])


def test_divergence_names_the_last_good_checkpoint(
    cli: Callable[..., Any], flags: dict[str, Any], tmp_path: Path
) -> None:
    """A learning rate that rises slowly to absurd heights: checkpoints come first."""
    slow = ("--set", "train.warmup_steps=1000000", "--set", "train.checkpoint_every=2", "--set", "train.log_every=5")
    line = failed(cli(*words({**flags, "lr": 1e6}, *slow)))
    folder = tmp_path / "out" / "saes" / "topk-layers.0-32-k2-s0"
    assert f"the last good checkpoint is in {folder}; try a lower learning rate" in line
    assert "the loss is" in line or "a weight is not finite" in line
    from safetensors.torch import load_file

    kept = load_file(folder / "checkpoint.safetensors")
    assert all(bool(torch.isfinite(tensor).all()) for tensor in kept.values())
    # With other settings it starts over when told to, and only then.
    again = cli(*words({**flags, "lr": 1e-3}, *slow))
    assert again.code == 2 and "train.lr: 1000000.0 then, 0.001 now" in again.err
    assert cli(*words({**flags, "lr": 1e-3}, "--fresh")).code == 0


def test_activations_that_are_no_numbers(
    cli: Callable[..., Any], flags: dict[str, Any], world: Any, tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    model = tmp_path / "nan"
    model.mkdir()
    for path in Path(world.model).iterdir():
        (model / path.name).write_bytes(path.read_bytes())
    weights = load_file(model / "model.safetensors")
    weights["model.embed_tokens.weight"][12] = torch.nan
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    for more in ([], ["--stream"]):
        line = failed(cli(*words({**flags, "model": model, "out": tmp_path / f"out{len(more)}"}, *more)))
        assert "'layers.0' of nan gave NaN or infinity; try --dtype float32" in line


def test_a_tracker_that_is_not_installed(refused: Callable[..., str], tmp_path: Path) -> None:
    assert importlib.util.find_spec("wandb") is None, "this test is for an environment without it"
    assert refused(track="wandb") == "error: --track wandb needs the package: pip install wandb"
    assert not (tmp_path / "out" / "work" / "tokens.npy").exists(), "before any work is done"


class Recorder(ModuleType):
    """What wandb and trackio have in common."""

    def __init__(self) -> None:
        super().__init__("trackio")
        self.begun: list[dict[str, Any]] = []
        self.logged: list[tuple[int, dict[str, float]]] = []
        self.ended = 0

    def init(self, **settings: Any) -> None:
        self.begun.append(settings)

    def log(self, figures: dict[str, float], step: int) -> None:
        self.logged.append((step, figures))

    def finish(self) -> None:
        self.ended += 1


def test_figures_go_to_the_tracker(
    cli: Callable[..., Any], flags: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    recorder = Recorder()
    monkeypatch.setitem(sys.modules, "trackio", recorder)
    ended = cli(*words({**flags, "track": "trackio", "seeds": "0,1"}, "--set", "train.log_every=5"))
    assert ended.code == 0, ended.err
    (begun,) = recorder.begun
    assert begun["project"] == "autointerp" and begun["name"] == "out" and begun["config"]["batch_size"] == 256
    assert recorder.ended == 1
    for seed in (0, 1):
        name = f"topk-layers.0-32-k2-s{seed}"
        written = (tmp_path / "out" / "saes" / name / "metrics.jsonl").read_text().splitlines()
        lines = {line["step"]: line for line in map(json.loads, written)}
        assert [step for step, _ in recorder.logged] == list(lines) and len(lines) > 3
        for step, figures in recorder.logged:
            for key in ("loss", "fvu", "l0", "dead_share", "lr"):
                assert figures[f"{name}/{key}"] == lines[step][key]
    silent = Tracker(None, "run", {})
    silent.log([("a", REPORT)])
    silent.finish()
    assert len(recorder.begun) == 1


def test_what_is_printed(cli: Callable[..., Any], flags: dict[str, Any], tmp_path: Path) -> None:
    ended = cli(*words({**flags, "seeds": "0,1"}))
    assert ended.code == 0
    folders = [tmp_path / "out" / "saes" / f"topk-layers.0-32-k2-s{seed}" for seed in (0, 1)]
    for folder in folders:
        fvu = json.loads((folder / "sae.json").read_text())["metadata"]["metrics"]["fvu"]
        assert f"{fvu:.3f} [" in ended.out
    assert f"next: autointerp explain --sae {folders[0]}" in ended.out
    assert "[activations]" in ended.err and "[train]" in ended.err and "[evaluate]" in ended.err
    quiet = cli(*words({**flags, "out": tmp_path / "quiet"}, "--quiet"))
    assert quiet.code == 0 and quiet.err == ""


def test_lines_say_how_far_and_how_long(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr("autointerp.training_display.time.monotonic", lambda: now[0])
    lines = Lines(100)
    for step in range(21, 101):
        lines.update(step, [("a", replace(REPORT, step=step, fvu=step / 1000)), ("b", REPORT)] if step % 5 == 0 else [])
        now[0] += 1.0
    printed = capsys.readouterr().err.splitlines()
    assert printed[0] == "[train] 40/100 steps (40%), about 1:00 left", "at the pace seen since step 21"
    assert printed[1] == "[train]   a: fvu 0.040, L0 32.0, dead 12%" and printed[2].startswith("[train]   b: fvu 0.432")
    heads = [line for line in printed if "steps" in line]
    assert len(heads) == 5 and heads[-1].startswith("[train] 100/100 steps (100%)"), "every 15 seconds, and the last"


def test_the_course_of_a_figure_in_a_few_characters() -> None:
    assert sparkline([]) == "" and sparkline([0.0, 0.0]) == "  "
    assert sparkline([8, 4, 2, 1, 0]) == "█▄▂▁ "
    long = sparkline([1 - i / 1000 for i in range(1000)])
    assert len(long) == 24 and long[0] == "█" and list(long) == sorted(long, reverse=True)


def test_the_table_of_a_terminal() -> None:
    from rich.live import Live as RichLive

    console = Console(file=io.StringIO(), force_terminal=True, width=120, color_system=None, record=True)
    with RichLive(console=console, auto_refresh=False) as live:
        display = Live(100, live)
        for step in range(1, 101):
            report = replace(REPORT, step=step, fvu=0.9 - step / 200)
            display.update(step, [("topk-[bold]", report)] if step % 10 == 0 else [])
        live.refresh()
    text = console.export_text()
    assert "100/100 steps" in text and "fvu over time" in text
    assert "topk-[bold]" in text, "names are no markup"
    last = next(line for line in text.splitlines() if "topk-" in line and "0.400" in line)
    assert "32.0" in last and "12%" in last and "1.0e-03" in last and "██▇▇▆▆▅▅▄▄" in last


def test_the_display_that_fits_the_place(capsys: pytest.CaptureFixture[str]) -> None:
    with training_display(Reporter(plain=True), 7) as display:
        assert isinstance(display, Lines)
    assert capsys.readouterr().err == "[train] 7 steps to do\n"
    with training_display(Reporter(quiet=True), 7) as display:
        display.update(7, [("a", REPORT)])
    assert capsys.readouterr().err == ""
    terminal = Reporter()
    terminal.plain = False
    with training_display(terminal, 10) as display:
        assert isinstance(display, Live)
        display.update(10, [("a", REPORT)])
    assert "0.432" in capsys.readouterr().err
