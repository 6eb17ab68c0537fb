"""Scorers against each other: do they rank latents alike, which latents do they place best and worst, and on which do
they disagree most."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from autointerp.report.grades import Column, Grades
from autointerp.report.groups import Group
from autointerp.report.text import count, figure, interval, visible, words

MAX_LISTED = 6
TEXT_CHARACTERS = 90
DRAWS = 4_000_000
"""Bootstrap draws of latents a pair of scorers may cost; a thousand resamples of more latents than fit get fewer."""


def trained(groups: Sequence[Group]) -> list[int]:
    """The numbers of the groups that scorers are compared on: trained SAEs, or all where there is none."""
    return [at for at, group in enumerate(groups) if not group.replaced] or list(range(len(groups)))


def agreement(groups: Sequence[Group], shown: Sequence[Column]) -> dict[str, Any] | None:
    """The Spearman matrix of the scorers (primary metrics; judges apart where a method had several), and its table."""
    from autointerp.stats.agreement import spearman_matrix, spearman_table

    parts = [_named(groups[at].scores, shown).assign(sae_id=groups[at].label) for at in trained(groups)]
    scores = pd.concat(parts)
    if scores.empty or scores["scorer"].nunique() < 2:
        return None
    latents = len(scores[["sae_id", "latent"]].drop_duplicates())
    resamples = int(min(1000, max(200, DRAWS // latents)))
    table = spearman_table(scores, scorer=("scorer",), resamples=resamples)
    square = spearman_matrix(table)
    said = {(row.a, row.b): row for row in table.itertuples()}
    names = [str(name) for name in square.columns]
    return {
        "names": names,
        "rows": [
            {"name": a, "cells": [_cell(said.get((a, b)) or said.get((b, a))) for b in names[:at]]}
            for at, a in enumerate(names)
        ],
        "resamples": resamples,
    }


def _cell(row: Any) -> dict[str, str]:
    known = row is not None and row.status == "ok"
    return {
        "value": figure(row.spearman, 2) if known else "—",
        "interval": interval(row.ci_low, row.ci_high, 2) if known else words(str(row.status)),
        "n": count(row.n),
        "tint": f"{abs(row.spearman):.2f}" if known else "0",
        "css": _css(row.ci_low, row.ci_high) if known else "empty",
    }


def _named(scores: pd.DataFrame, shown: Sequence[Column]) -> pd.DataFrame:
    """Of one SAE: each scorer's ranks of the latents, with the scorer's name.

    Ranks within the SAE, so that an SAE which all scorers find better does not count as agreement on its latents.
    """
    parts = []
    for column in shown:
        rows = column.of(scores[scores["control"] == "none"]) if column.primary else scores.head(0)
        judges = rows["scorer_model"].fillna("").astype(str)
        several = judges.nunique() > 1
        names = [column.method_label + (f", {visible(judge)}" if several else "") for judge in judges]
        values = rows.assign(scorer=names).groupby(["sae_id", "latent", "scorer"])["value"].mean()
        parts.append(values.groupby("scorer").rank(pct=True).reset_index())
    return pd.concat(parts) if parts else pd.DataFrame(columns=["sae_id", "latent", "scorer", "value"])


def extremes(groups: Sequence[Group], shown: Sequence[Column], grades: Sequence[Grades]) -> dict[str, Any] | None:
    """Latents that scorers place best and worst (mean rank over the methods), and those on which two differ most.

    Ranks are shares from 0 (worst) to 1 among all latents of the page that the method scored, so that methods with
    different units count alike.
    """
    chosen = trained(groups)
    columns = [n for n, column in enumerate(shown) if column.primary]
    at = [(place, latent) for place in chosen for latent in groups[place].listed]
    if not at or not columns:
        return None
    ranks = np.column_stack([_ranks(np.concatenate([grades[place].real[:, n] for place in chosen])) for n in columns])
    known = np.isfinite(ranks).sum(axis=1)
    mean = np.where(known > 0, np.nansum(ranks, axis=1) / np.maximum(known, 1), np.nan)
    # A latent that one method alone could score is no latent that all find good.
    mean[known < min(len(columns), known.max())] = np.nan
    order = np.argsort(mean, kind="stable")[: int(np.isfinite(mean).sum())].tolist()  # NaN goes last
    if not order:
        return None
    labels = [shown[n].method_label for n in columns]

    def named(n: int, note: str) -> dict[str, Any]:
        place, latent = at[n]
        return {
            "latent": latent, "place": place, "group": groups[place].label, "note": note,
            "text": _explained(groups[place], latent),
        }  # fmt: skip

    def scores_of(n: int) -> str:
        place, latent = at[n]
        values = grades[place].real[groups[place].listed.index(latent), columns].tolist()
        return ", ".join(f"{label} {figure(value, 2)}" for label, value in zip(labels, values, strict=True))

    few = min(MAX_LISTED, (len(order) + 1) // 2)
    return {
        "best": [named(n, scores_of(n)) for n in reversed(order[-few:])],
        "worst": [named(n, scores_of(n)) for n in order[:few]],
        "apart": [
            named(n, f"{labels[a]} better than {100 * ranks[n, a]:.0f}%, {labels[b]} than {100 * ranks[n, b]:.0f}%")
            for n, a, b in _apart(ranks)
        ],
    }


def _explained(group: Group, latent: int) -> str:
    """The start of the latent's first explanation."""
    texts = group.explanations.loc[group.explanations["latent"] == latent, "text"].dropna()
    text = visible(str(texts.iloc[0])) if len(texts) else "no explanation"
    return text if len(text) <= TEXT_CHARACTERS else text[: TEXT_CHARACTERS - 1].rstrip() + "…"


def _apart(ranks: NDArray[np.float64]) -> list[tuple[int, int, int]]:
    """(latent, scorer that ranks it high, scorer that ranks it low), the widest gaps first."""
    if ranks.shape[1] < 2:
        return []
    high, low = np.nan_to_num(ranks, nan=-1.0), np.nan_to_num(ranks, nan=2.0)
    a, b = high.argmax(axis=1), low.argmin(axis=1)
    gap = high.max(axis=1) - low.min(axis=1)
    order = np.argsort(-gap, kind="stable")[:MAX_LISTED]
    return [(int(n), int(a[n]), int(b[n])) for n in order if gap[n] > 0]


def _ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """From 0 to 1, ties shared, NaN for NaN."""
    ranks = pd.Series(values).rank().to_numpy(dtype=float)
    n = int(np.isfinite(values).sum())
    return np.asarray((ranks - 1) / max(1, n - 1))


def _css(low: float, high: float) -> str:
    return "above" if low > 0 else "below" if high < 0 else "within"
