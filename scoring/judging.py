"""What scorers share that show a judge several windows at once: requests, answers, judgements, accuracies.

Several windows go into one request and come back as a JSON list of 0 and 1. An answer that is not such a
list, of the right length, fails all its windows: they are counted, never guessed.
"""

from __future__ import annotations

import json
from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from prompts import render
from prompts.requests import Chat, ChatReply, Reply
from scoring.intervals import balanced_accuracy_metric
from scoring.types import Judgement, Metric, Outcome, Subject, Window
from scoring.windows import judgement

MIXED = "mixed"
"""`Metric.negatives` where windows of several kinds are what positives are set against."""


@dataclass(frozen=True, slots=True)
class Shown:
    """A window as a judge sees it: its text, whether yes is the right answer, and the kind it is booked under."""

    window: Window
    text: str
    label: bool
    kind: str


def judge(
    subjects: Sequence[Subject], shown: Sequence[Shown], template: str, per_request: int
) -> Generator[list[Chat], Sequence[Reply], list[Outcome]]:
    """Ask about every window for every subject, `per_request` at a time and in the order given; the last may be fewer.

    All subjects are judged on the same requests but for their explanation.
    """
    groups = [shown[i : i + per_request] for i in range(0, len(shown), per_request)]
    replies = yield [_request(subject, group, template) for subject in subjects for group in groups]
    n = len(groups)
    return [_outcome(groups, replies[i * n : (i + 1) * n]) for i in range(len(subjects))]


def _request(subject: Subject, group: Sequence[Shown], template: str) -> Chat:
    answers = {
        "type": "array", "items": {"type": "integer", "enum": [0, 1]}, "minItems": len(group), "maxItems": len(group),
    }  # fmt: skip
    return Chat(
        messages=render.messages(template, explanation=subject.explanation, windows=[each.text for each in group]),
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


def _outcome(groups: Sequence[Sequence[Shown]], replies: Sequence[Reply]) -> Outcome:
    judgements: list[Judgement] = []
    for group, reply in zip(groups, replies, strict=True):
        answers = parse(reply.text, len(group)) if isinstance(reply, ChatReply) else None
        status = (
            "ok" if answers else ("unparsable" if isinstance(reply, ChatReply) else getattr(reply, "kind", "failed"))
        )
        for i, each in enumerate(group):
            # The request's tokens are booked on its first window, so that a sum over windows is right.
            booked = judgement(
                each.window, reply, booked=i == 0, prediction=answers[i] if answers else None, status=status
            )
            judgements.append(replace(booked, kind=each.kind, label=each.label))
    return Outcome(tuple(judgements), accuracies(judgements))


def accuracies(judgements: Sequence[Judgement]) -> tuple[Metric, ...]:
    """Balanced accuracy against all negatives together and, where there are several kinds of them, against each."""
    kinds = sorted({j.kind for j in judgements if not j.label})
    over_all = _balanced_accuracy(judgements, MIXED if len(kinds) > 1 else kinds[0] if kinds else None)
    if len(kinds) < 2:
        return (over_all,)
    each = (_balanced_accuracy([j for j in judgements if j.label or j.kind == kind], kind) for kind in kinds)
    return (over_all, *each)


def _balanced_accuracy(judgements: Sequence[Judgement], negatives: str | None) -> Metric:
    hits, totals = [0, 0], [0, 0]
    for j in judgements:
        if j.prediction is not None:
            side = 0 if j.label else 1
            totals[side] += 1
            hits[side] += j.prediction is j.label
    n_failed = len(judgements) - sum(totals)
    metric = balanced_accuracy_metric((hits[0], hits[1]), (totals[0], totals[1]), n_failed)
    return replace(metric, negatives=negatives)
