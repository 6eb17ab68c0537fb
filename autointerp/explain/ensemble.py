"""Ask `default`'s question several times, and keep the answer that tells the explaining windows apart best.

Candidates are sampled at temperature 1. Chosen is the one with the highest AUROC of activating against other windows
**of the explaining split**; of equals, the first. What is ranked, the option `by` says: the cosines of its sentence
embedding and the windows' (`embedding`), or by how much it makes each window likelier (`likelihood`, as `surprisal`
does). Scoring windows come from other documents, so this choice does not flatter the scores; it does favour the score
that asks the same.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from autointerp.errors import UserError
from autointerp.explain import default
from autointerp.explain._proposal import Proposal
from autointerp.types import LatentRecord
from prompts.requests import Chat, ChatReply, Embed, EmbedReply, Likelihood, Reply, Request
from scoring import surprisal
from scoring.intervals import auroc
from scoring.types import ACTIVATING, Subject, Window

NAME = "ensemble"
NEEDS: frozenset[type[Request]] = frozenset({Chat, Embed})
TEMPLATES = (*default.TEMPLATES, *surprisal.TEMPLATES)


@dataclass(frozen=True, kw_only=True)
class Config:
    candidates: int = 3
    """Answers that are asked for; those that fail are left out."""
    by: Literal["embedding", "likelihood"] = "embedding"
    """What the best one is chosen by."""
    max_tokens: int = 200
    """Longest answer."""
    temperature: float = 1.0

    def __post_init__(self) -> None:
        if self.candidates < 1:
            raise UserError(f"the explainer 'ensemble' needs one candidate at least, not {self.candidates}")
        if self.by not in CRITERIA:
            raise UserError(f"the explainer 'ensemble' chooses by {' or '.join(CRITERIA)}, not by {self.by!r}")


def needs(config: Config) -> frozenset[type[Request]]:
    return frozenset({Chat, CRITERIA[config.by][0]})


Asks = Generator[Sequence[Request], Sequence[Reply], Proposal]
Grades = Generator[Sequence[Request], Sequence[Reply], list[float | None]]
"""AUROC of each candidate, None where it could not be had."""


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

    _, criterion = CRITERIA[config.by]
    grades = yield from criterion(record.latent, candidates, record.explain)
    graded = [(grade, text) for grade, text in zip(grades, candidates, strict=True) if grade is not None]
    if not graded:
        return Proposal(None, f"{config.by}_failed")
    # `max` keeps the first of equals.
    return Proposal(max(graded, key=lambda pair: pair[0])[1])


def _by_embedding(latent: int, candidates: Sequence[str], windows: Sequence[Window]) -> Grades:
    replies = yield [Embed(text) for text in [*candidates, *(window.text for window in windows)]]
    said, seen = replies[: len(candidates)], replies[len(candidates) :]
    sides = [
        np.array([
            reply.vector for window, reply in zip(windows, seen, strict=True)
            if window.activating is side and isinstance(reply, EmbedReply)
        ])
        for side in (True, False)
    ]  # fmt: skip
    return [
        auroc(list(sides[0] @ np.array(reply.vector)), list(sides[1] @ np.array(reply.vector)))
        if isinstance(reply, EmbedReply) and all(map(len, sides))
        else None
        for reply in said
    ]


def _by_likelihood(latent: int, candidates: Sequence[str], windows: Sequence[Window]) -> Grades:
    subjects = [Subject(latent, text) for text in candidates]
    everything = surprisal.Config(windows=len(windows))
    outcomes = yield from surprisal.score(subjects, windows, everything)
    grades: list[float | None] = []
    for outcome in outcomes:
        usable = [j for j in outcome.judgements if j.probability is not None]
        sides = [[j.probability or 0.0 for j in usable if (j.kind == ACTIVATING) is side] for side in (True, False)]
        grades.append(auroc(*sides) if all(sides) else None)
    return grades


CRITERIA: dict[str, tuple[type[Request], Callable[[int, Sequence[str], Sequence[Window]], Grades]]] = {
    "embedding": (Embed, _by_embedding),
    "likelihood": (Likelihood, _by_likelihood),
}
"""By the option `by`: what is asked, and how."""
