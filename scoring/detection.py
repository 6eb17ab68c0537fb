"""Detection: a judge reads the explanation and plain windows and says in which it applies. (Paulo et al. 2024, 4.2)

How windows are shown, answers read, and latents stopped early: `scoring.judging`.
"""

from __future__ import annotations

import random
from collections.abc import Generator, Sequence
from dataclasses import dataclass

from prompts.requests import Chat, Reply, Request
from scoring.judging import BALANCED, JudgeConfig, judge
from scoring.judging import needs as needs
from scoring.readings import Shown
from scoring.types import Outcome, Subject, Window
from scoring.windows import evenly

NAME, VERSION, WINDOWS, METRIC = "detection", "2", "score", BALANCED
NEEDS: frozenset[type[Request]] = frozenset({Chat})
BY_READING = {"list": "detection.v1", "probabilities": "detection_one.v1"}
TEMPLATES = tuple(BY_READING.values())


@dataclass(frozen=True, kw_only=True)
class Config(JudgeConfig):
    pass


def score(
    subjects: Sequence[Subject], windows: Sequence[Window], config: Config, *, base_rate: float | None = None
) -> Generator[list[Request], Sequence[Reply], list[Outcome]]:
    """`base_rate`: share of all windows of the corpus in which the latent fires, for figures at that rate."""
    chosen = evenly(windows, config.windows)
    random.Random(f"{config.seed}/{subjects[0].latent}").shuffle(chosen)
    shown = [Shown(window, window.text, window.activating, window.kind) for window in chosen]
    return (yield from judge(subjects, shown, BY_READING, config, base_rate))
