"""Ask a language model what sets the activating windows apart from others, which it is shown too.

As `default`, with windows in which the latent is silent beside them. Hard ones, of whatever source
(`sampling.explain_negatives`), come first, in turns; random ones fill up. EleutherAI's delphi does the same with the
windows nearest in meaning.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from itertools import chain, zip_longest

from autointerp.explain._proposal import Proposal
from autointerp.explain.default import SCHEMA, marked, proposed, strengths
from autointerp.types import LatentRecord
from prompts import render
from prompts.requests import Chat, Reply
from scoring.types import HARD, Window
from scoring.windows import evenly

NAME = "contrastive"
NEEDS = frozenset({Chat})
TEMPLATES = ("explain_contrastive.v1",)


@dataclass(frozen=True, kw_only=True)
class Config:
    activating: int = 40
    """Activating windows that are shown, evenly over their strengths."""
    others: int = 20
    """Windows that are shown in which the latent is silent."""
    max_tokens: int = 200
    """Longest answer."""
    temperature: float = 0.0


def explain(record: LatentRecord, config: Config) -> Generator[list[Chat], Sequence[Reply], Proposal]:
    activating = evenly([w for w in record.explain if w.activating], config.activating)
    others = contrasts([w for w in record.explain if not w.activating], config.others)
    if not activating or not others:
        return Proposal(None, "too_few_windows")
    shown = [{"text": marked(w), "strengths": strengths(w, record.max_activation)} for w in reversed(activating)]
    request = Chat(
        messages=render.messages(TEMPLATES[0], windows=shown, others=[w.text for w in others]),
        max_tokens=config.max_tokens,
        temperature=config.temperature,
        schema=SCHEMA,
    )
    (reply,) = yield [request]
    return proposed(reply)


def contrasts(windows: Sequence[Window], n: int) -> list[Window]:
    """Up to `n` windows: one of each hard kind in turn, and random ones where these do not suffice."""
    by_kind: dict[str, list[Window]] = defaultdict(list)
    for window in windows:
        by_kind[window.kind].append(window)
    hard = [group for kind, group in sorted(by_kind.items()) if kind.startswith(HARD)]
    easy = [group for kind, group in sorted(by_kind.items()) if not kind.startswith(HARD)]
    turns = chain.from_iterable(zip_longest(*hard))
    return [window for window in chain(turns, *easy) if window is not None][: max(0, n)]
