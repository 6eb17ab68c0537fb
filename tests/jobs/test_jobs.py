"""Batch jobs without a batch system: scripts, what is missing of a run, and what its processes say of themselves."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from autointerp.config import RunSettings, resolve
from autointerp.errors import BudgetReached, UserError
from autointerp.jobs import book, queue
from autointerp.jobs.book import Sent
from autointerp.jobs.element import element
from autointerp.jobs.progress import Progress, Share
from autointerp.jobs.queue import Queued
from autointerp.jobs.scripts import Scripts, span
from autointerp.jobs.states import read_states
from autointerp.jobs.status import status
from autointerp.jobs.submit import plan, written
from autointerp.shards import Shard

TWO = 2


def settings(**changes: Any) -> RunSettings:
    return resolve({"sae": "somewhere", **changes}, environ={})


# ---- scripts


@pytest.fixture
def scripts(tmp_path: Path) -> Callable[..., Scripts]:
    return lambda **slurm: Scripts(tmp_path / "my run", settings(**{f"slurm.{name}": v for name, v in slurm.items()}))


def lines(text: str) -> list[str]:
    return [line.removeprefix("#SBATCH ") for line in text.splitlines() if line.startswith("#SBATCH ")]


def test_a_script_asks_for_what_the_section_says(scripts: Callable[..., Scripts]) -> None:
    made = scripts(
        partition="gpu,long", account="lab", time="4:00:00", memory="32G", cpus=4, gpus="a100:1", at_once=8,
        options={"qos": "low", "exclusive": True, "requeue": False, "comment": "two words"},
        prologue=["module load cuda", 'source "$HOME/env/bin/activate"'],
        score={"gpus": 2, "options": {"qos": "high"}, "prologue": ["export A=1"]},
    )  # fmt: skip
    asked = lines(made.text("explain", 32))
    assert {
        "--partition=gpu,long", "--account=lab", "--time=4:00:00", "--mem=32G", "--cpus-per-task=4", "--qos=low",
        "--gpus-per-node=a100:1", "--array=0-31%8", "--exclusive", '--comment="two words"', "--nodes=1",
        "--signal=B:USR1@120", "--open-mode=append",
    } <= set(asked)  # fmt: skip
    assert "--requeue" not in asked
    assert any(line.startswith('--output="') and line.endswith('/explain-%A_%a.log"') for line in asked)
    other = made.text("score", 32)
    assert {"--gpus-per-node=2", "--qos=high", "--partition=gpu,long"} <= set(lines(other))
    assert 'module load cuda\nsource "$HOME/env/bin/activate"\nexport A=1\n' in other
    assert "export A=1" not in made.text("explain", 32)


@pytest.mark.parametrize("stage", ["train", "collect", "explain", "score", "merge", "servers", "end-servers"])
def test_every_script_is_bash(scripts: Callable[..., Scripts], stage: str) -> None:
    text = scripts(train={"nodes": 4, "gpus": 8}, serve="python -m server --port {port}").text(stage, 4)
    checked = subprocess.run(["bash", "-n"], input=text, text=True, capture_output=True)
    assert checked.returncode == 0, checked.stderr
    assert text.startswith("#!/bin/bash\n")
    assert "\n#SBATCH" not in text[text.index("\nwork=") :], "Slurm reads options before the first command only"


def test_an_element_does_its_share(scripts: Callable[..., Scripts], tmp_path: Path) -> None:
    """Run as bash would, with a program that prints what it is given."""
    made = scripts(python="echo")
    (tmp_path / "my run" / "slurm" / "logs").mkdir(parents=True)
    done = bash(made.text("explain", 5), SLURM_ARRAY_JOB_ID="17", SLURM_ARRAY_TASK_ID="3")
    run = tmp_path / "my run"
    assert (
        done.stdout.split()
        == (f"-m autointerp run --config {run}/slurm/run.yaml --out {run} --only explain --shard 3/5 --plain").split()
    )
    assert made.log_of("explain", "17_3", "exit").read_text() == "0\n"


def bash(text: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash"], input=text, env={"PATH": os.environ["PATH"], **environment}, text=True, capture_output=True
    )


@pytest.mark.parametrize(("job_is", "again"), [("RUNNING", True), ("CANCELLED", False)])
@pytest.mark.parametrize("told", [signal.SIGUSR1, signal.SIGTERM])
def test_who_is_told_to_end_queues_again(
    scripts: Callable[..., Scripts], tmp_path: Path, told: signal.Signals, job_is: str, again: bool
) -> None:
    """The work gets SIGTERM, its end is waited for, and its job queues again unless somebody cancelled it."""
    programs, noted, ready = tmp_path / "bin", tmp_path / "requeued", tmp_path / "ready"
    programs.mkdir()
    for name, does in (("squeue", f"echo {job_is}"), ("scontrol", f'echo "$@" > {noted}')):
        (programs / name).write_text(f"#!/bin/bash\n{does}\n")
        (programs / name).chmod(0o755)
    worker = tmp_path / "worker"
    worker.write_text(
        f"#!/bin/bash\ntrap 'sleep 0.2; touch {tmp_path}/flushed; exit 130' TERM\ntouch {ready}\nsleep 60 & wait $!\n"
    )
    worker.chmod(0o755)
    made = scripts(python=str(worker))
    (tmp_path / "my run" / "slurm" / "logs").mkdir(parents=True)
    script = tmp_path / "script.sh"
    script.write_text(made.text("score", 4))
    environment = {"PATH": f"{programs}:{os.environ['PATH']}", "SLURM_ARRAY_JOB_ID": "9", "SLURM_ARRAY_TASK_ID": "2"}
    job = subprocess.Popen(["bash", str(script)], env=environment)
    while not ready.exists():
        assert job.poll() is None
    job.send_signal(told)
    assert job.wait(30) == 130
    assert (tmp_path / "flushed").exists()
    assert noted.exists() == again
    if again:
        assert noted.read_text() == "requeue 9_2\n"
    assert made.log_of("score", "9_2", "exit").read_text() == "130\n"


def test_what_fails_by_itself_does_not_queue_again(scripts: Callable[..., Scripts], tmp_path: Path) -> None:
    (tmp_path / "my run" / "slurm" / "logs").mkdir(parents=True)
    made = scripts(python="false", prologue=["scontrol() { touch requeued; }", f"cd {tmp_path}"])
    assert bash(made.text("merge", 1), SLURM_JOB_ID="5").returncode == 1
    assert not (tmp_path / "requeued").exists()
    assert made.log_of("merge", "5", "exit").read_text() == "1\n"


def test_training_on_nodes_is_torchrun(scripts: Callable[..., Scripts]) -> None:
    text = scripts(train={"nodes": 4, "gpus": "h100:8"}, gpus=1).text("train", 1)
    assert {"--nodes=4", "--gpus-per-node=h100:8", "--ntasks-per-node=1"} <= set(lines(text))
    words = " ".join(text.replace("\\\n", " ").split())
    assert "srun --nodes=4 --ntasks-per-node=1" in words
    assert "-m torch.distributed.run --nnodes=4 --nproc-per-node=8" in words
    assert "-m autointerp train --config" in words and "/trained' --plain && step" in words
    assert "run --config" in words.split("&& step")[1] and "--only train" in words
    alone = scripts(train={"gpus": 1}).text("train", 1)
    assert "torch.distributed" not in alone


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"array": "0-3"}, "set by `autointerp submit` itself"),
        ({"Q;rm": "x"}, "no long name"),
        ({"comment": "a\nb"}, "cannot be written"),
    ],
)
def test_options_that_would_break_a_script_are_refused(
    scripts: Callable[..., Scripts], options: dict[str, str], said: str
) -> None:
    with pytest.raises(UserError, match=said):
        scripts(options=options).text("score", 2)


def test_spans() -> None:
    assert span(range(4)) == "0-3"
    assert span([0, 3, 7]) == "0,3,7"
    assert span([5]) == "5"
    assert span([1, 2], 8) == "1-2%8"


# ---- what a process says of itself


def test_an_element_says_how_it_ended(tmp_path: Path) -> None:
    def says(error: BaseException | None, index: int) -> Any:
        try:
            with element(tmp_path, "collect", settings(), Shard(index, 4)):
                (now,) = [one for one in read_states(tmp_path) if one.index == index]
                assert now.state == "running" and now.pid == os.getpid()
                if error is not None:
                    raise error
        except BaseException as raised:
            if raised is not error:
                raise
        (then,) = [one for one in read_states(tmp_path) if one.index == index]
        return then.state, then.code, then.said

    assert says(None, 0) == ("done", 0, "")
    assert says(BudgetReached("all is\nspent"), 1) == ("failed", 3, "all is spent")
    assert says(KeyboardInterrupt(), 2)[:2] == ("interrupted", 130)
    assert says(ValueError("no"), 3) == ("failed", 1, "ValueError: no")


def test_it_says_how_long_it_has_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("autointerp.jobs.element.BEAT", 0.01)
    with element(tmp_path, "collect", settings()):
        while not read_states(tmp_path)[0].seconds:
            pass
        assert read_states(tmp_path)[0].state == "running"
    assert read_states(tmp_path)[0].state == "done"


@pytest.mark.parametrize("told", ["SIGTERM", "SIGUSR1"])
def test_signals_end_a_command_as_ctrl_c_does(
    told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cli: Callable[..., Any]
) -> None:
    """Once: whoever passes a signal on may send it twice, and the second must not break into the flushing."""
    from autointerp.cli import submitting

    flushed = []

    def look(*_: Any) -> None:
        try:
            os.kill(os.getpid(), getattr(signal, told))
        finally:
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGUSR1)
            flushed.append(True)

    monkeypatch.setattr("autointerp.jobs.submit.settings_of", look)
    ended = cli("status", tmp_path)
    assert submitting and ended.code == 130 and flushed == [True]


# ---- what is missing


@pytest.fixture(scope="module")
def config(world: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    told: dict[str, Any] = {
        "sae": str(world.sae), "subject": {"model": str(world.model)}, "limit": 5,
        "data": {"dataset": str(world.corpus), "tokens": 8_000, "context_length": 64, "batch_tokens": 1024},
        "sampling": {"window": 16, "explain_activating": 4, "explain_random": 4, "score_activating": 4,
                     "score_random": 4, "min_windows": 4, "prompts": 3, "prompt_tokens": 16},
        "explain": {"client": "fake", "llm": "keyword"},
        "score": {"client": "fake", "llm": "keyword", "methods": ["detection"]},
        "study": {"controls": ["random_sae"]},
    }  # fmt: skip
    path = tmp_path_factory.mktemp("jobs") / "run.yaml"
    path.write_text(yaml.safe_dump(told))
    return path


def run_stage(cli: Callable[..., Any], config: Path, out: Path, stage: str, shard: str) -> Any:
    ended = cli("run", "--config", config, "--out", out, "--only", stage, "--shard", shard, "--quiet")
    assert ended.code == 0, ended.err
    return ended


def missing(folder: Path, config: Path, stage: str, count: int) -> list[int]:
    return Progress(folder, resolve({}, config=config, environ={})).incomplete(stage, count)


def stages_of(folder: Path, config: Path, count: int, **more: Any) -> list[tuple[str, int, tuple[int, ...]]]:
    told = resolve({}, config=config, environ={})
    made = plan(Progress(folder, told), count, more.pop("queued", {}), **more)
    return [(batch.stage, batch.count, batch.indices) for batch in made.batches]


def test_what_is_missing_is_read_from_the_folder(config: Path, tmp_path: Path, cli: Callable[..., Any]) -> None:
    """Stage by stage, shares done by hand in any order; two cells (an SAE and its control)."""
    out = tmp_path / "out"
    every = [("collect", 2, (0, 1)), ("explain", 2, (0, 1)), ("score", 2, (0, 1)), ("merge", 1, (0,))]
    assert stages_of(out, config, 2) == every
    assert stages_of(out, config, 2, only="score") == every[2:3]

    run_stage(cli, config, out, "collect", "1/2")
    assert stages_of(out, config, 2)[0] == ("collect", 2, (0,))
    # What has begun in two shares is collected in two.
    assert stages_of(out, config, 7)[:2] == [("collect", 2, (0,)), ("explain", 7, tuple(range(7)))]
    run_stage(cli, config, out, "collect", "0/2")
    assert missing(out, config, "collect", 2) == []
    manifest = next((out / "store").glob("*/shard-1-of-2/manifest.json"))
    manifest.rename(manifest.with_name("away"))
    assert missing(out, config, "collect", 2) == [1]
    manifest.with_name("away").rename(manifest)

    run_stage(cli, config, out, "explain", "1/3")
    assert stages_of(out, config, 3) == [("explain", 3, (0, 2)), ("score", 3, (0, 1, 2)), ("merge", 1, (0,))]
    # Five latents: of six shares, one is empty and the others have one each; share 1 of 3 is latents 1 and 2.
    units = {i: Progress(out, resolve({}, config=config, environ={})).share("explain", Shard(i, 6)) for i in range(6)}
    assert sum(units.values(), Share(0, 0)) == Share(4, 10), "of both cells"
    for shard in ("0/3", "2/3"):
        run_stage(cli, config, out, "explain", shard)
    assert all(missing(out, config, "explain", n) == [] for n in (1, 2, 3, 4, 64))

    # A share whose last marker is gone is not done, and only it.
    marker = max((out / "cells").glob("*/done/explain/*.json"), key=lambda path: path.stat().st_mtime_ns)
    kept = marker.read_text()
    marker.unlink()
    assert missing(out, config, "explain", 3) == [2]
    marker.write_text(kept)

    run_stage(cli, config, out, "score", "0/2")
    assert stages_of(out, config, 2) == [("score", 2, (1,)), ("merge", 1, (0,))]
    run_stage(cli, config, out, "score", "1/2")
    assert stages_of(out, config, 2) == [("merge", 1, (0,))]
    assert cli("merge", out, "--quiet").code == 0
    assert stages_of(out, config, 2) == []
    assert stages_of(out, config, 5) == []

    seen = status(out, resolve({}, config=config, environ={}))
    assert {one.stage: one.units for one in seen.stages} == {
        "collect": Share(4, 4), "explain": Share(10, 10), "score": Share(10, 10), "merge": Share(1, 1),
    }  # fmt: skip
    assert all(one.count("done") == len(one.elements) for one in seen.stages)
    assert sum(row["calls"] for row in seen.spent) > 0

    # Other settings that shape the result: what was selected was selected with those before.
    changed = tmp_path / "changed.yaml"
    changed.write_text(config.read_text() + "seed: 3\n")
    assert stages_of(out, changed, 2)[0][0] == "collect"
    changed.write_text(config.read_text().replace("methods:\n  - detection", "methods:\n  - detection\n  - fuzzing"))
    assert stages_of(out, changed, 2)[-2:] == [("score", 2, (0, 1)), ("merge", 1, (0,))]
    changed.write_text(config.read_text() + "budget: 5usd\nslurm:\n  partition: long\n")
    assert stages_of(out, changed, 2) == []


def test_a_study_without_live_latents_is_not_waited_for(config: Path, tmp_path: Path, cli: Callable[..., Any]) -> None:
    out, changed = tmp_path / "out", tmp_path / "run.yaml"
    told = yaml.safe_load(config.read_text())
    told["study"], told["sampling"]["min_windows"] = {}, 10_000
    changed.write_text(yaml.safe_dump(told))
    run_stage(cli, changed, out, "collect", "0/2"), run_stage(cli, changed, out, "collect", "1/2")
    for shard in ("0/2", "1/2"):
        run_stage(cli, changed, out, "explain", shard)
    assert missing(out, changed, "explain", 2) == []
    for shard in ("0/2", "1/2"):
        run_stage(cli, changed, out, "score", shard)
    assert missing(out, changed, "score", 2) == []
    ended = cli("merge", out, "--quiet")
    assert ended.code == 0, ended.err
    assert stages_of(out, changed, 2) == []


def test_what_torchrun_has_trained_is_trained(
    world: Any, config: Path, tmp_path: Path, cli: Callable[..., Any]
) -> None:
    """The two steps of the training job: the second finds what the first has made, and notes it."""
    out, changed = tmp_path / "out", tmp_path / "run.yaml"
    told = yaml.safe_load(config.read_text())
    del told["sae"]
    told["train"] = {
        "hookpoints": ["layers.0"], "widths": [16], "k": [4], "batch_size": 256, "held_out": 4, "dead_after": 100_000,
    }  # fmt: skip
    changed.write_text(yaml.safe_dump(told))
    assert [stage for stage, _, _ in stages_of(out, changed, 2)] == ["train", "collect", "explain", "score", "merge"]
    early = cli("run", "--config", changed, "--out", out, "--only", "collect", "--shard", "0/2")
    assert early.code == 2 and "not trained yet" in early.err
    first = cli("train", "--config", changed, "--out", out / "trained")
    assert first.code == 0, first.err
    assert missing(out, changed, "train", 1) == [0], "nobody has noted it in the run"
    files = {path: path.stat().st_mtime_ns for path in (out / "trained" / "saes").rglob("*") if path.is_file()}
    assert files
    second = cli("run", "--config", changed, "--out", out, "--only", "train", "--quiet")
    assert second.code == 0, second.err
    assert {path: path.stat().st_mtime_ns for path in files} == files
    assert stages_of(out, changed, 2)[0][0] == "collect"


# ---- sending


def live(stage: str, count: int, states: dict[int, str]) -> dict[tuple[str, int, int], Queued]:
    return {(stage, count, i): Queued(f"7_{i}", f"{stage}-out", state, "") for i, state in states.items()}


def test_what_is_on_its_way_is_not_sent_twice(config: Path, tmp_path: Path) -> None:
    told = resolve({}, config=config, environ={})
    queued = live("collect", 4, {0: "running", 1: "pending", 3: "pending"})
    made = plan(Progress(tmp_path, told), 4, queued)
    first, second = made.batches[:2]
    assert (first.stage, first.indices) == ("collect", (2,))
    assert second.waits_for == ("collect", "7_0", "7_1", "7_3")
    # In another number of shares only what is not on its way: that is done as it was sent.
    other = plan(Progress(tmp_path, told), 3, queued)
    assert (other.batches[0].count, other.batches[0].indices) == (4, (2,))
    assert (other.batches[1].count, other.batches[1].indices) == (3, (0, 1, 2))
    assert any("not 3" in line for line in other.said)


def test_what_waits_for_something_sent_anew_is_taken_back(config: Path, tmp_path: Path) -> None:
    told = resolve({}, config=config, environ={})
    queued = live("explain", 4, dict.fromkeys(range(4), "pending"))
    made = plan(Progress(tmp_path, told), 3, queued)
    assert [(b.stage, b.count, b.indices, b.takes_back) for b in made.batches[:2]] == [
        ("collect", 3, (0, 1, 2), ()), ("explain", 3, (0, 1, 2), ("7_0", "7_1", "7_2", "7_3")),
    ]  # fmt: skip


def test_servers_go_with_the_first_who_asks_and_end_with_the_last(config: Path, tmp_path: Path) -> None:
    told = resolve({"explain.base_url": "servers:", "slurm.gpus": 8}, config=config, environ={})
    made = plan(Progress(tmp_path, told), 4, {}, servers=2)
    assert [batch.stage for batch in made.batches] == ["collect", "servers", "explain", "score", "merge", "end-servers"]
    assert made.batches[1].waits_for == ("collect",)
    assert made.batches[-1].waits_for == ("merge",)
    text = written(tmp_path / "out", told, 4, servers=2)
    assert "-m autointerp.clients.announce" in text and "/out/servers --port 0 -- " in text
    assert "--model keyword --host 0.0.0.0 --port {port}" in text
    assert "--gpus-per-node" not in Scripts(tmp_path, told).text("end-servers", 1)
    assert not (tmp_path / "out").exists()
    with pytest.raises(UserError, match="nobody asks the servers"):
        written(tmp_path, resolve({}, config=config, environ={}), 4, servers=2)


@contextmanager
def slurm_of(folder: Path, monkeypatch: pytest.MonkeyPatch, **programs: str) -> Iterator[Path]:
    """Programs of these names, as lines of shell; what they were asked is in the folder's `asked`."""
    folder.mkdir()
    for name, does in programs.items():
        (folder / name).write_text(f'#!/bin/bash\necho {name} "$@" >> {folder}/asked\n{does}\n')
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/bin:/usr/bin")
    yield folder / "asked"


def test_submit_and_status_with_programs_in_slurms_place(
    config: Path, tmp_path: Path, cli: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is asked of Slurm, what is written down, and what `status` makes of what squeue says."""
    out, said = tmp_path / "out", tmp_path / "queue"
    said.write_text("")
    counting = (
        f"n=$(cat {tmp_path}/last 2>/dev/null || echo 40); echo $((n + 1)) > {tmp_path}/last; cat {tmp_path}/last"
    )
    with slurm_of(tmp_path / "bin", monkeypatch, sbatch=counting, squeue=f"cat {said}", scancel=":") as asked:
        ended = cli("submit", config, "--array", "2", "--out", out)
        assert ended.code == 0, ended.err
        assert [line.split()[1:] for line in asked.read_text().splitlines() if line.startswith("sbatch")] == [
            ["--parsable", "--array", "0-1", f"{out}/slurm/collect.sh"],
            ["--parsable", "--array", "0-1", "--dependency", "afterok:41", "--kill-on-invalid-dep=yes",
             f"{out}/slurm/explain.sh"],
            ["--parsable", "--array", "0-1", "--dependency", "afterok:42", "--kill-on-invalid-dep=yes",
             f"{out}/slurm/score.sh"],
            ["--parsable", "--dependency", "afterok:43", "--kill-on-invalid-dep=yes", f"{out}/slurm/merge.sh"],
        ]  # fmt: skip
        assert [(one.job, one.stage, one.indices) for one in book.read(out)] == [
            ("41", "collect", (0, 1)), ("42", "explain", (0, 1)), ("43", "score", (0, 1)), ("44", "merge", (0,)),
        ]  # fmt: skip
        kept = resolve({}, config=out / "slurm" / "run.yaml", environ={})
        assert kept.sampling == resolve({}, config=config, environ={}).sampling

        # Names tell the jobs of this run from others that have got their numbers.
        said.write_text(
            "41_0|RUNNING|None|collect-out\n41_1|PENDING|Resources|collect-out\n"
            "42_0|PENDING|DependencyNeverSatisfied|explain-out\n42_1|PENDING|Dependency|explain-out\n"
            "43_0|RUNNING|None|another\n44|COMPLETING|None|merge-out\n"
        )
        found = {s["stage"]: [e["state"] for e in s["elements"]] for s in seen(cli, out)["stages"]}
        assert found == {
            "collect": ["running", "pending"], "explain": ["lost", "pending"], "score": ["lost"] * 2, "merge": ["lost"],
        }  # fmt: skip

    def gone(code: str) -> str:
        return f"echo 'slurm_load_jobs error: Unable to contact slurm controller' >&2; exit {code}"

    with slurm_of(tmp_path / "down", monkeypatch, squeue=gone("1"), sbatch=gone("1")):
        told = seen(cli, out)
        assert "Unable to contact" in told["slurm"]
        assert {e["state"] for s in told["stages"] for e in s["elements"]} == {"pending"}
        refused = cli("submit", config, "--array", "2", "--out", out)
        assert refused.code == 1 and refused.err.count("\n") == 1


def seen(cli: Callable[..., Any], out: Path) -> dict[str, Any]:
    ended = cli("status", out, "--json")
    assert ended.code == 0, ended.err
    told: dict[str, Any] = json.loads(ended.out)
    return told


def test_without_slurm(config: Path, tmp_path: Path, cli: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Scripts are shown, status is told, sending is refused in one line."""
    (tmp_path / "empty").mkdir()
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert not queue.here()
    out = tmp_path / "out"
    shown = cli("submit", config, "--array", "32", "--out", out, "--print")
    assert shown.code == 0, shown.err
    assert shown.out.count("#!/bin/bash") == 4
    assert "#SBATCH --array=0-31" in shown.out
    assert not out.exists()
    refused = cli("submit", config, "--array", "2", "--out", out)
    assert refused.code == 1
    assert "no Slurm here" in refused.err and refused.err.count("\n") == 1
    nothing = cli("status", out)
    assert nothing.code == 2
    assert "no run in" in nothing.err


def test_a_killed_process_is_lost_and_a_running_one_has_a_speed(config: Path, tmp_path: Path) -> None:
    told = resolve({}, config=config, environ={})
    out = tmp_path / "out"
    with element(out, "collect", told, Shard(0, 2)):
        found = {one.stage: one for one in status(out, told).stages}["collect"]
        assert [one.state for one in found.elements] == ["running", "not sent"]
    ended = subprocess.Popen(["true"])
    ended.wait()
    path = out / "shards" / "collect-0-of-2.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "state": "running", "pid": ended.pid}))
    found = {one.stage: one for one in status(out, told).stages}["collect"]
    assert found.elements[0].state == "lost"


def test_what_was_sent_twice_counts_as_last_sent() -> None:
    def sent(job: str, indices: tuple[int, ...]) -> Sent:
        return Sent(job, "score-out", "score", 4, indices, (), "")

    assert book.elements([sent("7", (0, 1, 2, 3)), sent("9", (2,))]) == {
        ("score", 4, 0): "7_0", ("score", 4, 1): "7_1", ("score", 4, 2): "9_2", ("score", 4, 3): "7_3",
    }  # fmt: skip
