"""Simulation: can a reader foretell every token's activation from the explanation? (Bills et al. 2023)

The reader gets the explanation and a window's tokens and says for each how strongly the latent responds. The score is
Pearson's correlation of predicted and true activations over the tokens of **all** windows together, not a mean of
correlations within windows, which would not count false alarms in windows where the latent is silent. It does not
change with the scale of either, so activations need not be divided by the latent's maximum. Activations of a negative
pole count by magnitude. Chance is 0.

Two readings, by the option `reading` (`scoring.simulators`):

- `list`: one chat per window, answered by a JSON list of whole numbers from 0 to 10. Works with every server.
- `probabilities`: one request per token, answered by the probabilities of 0 to 9; the prediction is their expected
  value. This is the one-by-one simulation of Bills et al. It takes as many requests as there are tokens (`positions`
  takes a sample of them), and a server that gives probabilities of answers.

Experimental: the original's other way reads, in one pass, the probabilities of 0 to 10 at every token of a prompt in
which the numbers before it are hidden, which no request here can ask for. `Likelihood` tells the probability of the
text that stands there, so that eleven texts are needed, and a text that says 3 at every token makes the next 3 likely:
only a pass for each token and number would give the same figures. `graded` takes predictions from any reader.

A reader who says the same of every token has no correlation: it is null with the status `constant`, as it is where the
latent's own activations are all alike. `pearson@constant=0` is the same figure with 0 in the place of the first: what
such a reader gets on average when ties are broken by chance. Explanations that foretell nothing stay in its means and
differences.

The interval is a percentile bootstrap over windows, since tokens of one window are not independent, in which activating
and other windows are drawn apart. Like every such interval it is a little narrow with few windows.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Generator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from prompts.requests import Chat, Failure, Reply, Request, fingerprint, reply_sha
from scoring.intervals import CONFIDENCE
from scoring.simulators import SIMULATORS
from scoring.simulators import TEMPLATES as TEMPLATES
from scoring.types import Judgement, Metric, Outcome, Subject, Window
from scoring.windows import evenly, judgement, no_answer, sources

NAME, VERSION, WINDOWS, METRIC = "simulation", "1", "score", "pearson"
NEEDS: frozenset[type[Request]] = frozenset({Chat})
WITH_CONSTANT = f"{METRIC}@constant=0"

LEAST = 5
"""Usable windows of either kind below which there is no score."""

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Config:
    windows: int = 20
    """Activating windows, and as many non-activating ones."""
    reading: Literal["list", "probabilities"] = "list"
    """A window in each request, answered by a list; or a token, answered by probabilities."""
    positions: int | None = None
    """Tokens of a window that are asked about, drawn at random, where each is a request. Default: all."""
    draws: int = 1000
    """Resamples of the bootstrap."""
    seed: int = 0
    """Seed of the bootstrap, and of the draw of tokens."""

    def __post_init__(self) -> None:
        if self.reading not in SIMULATORS:
            raise ValueError(f"reading is one of {', '.join(SIMULATORS)}, not {self.reading!r}")
        if self.positions is None:
            return
        if self.positions < 1:
            raise ValueError(f"positions is 1 at least, not {self.positions}")
        if not SIMULATORS[self.reading].chooses:
            raise ValueError(f"positions needs reading=probabilities: a {self.reading} is of all tokens")


def needs(config: Config) -> frozenset[type[Request]]:
    """What the reading asks for."""
    return frozenset({SIMULATORS[config.reading].asks})


def score(
    subjects: Sequence[Subject], windows: Sequence[Window], config: Config
) -> Generator[list[Request], Sequence[Reply], list[Outcome]]:
    simulator = SIMULATORS[config.reading]
    chosen = evenly(sorted((w for w in windows if w.pieces), key=lambda w: (w.kind, w.window_id)), config.windows)
    # The same for an explanation and its controls, which are of one latent.
    places = [_places(window, config, subjects[0].latent) for window in chosen]
    groups = [
        [simulator.requests(subject, window, at) for window, at in zip(chosen, places, strict=True)]
        for subject in subjects
    ]
    answers = iter((yield [request for mine in groups for group in mine for request in group]))
    outcomes = []
    for mine in groups:
        replies = [[next(answers) for _ in group] for group in mine]
        said = [simulator.read(*each) for each in zip(replies, chosen, places, strict=True)]
        outcome = graded(chosen, said, replies, config)
        if simulator.chooses:
            outcome = replace(outcome, metrics=(*outcome.metrics, _failed_tokens(said, replies)))
        outcomes.append(outcome)
    return outcomes


def _places(window: Window, config: Config, latent: int) -> list[int]:
    """Places of the tokens that are asked about: of all tokens alike, so that the correlation stays that of all."""
    n = len(window.pieces)
    if config.positions is None or config.positions >= n:
        return list(range(n))
    return sorted(random.Random(f"{config.seed}/{latent}/{window.window_id}/places").sample(range(n), config.positions))


def _failed_tokens(said: Sequence[Sequence[float | None] | None], replies: Sequence[Sequence[Reply]]) -> Metric:
    """A window is scored by those of its tokens that have an answer; how many have none."""
    asked = sum(map(len, replies))
    failed = asked - sum(value is not None for values in said for value in values or ())
    return Metric("failed_tokens", float(failed), asked, failed, None, None, "")


def graded(
    windows: Sequence[Window], predictions: Sequence[Sequence[float | None] | None],
    replies: Sequence[Sequence[Reply]], config: Config,
) -> Outcome:  # fmt: skip
    """What predictions come to: one for each token of each window, None for a token or a whole window without any.

    `replies` are what each window's predictions were read from. A judgement's probability is the largest prediction in
    its window, as a share of the largest possible.
    """
    strongest = SIMULATORS[config.reading].strongest
    judgements = [
        _judged(window, said, answers, strongest)
        for window, said, answers in zip(windows, predictions, replies, strict=True)
    ]
    pairs = {
        window.window_id: _pair(window, said)
        for window, said in zip(windows, predictions, strict=True)
        if said is not None
    }
    metrics = [_metric(windows, pairs, kinds, name, config) for name, kinds in sources(windows)]
    return Outcome(tuple(judgements), (*(m for m, _ in metrics), *(m for _, m in metrics)))


def _judged(
    window: Window, said: Sequence[float | None] | None, replies: Sequence[Reply], strongest: int
) -> Judgement:  # fmt: skip
    first = replies[0] if replies else Failure("empty", "nothing was asked")
    values = [value for value in said or () if value is not None]
    judged = judgement(
        window, first, probability=None if said is None else max(values, default=0.0) / strongest,
        status=no_answer(first) if said is None else "ok",
    )  # fmt: skip
    if len(replies) < 2:
        return judged
    return replace(
        judged, reply_sha=fingerprint([reply_sha(reply) for reply in replies]),
        prompt_tokens=sum(reply.usage.prompt_tokens for reply in replies),
        completion_tokens=sum(reply.usage.completion_tokens for reply in replies),
    )  # fmt: skip


def _pair(window: Window, said: Sequence[float | None]) -> tuple[Floats, Floats]:
    """True and predicted activations of the tokens that have a prediction."""
    known = [(abs(a), s) for a, s in zip(window.activations, said, strict=True) if s is not None]
    true, predicted = np.array(known, float).reshape(-1, 2).T
    return true, predicted


def _metric(
    windows: Sequence[Window], pairs: dict[str, tuple[Floats, Floats]], kinds: Collection[str], name: str | None,
    config: Config,
) -> tuple[Metric, Metric]:  # fmt: skip
    """The correlation, and the same with 0 for a constant prediction."""
    mine = [window for window in windows if window.activating or window.kind in kinds]
    usable = [window for window in mine if window.window_id in pairs]
    n, n_failed = len(usable), len(mine) - len(usable)
    sides = [[pairs[w.window_id] for w in usable if w.activating is side] for side in (True, False)]
    if min(map(len, sides)) < LEAST:
        none = Metric(METRIC, None, n, n_failed, None, None, "", "too_few_windows", name)
        return none, replace(none, metric=WITH_CONSTANT)
    sums = [_sums(sides[0] + sides[1])[part] for part in (slice(len(sides[0])), slice(len(sides[0]), None))]
    total = sum(side.sum(axis=0) for side in sums)
    value = float(_pearson(total))
    if np.isnan(value):
        none = Metric(METRIC, None, n, n_failed, None, None, "", "constant", name)
        # Of activations that are all alike no reader can be told from another: that is null either way.
        zero = Metric(WITH_CONSTANT, 0.0, n, n_failed, None, None, "", negatives=name)
        return none, replace(none, metric=WITH_CONSTANT) if _constant(total)[0] else zero
    low, high = _bootstrap(sums, config)
    found = Metric(METRIC, value, n, n_failed, min(low, value), max(high, value), "bootstrap", negatives=name)
    return found, replace(found, metric=WITH_CONSTANT)


def _sums(pairs: Sequence[tuple[Floats, Floats]]) -> Floats:
    """Of each window [W, 6]: what a correlation is computed from, and what adds up over windows."""
    # About the common mean: sums of squares of large numbers would lose the digits that matter.
    x0, y0 = (float(np.mean(np.concatenate([pair[i] for pair in pairs]))) for i in (0, 1))
    centred = [(x - x0, y - y0) for x, y in pairs]
    return np.array([[len(x), x.sum(), y.sum(), x @ x, y @ y, x @ y] for x, y in centred])


def _spreads(sums: Any) -> tuple[Floats, Floats]:
    """Sums of squares [...] of the true and the predicted activations about their means, from sums [..., 6]."""
    n, x, y, xx, yy, _ = np.moveaxis(np.asarray(sums), -1, 0)
    return xx - x * x / n, yy - y * y / n


def _constant(sums: Any) -> tuple[Any, Any]:
    """Whether the true and the predicted activations are all alike, from sums [..., 6]."""
    _, _, _, xx, yy, _ = np.moveaxis(np.asarray(sums), -1, 0)
    # Rounding leaves a little where there is nothing.
    x, y = (
        spread <= 1e-12 * np.maximum(squares, 1e-300) for spread, squares in zip(_spreads(sums), (xx, yy), strict=True)
    )
    return x, y


def _pearson(sums: Any) -> Floats:
    """Correlation from sums [..., 6]; NaN where one side is constant."""
    n, x, y, _, _, xy = np.moveaxis(np.asarray(sums), -1, 0)
    spread_x, spread_y = _spreads(sums)
    constant_x, constant_y = _constant(sums)
    with np.errstate(invalid="ignore", divide="ignore"):
        found = np.clip((xy - x * y / n) / np.sqrt(spread_x * spread_y), -1.0, 1.0)
    return np.where(constant_x | constant_y, np.nan, found)


def _bootstrap(sides: Sequence[Floats], config: Config) -> tuple[float, float]:
    rng = np.random.default_rng(config.seed)
    total = sum(rng.multinomial(len(side), np.full(len(side), 1 / len(side)), config.draws) @ side for side in sides)
    found = _pearson(total)
    found = found[~np.isnan(found)]
    if not len(found):
        return -1.0, 1.0
    low, high = np.quantile(found, [0.5 - CONFIDENCE / 2, 0.5 + CONFIDENCE / 2])
    return float(low), float(high)
