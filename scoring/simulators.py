"""How a reader is asked for the activations of a window's tokens: all in one list, or each by probabilities.

Both number activations from 0. `Tokens` stops at 9: its answers have to differ in their first token, and many
tokenizers write 10 as 1 and 0, so that "1" would be read where 10 is meant. A correlation does not feel the scale.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Protocol

from prompts import render
from prompts.requests import Chat, ChatReply, Choice, ChoiceReply, Reply, Request
from prompts.schemas import member
from scoring.types import Subject, Window

DIGITS = tuple("0123456789")

Predictions = list[float | None]
"""One for each token of a window; None where it was not asked for, or the answer was none."""


class Simulator(Protocol):
    asks: type[Request]
    strongest: int
    """The largest prediction."""
    chooses: bool
    """Whether single tokens can be left out."""

    def requests(self, subject: Subject, window: Window, places: Sequence[int]) -> list[Request]:
        """What to ask about the tokens at these places."""
        ...

    def read(self, replies: Sequence[Reply], window: Window, places: Sequence[int]) -> Predictions | None:
        """None where no token has an answer. `replies` are those to `requests`."""
        ...


class Together:
    """A JSON list of whole numbers from 0 to 10, one for each token of the window."""

    asks: type[Request] = Chat
    template = "simulation.v1"
    strongest = 10
    chooses = False

    def requests(self, subject: Subject, window: Window, places: Sequence[int]) -> list[Request]:
        n = len(window.pieces)
        numbers = {
            "type": "array", "items": {"type": "integer", "minimum": 0, "maximum": self.strongest},
            "minItems": n, "maxItems": n,
        }  # fmt: skip
        return [
            Chat(
                messages=render.messages(
                    self.template, explanation=subject.explanation, tokens=[_quoted(piece) for piece in window.pieces]
                ),
                max_tokens=32 + 6 * n,
                schema={
                    "type": "object", "properties": {"activations": numbers}, "required": ["activations"],
                    "additionalProperties": False,
                },
            )
        ]  # fmt: skip

    def read(self, replies: Sequence[Reply], window: Window, places: Sequence[int]) -> Predictions | None:
        (reply,) = replies
        said = parse(reply.text, len(window.pieces)) if isinstance(reply, ChatReply) else None
        return None if said is None else [*said]


class Tokens:
    """The probabilities of 0 to 9 as the next text, one request for each token; the prediction is the expected value.

    As in the one-by-one simulation of Bills et al., the reader sees the window up to the token in question, which is
    all that the latent saw of it. Prompts of a window begin alike up to there: of about 220 tokens with a window of 32,
    a server with a prefix cache reads about 40.
    """

    asks: type[Request] = Choice
    template = "simulation_token.v1"
    strongest = len(DIGITS) - 1
    chooses = True

    def requests(self, subject: Subject, window: Window, places: Sequence[int]) -> list[Request]:
        return [
            Choice(
                render.messages(
                    self.template, explanation=subject.explanation, text="".join(window.pieces[: place + 1]),
                    # JSON may write a slash so: outside the window, its end must not be quoted.
                    token=_quoted(window.pieces[place]).replace("</", "<\\/"),
                ),
                DIGITS,
            )
            for place in places
        ]  # fmt: skip

    def read(self, replies: Sequence[Reply], window: Window, places: Sequence[int]) -> Predictions | None:
        said: Predictions = [None] * len(window.pieces)
        for place, reply in zip(places, replies, strict=True):
            said[place] = expected(reply)
        return None if all(value is None for value in said) else said


SIMULATORS: dict[str, Simulator] = {"list": Together(), "probabilities": Tokens()}
"""By the option `reading`."""
TEMPLATES = (Together.template, Tokens.template)


def parse(text: str, n: int) -> list[float] | None:
    """`n` whole numbers from 0 to 10 from a reply, None where it is anything else."""
    said = member(text, "activations")
    if not isinstance(said, list) or len(said) != n:
        return None
    if any(type(a) is not int or not 0 <= a <= Together.strongest for a in said):
        return None
    return [float(a) for a in said]


def expected(reply: Reply) -> float | None:
    """Expected value of the digits, whose probabilities are divided by their sum; None without such probabilities.

    The rest of the probability is on other texts, and says nothing about the token.
    """
    if not isinstance(reply, ChoiceReply) or len(reply.probabilities) != len(DIGITS):
        return None
    total = sum(reply.probabilities)
    if not (math.isfinite(total) and total > 0 and min(reply.probabilities) >= 0):
        return None
    return sum(p * value for value, p in enumerate(reply.probabilities)) / total


def _quoted(piece: str) -> str:
    # As a JSON string, a token cannot break a line, nor end what is quoted.
    return json.dumps(piece, ensure_ascii=False)
