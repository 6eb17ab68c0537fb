"""Embedding: is the explanation nearer to activating windows than to others? (Paulo et al. 2024, section 4.3)

Explanation and windows go through a sentence encoder; a window's value is their cosine, the score the AUROC.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass

import numpy as np

from prompts.requests import Embed, EmbedReply, Reply
from scoring.types import Outcome, Subject, Window
from scoring.windows import evenly, judged_by_value

NAME, VERSION, WINDOWS, METRIC = "embedding", "1", "score", "auroc"
NEEDS = frozenset({Embed})
TEMPLATES: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Config:
    windows: int = 50
    """Activating windows, and as many non-activating ones."""
    query: str = ""
    """Text before the explanation; retrieval models are trained with one, MiniLM is not."""


def score(
    subjects: Sequence[Subject], windows: Sequence[Window], config: Config
) -> Generator[list[Embed], Sequence[Reply], list[Outcome]]:
    chosen = evenly(windows, config.windows)
    texts = [config.query + subject.explanation for subject in subjects] + [window.text for window in chosen]
    replies = yield [Embed(text) for text in texts]
    queries, documents = replies[: len(subjects)], replies[len(subjects) :]
    return [judged_by_value(chosen, [cosine(query, d) for d in documents], documents) for query in queries]


def cosine(a: Reply, b: Reply) -> float | None:
    """Cosine of two embeddings, None where either is missing."""
    if isinstance(a, EmbedReply) and isinstance(b, EmbedReply):
        u, v = np.asarray(a.vector), np.asarray(b.vector)
        norm = float(np.linalg.norm(u) * np.linalg.norm(v))
        return float(u @ v) / norm if norm else None
    return None
