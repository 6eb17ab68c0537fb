"""Detection: a judge reads the explanation and plain windows and says in which it applies. (Paulo et al. 2024, 4.2)

Several windows go into one request and come back as a JSON list of 0 and 1. An answer that is not such a
list, of the right length, fails all its windows: they are counted, never guessed.
"""

from __future__ import annotations

import json
import random
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any

from prompts import render
from prompts.requests import Chat, ChatReply, Reply
from scoring.intervals import balanced_accuracy_metric
from scoring.types import Judgement, Outcome, Subject, Window
from scoring.windows import evenly, judgement

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
    groups = [chosen[i : i + config.per_request] for i in range(0, len(chosen), config.per_request)]
    replies = yield [_request(subject, group) for subject in subjects for group in groups]
    n = len(groups)
    return [_outcome(groups, replies[i * n : (i + 1) * n]) for i in range(len(subjects))]


def _request(subject: Subject, group: Sequence[Window]) -> Chat:
    answers = {
        "type": "array", "items": {"type": "integer", "enum": [0, 1]}, "minItems": len(group), "maxItems": len(group),
    }  # fmt: skip
    return Chat(
        messages=render.messages(TEMPLATES[0], explanation=subject.explanation, windows=[w.text for w in group]),
        max_tokens=16 + 4 * len(group),
        schema={
            "type": "object", "properties": {"answers": answers}, "required": ["answers"],
            "additionalProperties": False,
        },
    )  # fmt: skip


def parse(text: str, n: int) -> list[bool] | None:
    """`n` answers from a reply, None where it is anything else."""
    try:
        value: Any = json.loads(text)
    except (ValueError, RecursionError):
        return None
    answers = value.get("answers") if isinstance(value, dict) else None
    if (
        not isinstance(answers, list)
        or len(answers) != n
        or any(type(a) is not int or a not in (0, 1) for a in answers)
    ):
        return None
    return [a == 1 for a in answers]


def _outcome(groups: Sequence[Sequence[Window]], replies: Sequence[Reply]) -> Outcome:
    judgements: list[Judgement] = []
    hits, totals, n_failed = [0, 0], [0, 0], 0
    for group, reply in zip(groups, replies, strict=True):
        answers = parse(reply.text, len(group)) if isinstance(reply, ChatReply) else None
        status = (
            "ok" if answers else ("unparsable" if isinstance(reply, ChatReply) else getattr(reply, "kind", "failed"))
        )
        for i, window in enumerate(group):
            prediction = answers[i] if answers else None
            if prediction is None:
                n_failed += 1
            else:
                side = 0 if window.activating else 1
                totals[side] += 1
                hits[side] += prediction is window.activating
            # The request's tokens are booked on its first window, so that a sum over windows is right.
            judgements.append(judgement(window, reply, booked=i == 0, prediction=prediction, status=status))
    metric = balanced_accuracy_metric((hits[0], hits[1]), (totals[0], totals[1]), n_failed)
    return Outcome(tuple(judgements), (metric,))
