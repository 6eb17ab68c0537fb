"""Does one SAE, explainer or scorer do better than another? Tested on pairs where there are any.

What makes a pair:

- Explainers, scorers, controls, kinds of negatives: the same latent of the same SAE. The unit is the latent, averaged
  over draws and poles.
- SAEs, architectures: latent 7 of one SAE has nothing to do with latent 7 of another, at any width. What they share is
  the hookpoint, so the unit is the mean over latents and draws of one hookpoint, and the test asks whether the
  difference holds over those. Draws make no pairs: they repeat the windows of the same latents, and what the choice
  of latents does to a difference, it does in all of them.

Where fewer than six pairs of means exist, and where nothing is shared, it is a test of two samples of latents,
within shared hookpoints if there are any. It then speaks of the latents of these SAEs, not of other training runs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from autointerp.errors import UserError
from autointerp.seeds import generator
from autointerp.stats.frames import KIND, LATENT, need, per_unit, present, single_kind
from autointerp.stats.rank_shift import (
    LEAST_PAIRS,
    PERMUTATIONS,
    label_permutation,
    paired_shift,
    sign_flip,
    two_sample_shift,
)

GROUP = ("hookpoint",)
PAIRED_BY: dict[str, tuple[str, ...]] = {
    "explainer": LATENT,
    "explainer_model": LATENT,
    "scorer_model": LATENT,
    "control": LATENT,
    "negatives": LATENT,
    "sae_id": GROUP,
    "arch": GROUP,
    "variant": GROUP,
    "width": GROUP,
}
"""What can be compared, and what makes its pairs."""
MORE = 200
"""Permutations for each test of a family: Holm's smallest p is then below 1 / MORE."""
LEAST_LATENTS = 3
"""Fewest latents on a side, within a hookpoint, of two samples."""

COLUMNS = [
    "column", "a", "b", "design", "difference", "shift", "ci_low", "ci_high", "p", "n_pairs", "n_a", "n_b",
    "n_unpaired", "status",
]  # fmt: skip


def compare(
    scores: pd.DataFrame, column: str, a: object, b: object, *, seed: int = 0, permutations: int = PERMUTATIONS
) -> dict[str, Any]:
    """`a` minus `b`, two values of `column`, on rows of one kind: a row with COLUMNS.

    `design` is `latents` or `groups` (pairs of these) or `two_sample`. `difference` is that of means, and what the
    permutation test's `p` is of; `shift` is Hodges and Lehmann's, with a 95% interval. n_pairs is 0 for two samples,
    n_a and n_b count units, n_unpaired those left out: without a partner, or of a hookpoint that only one side has.
    UserError on a column that is not in PAIRED_BY. NaN with `too_few_pairs` (or `too_few_latents`) below six pairs or
    three latents a side.
    """
    if column not in PAIRED_BY:
        raise UserError(f"cannot compare by {column}; choose one of {', '.join(PAIRED_BY)}")
    need(scores, (column,), "scores")
    chosen = scores[scores[column].isin([a, b])]
    kept = single_kind(chosen, apart_from=(column,))
    row: dict[str, Any] = dict.fromkeys(COLUMNS, math.nan)
    row |= {"column": column, "a": a, "b": b}
    sides = [kept[kept[column] == which] for which in (a, b)]
    rng = generator(seed, "compare", column, str(a), str(b))
    unit = PAIRED_BY[column]
    # A group's mean is of latents: one with more poles or explanations counts no more than another.
    means = [_means(side, unit) for side in sides]
    wide = pd.concat(means, axis=1, keys=["a", "b"], join="inner")
    pairs = len(wide)
    if pairs >= LEAST_PAIRS or (unit == LATENT and pairs):
        return row | _paired(wide, rng, permutations) | {
            "design": "latents" if unit == LATENT else "groups", "n_a": len(means[0]), "n_b": len(means[1]),
            "n_unpaired": len(means[0]) + len(means[1]) - 2 * pairs,
        }  # fmt: skip
    return row | _two_sample(sides[0], sides[1], rng, permutations)


def compare_all(
    scores: pd.DataFrame, column: str, *, by: Sequence[str] = KIND, pairs: Sequence[tuple[object, object]] = (),
    seed: int = 0,
) -> pd.DataFrame:  # fmt: skip
    """`compare` for all pairs of values of `column` (or the `pairs` given) within each group of `by`.

    `p_holm` (no false finding among them, at 5%) and `p_bh` (5% false among the findings) are over all rows that have
    a p: ask in one call what belongs to one question.
    """
    need(scores, (column,), "scores")
    keys = [name for name in present(scores, by) if name != column]
    groups = scores.groupby(keys, sort=True, dropna=False) if keys else [((), scores)]
    asked = []
    for key, group in groups:
        values = sorted(group[column].dropna().unique(), key=str)
        there = [pair for pair in pairs if set(pair) <= set(values)] if pairs else list(combinations(values, 2))
        asked += [(dict(zip(keys, key, strict=True)), group, pair) for pair in there]
    # The smallest p that permutations can give must stay small when it is multiplied by the number of tests.
    permutations = max(PERMUTATIONS, MORE * len(asked))
    rows = [
        about | compare(group, column, a, b, seed=seed, permutations=permutations) for about, group, (a, b) in asked
    ]
    table = pd.DataFrame(rows, columns=[*keys, *COLUMNS])
    p = table["p"].to_numpy(dtype=float)
    return table.assign(p_holm=holm(p), p_bh=benjamini_hochberg(p))


def holm(p: Sequence[float] | np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Holm's adjusted p (1979); NaN stays NaN and is not counted."""
    values = np.asarray(p, dtype=float)
    adjusted = np.full(len(values), math.nan)
    known = np.flatnonzero(~np.isnan(values))
    order = known[np.argsort(values[known], kind="stable")]
    steps = values[order] * np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(steps)) if len(order) else steps
    return adjusted


def benjamini_hochberg(p: Sequence[float] | np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Benjamini and Hochberg's adjusted p (1995); NaN stays NaN and is not counted."""
    values = np.asarray(p, dtype=float)
    adjusted = np.full(len(values), math.nan)
    known = ~np.isnan(values)
    if known.any():
        adjusted[known] = stats.false_discovery_control(values[known], method="bh")
    return adjusted


def _means(side: pd.DataFrame, unit: tuple[str, ...]) -> pd.Series:
    if unit == LATENT:
        return per_unit(side, unit)
    keys = present(side, unit)
    need(side, ("hookpoint",), "scores")
    by_latent = side.groupby([*keys, *LATENT], dropna=False)["value"].mean()
    return by_latent.groupby(level=keys, dropna=False).mean()


def _paired(wide: pd.DataFrame, rng: np.random.Generator, permutations: int) -> dict[str, Any]:
    gaps = (wide["a"] - wide["b"]).to_numpy(dtype=float)
    shift, low, high = paired_shift(gaps)
    enough = len(gaps) >= LEAST_PAIRS
    return {
        "difference": float(gaps.mean()), "shift": shift, "ci_low": low, "ci_high": high, "n_pairs": len(gaps),
        "p": sign_flip(gaps, rng, permutations) if enough else math.nan, "status": "ok" if enough else "too_few_pairs",
    }  # fmt: skip


def _two_sample(a: pd.DataFrame, b: pd.DataFrame, rng: np.random.Generator, permutations: int) -> dict[str, Any]:
    shared = sorted(set(a["hookpoint"]) & set(b["hookpoint"])) if "hookpoint" in a and "hookpoint" in b else []
    parts = [(a[a["hookpoint"] == h], b[b["hookpoint"] == h]) for h in shared] or [(a, b)]
    strata = [tuple(per_unit(side, LATENT).to_numpy(dtype=float) for side in part) for part in parts]
    strata = [stratum for stratum in strata if min(len(side) for side in stratum) >= LEAST_LATENTS]
    n_a, n_b = (sum(len(stratum[i]) for stratum in strata) for i in (0, 1))
    left_out = sum(len(per_unit(side, LATENT)) for side in (a, b)) - n_a - n_b
    row: dict[str, Any] = {"design": "two_sample", "n_pairs": 0, "n_a": n_a, "n_b": n_b, "n_unpaired": left_out}
    if not strata:
        return row | {"status": "too_few_latents"}
    pairs = [(stratum[0], stratum[1]) for stratum in strata]
    shift, low, high = two_sample_shift(pairs)
    return row | {
        "difference": float(np.mean([x.mean() - y.mean() for x, y in pairs])), "shift": shift, "ci_low": low,
        "ci_high": high, "p": label_permutation(pairs, rng, permutations), "status": "ok",
    }  # fmt: skip
