"""What `detection` and `fuzzing` share: how a judge is shown windows, read, and stopped.

A judge says of each window whether the explanation fits it. Two readings, by the option `reading`:

- `list`: several windows in one request, answered by a JSON list of 0 and 1. Works with every server.
- `probabilities`: one window in each request, answered by the probabilities of 1 and 0 (a `Choice`). Needs a server
  that gives them, costs more tokens where no prefix is cached, and gives an AUROC beside the accuracies.

An answer that is none fails all its windows: they are counted, never guessed.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from prompts.requests import Reply, Request
from scoring.metrics import by_kind, classification, ranking
from scoring.readings import READINGS, Shown
from scoring.stopping import RULES, Stopping, pair_up, rounds, stopped_metric
from scoring.types import Judgement, Metric, Outcome, Subject
from scoring.windows import judgement, no_answer

BALANCED = "balanced_accuracy"


@dataclass(frozen=True, kw_only=True)
class JudgeConfig:
    windows: int = 50
    """Activating windows, and as many non-activating ones."""
    reading: Literal["list", "probabilities"] = "list"
    """Several windows a request, answered by a list; or one, answered by probabilities."""
    per_request: int = 5
    """Windows judged in one request, where a list is asked for."""
    ci_halfwidth: float | None = None
    """Judge in rounds, and stop a latent when the interval of its balanced accuracy is at most twice this wide."""
    stopping: Literal["planned", "anytime"] = "planned"
    """What the interval holds for: this rule of stopping only, or any."""
    first_round: int = 20
    """Pairs of windows judged before the first look."""
    step: int = 5
    """Pairs judged between looks."""
    seed: int = 0
    """Seed of the order in which windows are shown; the same for an explanation and its control."""

    def __post_init__(self) -> None:
        for name, known in (("reading", READINGS), ("stopping", RULES)):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} is one of {', '.join(known)}, not {getattr(self, name)!r}")
        for name in ("windows", "per_request", "first_round", "step"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is 1 at least, not {getattr(self, name)}")
        if self.ci_halfwidth is not None and not 0 < self.ci_halfwidth < 0.5:
            raise ValueError(f"ci_halfwidth lies between 0 and 0.5, not {self.ci_halfwidth}")


def needs(config: JudgeConfig) -> frozenset[type[Request]]:
    """What the reading asks for."""
    return frozenset({READINGS[config.reading].asks})


def judge(
    subjects: Sequence[Subject], shown: Sequence[Shown], templates: Mapping[str, str], config: JudgeConfig,
    base_rate: float | None = None,
) -> Generator[list[Request], Sequence[Reply], list[Outcome]]:  # fmt: skip
    """Ask about the windows for every subject, in the order given or in rounds. `templates` by reading.

    All subjects are judged on the same requests but for their explanation; each stops for itself.
    """
    reading, template = READINGS[config.reading], templates[config.reading]
    batches: list[list[Shown]] = [list(shown)]
    rules: list[Stopping | None] = [None] * len(subjects)
    if config.ci_halfwidth is not None:
        batches = in_rounds(shown, config, f"{config.seed}/{subjects[0].latent}/rounds") or [[]]
        rules = [RULES[config.stopping](config.ci_halfwidth) for _ in subjects]
    size = config.per_request if reading.together else 1
    judged: list[list[Judgement]] = [[] for _ in subjects]
    going = list(range(len(subjects)))
    for batch in batches:
        groups = [batch[i : i + size] for i in range(0, len(batch), size)]
        replies = yield [reading.request(subjects[i], group, template) for i in going for group in groups]
        for place, i in enumerate(going):
            for group, reply in zip(groups, replies[place * len(groups) : (place + 1) * len(groups)], strict=True):
                judged[i] += _judgements(group, reply, reading.answers(reply, len(group)))
            if rule := rules[i]:
                rule.update(pair_up(judged[i])[rule.n :])
        going = [i for i in going if not ((rule := rules[i]) and rule.narrow)]
        if not going:
            break
    return [
        Outcome(tuple(mine), graded(mine, rule, config.reading, base_rate))
        for mine, rule in zip(judged, rules, strict=True)
    ]


def _judgements(
    group: Sequence[Shown], reply: Reply, answers: Sequence[tuple[bool, float | None]] | None
) -> Iterator[Judgement]:
    status = "ok" if answers else no_answer(reply)
    for i, each in enumerate(group):
        prediction, probability = answers[i] if answers else (None, None)
        # The request's tokens are booked on its first window, so that a sum over windows is right.
        booked = judgement(
            each.window, reply, booked=i == 0, prediction=prediction, probability=probability, status=status
        )
        yield replace(booked, kind=each.kind, label=each.label)


def graded(
    judgements: Sequence[Judgement], rule: Stopping | None, reading: str, base_rate: float | None
) -> tuple[Metric, ...]:
    """The balanced accuracy first, against all kinds of negatives together and each apart, then the other figures."""
    metrics = classification(judgements, base_rate)
    if rule is not None:
        together, kinds = by_kind(j.kind for j in judgements if j.label is False)[0] if judgements else (None, ())
        n_failed = sum(j.prediction is None for j in judgements if j.label or j.kind in kinds)
        stopped = stopped_metric(rule, n_failed, together)
        metrics = [stopped if (m.metric, m.negatives) == (BALANCED, together) else m for m in metrics]
    metrics.sort(key=lambda metric: metric.metric != BALANCED)
    if not READINGS[reading].together:
        metrics += ranking(judgements)
    return tuple(metrics)


def in_rounds(shown: Sequence[Shown], config: JudgeConfig, seed: str) -> list[list[Shown]]:
    """Windows in pairs of an activating and another one, split into rounds; each is a sample of the whole.

    Activating windows come in blocks of about ten that reach over all strengths, kinds of others in turns: the latent
    that stops after the first round has been judged on what the one that never stops was judged on.
    """
    rng = random.Random(seed)
    yes = sorted((each for each in shown if each.label), key=lambda e: (e.strength, e.window.window_id))
    by_source: dict[str, list[Shown]] = defaultdict(list)
    for each in sorted((e for e in shown if not e.label), key=lambda e: e.window.window_id):
        by_source[each.kind].append(each)
    no: list[tuple[float, str, Shown]] = []
    for kind, some in sorted(by_source.items()):
        rng.shuffle(some)
        no += [((i + 0.5) / len(some), kind, each) for i, each in enumerate(some)]
    no.sort(key=lambda turn: turn[:2])
    n = min(len(yes), len(no))
    if not n:
        return []
    yes = [yes[(2 * i + 1) * len(yes) // (2 * n)] for i in range(n)]
    blocks: list[list[Shown]] = [[] for _ in range(max(1, n // STRATA))]
    for begin in range(0, n, len(blocks)):
        stratum = yes[begin : begin + len(blocks)]
        for block, each in zip(rng.sample(blocks, len(blocks)), stratum, strict=False):
            block.append(each)
    for block in blocks:
        rng.shuffle(block)
    ordered = [each for block in blocks for each in block]
    found, begin = [], 0
    for size in rounds(n, config.first_round, config.step):
        batch = ordered[begin : begin + size] + [each for _, _, each in no[begin : begin + size]]
        rng.shuffle(batch)
        found.append(batch)
        begin += size
    return found


STRATA = 10
"""Strengths, weakest to strongest, of which each block of activating windows has about one."""
