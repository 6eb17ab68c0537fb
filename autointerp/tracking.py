"""Step metrics to an experiment tracker, only when asked. The only file that imports wandb or trackio."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from autointerp.errors import UserError
from sae.learner import Progress

PROJECT = "autointerp"


class Tracker:
    """Takes figures by dictionary. Without a name it takes them nowhere."""

    def __init__(self, name: str | None, run: str, settings: Mapping[str, Any]) -> None:
        self._module: Any = None
        if name is None:
            return
        try:
            self._module = importlib.import_module(name)
        except ImportError as error:
            raise UserError(f"--track {name} needs the package: pip install {name}") from error
        # wandb and trackio share these calls.
        self._module.init(project=PROJECT, name=run, config=dict(settings))

    def log(self, reports: Sequence[tuple[str, Progress]]) -> None:
        if self._module is not None and reports:
            figures = {f"{name}/{key}": value for name, report in reports for key, value in asdict(report).items()}
            self._module.log(figures, step=reports[0][1].step)

    def finish(self) -> None:
        if self._module is not None:
            self._module.finish()
