"""Choosing among a latent's windows, and judging them by one number per window."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from prompts.requests import Reply, reply_sha
from scoring.metrics import ranking
from scoring.types import MIXED, Judgement, Outcome, Window


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
    kinds = sorted({window.kind for window in windows if not window.activating})
    if len(kinds) <= 1:
        return [(kinds[0] if kinds else None, frozenset(kinds))]
    return [(MIXED, frozenset(kinds)), *((kind, frozenset({kind})) for kind in kinds)]
