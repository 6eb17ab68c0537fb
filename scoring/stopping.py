"""Stop judging a latent as soon as its score is known well enough (`--ci-halfwidth`), and say how well it is known.

Windows are judged in rounds, in pairs of one activating and one other window. After each round a rule says whether the
interval of the balanced accuracy is narrow enough. Two rules, by `stopping`:

- `planned`: looks after each round and stops at a width, nothing else. Its interval is the square-and-add of two Wilson
  intervals at 1.0 to 2.0 / 1.96 of their usual width, and holds for this stopping rule (`PlannedStop`).
- `anytime`: a confidence sequence, which holds whenever and for whatever reason one stops, and for 1.5 to 1.7 times
  the windows (`scoring.sequential`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

from scoring.intervals import HALVES, mover, rate_interval
from scoring.sequential import ConfidenceSequence
from scoring.types import Judgement, Metric

LEAST = 5
"""Pairs below which no score is given."""
PLANNED_Z = 2.0
"""Standard deviations of `PlannedStop`'s intervals; 1.96 would be a sample's of fixed size."""


class Stopping(Protocol):
    """A rule that is told the answers, round by round."""

    METHOD: str
    """What its interval is called in tables."""
    low: float
    high: float
    n: int
    """Pairs so far."""

    def update(self, pairs: Iterable[tuple[bool, bool]]) -> None: ...

    @property
    def narrow(self) -> bool: ...

    @property
    def value(self) -> float | None: ...


class PlannedStop:
    """Stops at the first look at which the interval is at most `2 * half_width` wide (Chow and Robbins 1965).

    A rule that heeds only the width favours no side, and hardly biases. With looks after 20, 25, ... 100 pairs and a
    half-width of 0.1 the interval's coverage, enumerated exactly over all courses that the answers can take, is 0.955
    where both rates are 0.5, 0.968 at 0.9, and over pairs of rates from 0.05 to 0.95 0.955 on average and 0.938 at the
    least (`benchmarks/scoring_tokens.py`): as intervals of fixed samples do, it oscillates. It says nothing about an
    analyst who stops, or goes on, for another reason: `anytime` does.
    """

    METHOD = "planned_stop"

    def __init__(self, half_width: float = 0.1) -> None:
        if not 0 < half_width < 0.5:
            raise ValueError("half_width lies between 0 and 0.5")
        self.half_width = half_width
        self.low, self.high = 0.0, 1.0
        self.n = 0
        self._hits = (0, 0)

    def update(self, pairs: Iterable[tuple[bool, bool]]) -> None:
        """Take a round's pairs: (right on an activating window, right on another one)."""
        rows = list(pairs)
        self.n += len(rows)
        self._hits = (self._hits[0] + sum(a for a, _ in rows), self._hits[1] + sum(b for _, b in rows))
        if not self.n:
            return
        a, b = self._hits
        rates = (a / self.n, b / self.n)
        bounds = (rate_interval(a, self.n, PLANNED_Z), rate_interval(b, self.n, PLANNED_Z))
        _, low, high = mover(HALVES, 0.0, rates, bounds)
        self.low, self.high = max(0.0, low), min(1.0, high)

    @property
    def narrow(self) -> bool:
        return self.high - self.low <= 2 * self.half_width + 1e-9

    @property
    def value(self) -> float | None:
        return sum(self._hits) / (2 * self.n) if self.n else None


RULES: dict[str, Callable[[float], Stopping]] = {"planned": PlannedStop, "anytime": ConfidenceSequence}
"""By the option `stopping`; each is called with the half-width."""


def rounds(n_pairs: int, first: int = 20, step: int = 5) -> list[int]:
    """Sizes of the rounds, in pairs: `first`, then `step` at a time until `n_pairs` are used up.

    Small steps overshoot less and cost more waiting. Below 15 to 20 pairs no interval of half-width 0.1 is reached.
    """
    if first < 1 or step < 1:
        raise ValueError("a round has one pair at least")
    sizes = [min(first, n_pairs)] if n_pairs > 0 else []
    while (left := n_pairs - sum(sizes)) > 0:
        sizes.append(min(step, left))
    return sizes


def pair_up(judgements: Sequence[Judgement]) -> list[tuple[bool, bool]]:
    """Usable answers in pairs, the k-th on an activating window with the k-th on another one.

    Failed answers are passed over, and what has no partner is left out: give the judgements of all rounds, and
    take the pairs beyond the `n` of the sequence for the next update.
    """
    usable = [j for j in judgements if j.prediction is not None and j.label is not None]
    sides: list[list[bool]] = [[j.prediction is j.label for j in usable if j.label is side] for side in (True, False)]
    return list(zip(*sides, strict=False))


def stopped_metric(rule: Stopping, n_failed: int, negatives: str | None = None, least: int = LEAST) -> Metric:
    """Balanced accuracy with the interval of the rule; `n` counts windows, two for each pair."""
    fields: dict[str, Any] = {"n": 2 * rule.n, "n_failed": n_failed, "negatives": negatives}
    if rule.n < max(least, 1):
        return Metric(
            "balanced_accuracy", None, ci_low=None, ci_high=None, ci_method="", status="too_few_windows", **fields
        )
    return Metric(
        "balanced_accuracy",
        rule.value,
        ci_low=rule.low,
        ci_high=rule.high,
        ci_method=rule.METHOD,
        **fields,
    )
