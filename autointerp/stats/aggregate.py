"""From latents to a statement about an SAE: means and medians, at equal density, and with what could not be scored.

Every function takes rows of one kind (one method, metric, control and `negatives`; UserError otherwise) and returns
one row per group of `by`, with a 95% interval over latents. A number that cannot be computed is NaN, and `status`
says why.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
import pandas as pd
from scipy import stats

from autointerp.errors import UserError
from autointerp.seeds import generator
from autointerp.stats.frames import LATENT, Floats, need, per_unit, present, single_kind
from autointerp.stats.resampling import (
    LEAST,
    RESAMPLES,
    STATISTICS,
    WINDOW_STATISTICS,
    Judged,
    interval,
    quantiles,
    resample,
    two_stage,
)

CHANCE: dict[str, float] = {"auroc": 0.5, "balanced_accuracy": 0.5, "pearson": 0.0, "logprob_gain": 0.0}
"""What an explanation that says nothing gets, by metric (before an @)."""

EDGES: tuple[float, ...] = (-math.inf, -5.0, -4.0, -3.5, -3.0, -2.5, -2.0, -1.0, math.inf)
"""Bins of log10 density: half decades where most latents are, the last bin being the dense ones."""

ELIGIBLE = ("live", "dense")
"""States of latents that have windows enough to be explained and scored."""


def aggregate(
    scores: pd.DataFrame, *, judgements: pd.DataFrame | None = None, by: Sequence[str] = ("sae_id",), seed: int = 0
) -> pd.DataFrame:
    """Mean and median over latents: columns `by`, statistic, value, ci_low, ci_high, n, n_null, stages, status.

    The bootstrap draws latents, with expanded percentiles (`resampling.quantiles`). Where `judgements` of these
    scores are given, windows are drawn within latents as well (`stages` is 2, and `sd_windows` and `sd_latents` say
    how much of the mean's standard error comes from either); then the latents are those that have usable windows on
    both sides. n is the number of latents, n_null that of latents without a value.
    """
    scores = scores.reset_index(drop=True)
    kept = single_kind(scores)
    rows: list[dict[str, Any]] = []
    for key, group in _groups(scores, by):
        of_group = kept.loc[kept.index.intersection(group.index)]
        values = per_unit(of_group, LATENT)
        n_null = len(group[present(group, LATENT)].drop_duplicates()) - len(values)
        judged = [] if judgements is None else _judged(of_group, judgements)
        for statistic, estimate in STATISTICS.items():
            row: dict[str, Any] = {**key, "statistic": statistic, "n_null": n_null, "stages": 1}
            rng = generator(seed, "aggregate", statistic, *map(str, key.values()))
            if judgements is not None and judged:
                both = two_stage(judged, str(of_group["metric"].iloc[0]), statistic, rng)
                row |= {"value": both.value, "n": len(judged), "stages": 2}
                row |= {"sd_windows": both.sd_windows, "sd_latents": both.sd_latents}
                bounds = interval(both.estimates, len(judged))
            else:
                numbers = values.to_numpy(dtype=float)
                row |= {"value": float(estimate(numbers)) if len(numbers) else math.nan, "n": len(numbers)}
                enough = len(numbers) >= LEAST
                bounds = interval(resample(numbers, statistic, rng), len(numbers)) if enough else (math.nan, math.nan)
            row |= {"ci_low": bounds[0], "ci_high": bounds[1]}
            row["status"] = "ok" if row["n"] >= LEAST else "too_few_latents"
            rows.append(row)
    columns = [*by, "statistic", "value", "ci_low", "ci_high", "n", "n_null", "stages", "status"]
    return pd.DataFrame(rows, columns=columns + ([] if judgements is None else ["sd_windows", "sd_latents"]))


def by_density(
    scores: pd.DataFrame, latents: pd.DataFrame, *, edges: Sequence[float] = EDGES, least: int = LEAST
) -> pd.DataFrame:
    """Per SAE and bin of log10 density, the mean over scored latents and how many of the SAE's latents are in it.

    Columns sae_id, bin (its number), low, high (log10 density), n_scored, n_latents (eligible ones), share (of
    the eligible), value, sd, ci_low, ci_high (Student's t), status. Bins without an eligible latent have no row.
    """
    placed, eligible = _binned(scores, latents, edges)
    counts, totals = eligible.groupby(["sae_id", "bin"]).size(), eligible.groupby("sae_id").size()
    rows = []
    for key, n_latents in counts.items():
        sae_id, number = cast("tuple[str, int]", key)
        inside = placed[(placed["sae_id"] == sae_id) & (placed["bin"] == number)]
        values = inside["value"].to_numpy(dtype=float)
        n, enough = len(values), len(values) >= least
        sd = float(values.std(ddof=1)) if n > 1 else math.nan
        mean = float(values.mean()) if n else math.nan
        half = _t_half(sd, n) if enough else math.nan
        rows.append({
            "sae_id": sae_id, "bin": number, "low": edges[number], "high": edges[number + 1], "n_scored": n,
            "n_latents": n_latents, "share": n_latents / totals[sae_id], "value": mean, "sd": sd,
            "ci_low": mean - half, "ci_high": mean + half, "status": "ok" if enough else "too_few_latents",
        })  # fmt: skip
    columns = ["sae_id", "bin", "low", "high", "n_scored", "n_latents", "share", "value", "sd", "ci_low", "ci_high"]
    return pd.DataFrame(rows, columns=[*columns, "status"])


def at_common_density(
    scores: pd.DataFrame,
    latents: pd.DataFrame,
    *,
    target: Mapping[int, float] | None = None,
    edges: Sequence[float] = EDGES,
    least: int = LEAST,
    seed: int = 0,
) -> pd.DataFrame:
    """Per SAE, the mean its latents would have if all SAEs had the same densities: sum over bins of w_k mean_k.

    w is `target` (bin number -> weight) or the mean over SAEs of the share of their eligible latents in each bin.
    Only bins in which every SAE has `least` scored latents are used, the same for all, with w scaled to add up to 1
    over them; `weight_used` is how much of w they held. Below a half of it the value is NaN (`densities_differ`): the
    SAEs have too little in common. `unweighted` is the plain mean over all scored latents. The bootstrap draws
    latents within bins; Satterthwaite's degrees of freedom expand its percentiles.
    """
    bins = by_density(scores, latents, edges=edges, least=least)
    placed, _ = _binned(scores, latents, edges)
    shares = bins.pivot(index="sae_id", columns="bin", values="share").fillna(0.0)
    wanted = shares.mean() if target is None else pd.Series(dict(target), dtype=float)
    wanted = wanted / wanted.sum()
    scored = bins.pivot(index="sae_id", columns="bin", values="n_scored").fillna(0)
    common = [k for k in wanted.index if k in scored and wanted[k] > 0 and (scored[k] >= least).all()]
    used = float(wanted[common].sum())
    rows = []
    for sae_id, group in placed.groupby("sae_id"):
        row = {
            "sae_id": sae_id, "value": math.nan, "ci_low": math.nan, "ci_high": math.nan, "n": len(group),
            "unweighted": float(group["value"].mean()), "weight_used": used, "status": "densities_differ",
        }  # fmt: skip
        if used >= 0.5:
            weights = np.asarray(wanted[common] / used, dtype=np.float64)
            strata = [group.loc[group["bin"] == k, "value"].to_numpy(dtype=float) for k in common]
            row |= stratified_mean(strata, weights, generator(seed, "common_density", str(sae_id))) | {"status": "ok"}
        rows.append(row)
    columns = ["sae_id", "value", "ci_low", "ci_high", "n", "unweighted", "weight_used", "status"]
    return pd.DataFrame(rows, columns=columns)


def with_coverage(
    scores: pd.DataFrame, latents: pd.DataFrame, *, chance: float | None = None, seed: int = 0
) -> pd.DataFrame:
    """Per SAE, the mean over all its latents, with those that cannot be explained counted as explained by nothing.

    An SAE whose few live latents are well explained is no better understood than one with many. With p_e, p_r and p_d
    the shares of eligible (live or dense), rare and dead latents among all rows of `latents`, and M the mean over the
    scored eligible ones,

        value = p_e M + (p_r + p_d) chance.

    So eligible latents without a score (not chosen, or failed) are missing: M stands for them, which is right if
    those that were scored are a random choice. Rare and dead latents are not missing but count at `chance` (CHANCE
    has it for common metrics), even where a rare one has a score. The interval is M's, scaled by p_e; the shares
    are of all latents, hence known.

    Columns sae_id, value, ci_low, ci_high, mean_scored, chance, n_scored, share_scored (of all latents),
    share_eligible_scored (of the eligible), share_eligible, share_rare, share_dead, status.
    """
    kept = single_kind(scores)
    need(latents, ("sae_id", "latent", "state"), "latents")
    value_of_nothing = _chance(scores, chance)
    rows = []
    for sae_id, all_latents in latents.drop_duplicates(list(LATENT)).groupby("sae_id"):
        states = all_latents.set_index("latent")["state"]
        values = per_unit(kept[kept["sae_id"] == sae_id], ("latent",))
        eligible = states.index[states.isin(ELIGIBLE)]
        numbers = values[values.index.isin(eligible)].to_numpy(dtype=float)
        share = len(eligible) / len(states)
        mean = float(numbers.mean()) if len(numbers) else math.nan
        low = high = math.nan
        if len(numbers) >= LEAST:
            rng = generator(seed, "coverage", str(sae_id))
            low, high = interval(resample(numbers, "mean", rng), len(numbers))
        rest = (1 - share) * value_of_nothing
        rows.append({
            "sae_id": sae_id, "value": share * mean + rest, "ci_low": share * low + rest,
            "ci_high": share * high + rest, "mean_scored": mean, "chance": value_of_nothing, "n_scored": len(numbers),
            "share_scored": len(numbers) / len(states),
            "share_eligible_scored": len(numbers) / len(eligible) if len(eligible) else math.nan,
            "share_eligible": share, "share_rare": float((states == "rare").mean()),
            "share_dead": float((states == "dead").mean()),
            "status": "ok" if len(numbers) >= LEAST else "too_few_latents",
        })  # fmt: skip
    return pd.DataFrame(rows)


def _groups(scores: pd.DataFrame, by: Sequence[str]) -> list[tuple[dict[str, Any], pd.DataFrame]]:
    need(scores, by, "scores")
    return [
        (dict(zip(by, key, strict=True)), group) for key, group in scores.groupby(list(by), sort=True, dropna=False)
    ]


def _judged(scores: pd.DataFrame, judgements: pd.DataFrame) -> list[Judged]:
    """Windows of the scored latents. A judgement belongs to a score by run, SAE, latent, explanation, method, control,
    draw and corpus, and to one kind of negatives; windows without a usable answer are left out."""
    metric = str(scores["metric"].iloc[0]) if len(scores) else ""
    if metric not in WINDOW_STATISTICS:
        raise UserError(
            f"windows of metric {metric} cannot be drawn again; it works for {', '.join(WINDOW_STATISTICS)}, "
            "for others leave the judgements out"
        )
    column = WINDOW_STATISTICS[metric][0]
    need(judgements, ("label", "kind", column, *LATENT), "judgements")
    same = ("run_id", *LATENT, "pole", "explanation_id", "method", "control", "draw", "corpus")
    keys = [name for name in same if name in scores and name in judgements]
    asked = judgements.merge(scores[keys].drop_duplicates(), on=keys)
    kinds = [kind for kind in scores["negatives"].dropna().unique() if kind] if "negatives" in scores else []
    if kinds and kinds[0] != "mixed":
        asked = asked[(asked["kind"] == kinds[0]) | asked["label"].eq(True).fillna(False)]
    asked = asked.assign(answer=pd.to_numeric(asked[column], errors="coerce").astype(float))
    asked = asked[asked["label"].notna() & np.isfinite(asked["answer"].to_numpy())]
    found = []
    for _, group in asked.groupby(list(LATENT), sort=True):
        label = group["label"].astype(bool).to_numpy()
        answers = group["answer"].to_numpy(dtype=float)
        if label.any() and not label.all():
            found.append(Judged(answers[label], answers[~label]))
    return found


def _binned(scores: pd.DataFrame, latents: pd.DataFrame, edges: Sequence[float]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Scored eligible latents with value and bin; and all eligible ones with their bin."""
    need(latents, (*LATENT, "state", "density"), "latents")
    eligible = latents[latents["state"].isin(ELIGIBLE) & (latents["density"] > 0)].drop_duplicates(list(LATENT))
    numbers = np.searchsorted(np.asarray(edges), np.log10(eligible["density"].to_numpy(dtype=float)), side="right") - 1
    eligible = eligible.assign(bin=np.clip(numbers, 0, len(edges) - 2))
    values = per_unit(single_kind(scores), LATENT).rename("value").reset_index()
    return values.merge(eligible[[*LATENT, "bin"]], on=list(LATENT)), eligible


def stratified_mean(strata: Sequence[Floats], weights: Floats, rng: np.random.Generator) -> dict[str, float]:
    """`value`, `ci_low` and `ci_high` of the weighted mean of the strata's means; the bootstrap draws within strata.

    Every stratum has two values or more; weights add up to 1.
    """
    estimate = np.zeros(RESAMPLES)
    parts, df = np.empty(len(strata)), np.empty(len(strata))
    for k, (values, weight) in enumerate(zip(strata, weights, strict=True)):
        n = len(values)
        drawn = resample(values, "mean", rng)
        # Small strata are drawn too narrow, each by its own factor.
        estimate += weight * (values.mean() + (drawn - values.mean()) * math.sqrt(n / (n - 1)))
        parts[k], df[k] = weight**2 * values.var(ddof=1) / n, n - 1
    value = float(sum(weight * values.mean() for values, weight in zip(strata, weights, strict=True)))
    total = float(parts.sum())
    freedom = total**2 / float((parts**2 / df).sum()) if total > 0 else float(df.sum())
    # The factors are in already: quantiles() is told of endless latents, and of as few degrees of freedom as there are.
    low, high = np.quantile(estimate, quantiles(freedom, 1e12))
    return {"value": value, "ci_low": float(low), "ci_high": float(high)}


def _t_half(sd: float, n: int) -> float:
    return float(stats.t.ppf(0.975, n - 1)) * sd / math.sqrt(n)


def _chance(scores: pd.DataFrame, given: float | None) -> float:
    if given is not None:
        return given
    need(scores, ("metric",), "scores")
    metric = str(scores["metric"].iloc[0]).partition("@")[0] if len(scores) else ""
    if metric not in CHANCE:
        raise UserError(f"what chance is for metric {metric or '(no scores)'} is not known; pass chance=")
    return CHANCE[metric]
