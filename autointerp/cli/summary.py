"""The table that ends a run: each method's score beside its control."""

from __future__ import annotations

import math

import pandas as pd
from rich.console import Console
from rich.table import Table

from autointerp.stats.summary import summarise


def print_summary(scores: pd.DataFrame) -> None:
    """Median over latents with its interval, the control's median, and the paired difference."""
    table = Table(
        title="explanations against their shuffled control (95% intervals over latents)", title_justify="left"
    )
    for name in ("method", "metric", "latents", "median", "shuffled", "mean difference"):
        table.add_column(name, justify="left" if name in {"method", "metric"} else "right")
    rows = summarise(scores)
    several = rows.groupby("method")["negatives"].nunique() > 1
    for row in rows.to_dict("records"):
        notes = [row["control"]] if row["control"] != "none" else []
        notes += [row["negatives"]] if several[row["method"]] else []
        latents = f"{row['n']}" + (f" ({row['n_null']} null)" if row["n_null"] else "")
        table.add_row(
            row["method"] + (f" ({', '.join(notes)})" if notes else ""), row["metric"], latents,
            interval(row["median"], row["ci_low"], row["ci_high"]), number(row["control_median"]),
            interval(row["difference"], row["difference_low"], row["difference_high"], sign=True),
        )  # fmt: skip
    Console(width=110).print(table)


def spending(usage: pd.DataFrame) -> str:
    """What the run has asked of models so far, on one line; empty if nothing."""
    asked = usage[usage["calls"] + usage["cached_calls"] > 0]
    if asked.empty:
        return ""
    tokens = int(asked["prompt_tokens"].sum() + asked["completion_tokens"].sum())
    known = asked["price"].notna()
    price = f"${asked.loc[known, 'price'].sum():,.4f}" + ("" if known.all() else " and what is unknown")
    cached, unsure = int(asked["cached_calls"].sum()), int(asked["unsure_tokens"].sum())
    return (
        f"asked:  {int(asked['calls'].sum()):,} calls, {tokens:,} tokens, {price if known.any() else 'price unknown'}"
        + (f"; {cached:,} answers were there already" if cached else "")
        + (f"; up to {unsure:,} tokens more for answers that never came" if unsure else "")
    )


def number(value: float, sign: bool = False) -> str:
    return "–" if math.isnan(value) else f"{value:{'+' if sign else ''}.3f}"


def interval(value: float, low: float, high: float, sign: bool = False) -> str:
    if math.isnan(value) or math.isnan(low):
        return number(value, sign)
    return f"{number(value, sign)} [{number(low, sign)}, {number(high, sign)}]"
