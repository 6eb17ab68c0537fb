"""What share of each fixed-sample interval at 95% holds the truth, where windows have numbers: AUROCs, means, correlations.

Of 3000 samples each, so that the simulation error is 0.004. Formulas are written out for all samples at once, and held
against the project's own on some of them.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest
from answering import by_hand
from scipy import stats
from test_coverage import HIGH, LOW, Floats, each_number, holds

from prompts.requests import ChatReply
from scoring import simulation
from scoring.intervals import Z, auroc_interval, bootstrap_mean_interval, delong_interval, mean_metric
from scoring.metrics import DELONG_MISORDERED, auroc_of
from scoring.types import ACTIVATING, RANDOM, Subject, Window

SAMPLES = 3000

# AUROC


THETAS = (0.6, 0.75, 0.9)


def normal(rng: np.random.Generator, theta: float, n: int) -> tuple[Floats, Floats]:
    shift = math.sqrt(2) * stats.norm.ppf(theta)
    return rng.normal(shift, 1, (SAMPLES, n)), rng.normal(0, 1, (SAMPLES, n))


def exponential(rng: np.random.Generator, theta: float, n: int) -> tuple[Floats, Floats]:
    """What Hanley and McNeil's variance, and so Newcombe's interval, is made for."""
    return rng.exponential(theta / (1 - theta), (SAMPLES, n)), rng.exponential(1, (SAMPLES, n))


def wide(rng: np.random.Generator, theta: float, n: int) -> tuple[Floats, Floats]:
    """Activating windows differ more from each other than the others do."""
    return rng.normal(math.sqrt(5) * stats.norm.ppf(theta), 2, (SAMPLES, n)), rng.normal(0, 1, (SAMPLES, n))


def delongs(high: Floats, low: Floats) -> tuple[Floats, Floats]:
    """AUROCs and DeLong's intervals of many samples [s, n] at once; nan where there is none."""
    n = high.shape[1]
    ranks = stats.rankdata(np.concatenate([high, low], axis=1), axis=1)
    v, w = (ranks[:, :n] - stats.rankdata(high, axis=1)) / n, 1 - (ranks[:, n:] - stats.rankdata(low, axis=1)) / n
    value = v.mean(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        half = Z * np.sqrt(v.var(axis=1, ddof=1) / n + w.var(axis=1, ddof=1) / n) / (value * (1 - value))
        logit = np.log(value / (1 - value))
        bounds = 1 / (1 + np.exp(np.stack([half - logit, -half - logit], axis=-1)))
    return value, np.where((value * (1 - value) > 1e-9)[:, None], bounds, np.nan)


@cache
def newcombes(n: int) -> tuple[Floats, Floats]:
    """AUROCs from 0 to 1, and the bounds of Newcombe's intervals of them, which rise smoothly."""
    values = np.concatenate([[0.0], np.linspace(1e-4, 1 - 1e-4, 401), [1.0]])
    return values, np.array([auroc_interval(float(value), n, n) for value in values])


def of_auroc(scores: Callable[..., tuple[Floats, Floats]], n: int) -> dict[str, Floats]:
    """Coverage of Newcombe's interval, of DeLong's where there is one, and of the one that is chosen, at each AUROC."""
    found: dict[str, list[float]] = {"newcombe": [], "delong": [], "chosen": []}
    for theta in THETAS:
        rng = np.random.default_rng([n, int(1000 * theta)])
        high, low = scores(rng, theta, n)
        value, delong = delongs(high, low)
        newcombe = np.stack([np.interp(value, newcombes(n)[0], newcombes(n)[1][:, side]) for side in (0, 1)], axis=-1)
        misordered = np.round(n * np.minimum(value, 1 - value), 9) >= DELONG_MISORDERED
        chosen = np.where(misordered[:, None], delong, newcombe)
        for i in range(5):
            metric = auroc_of(high[i].tolist(), low[i].tolist(), 0)
            assert (metric.value, metric.ci_low, metric.ci_high) == pytest.approx((value[i], *chosen[i]), abs=1e-5)
            assert metric.ci_method == ("delong" if misordered[i] else "newcombe")
        assert delong[0] == pytest.approx(delong_interval(high[0].tolist(), low[0].tolist()))
        defined = ~np.isnan(delong[:, 0])
        found["newcombe"].append(holds(newcombe, theta).mean())
        found["delong"].append(holds(delong[defined], theta).mean())
        found["chosen"].append(holds(chosen, theta).mean())
    return {name: np.array(mine) for name, mine in found.items()}


@each_number
@pytest.mark.parametrize("scores", [normal, exponential, wide], ids=lambda scores: scores.__name__)
def test_an_auroc(scores: Callable[..., tuple[Floats, Floats]], n: int) -> None:
    """On average over AUROCs of 0.6, 0.75 and 0.9. The chosen interval holds 0.925 to 0.985 at each."""
    found = of_auroc(scores, n)
    assert all(LOW <= mine.mean() <= HIGH for mine in found.values()), found
    assert found["chosen"].min() >= 0.925 and found["chosen"].max() <= 0.985, found


# Means


def gauss(rng: np.random.Generator, n: int) -> tuple[Floats, float]:
    return rng.normal(0.3, 1, (SAMPLES, n)), 0.3


def tailed(rng: np.random.Generator, n: int) -> tuple[Floats, float]:
    return 0.3 + rng.standard_t(4, (SAMPLES, n)), 0.3


def skewed(rng: np.random.Generator, n: int) -> tuple[Floats, float]:
    return rng.exponential(1, (SAMPLES, n)), 1.0


def of_means(values: Callable[..., tuple[Floats, float]], n: int) -> tuple[float, float]:
    """Coverage of Student's t and of the studentised bootstrap."""
    rows, truth = values(np.random.default_rng(n), n)
    mean, error = rows.mean(axis=1), rows.std(axis=1, ddof=1) / math.sqrt(n)
    half = stats.t.ppf(0.975, n - 1) * error
    student = np.stack([mean - half, mean + half], axis=-1)
    # All samples are resampled alike, as from one seed.
    resamples = 1000
    draws = np.random.default_rng(0).integers(0, n, (resamples, n))
    counts = np.stack([np.bincount(draw, minlength=n) for draw in draws]).astype(float) / n
    means, squares = rows @ counts.T, rows**2 @ counts.T
    t = (means - mean[:, None]) / np.sqrt((squares - means**2) / (n - 1))
    low, high = np.quantile(t, [0.025, 0.975], axis=1)
    bootstrap = np.stack([mean - high * error, mean - low * error], axis=-1)
    for i in range(5):
        metric = mean_metric("x", rows[i].tolist(), 0)
        assert (metric.ci_low, metric.ci_high) == pytest.approx(tuple(student[i]))
        assert bootstrap_mean_interval(rows[i].tolist(), resamples) == pytest.approx(tuple(bootstrap[i]))
    return float(holds(student, truth).mean()), float(holds(bootstrap, truth).mean())


@each_number
@pytest.mark.parametrize("values", [gauss, tailed, skewed], ids=lambda values: values.__name__)
def test_a_mean(values: Callable[..., tuple[Floats, float]], n: int) -> None:
    """Student's t holds 0.915 of exponential values where there are 20; the bootstrap is for such."""
    student, bootstrap = of_means(values, n)
    assert LOW <= bootstrap <= HIGH
    assert (0.905 if values is skewed and n == 20 else 0.925 if values is skewed else LOW) <= student <= HIGH


# Pearson's correlation of the simulation, whose sample is one of windows


TOKENS = 6


def foretold(rng: np.random.Generator, n: int, samples: int) -> tuple[Floats, Floats]:
    """Activations and what a reader with errors says, both [sample, window, token]: n activating windows, n others.

    Errors of a window's own, besides those of its tokens: windows are what is drawn.
    """
    shape = (samples, 2 * n, TOKENS)
    true = np.where(rng.random(shape) < 0.3, rng.integers(1, 11, shape), 0)
    true[:, n:] = 0
    # In the scorer's order, weakest first, so that its draws are these.
    order = true[:, :n].max(axis=2).argsort(axis=1, kind="stable")
    true[:, :n] = np.take_along_axis(true[:, :n], order[..., None], axis=1)
    said = 0.6 * true + rng.normal(1, 1, (*shape[:2], 1)) + rng.normal(0, 2, shape)
    return true.astype(float), np.clip(np.round(said), 0, 10)


def sums(true: Floats, said: Floats) -> Floats:
    """What a correlation is made of, over tokens: [..., 6]."""
    parts = (np.ones_like(true), true, said, true * true, said * said, true * said)
    return np.stack([part.sum(axis=-1) for part in parts], axis=-1)


def correlation(sums: Floats) -> Floats:
    n, x, y, xx, yy, xy = np.moveaxis(sums, -1, 0)
    return np.asarray((xy - x * y / n) / np.sqrt((xx - x * x / n) * (yy - y * y / n)))


def of_pearson(n: int, draws: int = 400) -> float:
    """Coverage of the percentile bootstrap over windows, activating and other ones apart."""
    big = sums(*foretold(np.random.default_rng(1), 100_000, 1))
    truth, held = float(correlation(big.sum(axis=(0, 1)))), 0
    rng = np.random.default_rng(0)
    counts = [rng.multinomial(n, np.full(n, 1 / n), draws).astype(float) for _ in range(2)]
    for chunk in range(10):
        true, said = foretold(np.random.default_rng([n, chunk]), n, SAMPLES // 10)
        each = sums(true, said)
        drawn = sum(
            np.tensordot(count, side, (1, 1)) for count, side in zip(counts, (each[:, :n], each[:, n:]), strict=True)
        )
        bounds = np.quantile(correlation(np.asarray(drawn)), [0.025, 0.975], axis=0).T
        held += int(holds(bounds, truth).sum())
        if not chunk:
            assert_is_of_the_scorer(true[0], said[0], draws, tuple(bounds[0]))
    return held / SAMPLES


def assert_is_of_the_scorer(true: Floats, said: Floats, draws: int, bounds: tuple[float, ...]) -> None:
    n = len(true) // 2
    windows, answers = [], {}
    for i, (activations, numbers) in enumerate(zip(true.tolist(), said.astype(int).tolist(), strict=True)):
        kind, name = (ACTIVATING if i < n else RANDOM), f"w{i:03d}"
        windows.append(Window(name, i, 0, kind, (name, *" bcdef"[1:]), tuple(range(TOKENS)), tuple(activations)))
        answers[name] = json.dumps({"activations": numbers})

    def reply(request: Any) -> ChatReply:
        (name,) = re.findall(r'"(w\d{3})"', request.messages[-1].content)
        return ChatReply(answers[name])

    config = simulation.Config(windows=n, draws=draws)
    (outcome,), _ = by_hand(simulation.score([Subject(0, "it")], windows, config), reply)
    (metric,) = [m for m in outcome.metrics if m.metric == simulation.METRIC]
    assert (metric.n, metric.n_failed) == (2 * n, 0)
    assert (metric.ci_low, metric.ci_high) == pytest.approx(bounds, abs=1e-9)


@each_number
def test_a_correlation(n: int) -> None:
    """A bootstrap of percentiles is a little narrow with few windows."""
    assert LOW <= of_pearson(n) <= HIGH
