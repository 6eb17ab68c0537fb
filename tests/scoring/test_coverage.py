"""What share of each fixed-sample interval at 95% holds the truth, at 20, 50 and 200 windows a side.

Judges say yes or no and have known accuracies: every outcome is weighed by its probability, and nothing is simulated.
Intervals of counts cannot hold equally at every accuracy: what they hold on average over accuracies from 0.55 to 0.95
is asked to lie from 0.93 to 0.97, and each test says how far off single accuracies may be. For intervals of what is no
count see `test_coverage_of_numbers`.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from scoring import intruder
from scoring.intervals import balanced_accuracy_metric, mover, rate_interval
from scoring.metrics import classification, f1_interval, precision_interval
from scoring.types import ACTIVATING, RANDOM, Judgement

Floats = NDArray[np.float64]

NUMBERS = (20, 50, 200)
LOW, HIGH = 0.93, 0.97
ACCURACIES = np.arange(0.55, 0.9501, 0.01)
BASE_RATE = 0.02

each_number = pytest.mark.parametrize("n", NUMBERS)


def holds(bounds: Floats, truth: float) -> NDArray[np.bool_]:
    """Of intervals [..., 2], which hold the truth; what only rounding leaves out is in."""
    return np.asarray((bounds[..., 0] <= truth + 1e-12) & (truth - 1e-12 <= bounds[..., 1]))


# One rate: recall, specificity, the intruder's accuracy


def of_rates(interval: Callable[[int, int], tuple[float, float]], n: int, rates: Floats) -> Floats:
    """Exact coverage at each rate."""
    bounds = np.array([interval(k, n) for k in range(n + 1)])
    return np.array([stats.binom.pmf(np.arange(n + 1), n, rate)[holds(bounds, rate)].sum() for rate in rates])


@each_number
def test_a_rate(n: int) -> None:
    """Wilson's. At single accuracies from 0.55 to 0.95 it holds 0.91 to 0.985."""
    found = of_rates(rate_interval, n, ACCURACIES)
    assert LOW <= found.mean() <= HIGH
    assert found.min() >= 0.91 and found.max() <= 0.985


@each_number
def test_the_intruders_accuracy(n: int) -> None:
    """Of n trials, as many in each decile: Wilson's, from chance (0.2) upwards."""
    found = of_rates(lambda k, n: intruder.wilson(k / n, n), n, np.arange(0.2, 0.9501, 0.01))
    assert LOW <= found.mean() <= HIGH
    assert found.min() >= 0.91 and found.max() <= 0.985


def of_deciles(trials: list[int], means: Floats, spread: float) -> Floats:
    """Exact coverage where deciles have accuracies of their own, evenly over `spread` about each of the means.

    Deciles with one number of trials come together, for their sum is all that counts.
    """
    sizes = sorted(set(trials))
    most = [size * trials.count(size) for size in sizes]
    values = sum(np.arange(m + 1.0).reshape([-1 if i == j else 1 for j in range(len(sizes))]) / size
                 for i, (m, size) in enumerate(zip(most, sizes, strict=True)))  # fmt: skip
    values = np.minimum(np.asarray(values) / len(trials), 1.0)
    worth = len(trials) ** 2 / sum(1 / size for size in trials)
    bounds = np.array([intruder.wilson(value, worth) for value in values.ravel().tolist()]).reshape(*values.shape, 2)
    found = []
    for mean in means:
        accuracies = mean + np.linspace(-spread / 2, spread / 2, len(trials))
        weights = np.ones(())
        for size in sizes:
            pmf = np.ones(1)
            for accuracy in accuracies[np.array(trials) == size]:
                pmf = np.convolve(pmf, stats.binom.pmf(np.arange(size + 1), size, accuracy))
            weights = np.multiply.outer(weights, pmf)
        found.append(weights[holds(bounds, mean)].sum())
    return np.array(found)


@each_number
@pytest.mark.parametrize("spread", [0.0, 0.3])
def test_the_intruders_accuracy_over_deciles_that_differ(n: int, spread: float) -> None:
    """Some deciles have a trial more. Where deciles differ in difficulty the interval is a little wide."""
    found = of_deciles([n // 10 + (i % 3 == 0) for i in range(10)], np.arange(0.4, 0.85, 0.05), spread)
    assert found.min() >= LOW and found.max() <= HIGH, found


# Two rates: balanced accuracy and what else a judge's yes and no give


PAIRS = {
    20: list(product(np.arange(0.55, 0.951, 0.05), repeat=2)),
    50: list(product(np.arange(0.55, 0.951, 0.05), repeat=2)),
    200: [(0.55, 0.55), (0.75, 0.75), (0.95, 0.95), (0.6, 0.9)],
}
"""Accuracies on activating and on other windows. From 200 windows coverage hardly depends on them, and outcomes are
many."""
UNLIKELY = 1e-6
"""Outcomes that are less likely than this are left out: 0.0005 of all at most."""


def truths(hit: float, reject: float) -> dict[str, float]:
    false = 1 - reject
    return {
        "balanced_accuracy": (hit + reject) / 2,
        "precision": hit / (hit + false),
        "f1": 2 * hit / (hit + false + 1),
        "accuracy_at_base_rate": hit * BASE_RATE + reject * (1 - BASE_RATE),
        "precision_at_base_rate": hit * BASE_RATE / (hit * BASE_RATE + false * (1 - BASE_RATE)),
    }


def intervals(hits: int, false: int, n: int) -> dict[str, tuple[float, float]]:
    """As `classification` takes them, without the windows."""
    rates, bounds = (hits / n, false / n), (rate_interval(hits, n), rate_interval(false, n))
    balanced = balanced_accuracy_metric((hits, n - false), (n, n), 0)
    assert balanced.ci_low is not None and balanced.ci_high is not None
    found = {
        "balanced_accuracy": (balanced.ci_low, balanced.ci_high),
        "f1": f1_interval(1.0, rates, bounds),
        "accuracy_at_base_rate": mover((BASE_RATE, BASE_RATE - 1), 1 - BASE_RATE, rates, bounds)[1:],
    }
    if hits + false:
        found["precision"] = precision_interval(0.5, rates, bounds)
        found["precision_at_base_rate"] = precision_interval(BASE_RATE, rates, bounds)
    return found


def of_two_rates(n: int) -> dict[str, Floats]:
    """Exact coverage of each number at each pair of accuracies."""
    k = np.arange(n + 1)
    weights = [np.outer(stats.binom.pmf(k, n, hit), stats.binom.pmf(k, n, 1 - reject)) for hit, reject in PAIRS[n]]
    names = list(truths(0.5, 0.5))
    bounds = np.full((len(names), n + 1, n + 1, 2), np.nan)
    for hits, false in np.argwhere(np.max(weights, axis=0) > UNLIKELY).tolist():
        for name, interval in intervals(hits, false, n).items():
            bounds[names.index(name), hits, false] = interval
    found = {}
    for name, mine in zip(names, bounds, strict=True):
        known = ~np.isnan(mine[..., 0])
        found[name] = np.array(
            [
                w[known & holds(mine, truths(*pair)[name])].sum() / w[known].sum()
                for w, pair in zip(weights, PAIRS[n], strict=True)
            ]
        )
    return found


@each_number
def test_what_is_made_of_two_rates(n: int) -> None:
    """At single pairs of accuracies 0.92 to 0.985; the accuracy at a base rate of 0.02, which is one rate's, from 0.91."""
    found = of_two_rates(n)
    assert all(LOW <= mine.mean() <= HIGH for mine in found.values()), {k: v.mean() for k, v in found.items()}
    for name, mine in found.items():
        least = 0.91 if name == "accuracy_at_base_rate" else 0.92
        assert least <= mine.min() and mine.max() <= 0.985, (name, mine.min(), mine.max())


def test_these_are_the_intervals_of_classification() -> None:
    for hits, false, n in [(17, 3, 20), (20, 0, 20), (6, 14, 20), (41, 22, 50)]:
        rows = [(ACTIVATING, True, i < hits) for i in range(n)] + [(RANDOM, False, i < false) for i in range(n)]
        judged = [Judgement(f"w{i}", kind, None, label, said) for i, (kind, label, said) in enumerate(rows)]
        metrics = {m.metric: (m.ci_low, m.ci_high) for m in classification(judged, BASE_RATE)}
        for name, interval in intervals(hits, false, n).items():
            assert metrics[name] == pytest.approx(interval, abs=1e-12), name
        assert metrics["recall"] == rate_interval(hits, n) and metrics["specificity"] == rate_interval(n - false, n)
