"""What an explainer returns."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Proposal:
    """An explanation, or None with the status that says why there is none."""

    text: str | None
    status: str = "ok"
