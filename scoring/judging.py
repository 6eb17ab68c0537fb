"""What scorers share that show a judge several windows at once: requests, answers, judgements, accuracies.

Several windows go into one request and come back as a JSON list of 0 and 1. An answer that is not such a
list, of the right length, fails all its windows: they are counted, never guessed.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace

from prompts import render
from prompts.requests import Chat, ChatReply, Reply
from prompts.schemas import member
from scoring.intervals import balanced_accuracy_metric
from scoring.metrics import by_kind, tally
from scoring.types import Judgement, Metric, Outcome, Subject, Window
from scoring.windows import judgement, no_answer


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
    answers = member(text, "answers")
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
        status = "ok" if answers else no_answer(reply)
        for i, each in enumerate(group):
            # The request's tokens are booked on its first window, so that a sum over windows is right.
            booked = judgement(
                each.window, reply, booked=i == 0, prediction=answers[i] if answers else None, status=status
            )
            judgements.append(replace(booked, kind=each.kind, label=each.label))
    return Outcome(tuple(judgements), accuracies(judgements))


def accuracies(judgements: Sequence[Judgement]) -> tuple[Metric, ...]:
    """Balanced accuracy against all negatives together and, where there are several kinds of them, against each."""
    right, n, lost = tally([j for j in judgements if j.label])
    metrics = []
    for name, kinds in by_kind(j.kind for j in judgements if not j.label):
        rejected, m, also_lost = tally([j for j in judgements if not j.label and j.kind in kinds])
        metric = balanced_accuracy_metric((right, rejected), (n, m), lost + also_lost)
        metrics.append(replace(metric, negatives=name))
    return tuple(metrics)
