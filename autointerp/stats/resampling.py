"""The bootstrap over latents: means and medians, in one stage or, with judged windows, in two.

Latents are the clusters. Windows of one latent share its explanation and its meaning, so a window is no independent
witness of how good an SAE's explanations are; a latent is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from autointerp.errors import UserError
from autointerp.stats.frames import Floats, slabs

RESAMPLES = 2000
LEAST = 3
"""Fewest latents for an interval."""

STATISTICS: dict[str, Callable[..., Floats]] = {"mean": np.mean, "median": np.median}


def quantiles(df: float, n: float, level: float = 0.95) -> tuple[float, float]:
    """Which percentiles of the bootstrap distribution bound a `level` interval, for n latents.

    Hesterberg's expanded percentiles (The American Statistician 2015, section 5.3): the bootstrap distribution is
    narrower than it should be by sqrt((n - 1) / n), and normal where it should be t. Without this, 30 latents
    give 93% where 95% is promised.
    """
    tail = float(stats.norm.cdf(-math.sqrt(n / (n - 1)) * stats.t.ppf(0.5 + level / 2, df)))
    return tail, 1 - tail


def interval(estimates: Floats, n: int, df: float | None = None) -> tuple[float, float]:
    """95% interval from bootstrap estimates over n latents; NaN below LEAST of them."""
    if n < LEAST:
        return math.nan, math.nan
    low, high = np.quantile(estimates, quantiles(n - 1 if df is None else df, n))
    return float(low), float(high)


def resample(values: Floats, statistic: str, rng: np.random.Generator, n: int = RESAMPLES) -> Floats:
    """(n,) estimates, each from as many latents as there are, drawn with replacement."""
    estimate, size = STATISTICS[statistic], len(values)
    drawn = [estimate(values[rng.integers(0, size, size=(rows, size))], axis=1) for rows in slabs(n, size)]
    return np.concatenate(drawn)


@dataclass(frozen=True, slots=True)
class Judged:
    """One latent's judged windows: the judge's numbers (or yes and no as 1 and 0) where it fires, and where not."""

    positives: Floats
    negatives: Floats

    def weights(self, rng: np.random.Generator, n: int) -> tuple[Floats, Floats]:
        """(n, windows) shares of each window in n resamples; the numbers of either kind are kept."""
        return _shares(len(self.positives), rng, n), _shares(len(self.negatives), rng, n)


def _shares(windows: int, rng: np.random.Generator, n: int) -> Floats:
    drawn = rng.integers(0, windows, size=(n, windows)) + windows * np.arange(n)[:, None]
    return np.bincount(drawn.ravel(), minlength=n * windows).reshape(n, windows) / windows


def _auroc(judged: Judged, high: Floats, low: Floats) -> Floats:
    above = np.sign(judged.positives[:, None] - judged.negatives[None, :])
    return np.asarray(0.5 + 0.5 * ((high @ above) * low).sum(axis=1))


def _balanced_accuracy(judged: Judged, high: Floats, low: Floats) -> Floats:
    return (high @ judged.positives + 1 - low @ judged.negatives) / 2


def _recall(judged: Judged, high: Floats, low: Floats) -> Floats:
    return high @ judged.positives


def _specificity(judged: Judged, high: Floats, low: Floats) -> Floats:
    return 1 - low @ judged.negatives


WINDOW_STATISTICS: dict[str, tuple[str, Callable[[Judged, Floats, Floats], Floats]]] = {
    "auroc": ("probability", _auroc),
    "balanced_accuracy": ("prediction", _balanced_accuracy),
    "recall": ("prediction", _recall),
    "specificity": ("prediction", _specificity),
}
"""Metrics whose windows can be drawn again: the column of judgements they are made of, and how, from (n, windows)
shares of either kind of window."""


@dataclass(frozen=True, slots=True)
class TwoStage:
    """`estimates` are (resamples,); `sd_windows` and `sd_latents` are the parts of their spread in a mean: from which
    windows were judged, and from which latents were taken (squares add up to the whole)."""

    value: float
    estimates: Floats
    sd_windows: float
    sd_latents: float


def two_stage(
    judged: Sequence[Judged], metric: str, statistic: str, rng: np.random.Generator, n: int = RESAMPLES
) -> TwoStage:
    """Latents drawn with replacement, and for each its windows drawn with replacement.

    Scores of latents already spread by window noise. Drawing windows again would count that noise twice (twice the
    variance, where there is nothing else), so the latents' scores are first shrunk towards their centre until their
    variance and that of the windows add up to what was seen (Davison and Hinkley 1997, section 3.8). Where
    windows alone make more spread than was seen, the latents are taken to be alike.
    """
    if metric not in WINDOW_STATISTICS:
        raise UserError(
            f"windows of metric {metric} cannot be drawn again; it works for {', '.join(WINDOW_STATISTICS)}, "
            "for others leave the judgements out"
        )
    compute = WINDOW_STATISTICS[metric][1]
    scores = np.empty(len(judged))
    noise = np.empty((n, len(judged)))
    for i, latent in enumerate(judged):
        whole = [np.full((1, len(w)), 1 / len(w)) for w in (latent.positives, latent.negatives)]
        scores[i] = compute(latent, *whole)[0]
        noise[:, i] = compute(latent, *latent.weights(rng, n)) - scores[i]
    within = float(noise.var(axis=0).mean())
    total = float(scores.var())
    shrink = math.sqrt(max(0.0, 1 - within / total)) if total > 0 else 0.0
    estimate = STATISTICS[statistic]
    centre = float(estimate(scores))
    picked = rng.integers(0, len(judged), size=(n, len(judged)))
    # A latent that is drawn twice has its windows drawn twice, each time anew.
    again = rng.integers(0, n, size=picked.shape)
    drawn = centre + shrink * (scores[picked] - centre) + noise[again, picked]
    between = max(0.0, total - within)
    return TwoStage(
        centre,
        estimate(drawn, axis=1),
        math.sqrt(within / len(judged)),
        math.sqrt(between / len(judged)),
    )
