"""Ask a language model what the activating windows have in common (Paulo et al. 2024, section 3).

Windows span all strengths; active tokens are marked and their strengths listed, 1 to 10 relative to the
latent's maximum. No chain of thought. One answer, as JSON; anything else is a failure with a status.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from dataclasses import dataclass

from autointerp.explain._proposal import Proposal
from autointerp.types import LatentRecord
from prompts import render
from prompts.requests import Chat, ChatReply, Reply
from prompts.schemas import member
from scoring import windows
from scoring.types import Window

NAME = "default"
NEEDS = frozenset({Chat})
TEMPLATES = ("explain_default.v1",)
SCHEMA = {
    "type": "object", "properties": {"explanation": {"type": "string"}}, "required": ["explanation"],
    "additionalProperties": False,
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Config:
    max_tokens: int = 200
    """Longest answer."""
    temperature: float = 0.0


def explain(record: LatentRecord, config: Config) -> Generator[list[Chat], Sequence[Reply], Proposal]:
    activating = [w for w in record.explain if w.activating]
    shown = [{"text": marked(w), "strengths": strengths(w, record.max_activation)} for w in reversed(activating)]
    request = Chat(
        messages=render.messages(TEMPLATES[0], windows=shown),
        max_tokens=config.max_tokens,
        temperature=config.temperature,
        schema=SCHEMA,
    )
    (reply,) = yield [request]
    return proposed(reply)


def proposed(reply: Reply) -> Proposal:
    """What a reply says, or why it says nothing."""
    if not isinstance(reply, ChatReply):
        return Proposal(None, getattr(reply, "kind", "failed"))
    text = parse(reply.text)
    return Proposal(text, "ok") if text else Proposal(None, "unparsable")


def marked(window: Window) -> str:
    """The window with each run of active tokens between << and >>."""
    return windows.marked(window, {i for i, activation in enumerate(window.activations) if activation != 0})


def strengths(window: Window, maximum: float) -> str:
    """`"token" 7, ...`: ceil(10 * activation / maximum), at least 1."""
    active = [
        (piece.strip(), max(1, min(10, math.ceil(10 * abs(a) / maximum))))
        for piece, a in zip(window.pieces, window.activations, strict=True)
        if a != 0
    ]
    return ", ".join(f'"{piece}" {value}' for piece, value in active)


def parse(text: str) -> str | None:
    """The explanation in a JSON reply, None where it is anything else or empty."""
    explanation = member(text, "explanation")
    return " ".join(explanation.split()) or None if isinstance(explanation, str) else None
