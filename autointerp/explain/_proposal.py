"""What an explainer is given besides the latent's windows, and what it returns."""

from __future__ import annotations

from dataclasses import dataclass, field

from scoring.types import Window


@dataclass(frozen=True, slots=True)
class Background:
    """Text that stands for the corpus as a whole: how often each piece of text occurs in its windows."""

    windows: tuple[Window, ...] = ()
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Proposal:
    """An explanation, or None with the status that says why there is none."""

    text: str | None
    status: str = "ok"
    notes: dict[str, str] = field(default_factory=dict)
