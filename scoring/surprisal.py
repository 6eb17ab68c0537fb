"""Surprisal: does the explanation make the window's text more likely? (Paulo et al. 2024, section 4.3)

A window's value is log p(text | explanation) - log p(text | baseline), the score the AUROC of activating
against non-activating windows. Each window is scored on its own: no state passes from one to the next.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass

from prompts import render
from prompts.requests import Likelihood, LikelihoodReply, Reply
from scoring.types import Outcome, Subject, Window
from scoring.windows import evenly, judged_by_value

NAME, VERSION, WINDOWS, METRIC = "surprisal", "1", "score", "auroc"
NEEDS = frozenset({Likelihood})
TEMPLATES = ("surprisal.v1", "surprisal_baseline.v1")


@dataclass(frozen=True, kw_only=True)
class Config:
    windows: int = 50
    """Activating windows, and as many non-activating ones."""


def score(
    subjects: Sequence[Subject], windows: Sequence[Window], config: Config
) -> Generator[list[Likelihood], Sequence[Reply], list[Outcome]]:
    chosen = evenly(windows, config.windows)
    prompts = [render.text(TEMPLATES[1])]
    prompts += [render.text(TEMPLATES[0], explanation=subject.explanation) for subject in subjects]
    replies = yield [Likelihood(prompt, window.text) for prompt in prompts for window in chosen]
    size = len(chosen)
    baseline, *explained = (replies[i * size : (i + 1) * size] for i in range(len(prompts)))
    return [judged_by_value(chosen, list(map(_gain, mine, baseline)), mine) for mine in explained]


def _gain(explained: Reply, baseline: Reply) -> float | None:
    if isinstance(explained, LikelihoodReply) and isinstance(baseline, LikelihoodReply):
        return explained.logprob - baseline.logprob
    return None
