"""Numbers drawn from judged windows, against scikit-learn, and what share of their intervals hold a simulated truth."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import balanced_accuracy_score, f1_score, precision_score, recall_score

from scoring.intervals import Pair, delong_interval, mover, rate_interval
from scoring.metrics import _formula, auroc_of, classification, f1_interval, precision_interval, ranking, widened
from scoring.types import ACTIVATING, Judgement, Metric

wilson = cache(rate_interval)


def judged(
    hits: int, m: int, groups: dict[str, tuple[int, int]], failed: dict[str, int] | None = None
) -> list[Judgement]:
    """`hits` of `m` activating windows, and for each kind the number said to activate of how many."""
    said = [(ACTIVATING, True, i < hits) for i in range(m)]
    said += [(kind, False, i < yes) for kind, (yes, n) in groups.items() for i in range(n)]
    lost = [(kind, kind == ACTIVATING, None) for kind, n in (failed or {}).items() for _ in range(n)]
    rows: list[tuple[str, bool, bool | None]] = [*said, *lost]
    return [Judgement(f"w{i}", kind, None, label, answer) for i, (kind, label, answer) in enumerate(rows)]


def named(metrics: Sequence[Metric], name: str, negatives: str | None = None) -> Metric:
    (metric,) = [m for m in metrics if m.metric == name and m.negatives == negatives]
    return metric


def test_numbers_equal_sklearns() -> None:
    rng = np.random.default_rng(0)
    for _ in range(10):
        m, n = rng.integers(5, 60, 2).tolist()
        truth = [1] * m + [0] * n
        said = (rng.random(m + n) < 0.6).astype(int)
        judgements = [
            Judgement(str(i), "random" if not t else ACTIVATING, None, bool(t), bool(s))
            for i, (t, s) in enumerate(zip(truth, said, strict=True))
        ]
        metrics = classification(judgements)
        assert named(metrics, "recall").value == pytest.approx(recall_score(truth, said))
        assert named(metrics, "specificity", "random").value == pytest.approx(recall_score(truth, said, pos_label=0))
        for name, score in [
            ("precision", precision_score),
            ("f1", f1_score),
            ("balanced_accuracy", balanced_accuracy_score),
        ]:
            metric = named(metrics, name, "random")
            assert metric.value == pytest.approx(score(truth, said))
            assert metric.ci_low is not None and metric.ci_high is not None and metric.value is not None
            assert 0 <= metric.ci_low <= metric.value <= metric.ci_high <= 1 and metric.n == m + n


def test_numbers_at_the_base_rate() -> None:
    metrics = classification(judged(45, 50, {"random": (5, 50)}), base_rate=0.01)
    precision, accuracy = (named(metrics, f"{name}_at_base_rate", "random") for name in ("precision", "accuracy"))
    assert precision.value == pytest.approx(0.9 * 0.01 / (0.9 * 0.01 + 0.1 * 0.99))
    assert accuracy.value == pytest.approx(0.9)
    # At the rate of the judged set they are the judged set's own numbers.
    metrics = classification(judged(45, 50, {"random": (5, 50)}), base_rate=0.5)
    own, at = named(metrics, "precision", "random"), named(metrics, "precision_at_base_rate", "random")
    assert (own.value, own.ci_low, own.ci_high) == (at.value, at.ci_low, at.ci_high)
    balanced, accuracy = (
        named(metrics, "balanced_accuracy", "random"),
        named(metrics, "accuracy_at_base_rate", "random"),
    )
    assert (balanced.ci_low, balanced.ci_high) == pytest.approx((accuracy.ci_low, accuracy.ci_high))
    for pi, value in [(0.0, 0.0), (1.0, 1.0)]:
        edge = named(
            classification(judged(45, 50, {"random": (5, 50)}), base_rate=pi), "precision_at_base_rate", "random"
        )
        assert (edge.value, edge.ci_low, edge.ci_high) == (value, value, value)
    for wrong in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match="base_rate"):
            classification([], base_rate=wrong)


def test_each_kind_of_negatives_against_the_same_activating_windows() -> None:
    judgements = judged(9, 10, {"random": (1, 20), "hard:near": (6, 10)}, {ACTIVATING: 2, "random": 1, "hard:near": 4})
    metrics = classification(judgements)
    assert {m.negatives for m in metrics if m.metric == "f1"} == {"mixed", "random", "hard:near"}
    values = {kind: named(metrics, "balanced_accuracy", kind) for kind in ("mixed", "random", "hard:near")}
    assert values["random"].value == pytest.approx((0.9 + 0.95) / 2)
    assert values["hard:near"].value == pytest.approx((0.9 + 0.4) / 2)
    assert values["mixed"].value == pytest.approx((0.9 + 23 / 30) / 2)
    assert {k: (m.n, m.n_failed) for k, m in values.items()} == {
        "mixed": (40, 7),
        "random": (30, 3),
        "hard:near": (20, 6),
    }
    recall, specificity = named(metrics, "recall"), named(metrics, "specificity", "hard:near")
    assert (recall.n, recall.n_failed) == (10, 2) and (specificity.n, specificity.n_failed) == (10, 4)
    alone = classification(judged(9, 10, {"random": (1, 20)}, {ACTIVATING: 2, "random": 1}))
    assert named(alone, "f1", "random") == named(metrics, "f1", "random") and not [
        m for m in alone if m.negatives == "mixed"
    ]


def test_failed_answers_change_no_value() -> None:
    groups = {"random": (3, 20)}
    plain, lossy = (
        classification(judged(15, 20, groups), 0.1),
        classification(judged(15, 20, groups, {"random": 7, ACTIVATING: 5}), 0.1),
    )
    assert [replace(m, n_failed=0) for m in lossy] == plain and all(m.n_failed for m in lossy)


def test_nulls_have_a_status() -> None:
    few = classification(judged(3, 4, {"random": (1, 9)}), base_rate=0.1)
    assert [m.metric for m in few if m.value is not None] == ["specificity"]
    assert all(m.status == "too_few_windows" and m.ci_low is None and m.ci_high is None for m in few if m.value is None)
    never = classification(judged(0, 9, {"random": (0, 9)}), base_rate=0.1)
    assert [m.metric for m in never if m.value is None] == ["precision", "precision_at_base_rate"]
    assert named(never, "f1", "random").value == 0.0
    assert all(m.value is None and m.negatives is None for m in classification([]) + ranking([]))
    unlabelled = [replace(j, label=None) for j in judged(5, 9, {"random": (0, 9)})]
    assert all(m.value is None and m.n == m.n_failed == 0 for m in classification(unlabelled))
    failed = classification(judged(0, 0, {}, {ACTIVATING: 6, "random": 6}))
    assert named(failed, "f1", "random").n_failed == 12 and named(failed, "f1", "random").status == "too_few_windows"


def test_swapping_the_sides_swaps_recall_and_specificity() -> None:
    metrics, flipped = (
        classification(judged(17, 20, {"random": (7, 30)})),
        classification(judged(23, 30, {"random": (3, 20)})),
    )
    assert named(metrics, "recall").value == named(flipped, "specificity", "random").value
    assert named(metrics, "recall").ci_low == named(flipped, "specificity", "random").ci_low
    a, b = named(metrics, "balanced_accuracy", "random"), named(flipped, "balanced_accuracy", "random")
    assert (a.value, a.ci_low, a.ci_high) == pytest.approx((b.value, b.ci_low, b.ci_high))


RATES = [(0.5, 0.5), (0.8, 0.2), (0.9, 0.1), (0.9, 0.4), (0.6, 0.02), (0.98, 0.3)]


@pytest.mark.parametrize("n", [20, 50, 200])
@pytest.mark.parametrize("rates", RATES)
def test_coverage_of_what_two_rates_make(rates: Pair, n: int) -> None:
    """Judges with n + n windows. Few outcomes are possible at n = 20, so coverage jumps with the rates, 0.93 to 0.985."""
    (t, e), pi = rates, 0.02
    truths = {
        "balanced": (t + 1 - e) / 2,
        "f1": 2 * t / (t + e + 1),
        "precision": t / (t + e),
        "accuracy_at": t * pi + (1 - e) * (1 - pi),
        "precision_at": t * pi / (t * pi + e * (1 - pi)),
    }
    rng = np.random.default_rng([n, int(100 * t)])
    pairs, counts = np.unique(
        np.column_stack([rng.binomial(n, t, 4000), rng.binomial(n, e, 4000)]), axis=0, return_counts=True
    )
    if n == 200:  # nearly all pairs differ there: 600 of them are enough
        chosen = rng.choice(len(pairs), 600, p=counts / counts.sum())
        pairs, counts = pairs[chosen], np.ones(600)
    covered = dict.fromkeys(truths, 0.0)
    for (yes, false), count in zip(pairs.tolist(), counts.tolist(), strict=True):
        seen, bounds = (yes / n, false / n), (wilson(yes, n), wilson(false, n))
        intervals = {
            "balanced": mover((0.5, -0.5), 0.5, seen, bounds)[1:],
            "f1": f1_interval(1.0, seen, bounds),
            "precision": precision_interval(0.5, seen, bounds),
            "accuracy_at": mover((pi, pi - 1), 1 - pi, seen, bounds)[1:],
            "precision_at": precision_interval(pi, seen, bounds),
        }
        for name, (low, high) in intervals.items():
            covered[name] += count * (low <= truths[name] <= high)
    lowest = 0.92 if n == 200 else 0.93  # 600 repeats have a simulation error of 0.009, 4000 one of 0.0035
    assert all(lowest <= c / counts.sum() <= 0.985 for c in covered.values()), covered


@pytest.mark.parametrize("n", [20, 50, 200])
def test_coverage_of_recall_and_specificity_is_exact(n: int) -> None:
    """Wilson's, summed over all outcomes. It dips below 0.93 at single rates near 1 (0.925 at 0.95 and n = 20, down
    to 0.905 at 0.995); over rates from 0.5 to 0.995 its mean is 0.95."""
    bounds = np.array([wilson(k, n) for k in range(n + 1)])

    def coverage(rate: float) -> float:
        held = (bounds[:, 0] <= rate) & (rate <= bounds[:, 1])
        return float(stats.binom.pmf(np.arange(n + 1), n, rate)[held].sum())

    assert all(0.93 <= coverage(rate) <= 0.985 for rate in (0.5, 0.6, 0.7, 0.8, 0.9))
    over = [coverage(rate) for rate in np.arange(0.5, 0.9951, 0.005)]
    assert min(over) > 0.9 and 0.945 <= np.mean(over) <= 0.956


def scored(high: Sequence[float], low: Sequence[float], kind: str = "random") -> list[Judgement]:
    rows = [(ACTIVATING, True, p) for p in high] + [(kind, False, p) for p in low]
    return [Judgement(f"w{i}", k, None, label, probability=float(p)) for i, (k, label, p) in enumerate(rows)]


def test_ranking_per_kind_and_its_methods() -> None:
    rng = np.random.default_rng(5)
    high = rng.normal(1, 1, 30).tolist()
    near, far, few = rng.normal(0.7, 1, 25).tolist(), rng.normal(-9, 1, 25).tolist(), rng.normal(0, 1, 12).tolist()
    judgements = scored(high, near, "hard:near") + scored([], far) + scored([], few, "hard:few")
    judgements += [Judgement("f", "random", None, False), Judgement("g", ACTIVATING, None, True)]
    metrics = {m.negatives: m for m in ranking(judgements)}
    assert {kind: m.ci_method for kind, m in metrics.items()} == {
        "mixed": "delong", "random": "newcombe", "hard:near": "delong", "hard:few": "newcombe",
    }  # fmt: skip
    assert metrics["random"].value == 1.0 and (metrics["random"].n, metrics["random"].n_failed) == (55, 2)
    assert metrics["hard:near"].n_failed == 1 and metrics["mixed"].n == 92
    assert (metrics["hard:near"].ci_low, metrics["hard:near"].ci_high) == delong_interval(high, near)
    nineteen, twenty = (auroc_of(high[:n], near, 0) for n in (19, 20))
    assert (nineteen.ci_method, twenty.ci_method) == ("newcombe", "delong")
    assert ranking(scored([*high, math.nan], near))[0].n_failed == 1
    short = ranking(scored(high[:4], near))[0]
    assert (short.value, short.status, short.negatives) == (None, "too_few_windows", "random")


@pytest.mark.parametrize(("n", "shift"), [(12, 1.0), (40, 0.3), (40, 1.0), (40, 2.5)])
def test_auroc_invariances(n: int, shift: float) -> None:
    rng = np.random.default_rng(n)
    high, low = np.round(rng.normal(shift, 1, n), 1), np.round(rng.normal(0, 1, n), 1)
    (metric,) = ranking(scored(high.tolist(), low.tolist()))
    (monotone,) = ranking(scored(np.exp(high).tolist(), np.exp(low).tolist()))
    assert monotone == metric
    for other in (ranking(scored(low.tolist(), high.tolist())), ranking(scored((-high).tolist(), (-low).tolist()))):
        assert other[0].ci_method == metric.ci_method and None not in (metric.value, metric.ci_low, metric.ci_high)
        expected = [1 - v for v in (metric.value, metric.ci_high, metric.ci_low) if v is not None]
        assert [other[0].value, other[0].ci_low, other[0].ci_high] == pytest.approx(expected, abs=1e-8)


def draw(shape: str, theta: float, n: int, rng: np.random.Generator) -> tuple[list[float], list[float], float]:
    z = stats.norm.ppf(theta)
    if shape == "exponential":
        return rng.exponential(theta / (1 - theta), n).tolist(), rng.exponential(1, n).tolist(), theta
    if shape == "wide":  # activating windows differ more from each other than the others do
        return rng.normal(math.sqrt(10) * z, 3, n).tolist(), rng.normal(0, 1, n).tolist(), theta
    if shape == "two meanings":  # the explanation has one of them: half the windows far above, the rest as the others
        apart = rng.random(n) < 2 * theta - 1
        return (rng.normal(0, 1, n) + 10 * apart).tolist(), rng.normal(0, 1, n).tolist(), theta
    # Answers on a scale of four, with many ties.
    mean = math.sqrt(2) * z
    p, q = (np.diff(stats.norm.cdf([-np.inf, -0.5, 0.5, 1.5, np.inf], mu)) for mu in (mean, 0.0))
    truth = sum(p[i] * (q[:i].sum() + q[i] / 2) for i in range(4))
    high, low = (np.clip(np.round(rng.normal(mu, 1, n)), -1, 2).tolist() for mu in (mean, 0.0))
    return high, low, float(truth)


@pytest.mark.parametrize("n", [20, 50, 200])
@pytest.mark.parametrize("theta", [0.6, 0.85, 0.95])
@pytest.mark.parametrize("shape", ["exponential", "wide", "two meanings", "ties"])
def test_coverage_of_auroc(shape: str, theta: float, n: int) -> None:
    """Up to 0.985: near an AUROC of 1 from 20 windows the choice between the two methods is conservative."""
    rng = np.random.default_rng([n, int(100 * theta)])
    held = []
    for _ in range(300):
        high, low, truth = draw(shape, theta, n, rng)
        metric = auroc_of(high, low, 0)
        assert metric.ci_low is not None and metric.ci_high is not None
        held.append(metric.ci_low <= truth <= metric.ci_high)
    assert 0.92 <= np.mean(held) <= 0.99  # simulation error 0.0126


def alike(rng: np.random.Generator, prompts: int, right: float, together: float) -> list[Judgement]:
    """Five windows to a prompt; a prompt's share of right answers is drawn from a beta: the correlation is `together`."""
    size = (1 - together) / together
    shares = rng.beta(right * size, (1 - right) * size, prompts).repeat(5)
    labels = rng.permutation(np.arange(5 * prompts) % 2 == 0)
    said = np.where(rng.random(5 * prompts) < shares, labels, ~labels)
    return [
        Judgement(f"{i // 5}/{i}", ACTIVATING if label else "random", None, bool(label), bool(answer))
        for i, (label, answer) in enumerate(zip(labels, said, strict=True))
    ]


def test_coverage_where_windows_of_a_prompt_are_judged_alike() -> None:
    """Balanced accuracy from 20 prompts, correlation 0.3: intervals that take windows as independent hold 0.81."""
    rng, truth, held = np.random.default_rng(8), 0.8, np.zeros(2)
    for _ in range(300):
        judgements = alike(rng, 20, truth, 0.3)
        plain = [m for m in classification(judgements) if m.metric == "balanced_accuracy"]
        (wide,) = widened(
            plain, judgements, {j.window_id: j.window_id.split("/")[0] for j in judgements}, resamples=500
        )
        for i, metric in enumerate((plain[0], wide)):
            assert metric.ci_low is not None and metric.ci_high is not None
            held[i] += metric.ci_low <= truth <= metric.ci_high
    assert held[0] / 300 < 0.91 and 0.91 <= held[1] / 300 <= 0.98, held / 300


def test_widening_never_narrows_and_leaves_values_and_nulls() -> None:
    judgements = alike(np.random.default_rng(9), 24, 0.8, 0.4)
    judgements = [replace(j, kind="hard:near") if j.kind == "random" and i % 3 else j for i, j in enumerate(judgements)]
    metrics = classification(judgements, base_rate=0.05)
    prompts = {j.window_id: j.window_id.split("/")[0] for j in judgements}
    wide = widened(metrics, judgements, prompts, base_rate=0.05)
    assert wide == widened(metrics, judgements, prompts, base_rate=0.05)
    for before, after in zip(metrics, wide, strict=True):
        assert None not in (before.ci_low, before.ci_high, after.ci_low, after.ci_high)
        assert (after.value, after.n, after.ci_method) == (before.value, before.n, before.ci_method + "+clusters")
        assert after.ci_low <= before.ci_low and after.ci_high >= before.ci_high  # type: ignore[operator]
    # A judge without errors keeps an interval of honest width.
    perfect = [replace(j, prediction=j.label) for j in judgements]
    bounds = [(m.ci_low, m.ci_high) for m in widened(classification(perfect), perfect, prompts)]
    assert bounds == [(m.ci_low, m.ci_high) for m in classification(perfect)]
    # One cluster for all: nothing can be said of clusters, and nothing is.
    assert widened(metrics, judgements, dict.fromkeys(prompts, "one"), base_rate=0.05) == metrics
    nulls = classification(judgements[:3])
    assert widened(nulls, judgements[:3], prompts) == nulls
    with pytest.raises(ValueError, match="base_rate"):
        widened(metrics, judgements, prompts)
    # A bootstrap that draws each cluster once is the estimate itself: the formulas are those of the values.
    for metric in wide:
        counted = [j for j in judgements if j.label or metric.negatives in ("mixed", j.kind)]
        t = np.array([np.mean([j.prediction for j in counted if j.label])])
        e = np.array([np.mean([j.prediction for j in counted if not j.label])]) if metric.negatives else np.array([0.0])
        values = _formula(metric.metric, t, e, float(np.mean([j.label for j in counted])), 0.05)
        assert values is not None and values[0] == pytest.approx(metric.value)
