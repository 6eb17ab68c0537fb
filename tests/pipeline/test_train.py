"""`autointerp train` as a whole: killed and resumed, on two processes, a grid in one pass, transcoders, dialogues."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import planted
import pytest
import torch
from safetensors.torch import load_file

import sae
from autointerp.collect import cache
from autointerp.collect.sites import counted_rows
from autointerp.pipeline.evaluate import Figure
from autointerp.subject.load import load_subject
from sae.learner import Learner
from sae.mixing import MixingBuffer

REPOSITORY = Path(__file__).resolve().parents[2]
HEADS = "layers.1.self_attn.o_proj:in"


@dataclass(frozen=True)
class Text:
    model: Path
    corpus: Path


@pytest.fixture(scope="module")
def text(world: Any, tmp_path_factory: pytest.TempPathFactory) -> Text:
    return Text(world.model, planted.build_corpus(tmp_path_factory.mktemp("text") / "corpus.jsonl", documents=2500))


def command(text: Text, out: Path, *more: object, sets: dict[str, Any] | None = None, **changes: object) -> list[str]:
    """A small training: 32 latents for 40 words, so that there is an error to speak of."""
    flags = {
        "model": text.model, "dataset": text.corpus, "hookpoint": "layers.0", "architecture": "topk", "width": 32,
        "k": 2, "tokens": 20_000, "context_length": 16, "batch_size": 256, "lr": 2e-3, **changes, "out": out,
    }  # fmt: skip
    options = {"dead_after": 5000, "log_every": 5, "checkpoint_every": 10, "warmup_steps": 10, **(sets or {})}
    words = [part for name, value in flags.items() for part in (f"--{name.replace('_', '-')}", value)]
    words += [part for name, value in options.items() for part in ("--set", f"train.{name}={value}")]
    return ["train", *map(str, words), "--plain", *map(str, more)]


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(REPOSITORY), **more}


def log(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def names(out: Path) -> list[str]:
    return sorted(path.name for path in (out / "saes").iterdir())


def same_run(one: Path, other: Path) -> None:
    """Weights bit for bit, every line of the logs, and every figure."""
    assert names(one) == names(other) and names(one)
    for name in names(one):
        ours, theirs = one / "saes" / name, other / "saes" / name
        assert (ours / "weights.safetensors").read_bytes() == (theirs / "weights.safetensors").read_bytes(), name
        assert (ours / "metrics.jsonl").read_text() == (theirs / "metrics.jsonl").read_text(), name
    tables = [pd.read_parquet(out / "sae_metrics.parquet") for out in (one, other)]
    assert set(tables[0].run_id) == {one.name} and len(tables[0]) >= 8 * len(names(one))
    pd.testing.assert_frame_equal(*(table.drop(columns="run_id") for table in tables), check_exact=True)


@pytest.fixture
def learned(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Steps that are learned in this process."""
    steps: list[int] = []
    learn = Learner.learn

    def counting(self: Learner, rows: Any) -> Any:
        steps.append(self.step_done)
        return learn(self, rows)

    monkeypatch.setattr(Learner, "learn", counting)
    return steps


@pytest.fixture
def collected(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Tokens that the subject model reads for training in this process."""
    seen: list[int] = []

    def counting(subject: Any, blocks: Any, span: slice, sites: Any) -> Any:
        seen.append(blocks.tokens[span].size)
        return counted_rows(subject, blocks, span, sites)

    monkeypatch.setattr(cache, "counted_rows", counting)
    return seen


def kill_when(condition: Callable[[], bool], words: list[str]) -> None:
    """Start the command in a process of its own and kill it, uncaught, as soon as the condition holds."""
    child = subprocess.Popen(
        [sys.executable, "-m", "autointerp", *words], env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )  # fmt: skip
    try:
        until = time.monotonic() + 120
        while not condition():
            assert child.poll() is None, f"it ended before it could be killed: {child.stderr and child.stderr.read()}"
            assert time.monotonic() < until, "it never came so far"
            time.sleep(0.002)
    finally:
        child.kill()
        child.communicate()
    assert child.returncode == -9


def parts_done(out: Path) -> int:
    try:
        return int(json.loads((out / "work" / "cache" / "progress.0.json").read_text())["parts"])
    except (OSError, ValueError):
        return 0


def lines_beyond_checkpoint(out: Path, stream: bool) -> bool:
    """Some lines were logged since the (second or later) checkpoint."""
    folders = list((out / "saes").glob("*"))
    if not folders or not all((folder / "checkpoint.safetensors").is_file() for folder in folders):
        return False
    if stream and not (out / "work" / "stream.0-of-1.safetensors").is_file():
        return False
    steps = [len((folder / "metrics.jsonl").read_text().splitlines()) for folder in folders]
    return min(steps) >= 23  # of one line a step, with a checkpoint every ten


KILLED: dict[str, dict[str, Any]] = {"architecture": "topk,jumprelu", "tokens": 60_000, "sets": {"log_every": 1}}


@pytest.fixture(scope="module")
def uninterrupted(text: Text, tmp_path_factory: pytest.TempPathFactory) -> Callable[[bool], Path]:
    """The run that no one kills, in its own process as well; from the cache or from the stream."""
    done: dict[bool, Path] = {}

    def run(stream: bool) -> Path:
        if stream not in done:
            out = tmp_path_factory.mktemp("whole") / "whole"
            words = command(text, out, *(["--stream"] if stream else []), **KILLED)
            subprocess.run(
                [sys.executable, "-m", "autointerp", *words], env=environment(), check=True, capture_output=True
            )
            done[stream] = out
        return done[stream]

    return run


@pytest.mark.parametrize("moment", ["filling", "training", "streaming"])
def test_killed_and_run_again_it_ends_with_the_same_weights(
    text: Text, uninterrupted: Callable[[bool], Path], tmp_path: Path, cli: Callable[..., Any], moment: str,
    learned: list[int], collected: list[int],
) -> None:  # fmt: skip
    out, stream = tmp_path / "killed", moment == "streaming"
    words = command(text, out, *(["--stream"] if stream else []), **KILLED)
    if moment == "filling":
        kill_when(lambda: parts_done(out) >= 3, words)
        assert not (out / "saes").exists(), "killed while filling"
    else:
        kill_when(lambda: lines_beyond_checkpoint(out, stream), words)
        assert not list(out.rglob("sae.json")), "killed while training"
    ended = cli(*words)
    assert ended.code == 0, ended.err
    n_steps = log(next((out / "saes").iterdir()))[-1]["n_steps"]
    assert n_steps > 200
    if moment == "filling":
        assert 0 < sum(collected) < 60_000 - 2 * cache.PART_BLOCKS * 16 and min(learned) == 0
    else:
        assert 20 <= min(learned) < n_steps - 1 and not collected, "it went on from a checkpoint"
    same_run(out, uninterrupted(stream))
    left = {path.name for path in out.rglob("*") if path.is_file()}
    assert left == {
        "command.txt", "config.yaml", "environment.json", "sae_metrics.parquet", "tokens.npy", "documents.npy",
        "tokens.json", "trained.json", "metrics.jsonl", "sae.json", "weights.safetensors",
    }, "caches, checkpoints and states are gone"  # fmt: skip


@pytest.mark.parametrize("saves", [0, 1])
def test_a_kill_between_the_checkpoints_and_the_state_of_the_stream(
    text: Text, tmp_path: Path, cli: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, learned: list[int], saves: int
) -> None:
    small: dict[str, Any] = {"tokens": 8000, "sets": {"buffer": 8, "dead_after": 600}}
    words = [command(text, tmp_path / name, "--stream", **small) for name in ("killed", "whole")]
    done: list[Path] = []
    save = MixingBuffer.save

    def killed(self: MixingBuffer, path: Path) -> None:
        if len(done) == saves:
            raise KeyboardInterrupt
        done.append(path)
        save(self, path)

    monkeypatch.setattr(MixingBuffer, "save", killed)
    ended = cli(*words[0])
    assert ended.code == 130 and "run the same command again" in ended.err
    monkeypatch.setattr(MixingBuffer, "save", save)
    learned.clear()
    assert cli(*words[0]).code == 0
    assert min(learned) == 10 * (saves + 1), "the dictionaries went on from their checkpoint, the stream caught up"
    assert cli(*words[1]).code == 0
    same_run(tmp_path / "killed", tmp_path / "whole")


def test_what_is_trained_is_not_trained_again(
    text: Text, tmp_path: Path, cli: Callable[..., Any], learned: list[int], collected: list[int]
) -> None:
    out = tmp_path / "out"
    assert cli(*command(text, out)).code == 0
    before = {path: path.read_bytes() for path in (out / "saes").rglob("*") if path.is_file()}
    learned.clear(), collected.clear()
    again = cli(*command(text, out))
    assert again.code == 0 and not learned and not collected
    assert "topk-layers.0-32-k2-s0" in again.out, "the figures are shown again"
    # Others join; what was there stays as it is.
    assert cli(*command(text, out, seeds="0,1")).code == 0
    assert names(out) == ["topk-layers.0-32-k2-s0", "topk-layers.0-32-k2-s1"]
    assert all(path.read_bytes() == content for path, content in before.items())
    assert cli(*command(text, tmp_path / "alone", seeds="1")).code == 0
    joined, alone = (
        (folder / "saes" / "topk-layers.0-32-k2-s1" / "weights.safetensors").read_bytes()
        for folder in (out, tmp_path / "alone")
    )
    assert joined == alone


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"lr": 1e-3}, "train.lr: 0.002 then, 0.001 now"),
        ({"tokens": 10_000}, "data.tokens: 20000 then, 10000 now"),
        ({"seed": 1}, "seed: 0 then, 1 now"),
        ({"sets": {"options": "{topk: {auxk_alpha: 0.5}}"}}, "auxk_alpha: None then, 0.5 now"),
    ],
)
def test_other_settings_in_the_same_folder_are_refused(
    text: Text, tmp_path_factory: pytest.TempPathFactory, cli: Callable[..., Any], changes: dict[str, Any], named: str
) -> None:
    out = tmp_path_factory.getbasetemp() / "settled"
    if not out.exists():
        assert cli(*command(text, out, tokens=20_000)).code == 0
    before = {path: path.read_bytes() for path in (out / "saes").rglob("*") if path.is_file()}
    ended = cli(*command(text, out, **changes))
    lines = [line for line in ended.err.splitlines() if not line.startswith("loading")]
    assert ended.code == 2 and len(lines) == 1, ended.err
    assert named in lines[0] and "another --out, or --fresh" in lines[0]
    assert all(path.read_bytes() == content for path, content in before.items())


def test_a_grid_is_trained_in_one_pass_and_each_as_if_alone(
    text: Text, tmp_path: Path, cli: Callable[..., Any], collected: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    deep: list[int] = []
    # The evaluation at the end does run the whole model.
    monkeypatch.setattr(
        "autointerp.pipeline.train.evaluate",
        lambda subject, placed, *_, **__: {name: {"fvu": Figure(0.5, 0.4, 0.6, 9)} for name in placed},
    )
    grid = {
        "architecture": "topk,jumprelu",
        "hookpoint": "layers.0,layers.0.self_attn.o_proj:in",
        "width": "32,48",
        "k": "2,3",
        "seeds": "0,1",
    }
    real = load_subject

    def watched(*args: Any, **kwargs: Any) -> Any:
        subject = real(*args, **kwargs)
        subject.model.model.layers[1].register_forward_hook(lambda *_: deep.append(1))
        return subject

    monkeypatch.setattr("autointerp.subject.load.load_subject", watched)
    ended = cli(*command(text, tmp_path / "grid", tokens=6000, **grid))
    assert ended.code == 0, ended.err
    places = ["layers.0", "layers.0.self_attn.o_proj-in"]
    wanted = [f"topk-{p}-{w}-k{k}-s{s}" for p in places for w in (32, 48) for k in (2, 3) for s in (0, 1)]
    wanted += [f"jumprelu-{p}-{w}-s{s}" for p in places for w in (32, 48) for s in (0, 1)]
    assert names(tmp_path / "grid") == sorted(wanted) and len(wanted) == 24
    blocks = len(np.load(tmp_path / "grid" / "work" / "tokens.npy"))
    held_out = 16
    assert sum(collected) == 16 * (blocks - held_out + 1), "every block once, and one to learn the widths"
    assert not deep, "block 1 lies above every hookpoint"
    monkeypatch.setattr("autointerp.subject.load.load_subject", real)
    for name, flags in (
        ("topk-layers.0.self_attn.o_proj-in-48-k3-s1", {"hookpoint": "layers.0.self_attn.o_proj:in", "width": 48, "k": 3, "seeds": 1}),
        ("jumprelu-layers.0-32-s0", {"architecture": "jumprelu"}),
    ):  # fmt: skip
        out = tmp_path / name
        assert cli(*command(text, out, tokens=6000, **flags)).code == 0
        assert names(out) == [name]
        for file in ("weights.safetensors", "metrics.jsonl"):
            ours, theirs = (folder / "saes" / name / file for folder in (tmp_path / "grid", out))
            assert ours.read_bytes() == theirs.read_bytes(), (name, file)


def test_a_cache_of_its_own_serves_several_runs(
    text: Text, tmp_path: Path, cli: Callable[..., Any], collected: list[int]
) -> None:
    shared = ("--cache", tmp_path / "cache")
    assert cli(*command(text, tmp_path / "a", *shared, tokens=6000)).code == 0
    assert sum(collected) > 5000 and (tmp_path / "cache" / "layers.0.npy").is_file()
    collected.clear()
    assert cli(*command(text, tmp_path / "b", *shared, tokens=6000, k=3)).code == 0
    assert not collected
    assert cli(*command(text, tmp_path / "c", tokens=6000, k=3)).code == 0
    same_run(tmp_path / "b", tmp_path / "c")
    ended = cli(*command(text, tmp_path / "d", *shared, tokens=7000))
    assert ended.code == 2 and "caches activations of something else (different: tokens, rows)" in ended.err


@pytest.mark.parametrize("stream", [False, True])
def test_two_processes_train_what_one_trains(text: Text, tmp_path: Path, cli: Callable[..., Any], stream: bool) -> None:
    more = ["--stream"] if stream else []
    run: dict[str, Any] = {
        "architecture": "topk,batchtopk", "hookpoint": "layers.0.self_attn.o_proj:in", "k": 4, "batch_size": 1024,
        "tokens": 80_000, "epochs": 2, "lr": 3e-3, "sets": {"checkpoint_every": 50, "dead_after": 20_000},
    }  # fmt: skip
    words = command(text, tmp_path / "two", *more, **run)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    done = subprocess.run(
        [
            sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-addr", "127.0.0.1",
            "--master-port", str(port), "-m", "autointerp", *words,
        ],
        env=environment(OMP_NUM_THREADS="1"), capture_output=True, text=True, timeout=180, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert cli(*command(text, tmp_path / "one", *more, **run)).code == 0
    found = names(tmp_path / "two")
    assert found == [f"{arch}-layers.0.self_attn.o_proj-in-32-k4-s0" for arch in ("batchtopk", "topk")]
    assert len(list(tmp_path.joinpath("two").rglob("sae.json"))) == 2
    assert done.stderr.count("steps to do") == 1, "one of them speaks"
    tables = [
        pd.read_parquet(tmp_path / out / "sae_metrics.parquet").set_index(["arch", "metric"]).value
        for out in ("one", "two")
    ]
    for name in found:
        lines = [log(tmp_path / out / "saes" / name) for out in ("one", "two")]
        assert [line["step"] for line in lines[0]] == [line["step"] for line in lines[1]], "each line once"
        last, arch = [line[-1] for line in lines], name.split("-")[0]
        fvu = [table[arch, "fvu"] for table in tables]
        assert 0.01 < fvu[0] < 0.9, "there has to be something to compare"
        # Streams are dealt out to processes, so batches differ; a cache gives both the same batches.
        close = 0.1 if stream else 0.01
        if arch == "topk" and not stream:
            # Apart by the order of a sum, until one day two latents change places at the k-th rank.
            assert lines[1][0]["loss"] == pytest.approx(lines[0][0]["loss"], rel=2e-5)
        assert fvu[1] == pytest.approx(fvu[0], rel=close)
        assert last[1]["loss"] == pytest.approx(last[0]["loss"], rel=close)
    assert not still_running(str(tmp_path)), "no process hangs"


def still_running(word: str) -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if word.encode() in path.read_bytes() and int(path.parent.name) != os.getpid():
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found


def test_transcoders_read_one_place_and_write_another(text: Text, tmp_path: Path, cli: Callable[..., Any]) -> None:
    ended = cli(
        *command(
            text,
            tmp_path / "t",
            "--target",
            "layers.0.mlp",
            architecture="transcoder,skip_transcoder",
            hookpoint="layers.0.mlp:in",
        )
    )
    assert ended.code == 0, ended.err
    assert names(tmp_path / "t") == ["skip_transcoder-layers.0.mlp-in-32-k2-s0", "transcoder-layers.0.mlp-in-32-k2-s0"]
    fvu = {}
    for name in names(tmp_path / "t"):
        model = sae.load(tmp_path / "t" / "saes" / name)
        assert (model.metadata.hookpoint, model.metadata.target_hookpoint) == ("layers.0.mlp:in", "layers.0.mlp")
        subject = load_subject(str(text.model))
        tokens = torch.randint(2, 40, (4, 16), generator=torch.Generator().manual_seed(0))
        found = subject.activations_at(tokens, ["layers.0.mlp:in", "layers.0.mlp"])
        x, y = (found[site][:, 1:].flatten(0, 1) for site in ("layers.0.mlp:in", "layers.0.mlp"))
        fvu[model.architecture] = float((model(x) - y).square().sum() / (y - y.mean(dim=0)).square().sum())
        assert model.metadata.metrics["fvu"] == pytest.approx(fvu[model.architecture], rel=0.3)
    assert fvu["transcoder"] < 0.9 and fvu["skip_transcoder"] < fvu["transcoder"], fvu


def test_heads_and_gradients(text: Text, tmp_path: Path, cli: Callable[..., Any]) -> None:
    """`gradient` reads the gradients of the subject model beside the activations, from the cache and the stream."""
    for more in ([], ["--stream"]):
        out = tmp_path / ("stream" if more else "cache")
        ended = cli(*command(text, out, *more, architecture="gradient,topk", hookpoint=HEADS, tokens=8000))
        assert ended.code == 0, ended.err
        gradient, plain = (load_file(out / "saes" / name / "weights.safetensors") for name in names(out))
        assert not torch.equal(gradient["W_dec"], plain["W_dec"]), "the gradients had a say"
        metrics = log(out / "saes" / names(out)[0])
        assert metrics[-1]["fvu"] < 0.95 * metrics[0]["fvu"]


def test_dialogues_are_trained_on_in_the_template(
    text: Text, tmp_path: Path, cli: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tmp_path / "instruct"
    shutil.copytree(text.model, model)
    tokenizer = planted.tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}{{ 'you' if m.role == 'user' else 'she' }} {{ m.content }}<sep>{% endfor %}"
    )
    tokenizer.save_pretrained(model)
    rows = [json.loads(line)["text"].split() for line in text.corpus.read_text().splitlines()[:300]]
    chats = tmp_path / "chats.jsonl"
    with chats.open("w") as file:
        for i, words in enumerate(rows):
            half = 4 + i % 9
            turns = [("human", words[:half]), ("gpt", words[half : 2 * half])]
            file.write(
                json.dumps({"conversations": [{"from": who, "value": " ".join(said)} for who, said in turns]}) + "\n"
            )
    other = Text(model, chats)
    ended = cli(*command(other, tmp_path / "out", "--mode", "dialogues", tokens=5000, context_length=32))
    assert ended.code == 0, ended.err
    trained = sae.load(tmp_path / "out" / "saes" / "topk-layers.0-32-k2-s0")
    assert trained.metadata.extra["mode"] == "dialogues" and 0 < trained.metadata.metrics["fvu"] < 0.9
    assert trained.metadata.n_tokens == 256 * log(tmp_path / "out" / "saes" / "topk-layers.0-32-k2-s0")[-1]["n_steps"]
