"""Do scorers rank the same latents high?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations

import numpy as np
import pandas as pd
from scipy import stats

from autointerp.seeds import generator
from autointerp.stats.frames import LATENT, Floats, need, present
from autointerp.stats.resampling import interval

SCORER = ("method", "metric", "negatives", "scorer_model")
"""What tells one scorer from another."""
RESAMPLES = 1000
LEAST = 5
"""Fewest latents for a correlation with an interval."""


def spearman_table(
    scores: pd.DataFrame, *, scorer: Sequence[str] = SCORER, controls: Sequence[str] = ("none",), seed: int = 0,
    resamples: int = RESAMPLES,
) -> pd.DataFrame:  # fmt: skip
    """Rank correlation over latents of each pair of scorers: a, b, n, spearman, ci_low, ci_high, status.

    A scorer is a combination of the columns `scorer`, named by joining them with `/`; only rows whose `control` is in
    `controls` count. A pair is compared on the latents that both scored (n). The bootstrap draws latents and
    ranks them anew. NaN below LEAST latents (`too_few_latents`) or where one gives all the same (`constant`).

    Noise in either scorer lowers the correlation: two readings of one judge do not reach 1 either, and
    `stability.ranking_stability` says what they reach.
    """
    wide = _wide(scores, scorer, controls)
    rows = []
    for a, b in combinations(wide.columns, 2):
        both = wide[[a, b]].dropna().to_numpy(dtype=float)
        value, bounds = math.nan, (math.nan, math.nan)
        constant = len(both) > 0 and bool((np.ptp(both, axis=0) == 0).any())
        if len(both) >= LEAST and not constant:
            value = float(stats.spearmanr(both[:, 0], both[:, 1]).statistic)
            picked = generator(seed, "agreement", a, b).integers(0, len(both), size=(resamples, len(both)))
            drawn = _spearman(both[picked, 0], both[picked, 1])
            # A resample of one latent over and over has no ranks.
            low, high = interval(drawn[np.isfinite(drawn)], len(both))
            bounds = (low, high)
        status = "too_few_latents" if len(both) < LEAST else "constant" if constant else "ok"
        rows.append({
            "a": a, "b": b, "n": len(both), "spearman": value, "ci_low": bounds[0], "ci_high": bounds[1],
            "status": status,
        })  # fmt: skip
    return pd.DataFrame(rows, columns=["a", "b", "n", "spearman", "ci_low", "ci_high", "status"])


def spearman_matrix(table: pd.DataFrame) -> pd.DataFrame:
    """The table's correlations as a square, with 1 on the diagonal."""
    need(table, ("a", "b", "spearman"), "agreement")
    names = sorted({*table["a"], *table["b"]})
    square = pd.DataFrame(np.eye(len(names)), index=names, columns=names)
    for a, b, value in zip(table["a"], table["b"], table["spearman"], strict=True):
        square.loc[a, b] = square.loc[b, a] = value
    return square


def _wide(scores: pd.DataFrame, scorer: Sequence[str], controls: Sequence[str]) -> pd.DataFrame:
    """Latents x scorers."""
    need(scores, ("value", "latent"), "scores")
    kept = scores[scores["control"].isin(controls)] if "control" in scores else scores
    parts = kept[present(kept, scorer)].fillna("").astype(str)
    names = ["/".join(part for part in row if part) for row in parts.itertuples(index=False)]
    values = kept.assign(scorer=names, value=kept["value"].astype(float))
    latent = present(values, LATENT)
    return values.groupby([*latent, "scorer"])["value"].mean().unstack("scorer")


def _spearman(a: Floats, b: Floats) -> Floats:
    """(n,) correlations of the rows of two (n, latents) arrays."""
    x, y = (stats.rankdata(side, axis=1) for side in (a, b))
    x, y = x - x.mean(axis=1, keepdims=True), y - y.mean(axis=1, keepdims=True)
    size = np.sqrt((x**2).sum(axis=1) * (y**2).sum(axis=1))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray((x * y).sum(axis=1) / size)
