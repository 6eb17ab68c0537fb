"""Runs as batch jobs on a real Slurm of one machine: `make test-slurm`."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from cluster import all_ended, scontrol, sent, squeue, state, until

from autointerp.tables.load import load_table

pytestmark = pytest.mark.slurm

TABLES = ("scores", "judgements", "explanations", "windows", "latents", "lens", "sae_metrics")
Command = Callable[..., Any]


def settings_for(world: Any, **changes: Any) -> dict[str, Any]:
    """A run on the planted world: eight latents, two scorers, a client without a model."""
    settings: dict[str, Any] = {
        "sae": str(world.sae),
        "subject": {"model": str(world.model)},
        "data": {"dataset": str(world.corpus), "tokens": 20_000, "context_length": 64, "batch_tokens": 1024},
        "sampling": {"window": 16, "explain_activating": 10, "explain_random": 10, "score_activating": 8,
                     "score_random": 8, "min_windows": 4, "prompts": 3, "prompt_tokens": 16},
        "explain": {"client": "fake", "llm": "keyword"},
        "score": {"client": "fake", "llm": "keyword", "methods": ["detection", "surprisal"]},
        "slurm": {"cpus": 1, "time": "0:30:00"},
    }  # fmt: skip
    for name, value in changes.items():
        settings[name] = {**settings[name], **value}
    return settings


def write(folder: Path, settings: dict[str, Any]) -> Path:
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


def equal(run: Path, whole: Path, apart: tuple[str, ...] = ("run_id",)) -> None:
    """Row for row, but for the name of the folder."""
    for table in TABLES:
        mine, theirs = load_table(run, table), load_table(whole, table)
        assert len(mine)
        pd.testing.assert_frame_equal(mine.drop(columns=list(apart)), theirs.drop(columns=list(apart)))


def status(cli: Command, run: Path) -> dict[str, dict[str, Any]]:
    ended = cli("status", run, "--json")
    assert ended.code == 0, ended.err
    return {stage["stage"]: stage for stage in json.loads(ended.out)["stages"]}


def states(stage: dict[str, Any]) -> list[str]:
    return [element["state"] for element in stage["elements"]]


def by_one_process(folder: Path, settings: dict[str, Any]) -> Path:
    """The same run without any share, in a process of its own with as many threads as a job has."""
    command = [sys.executable, "-m", "autointerp", "run", "--config", str(write(folder, settings)), "--quiet"]
    subprocess.run([*command, "--out", str(folder / "out")], check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    return folder / "out"


@pytest.fixture(scope="module")
def whole(world: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return by_one_process(tmp_path_factory.mktemp("whole"), settings_for(world))


@pytest.mark.skipif(not os.environ.get("SLURM_DEMO", "1").strip("0"), reason="SLURM_DEMO=0: without the demo's model")
def test_arrays_on_the_demos_model(slurm: Path, tmp_path: Path, cli: Command) -> None:
    """A real subject model (SmolLM2-135M) and its largest neurons, in shares of four."""
    settings = {
        "sae": "neurons:32", "subject": {"model": "demo", "hookpoint": "layers.9"}, "limit": 8,
        "data": {"dataset": "docstrings", "tokens": 6_000, "context_length": 128, "batch_tokens": 512},
        "sampling": {"explain_activating": 6, "explain_random": 6, "score_activating": 6, "score_random": 6,
                     "min_windows": 4},
        "explain": {"client": "fake", "llm": "keyword"},
        "score": {"client": "fake", "llm": "keyword", "methods": ["detection"]},
        "slurm": {"cpus": 1, "time": "1:00:00"},
    }  # fmt: skip
    run, config = tmp_path / "run" / "out", write(tmp_path, settings)
    ended = cli("submit", config, "--array", "4", "--out", run)
    assert ended.code == 0, ended.err
    all_ended()
    assert {stage: set(states(found)) for stage, found in status(cli, run).items()} == {
        stage: {"done"} for stage in ("collect", "explain", "score", "merge")
    }
    (tmp_path / "whole").mkdir()
    equal(run, by_one_process(tmp_path / "whole", settings))


def test_arrays_give_the_tables_of_one_process(
    slurm: Path, world: Any, whole: Path, tmp_path: Path, cli: Command
) -> None:
    """With `status` beside it, compared with what squeue says; a time limit (USR1) interrupts one element."""
    run, config = tmp_path / "a folder" / "out", write(tmp_path, settings_for(world))
    ended = cli("submit", config, "--array", "4", "--out", run)
    assert ended.code == 0, ended.err
    assert sent(run) == [(stage, 4, [0, 1, 2, 3]) for stage in ("collect", "explain", "score")] + [("merge", 1, [0])]
    ids = [job["job"] for job in json.loads((run / "slurm" / "jobs.json").read_text())]

    until(lambda: "RUNNING" in squeue().values(), "an element to run")
    seen, queue = status(cli, run), squeue()
    assert "running" in states(seen["collect"])
    for stage, job in zip(("collect", "explain", "score"), ids, strict=False):
        for index, found in enumerate(states(seen[stage])):
            # What was pending may have begun between the two looks.
            assert found == "pending" or (found, queue.get(f"{job}_{index}")) in (
                ("running", "RUNNING"), ("running", "COMPLETING"), ("running", None), ("done", None),
            )  # fmt: skip
    assert states(seen["merge"]) == ["pending"]
    assert cli("submit", config, "--array", "4", "--out", run).out.startswith("collect: 4 of 4 are on their way")
    assert len(sent(run)) == 4, "nothing was sent twice"
    config.write_text(config.read_text().replace("window: 16", "window: 12"))
    refused = cli("submit", config, "--array", "4", "--out", run)
    assert refused.code == 2
    assert "with other settings are on their way" in refused.err

    until(lambda: state(run, "explain", 1, 4).get("state") == "running", "an element that explains")
    subprocess.run(["scancel", "--signal=USR1", "--batch", f"{ids[1]}_1"], check=True)
    assert states(status(cli, run)["collect"]) == ["done"] * 4
    until(lambda: "Restarts=1" in scontrol(f"{ids[1]}_1"), "it to be queued again")
    assert state(run, "explain", 1, 4)["state"] in ("interrupted", "running", "done")
    all_ended()

    assert {stage: set(states(found)) for stage, found in status(cli, run).items()} == {
        stage: {"done"} for stage in ("collect", "explain", "score", "merge")
    }
    assert status(cli, run)["score"]["units_done"] == status(cli, run)["score"]["units"] == 16
    equal(run, whole)
    again = cli("submit", write(tmp_path, settings_for(world)), "--array", "4", "--out", run)
    assert "complete: nothing to send" in again.out


@pytest.fixture(scope="module")
def broken(slurm: Path, world: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run in which one element of explaining was killed, one was told to end, and one ended with code 7."""
    folder = tmp_path_factory.mktemp("broken")
    tried = folder / "tried"
    once = f'[ "$SLURM_ARRAY_TASK_ID" != 3 ] || [ -e {tried} ] || {{ touch {tried}; exit 7; }}'
    config = write(folder, settings_for(world, slurm={"explain": {"prologue": [once]}}))
    command = [
        os.sys.executable,
        "-m",
        "autointerp",
        "submit",
        str(config),
        "--array",
        "4",
        "--out",
        str(folder / "out"),
    ]
    subprocess.run(command, check=True, capture_output=True)
    for index, how in ((0, signal.SIGKILL), (2, signal.SIGTERM)):
        running = until(
            lambda index=index: (found := state(folder / "out", "explain", index, 4)).get("state") == "running" and found,
            f"element {index}",
        )  # fmt: skip
        os.kill(running["pid"], how)
    all_ended()
    return folder


def test_what_failed_is_known(broken: Path, cli: Command) -> None:
    seen = status(cli, broken / "out")
    assert states(seen["collect"]) == ["done"] * 4
    assert states(seen["explain"]) == ["failed", "done", "interrupted", "failed"]
    assert [one["code"] for one in seen["explain"]["elements"]] == [137, 0, 130, 7]
    # What waited for them was cancelled, and never began.
    assert states(seen["score"]) == ["lost"] * 4
    assert "never began" in seen["score"]["elements"][0]["said"]
    printed = cli("status", broken / "out").out
    assert "explain 3/4 failed (code 7)" in printed
    assert "explain 2/4 interrupted (code 130)" in printed


@pytest.mark.parametrize("shards", [4, 3])
def test_a_second_submit_sends_what_is_missing(
    broken: Path, whole: Path, tmp_path: Path, cli: Command, shards: int
) -> None:
    run = tmp_path / "out"
    shutil.copytree(broken / "out", run)
    before = len(sent(run))
    ended = cli("submit", broken / "run.yaml", "--array", shards, "--out", run)
    assert ended.code == 0, ended.err
    every = list(range(shards))
    explaining = {4: [0, 2, 3], 3: every}[shards]
    assert sent(run)[before:] == [("explain", shards, explaining), ("score", shards, every), ("merge", 1, [0])]
    all_ended()
    assert {stage: set(states(found)) for stage, found in status(cli, run).items()} == {
        stage: {"done"} for stage in ("collect", "explain", "score", "merge")
    }
    equal(run, whole)


WORKER = """#!/bin/bash
# In the place of Python: does nothing for long, and ends as autointerp does when it is told to.
trap 'exit 130' TERM
sleep 600 & wait $!
"""


def test_who_queues_again(slurm: Path, world: Any, tmp_path: Path, cli: Command) -> None:
    """A time limit brings an element back; a user who cancels it does not get it back, nor one that was killed."""
    worker = tmp_path / "worker"
    worker.write_text(WORKER)
    worker.chmod(0o755)
    run = tmp_path / "out"
    config = write(tmp_path, settings_for(world, slurm={"python": str(worker)}))
    assert cli("submit", config, "--array", "2", "--out", run, "--only", "collect").code == 0
    (job,) = (one["job"] for one in json.loads((run / "slurm" / "jobs.json").read_text()))
    until(lambda: list(squeue().values()) == ["RUNNING"] * 2, "both to run")
    # The trap has to be there before the signal.
    until(lambda: len(list((run / "slurm" / "logs").glob("*.log"))) == 2, "both scripts")
    until(lambda: subprocess.run(["pgrep", "--full", str(worker)], capture_output=True).returncode == 0, "the work")
    subprocess.run(["scancel", "--signal=USR1", "--batch", f"{job}_0"], check=True)
    subprocess.run(["scancel", f"{job}_1"], check=True)
    until(lambda: "Restarts=1" in scontrol(f"{job}_0"), "the first to be queued again")
    until(lambda: f"{job}_1" not in squeue(), "the second to be gone")
    seen = status(cli, run)["collect"]
    assert states(seen)[0] in ("pending", "running")
    assert states(seen)[1] in ("lost", "failed")
    assert "Restarts=0" in scontrol(f"{job}_1")
    assert "JobState=CANCELLED" in scontrol(f"{job}_1")
    ended = cli("submit", config, "--array", "2", "--out", run, "--only", "collect")
    assert sent(run)[-1] == ("collect", 2, [1]), ended.out
    subprocess.run(["scancel", job, json.loads((run / "slurm" / "jobs.json").read_text())[-1]["job"]], check=True)
    all_ended()


def test_what_waits_for_a_failed_share_is_sent_anew(slurm: Path, world: Any, tmp_path: Path, cli: Command) -> None:
    """Its jobs wait for one that will not succeed; they are taken back, and others wait for the one sent now."""
    run, flag = tmp_path / "out", tmp_path / "tried"
    worker = tmp_path / "worker"
    worker.write_text(WORKER)
    worker.chmod(0o755)
    # The first try of share 1 fails while share 0 works on.
    once = f'[ "$SLURM_ARRAY_TASK_ID" != 1 ] || [ -e {flag} ] || {{ touch {flag}; exit 7; }}'
    config = write(tmp_path, settings_for(world, slurm={"python": str(worker), "collect": {"prologue": [once]}}))
    assert cli("submit", config, "--array", "2", "--out", run).code == 0
    until(
        lambda: (run / "slurm" / "logs").is_dir() and list((run / "slurm" / "logs").glob("collect-*_1.exit")),
        "it to fail",
    )
    old = {job["stage"]: job["job"] for job in json.loads((run / "slurm" / "jobs.json").read_text())}
    ended = cli("submit", config, "--array", "2", "--out", run)
    assert ended.code == 0, ended.err
    new = {job["stage"]: job for job in json.loads((run / "slurm" / "jobs.json").read_text())[4:]}
    assert new["collect"]["indices"] == [1]
    assert new["explain"]["depends"] == [f"afterok:{new['collect']['job']}:{old['collect']}_0"]
    until(
        lambda: not any(job.split("_")[0] in (old["explain"], old["score"], old["merge"]) for job in squeue()),
        "old jobs to go",
    )
    assert {f"{new['explain']['job']}_0", f"{new['score']['job']}_1", new["merge"]["job"]} <= set(squeue())
    subprocess.run(["scancel", *{job.split("_")[0] for job in squeue()}], check=True)
    all_ended()


def test_status_without_slurm(broken: Path, slurm: Path, cli: Command) -> None:
    """The last test: the daemons are gone."""
    with_it = status(cli, broken / "out")
    subprocess.run(["bash", str(Path(__file__).parent / "slurm_up.sh"), "down"], check=True)
    ended = cli("status", broken / "out", "--json")
    assert ended.code == 0, ended.err
    seen = json.loads(ended.out)
    assert seen["slurm"] != "here"
    without = {stage["stage"]: stage for stage in seen["stages"]}
    for stage in ("collect", "explain"):
        assert states(without[stage]) == states(with_it[stage])
    assert states(without["score"]) == ["pending"] * 4, "nobody can say more of what never began"
    refused = cli("submit", broken / "run.yaml", "--array", "4", "--out", broken / "out")
    assert refused.code == 1
    assert refused.err.count("\n") == 1
