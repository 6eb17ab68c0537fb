"""Intruder: does a judge see which of five windows is not one of the latent's? (Paulo and Belrose, ICLR 2026)

It grades the latent, not an explanation: no explanation is shown, and 1 means that what the latent fires on looks like
one thing. A trial shows four activating windows of one decile of strength, with their active tokens marked, and one
window in which the latent is silent, with other tokens marked instead: the pattern of marks comes from an activating
window of the same decile, so that number and places of marks tell nothing. The accuracy is that of each decile,
averaged. **Chance is 0.2.** Places of the intruder are balanced, so who always names the same one gets chance.

Nothing depends on the explanation, so it has no control of that kind: of several subjects only the first, the latent's
own explanation, gets the outcome; the others get one without judgements and metrics. What it is to be compared with is
the same score of a random SAE, a random model, or neurons.
"""

from __future__ import annotations

import math
import random
from collections import defaultdict
from collections.abc import Collection, Generator, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import stats

from prompts import render
from prompts.requests import Chat, ChatReply, Reply
from prompts.schemas import member
from scoring.intervals import CONFIDENCE
from scoring.types import Judgement, Metric, Outcome, Subject, Window
from scoring.windows import judgement, marked, no_answer, sources

NAME, VERSION, WINDOWS, METRIC = "intruder", "1", "score", "accuracy"
NEEDS = frozenset({Chat})
TEMPLATES = ("intruder.v1",)

LEAST = 5
"""Usable trials below which there is no score."""


@dataclass(frozen=True, kw_only=True)
class Config:
    trials: int = 20
    """Trials with each kind of non-activating windows, shared out over the deciles; each has an intruder of its own."""
    shown: int = 4
    """Activating windows in a trial; chance is 1 / (shown + 1)."""
    seed: int = 0
    """Seed of the draw of windows, of marks, and of the intruder's place."""


@dataclass(frozen=True, slots=True)
class Trial:
    """What one request shows. `place` is the intruder's, from 0; `decile` the activating windows' place among groups
    of like strength, weakest first."""

    intruder: Window
    decile: int
    place: int
    texts: tuple[str, ...]


def score(
    subjects: Sequence[Subject], windows: Sequence[Window], config: Config
) -> Generator[list[Chat], Sequence[Reply], list[Outcome]]:
    trials = draw(windows, config, subjects[0].latent)
    replies = yield [_request(trial) for trial in trials]
    return [_outcome(windows, trials, replies), *(Outcome((), ()) for _ in subjects[1:])]


def draw(windows: Sequence[Window], config: Config, latent: int) -> list[Trial]:
    """The trials of a latent; the same for the same windows in any order."""
    rng = random.Random(f"{config.seed}/{latent}/intruder")
    groups = deciles([window for window in windows if window.activating], config.shown)
    if not groups:
        return []
    decks = [_Deck(group, rng) for group in groups]
    trials = []
    for kind in sorted({window.kind for window in windows if not window.activating}):
        silent = sorted((window for window in windows if window.kind == kind), key=lambda w: w.window_id)
        intruders = rng.sample(silent, min(config.trials, len(silent)))
        places = [i % (config.shown + 1) for i in range(len(intruders))]
        rng.shuffle(places)
        # Where trials do not go up in deciles, chance says which of them get one more.
        order = rng.sample(range(len(groups)), len(groups))
        for i, (intruder, place) in enumerate(zip(intruders, places, strict=True)):
            decile = order[i % len(order)]
            active = decks[decile].deal(config.shown)
            # The pattern of a window that is not shown, where there is one: nothing repeats.
            unseen = [window for window in groups[decile] if window not in active]
            pattern = rng.choice(unseen or active)
            texts = [marked(window, _active(window)) for window in active]
            texts.insert(
                place, marked(intruder, transferred(_active(pattern), len(pattern.pieces), len(intruder.pieces)))
            )
            trials.append(Trial(intruder, decile, place, tuple(texts)))
    return trials


def deciles(windows: Iterable[Window], least: int) -> list[list[Window]]:
    """Activating windows by their quantile, weakest first; neighbours go together where one has fewer than `least`."""
    by_quantile: dict[int, list[Window]] = defaultdict(list)
    for window in windows:
        by_quantile[0 if window.quantile is None else window.quantile].append(window)
    groups: list[list[Window]] = []
    for quantile in sorted(by_quantile):
        part = sorted(by_quantile[quantile], key=lambda w: w.window_id)
        if groups and len(groups[-1]) < least:
            groups[-1] += part
        else:
            groups.append(part)
    if len(groups) > 1 and len(groups[-1]) < least:
        last = groups.pop()
        groups[-1] += last
    return [group for group in groups if len(group) >= least]


class _Deck:
    """Deals windows such that none comes again before all have come."""

    def __init__(self, windows: Sequence[Window], rng: random.Random) -> None:
        self.windows, self.rng = windows, rng
        self.left: list[Window] = []

    def deal(self, n: int) -> list[Window]:
        hand = self.left[:n]
        self.left = self.left[n:]
        if len(hand) < n:
            fresh = [window for window in self.windows if window not in hand]
            self.rng.shuffle(fresh)
            more = fresh[: n - len(hand)]
            # What is in the hand already was dealt in the round before, and belongs to the new one too.
            rest = fresh[n - len(hand) :] + hand
            self.rng.shuffle(rest)
            hand, self.left = hand + more, rest
            self.rng.shuffle(hand)
        return hand


def _active(window: Window) -> list[int]:
    return [i for i, activation in enumerate(window.activations) if activation != 0]


def transferred(active: Collection[int], length: int, other: int) -> set[int]:
    """As many marks in a window of `other` tokens as `active` are in one of `length`, at like places."""
    free = set(range(other))
    scale = (other - 1) / (length - 1) if length > 1 else 0.0
    for i in sorted(active):
        if free:
            free.remove(min(free, key=lambda at, want=i * scale: (abs(at - want), at)))  # type: ignore[misc]
    return set(range(other)) - free


def _request(trial: Trial) -> Chat:
    numbers = list(range(1, len(trial.texts) + 1))
    return Chat(
        messages=render.messages(TEMPLATES[0], windows=trial.texts),
        max_tokens=32,
        schema={
            "type": "object", "properties": {"intruder": {"type": "integer", "enum": numbers}},
            "required": ["intruder"], "additionalProperties": False,
        },
    )  # fmt: skip


def parse(text: str, n: int) -> int | None:
    """The place from 0 that a reply names, None where it is anything else than one of `n`."""
    number = member(text, "intruder")
    return number - 1 if type(number) is int and 1 <= number <= n else None


def _outcome(windows: Sequence[Window], trials: Sequence[Trial], replies: Sequence[Reply]) -> Outcome:
    judgements = [_judged(trial, reply) for trial, reply in zip(trials, replies, strict=True)]
    return Outcome(
        tuple(judgements), tuple(_accuracy(judgements, kinds, name) for name, kinds in sources(windows) if kinds)
    )


def _judged(trial: Trial, reply: Reply) -> Judgement:
    """The judgement of the intruder: false that the latent fires in it, if it was found. Its quantile is the decile of
    the windows that it stood among."""
    answer = parse(reply.text, len(trial.texts)) if isinstance(reply, ChatReply) else None
    made = judgement(
        trial.intruder, reply, prediction=None if answer is None else answer != trial.place,
        status=no_answer(reply) if answer is None else "ok",
    )  # fmt: skip
    return replace(made, quantile=trial.decile)


def _accuracy(judgements: Sequence[Judgement], kinds: Collection[str], name: str | None) -> Metric:
    mine = [judged for judged in judgements if judged.kind in kinds]
    by_decile: dict[int | None, list[bool]] = defaultdict(list)
    for judged in mine:
        if judged.prediction is not None:
            by_decile[judged.quantile].append(not judged.prediction)
    n = sum(map(len, by_decile.values()))
    n_failed = len(mine) - n
    if n < LEAST:
        return Metric(METRIC, None, n, n_failed, None, None, "", "too_few_windows", name)
    value = float(np.mean([np.mean(found) for found in by_decile.values()]))
    # Trials that the mean over deciles is worth: all of them, if each decile has as many.
    worth = len(by_decile) ** 2 / sum(1 / len(found) for found in by_decile.values())
    return Metric(METRIC, value, n, n_failed, *wilson(value, worth), "wilson", negatives=name)


def wilson(rate: float, n: float) -> tuple[float, float]:
    """Wilson's score interval of a rate, for an `n` that need not be whole.

    Trials share activating windows where a decile has few; the interval takes them for independent.
    """
    z = float(stats.norm.ppf(0.5 + CONFIDENCE / 2))
    middle = (rate + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(rate * (1 - rate) / n + z * z / (4 * n * n))
    return max(0.0, middle - half), min(1.0, middle + half)
