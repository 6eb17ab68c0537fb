"""Where the spread of the scores comes from, as shares per method."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from autointerp.errors import UserError
from autointerp.report.folder import records
from autointerp.report.grades import Column
from autointerp.report.groups import Group
from autointerp.report.scorers import trained
from autointerp.report.text import count, percent, words

REPEATED = (["draw"], ["explainer", "explainer_model"], ["scorer_model"], ["corpus"])
"""What is repeated with the same latents. Without one of these, noise and latents cannot be told apart."""
CELLS = 20_000_000
"""Largest table of simulated scores (rows times resamples) that the intervals may cost."""


def variance(groups: Sequence[Group], shown: Sequence[Column]) -> dict[str, Any] | None:
    """Shares of the variance of each method's primary metric; None where nothing was repeated."""
    from autointerp.stats.variance import variance_components

    scores = pd.concat([groups[at].scores for at in trained(groups)])
    scores = scores[scores["control"] == "none"]
    found: list[dict[str, Any]] = []
    for column in shown:
        rows = column.of(scores) if column.primary else scores.head(0)
        rows = rows[rows["value"].notna()]
        if not any(len(rows[columns].drop_duplicates()) > 1 for columns in REPEATED):
            continue
        try:
            table = variance_components(rows, resamples=int(min(400, max(100, CELLS // len(rows)))))
        except UserError:
            continue  # too few scores: nothing to say
        found.append({"method": column.method_label, "metric": words(column.metric), "n": count(len(rows)),
                      "cells": {str(row["component"]): _cell(row) for row in records(table)}})  # fmt: skip
    if not found:
        return None
    # A factor of which nobody had two levels is no row.
    names = dict.fromkeys(name for one in found for name in one["cells"])
    seen = [name for name in names if any(one["cells"].get(name, {}).get("share") for one in found)]
    return {"components": seen, "methods": found}


def _cell(row: dict[str, Any]) -> dict[str, str]:
    if row["status"] != "ok" or pd.isna(row["share"]):
        return {"share": "", "interval": words(str(row["status"])), "part": "0", "levels": ""}
    return {
        "share": percent(row["share"], 1), "part": f"{row['share']:.3f}", "levels": count(row["n_levels"]),
        "interval": f"[{100 * row['share_low']:.0f}, {100 * row['share_high']:.0f}]%",
    }  # fmt: skip
