"""Detection: a judge reads the explanation and plain windows and says in which it applies. (Paulo et al. 2024, 4.2)

Several windows go into one request and come back as a JSON list of 0 and 1; see `scoring.judging`.
"""

from __future__ import annotations

import random
from collections.abc import Generator, Sequence
from dataclasses import dataclass

from prompts.requests import Chat, Reply
from scoring.judging import Shown, judge
from scoring.judging import parse as parse
from scoring.types import Outcome, Subject, Window
from scoring.windows import evenly

NAME, VERSION, WINDOWS, METRIC = "detection", "1", "score", "balanced_accuracy"
NEEDS = frozenset({Chat})
TEMPLATES = ("detection.v1",)


@dataclass(frozen=True, kw_only=True)
class Config:
    windows: int = 50
    """Activating windows, and as many non-activating ones."""
    per_request: int = 5
    """Windows judged in one request."""
    seed: int = 0
    """Seed of the order in which windows are shown; the same for an explanation and its control."""


def score(
    subjects: Sequence[Subject], windows: Sequence[Window], config: Config
) -> Generator[list[Chat], Sequence[Reply], list[Outcome]]:
    chosen = evenly(windows, config.windows)
    random.Random(f"{config.seed}/{subjects[0].latent}").shuffle(chosen)
    shown = [Shown(window, window.text, window.activating, window.kind) for window in chosen]
    return (yield from judge(subjects, shown, TEMPLATES[0], config.per_request))
