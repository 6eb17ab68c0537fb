"""The main table: means over latents with intervals, beside what their controls score and what could not be scored."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from autointerp.errors import UserError
from autointerp.seeds import generator
from autointerp.stats.aggregate import aggregate
from autointerp.stats.coverage import at_same_density, coverage
from autointerp.stats.frames import LATENT
from autointerp.stats.resampling import LEAST, WINDOW_STATISTICS, interval, resample
from autointerp.stats.variants import MEASURE, measures, own_of
from scoring.types import GENERIC, SHUFFLED

SAME = ("draw", "corpus", "scorer_model", "explainer", "explainer_model", "pole")
"""An explanation and its control are compared under the same conditions."""

COLUMNS = [
    "value", "ci_low", "ci_high", "n", "n_null", "nulls", "status", "shuffled", "difference", "difference_low",
    "difference_high", "n_paired", "generic", "share_live", "share_rare", "share_dead", "share_dense", "share_scored",
    "covered", "covered_low", "covered_high", "covered_status", "at_density", "at_density_low", "at_density_high",
    "at_density_weight", "at_density_status",
]  # fmt: skip


def main_table(
    scores: pd.DataFrame, latents: pd.DataFrame, by: Sequence[str] = ("variant", "layer"), *,
    judgements: pd.DataFrame | None = None, seed: int = 0,
) -> pd.DataFrame:  # fmt: skip
    """One row per group of `by`, method, metric and kind of negatives (MEASURE), with COLUMNS.

    `scores` as `variants.labelled`, `graded` and `once` leave them. Trained SAEs and each kind of control have rows of
    their own whatever `by` says (`control`).

    value: mean over latents, with the 95% interval of a bootstrap over latents. n of them have a value, n_null have
    none, and `nulls` says why. shuffled, difference: means over the n_paired latents whose control was graded, and the
    interval of real minus shuffled. generic: likewise, over those that it was graded for. Shares are of all latents
    of the dictionaries. covered: with dead and rare latents at chance (`aggregate.with_coverage`). at_density: what
    the mean would be at densities that all trained SAEs of the row's other columns share
    (`aggregate.at_common_density`); at_density_weight is how much of the latents that could go by. With `judgements`,
    windows are drawn again too, and sd_windows and sd_latents say which of them the interval is made of.

    UserError on a column that the scores do not have.
    """
    for column in by:
        if column not in scores:
            raise UserError(f"cannot group by '{column}': scores have no such column (docs/tables.md lists them)")
        if column in {*MEASURE, "control", "place", "value", "folder"}:
            raise UserError(f"cannot group by '{column}': rows are of one method, metric and control anyway")
    parts = []
    apart = [*by, "place"]
    for measure, rows in measures(scores):
        own, told = own_of(rows), "/".join(part for part in measure.values() if part)
        means = _means(own, judgements, apart, measure, seed)
        groups = dict(list(own.groupby(apart, sort=True, dropna=False)))
        controls = {name: rows[rows["control"] == name] for name in (SHUFFLED, GENERIC)}
        beside = at_same_density(groups, latents, apart, seed=seed)
        extra = []
        for key, group in groups.items():
            row: dict[str, Any] = {**measure, "nulls": _nulls(group)}
            row |= _against(group, controls[SHUFFLED], f"{told}/{key}", seed)
            row |= _generic(group, controls[GENERIC])
            extra.append(row | coverage(group, latents, seed=seed) | beside[key])
        parts.append(pd.concat([means.reset_index(drop=True), pd.DataFrame(extra)], axis=1))
    table = pd.concat(parts, ignore_index=True).rename(columns={"place": "control"})
    table = table.assign(last=table["control"] != "none").sort_values([*MEASURE, "last", *by], ignore_index=True)
    stages = ["stages", "sd_windows", "sd_latents"] if judgements is not None else []
    return table.reindex(columns=[*by, *MEASURE, "control", *COLUMNS, *stages])


def means_at_sites(scores: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """variant, site, MEASURE, value, ci_low, ci_high, n: means of own explanations."""
    parts = [
        _means(own_of(rows), None, ("variant", "site"), measure, seed).assign(**measure)
        for measure, rows in measures(scores)
    ]
    return pd.concat(parts, ignore_index=True)[["variant", "site", *MEASURE, "value", "ci_low", "ci_high", "n"]]


def _means(
    own: pd.DataFrame, judgements: pd.DataFrame | None, by: Sequence[str], measure: dict[str, str], seed: int
) -> pd.DataFrame:
    """Means with intervals, one row per group; in two stages where each latent was judged once by a metric that its
    windows make. Where it was judged several times, its windows differ in each, and their noise is in the latents'
    spread already."""
    windows = None
    if judgements is not None and measure["metric"] in WINDOW_STATISTICS:
        judged = judgements[judgements["method"] == measure["method"]]
        if len(judged) and not own[own["value"].notna()].duplicated([*LATENT, *by]).any():
            windows = judged
    table = aggregate(own, judgements=windows, by=by, seed=seed)
    return table[table["statistic"] == "mean"].drop(columns="statistic")


def _nulls(group: pd.DataFrame) -> str:
    """Latents (or poles, draws) without a value, by reason."""
    counts = group.loc[group["value"].isna(), "status"].fillna("unknown").value_counts()
    return ", ".join(f"{status}: {counts[status]}" for status in sorted(counts.index))


def _against(group: pd.DataFrame, control: pd.DataFrame, told: str, seed: int) -> dict[str, Any]:
    keys = [*LATENT, *(name for name in SAME if name in group)]
    pairs = pd.DataFrame({
        "real": group.groupby(keys, dropna=False)["value"].mean().astype(float),
        "control": control[control["sae_id"].isin(group["sae_id"])].groupby(keys, dropna=False)["value"].mean(),
    }).astype(float).dropna()  # fmt: skip
    latents = pairs.groupby(level=list(LATENT)).mean()
    gaps = (latents["real"] - latents["control"]).to_numpy(dtype=float)
    low, high = math.nan, math.nan
    if len(gaps) >= LEAST:
        low, high = interval(resample(gaps, "mean", generator(seed, "against", told)), len(gaps))
    return {
        "shuffled": _mean(latents["control"]), "difference": float(gaps.mean()) if len(gaps) else math.nan,
        "difference_low": low, "difference_high": high, "n_paired": len(gaps),
    }  # fmt: skip


def _generic(group: pd.DataFrame, control: pd.DataFrame) -> dict[str, Any]:
    conditions = [name for name in (*LATENT, *SAME) if name in group]
    mine = control.merge(group[conditions].drop_duplicates(), on=conditions)
    return {"generic": _mean(mine.groupby(list(LATENT))["value"].mean())}


def _mean(values: pd.Series) -> float:
    numbers = values.to_numpy(dtype=float, na_value=np.nan)
    numbers = numbers[np.isfinite(numbers)]
    return float(numbers.mean()) if len(numbers) else math.nan
