"""Confidence sequences: what share holds the planted truth when one stops as soon as they are narrow, and their cost."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from scoring.intervals import balanced_accuracy_metric
from scoring.sequential import GRID, ConfidenceSequence, _bets
from scoring.stopping import pair_up, rounds, stopped_metric
from scoring.types import Judgement

LATENTS = 2000


def hits(rng: np.random.Generator, rates: tuple[float, float], n: int = 100) -> NDArray[Any]:
    return np.column_stack([rng.random(n) < rate for rate in rates])


def stopped(rows: NDArray[Any], half_width: float = 0.1) -> ConfidenceSequence:
    sequence = ConfidenceSequence(half_width)
    for size in rounds(len(rows)):
        sequence.update(rows[sequence.n : sequence.n + size])
        if sequence.narrow:
            break
    return sequence


@pytest.mark.parametrize(
    ("rates", "least_windows", "most_windows"),
    [
        ((0.9, 0.9), 64, 74),  # of 200; a third of them
        ((0.5, 0.5), 155, 170),  # a judge that guesses: most of them are needed
        ((0.95, 0.5), 98, 112),
        ((0.99, 0.99), 40, 43),
        ((1.0, 0.02), 58, 70),  # a judge that always says yes
    ],
)
def test_coverage_and_cost_under_stopping(
    rates: tuple[float, float], least_windows: float, most_windows: float
) -> None:
    rng = np.random.default_rng(1)
    done = [stopped(hits(rng, rates)) for _ in range(LATENTS)]
    truth = sum(rates) / 2
    # The guarantee is 0.95; 0.94 leaves two standard deviations of the simulation. It is met with room (0.98 and more).
    assert np.mean([s.low <= truth <= s.high for s in done]) >= 0.94
    assert least_windows <= np.mean([2 * s.n for s in done]) <= most_windows
    assert np.mean([s.narrow for s in done]) > 0.99


def test_a_fixed_interval_that_is_looked_at_often_does_not_hold() -> None:
    """Why the sequence is needed: the same latents, stopped when the truth falls out of the fixed-sample interval."""
    rng = np.random.default_rng(2)
    ever = {"fixed": 0, "sequence": 0}
    for _ in range(400):
        rows = hits(rng, (0.7, 0.7))
        out = {"fixed": False, "sequence": False}
        sequence = ConfidenceSequence(0.1)
        for size in rounds(100):
            sequence.update(rows[sequence.n : sequence.n + size])
            so_far = rows[: sequence.n].sum(axis=0)
            metric = balanced_accuracy_metric((int(so_far[0]), int(so_far[1])), (sequence.n, sequence.n), 0)
            assert metric.ci_low is not None and metric.ci_high is not None
            out["fixed"] |= not metric.ci_low <= 0.7 <= metric.ci_high
            out["sequence"] |= not sequence.low <= 0.7 <= sequence.high
        for name in ever:
            ever[name] += out[name]
    assert ever["fixed"] / 400 > 0.12 and ever["sequence"] / 400 <= 0.05


@pytest.mark.parametrize("difference", [-20, -7, 0, 3, 18])
@pytest.mark.parametrize("half_width", [0.02, 0.1, 0.3])
def test_bets_are_fair_whatever_the_two_rates_are(half_width: float, difference: int) -> None:
    """The guarantee itself, without simulation: no pair of rates with mean m gives a bet against m a mean above 1."""
    m = np.arange(1, GRID) / GRID
    for right, wrong, right_other, wrong_other in _bets(half_width, difference):
        for share in np.linspace(0, 1, 21):
            x = np.maximum(0, 2 * m - 1) + share * (np.minimum(1, 2 * m) - np.maximum(0, 2 * m - 1))
            y = 2 * m - x
            mean = (x * np.exp(right) + (1 - x) * np.exp(wrong)) * (
                y * np.exp(right_other) + (1 - y) * np.exp(wrong_other)
            )
            assert mean.max() <= 1 + 1e-9


def test_what_is_left_out_is_what_lost_twenty_to_one() -> None:
    sequence = ConfidenceSequence()
    sequence.update(hits(np.random.default_rng(6), (0.8, 0.7), 40))
    capital = (np.exp(sequence._capital[0]) + np.exp(sequence._capital[1])) / 2
    first, last = round(sequence.low * GRID), round(sequence.high * GRID)  # grid points, rejected; candidate i is i + 1
    assert capital[first - 1] >= 20 and capital[last - 1] >= 20
    assert (capital[first : last - 1] < 20).all() and last - first > 50


def test_the_interval_only_narrows_and_holds_the_value() -> None:
    rng = np.random.default_rng(3)
    for rates in [(0.5, 0.5), (0.9, 0.7), (1.0, 1.0), (0.0, 0.0), (1.0, 0.0)]:
        rows, sequence = hits(rng, rates), ConfidenceSequence()
        assert (sequence.low, sequence.high, sequence.value) == (0.0, 1.0, None)
        for size in rounds(100):
            before = (sequence.low, sequence.high)
            sequence.update(rows[sequence.n : sequence.n + size])
            assert before[0] <= sequence.low < sequence.high <= before[1]
            assert sequence.value is not None and sequence.low <= sequence.value <= sequence.high
    assert sequence.n == 100 and sequence.value == 0.5


def test_labels_may_be_flipped_and_right_turned_to_wrong() -> None:
    rows = hits(np.random.default_rng(4), (0.85, 0.6), 60)
    plain, swapped, negated = (stopped(r, 0.01) for r in (rows, rows[:, ::-1], ~rows))
    assert (plain.low, plain.high) == pytest.approx((swapped.low, swapped.high))
    assert (plain.low, plain.high) == pytest.approx((1 - negated.high, 1 - negated.low))
    assert (plain.low, plain.high) == (stopped(rows, 0.01).low, stopped(rows, 0.01).high)


def test_a_contradiction_keeps_the_last_interval() -> None:
    sequence = ConfidenceSequence()
    sequence.update([(True, True)] * 60)
    low = sequence.low
    sequence.update([(False, False)] * 600)
    assert low >= 0.9 and low <= sequence.low < sequence.high <= 1 and sequence.value == sequence.low


def test_nothing_new_changes_nothing_and_nonsense_is_refused() -> None:
    sequence = ConfidenceSequence()
    sequence.update([])
    assert (sequence.n, sequence.low, sequence.high, sequence.narrow) == (0, 0.0, 1.0, False)
    for half_width, confidence in [(0.0, 0.95), (0.5, 0.95), (0.1, 1.0), (math.nan, 0.95)]:
        with pytest.raises(ValueError, match="half_width"):
            ConfidenceSequence(half_width, confidence)
    with pytest.raises(ValueError, match="round"):
        rounds(10, first=0)


def test_rounds_use_up_the_pairs() -> None:
    assert rounds(100)[:3] == [20, 5, 5] and sum(rounds(100)) == 100
    assert rounds(23) == [20, 3] and rounds(7) == [7] and rounds(0) == []
    assert rounds(30, first=10, step=15) == [10, 15, 5]


def test_pairs_pass_over_failed_answers() -> None:
    rows = [(True, True), (True, None), (False, True), (True, False), (False, False), (False, False), (None, True)]
    judged = [Judgement(str(i), "k", None, label, said) for i, (label, said) in enumerate(rows)]
    assert pair_up(judged) == [(True, False), (False, True)] and pair_up(judged[:2]) == []


def test_the_metric_says_how_its_interval_was_made() -> None:
    sequence = ConfidenceSequence()
    sequence.update([(True, True)] * 4)
    few = stopped_metric(sequence, 3, "random")
    assert (few.value, few.ci_low, few.status, few.n, few.n_failed) == (None, None, "too_few_windows", 8, 3)
    sequence.update([(True, False)] * 8)
    metric = stopped_metric(sequence, 3, "random")
    assert metric.value == pytest.approx(16 / 24) and (metric.n, metric.negatives) == (24, "random")
    assert (metric.ci_low, metric.ci_high, metric.ci_method) == (sequence.low, sequence.high, "confidence_sequence")
