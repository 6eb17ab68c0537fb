"""What the scores of a table's rows took: calls, tokens and price.

Usage is booked by run and stage. It belongs to a row where all that a run did with a method belongs to that row; else
it cannot be divided, and is null.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import pandas as pd

FIGURES = ("calls", "tokens", "price")


class Spending(Protocol):
    """What a run did (`scores`, in the columns that rows go by) and its usage table."""

    @property
    def scores(self) -> pd.DataFrame: ...
    @property
    def usage(self) -> pd.DataFrame: ...


def with_cost(table: pd.DataFrame, by: Sequence[str], runs: Iterable[Spending]) -> pd.DataFrame:
    """The table with FIGURES of scoring by the row's method, its controls included; all metrics of a method share them.

    An answer from the reply cache is no call. A price is null where one of its parts is unknown.
    """
    sums: dict[tuple[Any, ...], dict[str, float]] = {}
    for run in runs:
        for method, rows in run.scores.groupby("method"):
            keys = {_key(row, by) for row in rows.to_dict("records")}
            used = run.usage[run.usage["stage"].astype(str) == f"score-{method}"]
            figures = _figures(used) if len(keys) == 1 and len(used) else dict.fromkeys(FIGURES, math.nan)
            for key in keys:
                before = sums.get((*key, method))
                sums[*key, method] = {
                    name: figures[name] if before is None else before[name] + figures[name] for name in FIGURES
                }
    unknown = dict.fromkeys(FIGURES, math.nan)
    found = [sums.get((*_key(row, by), row["method"]), unknown) for row in table.to_dict("records")]
    return table.assign(**{name: [figures[name] for figures in found] for name in FIGURES})


def _figures(used: pd.DataFrame) -> dict[str, float]:
    tokens = used["prompt_tokens"].fillna(0).sum() + used["completion_tokens"].fillna(0).sum()
    return {
        "calls": float(used["calls"].sum()), "tokens": float(tokens),
        "price": float(used["price"].astype(float).sum(skipna=False)),
    }  # fmt: skip


def _key(row: dict[Any, Any], by: Sequence[str]) -> tuple[Any, ...]:
    return tuple(str(row.get(column)) for column in by)
