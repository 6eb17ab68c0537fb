"""How a judge's yes or no is asked for and read: as a list over several windows, or as probabilities of one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from prompts import render
from prompts.requests import Chat, ChatReply, Choice, ChoiceReply, Reply, Request
from prompts.schemas import member
from scoring.types import Subject, Window

YES, NO = "1", "0"


@dataclass(frozen=True, slots=True)
class Shown:
    """A window as a judge sees it: its text, whether yes is the right answer, and the kind it is booked under."""

    window: Window
    text: str
    label: bool
    kind: str

    @property
    def strength(self) -> float:
        """Largest activation, in magnitude."""
        return max(map(abs, self.window.activations), default=0.0)


class Reading(Protocol):
    asks: type[Request]
    together: bool
    """Whether one request may show several windows."""

    def request(self, subject: Subject, group: Sequence[Shown], template: str) -> Request: ...

    def answers(self, reply: Reply, n: int) -> list[tuple[bool, float | None]] | None:
        """Of each window, the answer and the probability of yes where it is told; None where there is no answer."""
        ...


class List:
    """A JSON list of 0 and 1, one for each window."""

    asks: type[Request] = Chat
    together = True

    def request(self, subject: Subject, group: Sequence[Shown], template: str) -> Chat:
        n = len(group)
        answers = {"type": "array", "items": {"type": "integer", "enum": [0, 1]}, "minItems": n, "maxItems": n}
        return Chat(
            messages=render.messages(template, explanation=subject.explanation, windows=[each.text for each in group]),
            max_tokens=16 + 4 * n,
            schema={
                "type": "object", "properties": {"answers": answers}, "required": ["answers"],
                "additionalProperties": False,
            },
        )  # fmt: skip

    def answers(self, reply: Reply, n: int) -> list[tuple[bool, float | None]] | None:
        said = parse(reply.text, n) if isinstance(reply, ChatReply) else None
        return None if said is None else [(each, None) for each in said]


class Probabilities:
    """The probabilities of 1 and 0 as the next text, of one window.

    Their share is taken, for a judge may also want to say something else; the answer is the likelier one. Of equal
    ones it is no.
    """

    asks: type[Request] = Choice
    together = False

    def request(self, subject: Subject, group: Sequence[Shown], template: str) -> Choice:
        (each,) = group
        messages = render.messages(template, explanation=subject.explanation, windows=[each.text])
        return Choice(messages, (YES, NO))

    def answers(self, reply: Reply, n: int) -> list[tuple[bool, float | None]] | None:
        if not isinstance(reply, ChoiceReply) or len(reply.probabilities) != 2:
            return None
        yes, no = reply.probabilities
        if not (math.isfinite(yes) and math.isfinite(no) and yes >= 0 and no >= 0 and yes + no > 0):
            return None
        share = yes / (yes + no)
        return [(share > 0.5, share)]


READINGS: dict[str, Reading] = {"list": List(), "probabilities": Probabilities()}
"""By the option `reading`."""


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
