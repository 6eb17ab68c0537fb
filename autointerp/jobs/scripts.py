"""The sbatch scripts of a run: what each asks for, and what it does."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import DictLoader, Environment, StrictUndefined

from autointerp.config import RunSettings
from autointerp.errors import UserError
from autointerp.slurm_settings import SlurmJob

FOLDER, LOGS, CONFIG = "slurm", "logs", "run.yaml"
SERVERS, END_SERVERS = "servers", "end-servers"
OURS = frozenset({
    "array", "dependency", "kill-on-invalid-dep", "output", "error", "open-mode", "job-name", "chdir", "parsable",
    "wait", "wrap", "test-only",
})  # fmt: skip
"""Options of sbatch that are `submit`'s own."""


@dataclass(frozen=True)
class Scripts:
    """Of one run folder, with its settings."""

    folder: Path
    settings: RunSettings

    def text(self, stage: str, count: int) -> str:
        """The script of a stage in `count` shares.

        Raises:
            UserError: an option that cannot be passed on.
        """
        slurm = self.settings.slurm
        asked = self.asked(stage)
        return _environment().get_template("job.sh.jinja").render(
            what=self._what(stage, count),
            options=self.options(stage, count, asked),
            stage=stage,
            logs=shlex.quote(str(self.folder / FOLDER / LOGS)),
            threads=asked.cpus,
            prologue=_lines(asked.prologue),
            steps=[f"step {line}" for line in STEPS[stage](self, count)],
            requeues=slurm.requeues if stage not in (SERVERS, END_SERVERS) else 0,
        )  # fmt: skip

    def asked(self, stage: str) -> SlurmJob:
        """What the section says, with what it says of this stage."""
        slurm = self.settings.slurm
        own: SlurmJob = getattr(slurm, "merge" if stage == END_SERVERS else stage, None) or SlurmJob()
        told = {name: value for name in SlurmJob.model_fields if (value := getattr(own, name)) is not None}
        base = {name: getattr(slurm, name) for name in SlurmJob.model_fields}
        # An array or a server of several nodes is none of ours.
        base |= {} if stage == "train" else {"nodes": None}
        both = {"options": {**slurm.options, **own.options}, "prologue": (*slurm.prologue, *own.prologue)}
        none = {"gpus": None} if stage == END_SERVERS else {}
        return SlurmJob(**{**base, **told, **both, **none})

    def options(self, stage: str, count: int, asked: SlurmJob) -> list[str]:
        """Lines after `#SBATCH`."""
        slurm, logs = self.settings.slurm, self.folder / FOLDER / LOGS
        array = stage in (*ARRAYS, SERVERS)
        log = f"{_percent(str(logs))}/{stage}-%A_%a.log" if array else f"{_percent(str(logs))}/{stage}-%j.log"
        given: dict[str, Any] = {
            "job-name": self.job_name(stage),
            "array": span(range(count), slurm.at_once if stage in ARRAYS else None) if array else None,
            "partition": asked.partition, "account": asked.account, "time": asked.time, "mem": asked.memory,
            "nodes": asked.nodes or 1, "ntasks-per-node": 1, "cpus-per-task": asked.cpus,
            "gpus-per-node": asked.gpus,
            "chdir": str(Path.cwd()), "output": log, "open-mode": "append",
            "requeue": True, "signal": f"B:USR1@{slurm.warning}",
        }  # fmt: skip
        for name, value in asked.options.items():
            if not re.fullmatch(r"[a-z][a-z0-9-]*", name):
                raise UserError(f"config error at slurm.options: '{name}' is no long name of an option of sbatch")
            if name in OURS:
                raise UserError(f"config error at slurm.options: --{name} is set by `autointerp submit` itself")
            given[name] = value
        return [_option(name, value) for name, value in given.items() if value is not None and value is not False]

    def job_name(self, stage: str) -> str:
        return f"{stage}-{re.sub(r'[^A-Za-z0-9_.-]+', '_', self.folder.name)}"

    def log_of(self, stage: str, job: str, kind: str = "log") -> Path:
        """What a job printed; with `exit`, its exit code, if it came to that."""
        return self.folder / FOLDER / LOGS / f"{stage}-{job}.{kind}"

    def _what(self, stage: str, count: int) -> str:
        shares = f", in {count} shares" if stage in ARRAYS else ""
        return f"{stage}{shares}: {' '.join(str(self.folder).split())}"

    @cached_property
    def python(self) -> str:
        return self.settings.slurm.python or shlex.quote(sys.executable)

    @property
    def program(self) -> str:
        return f"{self.python} -m autointerp"

    @property
    def where(self) -> str:
        """Folder and settings of every process."""
        config = shlex.quote(str(self.folder / FOLDER / CONFIG))
        return f"\\\n  --config {config} --out {shlex.quote(str(self.folder))}"


def span(indices: Sequence[int], at_once: int | None = None) -> str:
    """For `--array`: 0-3 or 0,3,7, and how many of them at once."""
    whole = len(indices) > 1 and list(indices) == list(range(indices[0], indices[-1] + 1))
    text = f"{indices[0]}-{indices[-1]}" if whole else ",".join(map(str, indices))
    return text if at_once is None else f"{text}%{at_once}"


def _element(stage: str) -> Callable[[Scripts, int], list[str]]:
    return lambda scripts, count: [
        f'{scripts.program} run {scripts.where} \\\n  --only {stage} --shard "$SLURM_ARRAY_TASK_ID/{count}" --plain'
    ]


def _train(scripts: Scripts, count: int) -> list[str]:
    """With several processes under torchrun; what they have trained, `run` finds trained, and goes on from."""
    last = f"{scripts.program} run {scripts.where} --only train --plain"
    asked = scripts.asked("train")
    nodes, processes = asked.nodes or 1, _number(asked.gpus)
    if nodes * processes == 1:
        return [last]
    trained = shlex.quote(str(scripts.folder / "trained"))
    config = shlex.quote(str(scripts.folder / FOLDER / CONFIG))
    lines = [
        f"srun --nodes={nodes} --ntasks-per-node=1",
        f"{scripts.python} -m torch.distributed.run --nnodes={nodes} --nproc-per-node={processes}",
        '--rdzv-backend=c10d --rdzv-id="$SLURM_JOB_ID"',
        '--rdzv-endpoint="$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)'
        ':$((20000 + SLURM_JOB_ID % 20000))"',
        f"-m autointerp train --config {config} --out {trained} --plain",
    ]
    return [" \\\n  ".join(lines), last]


def _merge(scripts: Scripts, count: int) -> list[str]:
    return [f"{scripts.program} merge {shlex.quote(str(scripts.folder))} --plain"]


def _serve(scripts: Scripts, count: int) -> list[str]:
    """A server that announces itself in the run folder, where `base_url: "servers:"` looks."""
    settings = scripts.settings
    model = settings.explain.llm or settings.score.llm
    command = settings.slurm.serve
    if command is None:
        if model is None:
            raise UserError("no model for --servers: name one (explain.llm), or a command (slurm.serve)")
        command = (
            f"{scripts.python} -m vllm.entrypoints.openai.api_server --model {shlex.quote(model)} "
            "--host 0.0.0.0 --port {port}"
        )
    servers = shlex.quote(str(scripts.folder / SERVERS))
    return [f"{scripts.python} -m autointerp.clients.announce {servers} --port 0 -- {command}"]


def _end_servers(scripts: Scripts, count: int) -> list[str]:
    name, ids = shlex.quote(scripts.job_name(SERVERS)), shlex.quote(str(servers_of(scripts.folder)))
    return [f"scancel --name={name} $(cat {ids})"]


def servers_of(folder: Path) -> Path:
    """File with the ids of the jobs that are servers of this run."""
    return folder / FOLDER / "servers.txt"


ARRAYS = ("collect", "explain", "score")
STEPS: dict[str, Callable[[Scripts, int], list[str]]] = {
    "train": _train, **{stage: _element(stage) for stage in ARRAYS}, "merge": _merge,
    SERVERS: _serve, END_SERVERS: _end_servers,
}  # fmt: skip


def _number(gpus: int | str | None) -> int:
    """Of `4`, `a100:4` or nothing."""
    last = str(gpus or 1).rsplit(":", 1)[-1]
    return int(last) if last.isdigit() else 1


def _option(name: str, value: Any) -> str:
    if value is True:
        return f"--{name}"
    text = str(value)
    if "\n" in text or '"' in text:
        raise UserError(f"config error at slurm: '{text!r}' cannot be written after #SBATCH --{name}")
    return f'--{name}="{text}"' if re.search(r"\s|['#]", text) else f"--{name}={text}"


def _lines(prologue: Sequence[str]) -> list[str]:
    return [line.rstrip() for line in prologue]


def _percent(path: str) -> str:
    """sbatch puts ids in the place of %A and the like."""
    return path.replace("%", "%%")


def _environment() -> Environment:
    folder = files("autointerp.jobs").joinpath("templates")
    texts = {"job.sh.jinja": folder.joinpath("job.sh.jinja").read_text(encoding="utf-8")}
    # A shell script, whose words are quoted where they are made.
    return Environment(loader=DictLoader(texts), undefined=StrictUndefined, keep_trailing_newline=True)  # noqa: S701
