"""How many latents and windows a wanted difference needs, and what a given design can see.

A latent's score is its true score plus the noise of its windows, so the variance of a mean over L latents is

    (sd_latents^2 + noise(windows)) / L.

More windows lower the second part only: past some number, only more latents help. Power is that of a two-sided
t test, from the noncentral t distribution; permutation tests have the same to a percent or two.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from autointerp.errors import UserError
from autointerp.stats.frames import LATENT, need, per_unit, single_kind

MOST_LATENTS = 1_000_000


def _auroc_noise(value: float, m: int, n: int) -> float:
    """Hanley and McNeil 1982, equations 1 and 2."""
    q1, q2 = value / (2 - value), 2 * value**2 / (1 + value)
    return (value * (1 - value) + (m - 1) * (q1 - value**2) + (n - 1) * (q2 - value**2)) / (m * n)


def _balanced_noise(value: float, m: int, n: int) -> float:
    # Both rates at the value: the most there can be, for unequal rates have less.
    return value * (1 - value) * (1 / m + 1 / n) / 4


NOISE: dict[str, Callable[[float, int, int], float]] = {
    "auroc": _auroc_noise,
    "balanced_accuracy": _balanced_noise,
    "recall": lambda value, m, n: value * (1 - value) / m,
    "specificity": lambda value, m, n: value * (1 - value) / n,
    "accuracy": lambda value, m, n: value * (1 - value) / (m + n),
}
"""Variance of one latent's score from m activating and n other windows, at a typical score: binomial, or of an
AUROC."""


@dataclass(frozen=True, slots=True)
class Plan:
    """A comparison of two variants by `metric`, whose scores lie around `typical`.

    `paired`: both on the same `latents`; else that many of either. Of each latent `positives` activating and
    `negatives` other windows are judged, per variant. `sd_latents` is the standard deviation over latents of the true
    scores, or, if paired, of the true differences. `shared_noise` is how far the window noise of the two goes
    together if paired (correlation, 0 to 1): it is above 0 where both judge the same windows, and 0 promises least.
    """

    metric: str
    typical: float
    sd_latents: float
    latents: int = 100
    positives: int = 50
    negatives: int = 50
    paired: bool = True
    shared_noise: float = 0.0
    alpha: float = 0.05

    def __post_init__(self) -> None:
        if self.metric not in NOISE:
            raise UserError(f"window noise of metric {self.metric} is not known; choose one of {', '.join(NOISE)}")
        if not 0 <= self.typical <= 1 or not 0 <= self.shared_noise <= 1 or self.sd_latents < 0:
            raise UserError("a plan's typical and shared_noise are from 0 to 1 and its sd_latents is at least 0")
        if min(self.latents, self.positives, self.negatives) < 1:
            raise UserError("a plan needs at least one latent and one window of either kind")

    @property
    def sd(self) -> float:
        """Of one latent's observed score or, if paired, difference."""
        noise = NOISE[self.metric](self.typical, self.positives, self.negatives)
        factor = 2 * (1 - self.shared_noise) if self.paired else 1
        return math.sqrt(self.sd_latents**2 + factor * noise)


def power(plan: Plan, difference: float) -> float:
    """Chance that the test finds a true mean difference of this size; NaN below two latents."""
    return power_at(plan.sd, plan.latents, difference, paired=plan.paired, alpha=plan.alpha)


def power_at(sd: float, latents: float, difference: float, *, paired: bool, alpha: float = 0.05) -> float:
    """`power` where `sd`, of one latent's observed score or, if paired, difference, is known; of any metric."""
    if latents < 2:
        return math.nan
    df = latents - 1 if paired else 2 * latents - 2
    error = sd * math.sqrt((1 if paired else 2) / latents)
    if error == 0:
        return 1.0 if difference else alpha
    edge = stats.t.ppf(1 - alpha / 2, df)
    reach = abs(difference) / error
    # Far out scipy's noncentral t loses digits; the power is 1 there to the last of them.
    return 1.0 if reach > edge + 12 else float(stats.nct.sf(edge, df, reach) + stats.nct.cdf(-edge, df, reach))


def resolvable(sd: float, latents: float, *, paired: bool, alpha: float = 0.05, wanted: float = 0.8) -> float:
    """Smallest true mean difference that is found with this power; NaN below two latents or without an sd, 0 where all
    latents are alike."""
    if latents < 2 or not sd >= 0:
        return math.nan
    if sd == 0:  # whatever differs at all is found
        return 0.0
    low, high = 0.0, sd
    while power_at(sd, latents, high, paired=paired, alpha=alpha) < wanted:
        low, high = high, 2 * high
    for _ in range(40):
        middle = (low + high) / 2
        if power_at(sd, latents, middle, paired=paired, alpha=alpha) < wanted:
            low = middle
        else:
            high = middle
    return high


def latents_at(sd: float, difference: float, *, paired: bool, alpha: float = 0.05, wanted: float = 0.8) -> int | None:
    """`latents_needed` where the `sd` of an observed score or difference is known, whatever it is made of."""
    return _fewest(lambda n: power_at(sd, n, difference, paired=paired, alpha=alpha) >= wanted, 2, MOST_LATENTS)


def latents_needed(plan: Plan, difference: float, wanted: float = 0.8) -> int | None:
    """Fewest latents (of either variant, if not paired) for this power; None above MOST_LATENTS."""
    if not plan.alpha < wanted < 1:
        raise UserError(f"power wanted is above alpha ({plan.alpha}) and below 1, not {wanted}; 0.8 is usual")
    return _fewest(lambda n: power(replace(plan, latents=n), difference) >= wanted, 2, MOST_LATENTS)


def windows_needed(plan: Plan, difference: float, wanted: float = 0.8) -> int | None:
    """Fewest windows of either kind for this power with the plan's latents; None where the latents differ too much
    among themselves for any number of windows to do."""
    if not plan.alpha < wanted < 1:
        raise UserError(f"power wanted is above alpha ({plan.alpha}) and below 1, not {wanted}; 0.8 is usual")
    return _fewest(lambda n: power(replace(plan, positives=n, negatives=n), difference) >= wanted, 1, MOST_LATENTS)


def designs(
    plan: Plan, difference: float, windows: Sequence[int] = (10, 20, 50, 100, 200), wanted: float = 0.8
) -> pd.DataFrame:
    """Latents needed at each number of windows: columns positives, negatives, latents, judgements (of both variants
    together, what it costs), status (`out_of_reach` where latents is null)."""
    rows: list[dict[str, Any]] = []
    for count in windows:
        latents = latents_needed(replace(plan, positives=count, negatives=count), difference, wanted)
        rows.append({
            "positives": count, "negatives": count, "latents": latents,
            "judgements": None if latents is None else 4 * count * latents,
            "status": "out_of_reach" if latents is None else "ok",
        })  # fmt: skip
    return pd.DataFrame(rows).astype({"latents": "Int64", "judgements": "Int64"})


def sd_of_latents(scores: pd.DataFrame, other: pd.DataFrame | None = None) -> float:
    """`Plan.sd_latents` from a pilot: the variance of scores (or of differences to `other`'s, latent by latent) less
    the mean noise of their windows; 0 where the windows explain it all, NaN below two latents.

    Scores say how many windows there were (`n`), not of which kind: half of them are taken to be activating. The noise
    of differences is taken to be independent, which leaves too small an sd where both judged the same windows.
    """
    sides = [single_kind(scores)] + ([] if other is None else [single_kind(other)])
    values, noises = [], []
    for side in sides:
        need(side, ("metric", "n"), "scores")
        metric = str(side["metric"].iloc[0]) if len(side) else ""
        if metric not in NOISE:
            raise UserError(f"window noise of metric {metric!r} is not known; choose one of {', '.join(NOISE)}")
        typical = float(side["value"].mean())
        halves = np.maximum(1, side["n"].to_numpy(dtype=float) / 2)
        noise = side.assign(value=[NOISE[metric](typical, int(half), int(half)) for half in halves])
        rows = side.groupby(list(LATENT), dropna=False).size()
        values.append(per_unit(side, LATENT))
        # A latent's mean over r rows has an r-th of their noise.
        noises.append(per_unit(noise, LATENT) / rows)
    gaps = values[0] if other is None else (values[0] - values[1]).dropna()
    if len(gaps) < 2:
        return math.nan
    noise_part = sum(float(noise[noise.index.isin(gaps.index)].mean()) for noise in noises)
    return math.sqrt(max(0.0, float(gaps.var(ddof=1)) - noise_part))


def _fewest(enough: Callable[[int], bool], low: int, most: int) -> int | None:
    """Smallest n from low to most that is enough, by doubling and bisection; power grows with n."""
    if enough(low):
        return low
    high = low
    while not enough(high):
        low, high = high, 2 * high
        if low >= most:
            return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high if high <= most else None
