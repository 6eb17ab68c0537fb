"""Ask `default`'s question several times, and keep the answer that tells the explaining windows apart best.

Candidates are sampled at temperature 1. Chosen is the one whose sentence embedding has the highest AUROC of cosines,
activating against other windows **of the explaining split**; of equals, the first. Scoring windows come from other
documents, so this choice does not flatter the scores; it does favour the `embedding` score, which asks the same.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from autointerp.errors import UserError
from autointerp.explain import default
from autointerp.explain._proposal import Proposal
from autointerp.types import LatentRecord
from prompts.requests import Chat, ChatReply, Embed, EmbedReply, Reply
from scoring.intervals import auroc

NAME = "ensemble"
NEEDS = frozenset({Chat, Embed})
TEMPLATES = default.TEMPLATES


@dataclass(frozen=True, kw_only=True)
class Config:
    candidates: int = 3
    """Answers that are asked for; those that fail are left out."""
    max_tokens: int = 200
    """Longest answer."""
    temperature: float = 1.0

    def __post_init__(self) -> None:
        if self.candidates < 1:
            raise UserError(f"the explainer 'ensemble' needs one candidate at least, not {self.candidates}")


Asks = Generator[Sequence[Chat | Embed], Sequence[Reply], Proposal]


def explain(record: LatentRecord, config: Config) -> Asks:
    if len({window.activating for window in record.explain}) < 2:
        return Proposal(None, "too_few_windows")
    (question,) = next(
        default.explain(record, default.Config(max_tokens=config.max_tokens, temperature=config.temperature))
    )
    replies = yield [replace(question, sample_index=i) for i in range(config.candidates)]
    texts = [default.parse(reply.text) if isinstance(reply, ChatReply) else None for reply in replies]
    candidates = list(dict.fromkeys(text for text in texts if text))
    if not candidates:
        first = replies[0]
        return Proposal(None, "unparsable" if isinstance(first, ChatReply) else getattr(first, "kind", "failed"))

    replies = yield [Embed(text) for text in [*candidates, *(window.text for window in record.explain)]]
    said, seen = replies[: len(candidates)], replies[len(candidates) :]
    sides = [
        np.array([
            reply.vector for window, reply in zip(record.explain, seen, strict=True)
            if window.activating is side and isinstance(reply, EmbedReply)
        ])
        for side in (True, False)
    ]  # fmt: skip
    graded = [
        (auroc(list(sides[0] @ np.array(reply.vector)), list(sides[1] @ np.array(reply.vector))), text)
        for text, reply in zip(candidates, said, strict=True)
        if isinstance(reply, EmbedReply) and all(map(len, sides))
    ]
    if not graded:
        return Proposal(None, "embedding_failed")
    # `max` keeps the first of equals.
    return Proposal(max(graded, key=lambda pair: pair[0])[1])
