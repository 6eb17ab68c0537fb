"""What `autointerp submit` asks of Slurm: the section `slurm` of a run's settings, whose others are in `config.py`."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field


class SlurmJob(BaseModel):
    """What a job asks Slurm for; what a stage does not say, the section `slurm` says."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, protected_namespaces=())

    partition: str | None = None
    """Partition, or several joined by commas."""
    account: str | None = None
    """Account that is charged."""
    time: str | None = None
    """Time limit of one job, in quotes: "4:00:00". At it, what is finished is kept and the job queues again."""
    memory: str | None = None
    """Memory of one job, e.g. 32G."""
    cpus: int | None = Field(None, ge=1)
    """Cores of one job; with several nodes, on each."""
    gpus: int | str | None = None
    """GPUs of one job, e.g. 1 or a100:2; with several nodes, on each."""
    nodes: int | None = Field(None, ge=1)
    """Nodes, for `train`: with several, or several GPUs, it runs under torchrun. Other stages take one."""
    options: dict[str, Any] = {}
    """Any other option of sbatch by its long name, e.g. {qos: low, constraint: a100, exclusive: true}."""
    prologue: tuple[str, ...] = ()
    """Lines of shell before the work: modules, conda, a virtual environment. A stage's own come after those of
    `slurm`."""


class Slurm(SlurmJob):
    """What `autointerp submit` writes into its scripts."""

    python: str | None = None
    """What runs Python in a job, e.g. `apptainer exec --nv image.sif python`. Default: the Python that submits."""
    at_once: int | None = Field(None, ge=1)
    """Most elements of an array that run at once."""
    warning: int = Field(120, ge=1)
    """Seconds before the time limit at which a job is told to end."""
    requeues: int = Field(100, ge=0)
    """How often one job may queue itself again."""
    serve: str | None = None
    """Command of a server for `--servers`, with {port}. Default: vLLM with explain.llm (or score.llm)."""
    train: SlurmJob | None = None
    """What differs for `train`, e.g. {nodes: 4, gpus: 8}."""
    collect: SlurmJob | None = None
    """What differs for `collect`."""
    explain: SlurmJob | None = None
    """What differs for `explain`."""
    score: SlurmJob | None = None
    """What differs for `score`."""
    merge: SlurmJob | None = None
    """What differs for `merge`."""
    servers: SlurmJob | None = None
    """What differs for the servers of `--servers`."""
