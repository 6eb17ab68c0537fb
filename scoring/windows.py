"""Choosing among a latent's windows, and judging them by one number per window."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import Any

from prompts.requests import ChatReply, Reply, reply_sha
from scoring.metrics import by_kind, ranking
from scoring.types import Judgement, Outcome, Window


def evenly(windows: Sequence[Window], n: int) -> list[Window]:
    """Up to `n` activating and `n` other windows; the activating ones evenly over their strengths."""
    chosen: list[Window] = []
    for activating in (True, False):
        group = [window for window in windows if window.activating is activating]
        if activating:
            group.sort(key=lambda w: max((abs(a) for a in w.activations), default=0.0))
        count = min(n, len(group))
        chosen += [group[(2 * i + 1) * len(group) // (2 * count)] for i in range(count)]
    return chosen


def judgement(window: Window, reply: Reply, *, labelled: bool = True, booked: bool = True, **fields: Any) -> Judgement:
    """A window with what was said of it. `booked` says whether the reply's tokens are counted here."""
    return Judgement(
        window_id=window.window_id,
        kind=window.kind,
        quantile=window.quantile,
        label=window.activating if labelled else None,
        reply_sha=reply_sha(reply),
        prompt_tokens=reply.usage.prompt_tokens if booked else 0,
        completion_tokens=reply.usage.completion_tokens if booked else 0,
        **fields,
    )


def marked(window: Window, active: Collection[int]) -> str:
    """The window with each run of the tokens at these places between << and >>."""
    out, inside = [], False
    for i, piece in enumerate(window.pieces):
        if (i in active) != inside:
            inside = not inside
            out.append("<<" if inside else ">>")
        out.append(piece)
    return "".join(out) + (">>" if inside else "")


def no_answer(reply: Reply) -> str:
    """Status of a window whose reply says nothing that can be read."""
    return "unparsable" if isinstance(reply, ChatReply) else getattr(reply, "kind", "failed")


def judged_by_value(windows: Sequence[Window], values: Sequence[float | None], replies: Sequence[Reply]) -> Outcome:
    """One number per window, None where its answer failed; AUROC of activating against other windows.

    A number that is not finite is a failed answer too.
    """
    values = [value if value is not None and math.isfinite(value) else None for value in values]
    judgements = [
        judgement(window, reply, probability=value, status="ok" if value is not None else "failed")
        for window, value, reply in zip(windows, values, replies, strict=True)
    ]
    return Outcome(tuple(judgements), tuple(ranking(judgements)))


def sources(windows: Sequence[Window]) -> list[tuple[str | None, frozenset[str]]]:
    """Kinds of non-activating windows to report on: all of them together, and where there are several, each apart."""
    return by_kind(window.kind for window in windows if not window.activating)
