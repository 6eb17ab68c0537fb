"""What this sample can resolve, and what a wanted difference would need, with these runs as the pilot."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd

from autointerp.errors import UserError
from autointerp.stats.frames import LATENT
from autointerp.stats.power import NOISE, Plan, latents_at, latents_needed, power_at, resolvable, sd_of_latents
from autointerp.stats.power import windows_needed as windows_for
from autointerp.stats.repeats import trained_of
from autointerp.stats.variants import MEASURE, measures
from scoring.types import SHUFFLED

TWO_SAES, ALL_LAYERS, AGAINST = "two SAEs, one layer", "two SAEs, all layers", "real against shuffled"
WINDOWS = (10, 20, 50, 100, 200)
WANTED = 0.8

RESOLVABLE = [*MEASURE, "design", "paired", "sd", "latents", "difference", "status"]
PLAN = [
    *MEASURE, "difference", "typical", "sd_latents", "latents_now", "windows_now", "power_now", "windows_needed",
    "windows", "latents", "judgements", "status",
]  # fmt: skip


def resolvable_table(scores: pd.DataFrame) -> pd.DataFrame:
    """The smallest true difference that a test at 5% finds with 80% power, by method and design.

    Two SAEs have other latents: unpaired, `latents` on either side (the median SAE; times the layers for all). `sd` is
    that of latents within an SAE, averaged over draws. Real against shuffled explanations: paired, over all latents
    that have both; this is also the size of difference that two explainers of the same latents would need, were
    their scores as little alike.
    """
    rows: list[dict[str, Any]] = []
    for (measure, own), control in _with_control(scores):
        cells = _cells(own)
        sd, latents = _pooled(cells), _typical(cells)
        sites = own["site"].nunique()
        gaps = _gaps(own, control)
        found = [(TWO_SAES, False, sd, latents)]
        found += [(ALL_LAYERS, False, sd, latents * sites)] if sites > 1 else []
        found += [(AGAINST, True, float(gaps.std(ddof=1)) if len(gaps) > 1 else math.nan, len(gaps))]
        for design, paired, spread, n in found:
            difference = resolvable(spread, n, paired=paired, wanted=WANTED)
            rows.append({
                **measure, "design": design, "paired": paired, "sd": spread, "latents": n, "difference": difference,
                "status": "too_few_latents" if math.isnan(difference) else "ok",
            })  # fmt: skip
    return pd.DataFrame(rows, columns=RESOLVABLE)


def plan_table(scores: pd.DataFrame, difference: float) -> pd.DataFrame:
    """Latents of either SAE that find this difference of their means with 80% power, at several numbers of windows.

    Of each latent `windows` activating and as many others are judged, in one draw. windows_now is what was judged, over
    all draws; windows_needed are those that would do with the latents there are (null: no number would). Of metrics
    whose window noise is not known (all but an AUROC or an accuracy) there is one row, with the windows as they are.
    UserError on a difference that is not above 0.
    """
    if not difference > 0 or math.isinf(difference):
        raise UserError(f"--plan wants a difference of mean scores above 0, e.g. 0.03, not {difference}")
    rows: list[dict[str, Any]] = []
    for measure, own in measures(trained_of(scores)):
        cells = _cells(own)
        sd, latents = _pooled(cells), _typical(cells)
        row: dict[str, Any] = {
            **measure, "difference": difference, "latents_now": latents,
            "power_now": power_at(sd, latents, difference, paired=False) if sd >= 0 else math.nan,
        }  # fmt: skip
        known = own[own["value"].notna()]
        metric = measure["metric"].partition("@")[0]
        if not sd >= 0:
            rows.append(row | {"status": "too_few_latents"})
            continue
        if metric not in NOISE or not known["value"].astype(float).between(0, 1).all():
            needed = latents_at(sd, difference, paired=False, wanted=WANTED)
            status = "out_of_reach" if needed is None else "windows_as_they_are"
            rows.append(row | {"latents": needed, "status": status})
            continue
        halves = known.groupby(list(LATENT))["n"].sum().astype(float) / 2
        windows = max(1, round(float(halves.median())))
        typical, spread = float(known["value"].astype(float).mean()), _sd_of_truth(known.assign(metric=metric))
        now = Plan(metric, typical, spread, latents, windows, windows, paired=False)
        row |= {
            "typical": typical, "sd_latents": spread, "windows_now": windows,
            "windows_needed": windows_for(now, difference, WANTED),
        }  # fmt: skip
        for count in sorted({windows, *WINDOWS}):
            plan = Plan(metric, typical, spread, latents, count, count, paired=False)
            needed = latents_needed(plan, difference, WANTED)
            rows.append(row | {
                "windows": count, "latents": needed, "judgements": None if needed is None else 4 * count * needed,
                "status": "out_of_reach" if needed is None else "ok",
            })  # fmt: skip
    table = pd.DataFrame(rows, columns=PLAN)
    whole = ("latents_now", "windows_now", "windows_needed", "windows", "latents", "judgements")
    return table.astype(dict.fromkeys(whole, "Int64"))


def _cells(own: pd.DataFrame) -> list[pd.Series]:
    """Values of latents (means over draws) of each SAE."""
    known = own[own["value"].notna()]
    values = known.assign(value=known["value"].astype(float)).groupby(list(LATENT))["value"].mean()
    return [part for _, part in values.groupby(level="sae_id")]


def _pooled(cells: list[pd.Series]) -> float:
    """Standard deviation within cells, with their degrees of freedom for weights."""
    large = [cell for cell in cells if len(cell) > 1]
    if not large:
        return math.nan
    degrees = np.array([len(cell) - 1 for cell in large])
    return math.sqrt(float((degrees * [cell.var(ddof=1) for cell in large]).sum() / degrees.sum()))


def _typical(cells: list[pd.Series]) -> int:
    return int(np.median([len(cell) for cell in cells])) if cells else 0


def _sd_of_truth(known: pd.DataFrame) -> float:
    parts = [(len(rows), sd_of_latents(rows)) for _, rows in known.groupby("sae_id")]
    sized = [(n, sd) for n, sd in parts if not math.isnan(sd)]
    return math.sqrt(sum(n * sd**2 for n, sd in sized) / sum(n for n, _ in sized))


def _with_control(scores: pd.DataFrame) -> list[tuple[tuple[dict[str, str], pd.DataFrame], pd.DataFrame]]:
    shuffled = scores[(scores["control"] == SHUFFLED) & (scores["place"] == "none")]
    found = []
    for measure, own in measures(trained_of(scores)):
        control = shuffled
        for name, value in measure.items():
            control = control[control[name] == value]
        found.append(((measure, own), control))
    return found


def _gaps(own: pd.DataFrame, control: pd.DataFrame) -> pd.Series:
    both = [part.groupby(list(LATENT))["value"].mean().astype(float) for part in (own, control)]
    return (both[0] - both[1]).dropna()
