"""Simulation: can a reader foretell every token's activation from the explanation? (Bills et al. 2023)

The reader gets the explanation and a window's tokens and says for each how strongly the latent responds, 0 to 10. The
score is Pearson's correlation of predicted and true activations over the tokens of **all** windows together, not a mean
of correlations within windows, which would not count false alarms in windows where the latent is silent. It does not
change with the scale of either, so activations need not be divided by the latent's maximum. Activations of a negative
pole count by magnitude. Chance is 0.

Experimental: the original reads, in one pass, the probabilities of 0 to 10 at every token of a prompt, and takes their
expected value; that needs log-probabilities of the prompt. Here one chat per window answers with a JSON list, which
works with every server, and takes whole numbers as they are said. `graded` takes predictions from any reader.

The interval is a percentile bootstrap over windows, since tokens of one window are not independent, in which activating
and other windows are drawn apart. Like every such interval it is a little narrow with few windows.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Generator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prompts import render
from prompts.requests import Chat, ChatReply, Reply
from prompts.schemas import member
from scoring.intervals import CONFIDENCE
from scoring.types import Judgement, Metric, Outcome, Subject, Window
from scoring.windows import evenly, judgement, no_answer, sources

NAME, VERSION, WINDOWS, METRIC = "simulation", "1", "score", "pearson"
NEEDS = frozenset({Chat})
TEMPLATES = ("simulation.v1",)

STRONGEST = 10
LEAST = 5
"""Usable windows of either kind below which there is no score."""

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Config:
    windows: int = 20
    """Activating windows, and as many non-activating ones; each is a request with a long answer."""
    draws: int = 1000
    """Resamples of the bootstrap."""
    seed: int = 0
    """Seed of the bootstrap."""


def score(
    subjects: Sequence[Subject], windows: Sequence[Window], config: Config
) -> Generator[list[Chat], Sequence[Reply], list[Outcome]]:
    chosen = evenly(sorted(windows, key=lambda w: (w.kind, w.window_id)), config.windows)
    replies = yield [_request(subject, window) for subject in subjects for window in chosen]
    n, outcomes = len(chosen), []
    for i in range(len(subjects)):
        mine = replies[i * n : (i + 1) * n]
        said = [
            parse(reply.text, len(window.pieces)) if isinstance(reply, ChatReply) else None
            for window, reply in zip(chosen, mine, strict=True)
        ]
        outcomes.append(graded(chosen, said, mine, config))
    return outcomes


def _request(subject: Subject, window: Window) -> Chat:
    n = len(window.pieces)
    # As JSON strings, tokens cannot break a line, nor end what is quoted.
    tokens = [json.dumps(piece, ensure_ascii=False) for piece in window.pieces]
    activations = {
        "type": "array", "items": {"type": "integer", "minimum": 0, "maximum": STRONGEST}, "minItems": n, "maxItems": n,
    }  # fmt: skip
    return Chat(
        messages=render.messages(TEMPLATES[0], explanation=subject.explanation, tokens=tokens),
        max_tokens=32 + 6 * n,
        schema={
            "type": "object", "properties": {"activations": activations}, "required": ["activations"],
            "additionalProperties": False,
        },
    )  # fmt: skip


def parse(text: str, n: int) -> list[float] | None:
    """`n` whole numbers from 0 to 10 from a reply, None where it is anything else."""
    said = member(text, "activations")
    if not isinstance(said, list) or len(said) != n:
        return None
    if any(type(a) is not int or not 0 <= a <= STRONGEST for a in said):
        return None
    return [float(a) for a in said]


def graded(
    windows: Sequence[Window], predictions: Sequence[Sequence[float] | None], replies: Sequence[Reply], config: Config
) -> Outcome:
    """Predicted activations of each window's tokens, None where the answer failed; what they come to.

    A judgement's probability is the largest prediction in its window, in tenths.
    """
    judgements = [
        _judged(window, said, reply) for window, said, reply in zip(windows, predictions, replies, strict=True)
    ]
    pairs = {
        window.window_id: (np.abs(np.array(window.activations, float)), np.array(said, float))
        for window, said in zip(windows, predictions, strict=True)
        if said is not None
    }
    return Outcome(
        tuple(judgements),
        tuple(_metric(windows, pairs, kinds, name, config) for name, kinds in sources(windows)),
    )


def _judged(window: Window, said: Sequence[float] | None, reply: Reply) -> Judgement:
    return judgement(
        window, reply, probability=None if said is None else max(said, default=0.0) / STRONGEST,
        status=no_answer(reply) if said is None else "ok",
    )  # fmt: skip


def _metric(
    windows: Sequence[Window], pairs: dict[str, tuple[Floats, Floats]], kinds: Collection[str], name: str | None,
    config: Config,
) -> Metric:  # fmt: skip
    mine = [window for window in windows if window.activating or window.kind in kinds]
    usable = [window for window in mine if window.window_id in pairs]
    n, n_failed = len(usable), len(mine) - len(usable)
    sides = [[pairs[w.window_id] for w in usable if w.activating is side] for side in (True, False)]
    if min(map(len, sides)) < LEAST:
        return Metric(METRIC, None, n, n_failed, None, None, "", "too_few_windows", name)
    sums = [_sums(sides[0] + sides[1])[part] for part in (slice(len(sides[0])), slice(len(sides[0]), None))]
    value = float(_pearson(sum(side.sum(axis=0) for side in sums)))
    if np.isnan(value):
        # Who says the same of every token has foretold nothing.
        return Metric(METRIC, None, n, n_failed, None, None, "", "constant", name)
    low, high = _bootstrap(sums, config)
    return Metric(METRIC, value, n, n_failed, min(low, value), max(high, value), "bootstrap", negatives=name)


def _sums(pairs: Sequence[tuple[Floats, Floats]]) -> Floats:
    """Of each window [W, 6]: what a correlation is computed from, and what adds up over windows."""
    # About the common mean: sums of squares of large numbers would lose the digits that matter.
    x0, y0 = (float(np.mean(np.concatenate([pair[i] for pair in pairs]))) for i in (0, 1))
    centred = [(x - x0, y - y0) for x, y in pairs]
    return np.array([[len(x), x.sum(), y.sum(), x @ x, y @ y, x @ y] for x, y in centred])


def _pearson(sums: Any) -> Floats:
    """Correlation from sums [..., 6]; NaN where one side is constant."""
    n, x, y, xx, yy, xy = np.moveaxis(np.asarray(sums), -1, 0)
    spread_x, spread_y = xx - x * x / n, yy - y * y / n
    # Rounding leaves a little where there is nothing.
    constant = (spread_x <= 1e-12 * np.maximum(xx, 1e-300)) | (spread_y <= 1e-12 * np.maximum(yy, 1e-300))
    with np.errstate(invalid="ignore", divide="ignore"):
        found = np.clip((xy - x * y / n) / np.sqrt(spread_x * spread_y), -1.0, 1.0)
    return np.where(constant, np.nan, found)


def _bootstrap(sides: Sequence[Floats], config: Config) -> tuple[float, float]:
    rng = np.random.default_rng(config.seed)
    total = sum(rng.multinomial(len(side), np.full(len(side), 1 / len(side)), config.draws) @ side for side in sides)
    found = _pearson(total)
    found = found[~np.isnan(found)]
    if not len(found):
        return -1.0, 1.0
    low, high = np.quantile(found, [0.5 - CONFIDENCE / 2, 0.5 + CONFIDENCE / 2])
    return float(low), float(high)
