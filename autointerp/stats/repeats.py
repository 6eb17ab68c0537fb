"""What repetitions of the pipeline say: components of the variance, stability of rankings, agreement of scorers.

All of it is about trained SAEs; controls are there to be compared with.
"""

from __future__ import annotations

import pandas as pd

from autointerp.stats.agreement import spearman_table
from autointerp.stats.stability import ranking_stability
from autointerp.stats.variance import FACTORS, variance_components
from autointerp.stats.variants import MEASURE, measures, own_of

OF_VARIANTS = {"variant": ("variant",), **{name: columns for name, columns in FACTORS.items() if name != "arch"}}
REPEATED = ("draw", "corpus", "explainer", "explainer_model", "scorer_model")
"""Columns whose levels repeat the measurement of the same latents."""
MOST_SIMULATED = 20_000_000
"""Numbers held at once when intervals of components are simulated."""

VARIANCE = [
    *MEASURE, "component", "share", "share_low", "share_high", "variance", "ci_low", "ci_high", "sd", "n_levels",
    "status",
]  # fmt: skip
RANKING = [
    *MEASURE, "variant", "site", "across", "a", "b", "n", "spearman", "k", "overlap", "overlap_by_chance", "status",
]  # fmt: skip
AGREEMENT = ["a", "b", "n", "spearman", "ci_low", "ci_high", "status"]


def trained_of(scores: pd.DataFrame) -> pd.DataFrame:
    own = own_of(scores)
    return own[own["place"] == "none"]


def repeated(rows: pd.DataFrame) -> list[str]:
    """Which columns of REPEATED have several values."""
    return [column for column in REPEATED if rows[column].nunique() > 1]


def variance_table(scores: pd.DataFrame, *, seed: int = 0) -> pd.DataFrame:
    """`variance_components` of each measure that was repeated; without a repetition there is none, as what latents
    differ by and what the pipeline adds are one."""
    parts = []
    for measure, rows in measures(trained_of(scores)):
        known = rows[rows["value"].notna()]
        if len(known) < 3 or not repeated(known):
            continue
        resamples = max(50, min(400, MOST_SIMULATED // len(known)))
        found = variance_components(known, OF_VARIANTS, seed=seed, resamples=resamples)
        parts.append(found.assign(**measure))
    return _joined(parts, VARIANCE)


def ranking_table(scores: pd.DataFrame) -> pd.DataFrame:
    """`ranking_stability` within each variant and site, across the levels of what was repeated."""
    parts = []
    for key, of_variant in trained_of(scores).groupby(["variant", "site"], sort=True):
        variant, site = map(str, key)
        for measure, rows in measures(of_variant):
            for across in repeated(rows[rows["value"].notna()]):
                known = rows[rows[across].notna()]
                found = ranking_stability(known, across=across).astype({"a": str, "b": str})
                parts.append(found.assign(**measure, variant=variant, site=site, across=across))
    return _joined(parts, RANKING)


def agreement_table(scores: pd.DataFrame, *, seed: int = 0) -> pd.DataFrame:
    """`spearman_table` over latents, each score less the mean of its SAE by its scorer: layers that all scorers find
    easy are no agreement on latents."""
    own = trained_of(scores).reset_index(drop=True)
    scorer = ["method", "metric", "negatives", "scorer_model"]
    value = own["value"].astype(float)
    means = value.groupby([own[name] for name in ("sae_id", *scorer)], dropna=False).transform("mean")
    judges = own.groupby("method")["scorer_model"].nunique()
    # Names are long enough without the one model that all were judged by.
    shown = scorer if (judges > 1).any() else scorer[:3]
    return spearman_table(own.assign(value=value - means), scorer=shown, seed=seed)[AGREEMENT]


def _joined(parts: list[pd.DataFrame], columns: list[str]) -> pd.DataFrame:
    filled = [part for part in parts if len(part)]
    return pd.concat(filled, ignore_index=True)[columns] if filled else pd.DataFrame(columns=columns)
