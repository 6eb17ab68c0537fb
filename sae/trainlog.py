"""`metrics.jsonl`: one line per logged step, whole lines only, cut back to the checkpoint on resumption."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DENSITY_EDGES = (-1001.0, -6.0, -5.0, -4.0, -3.0, -2.0, -1.0, 0.0)
"""log10 of firing densities between which latents are counted; the first bin holds the silent ones."""


@dataclass(frozen=True, slots=True)
class TrainLog:
    path: Path

    def begin(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text("")

    def add(self, line: dict[str, Any]) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")

    def lines(self) -> list[dict[str, Any]]:
        """Whole lines in the log; what a crash of the machine left of a last one is passed over."""
        found: list[dict[str, Any]] = []
        for text in self.path.read_text().splitlines() if self.path.exists() else []:
            try:
                line = json.loads(text)
            except json.JSONDecodeError:
                break
            if not isinstance(line, dict) or "step" not in line:
                break
            found.append(line)
        return found

    def cut(self, step: int) -> None:
        """Drop lines of steps after this one, which a killed run logged after its last checkpoint."""
        kept = [json.dumps(line) + "\n" for line in self.lines() if line["step"] <= step]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_suffix(".tmp")
        temporary.write_text("".join(kept))
        temporary.replace(self.path)
