"""What the statistics take from a score table: one kind of number, and one value per unit."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from autointerp.errors import UserError

KIND = ("method", "metric", "control", "negatives")
"""What must be the same in all rows that are put together: an AUROC against random windows and one against
hard ones are two quantities, and their mean is none."""
LATENT = ("sae_id", "latent")
"""What makes two rows speak of the same latent. `run_id` is no part of it: two explainers of one SAE are two runs."""

Floats = NDArray[np.float64]
SLAB = 5_000_000
"""Numbers held at once while something is resampled."""


def single_kind(scores: pd.DataFrame, apart_from: Iterable[str] = ()) -> pd.DataFrame:
    """The rows that have a value, as floats in `value`; UserError unless all rows are of one kind (KIND).

    Columns named in `apart_from` may differ: they are what is being compared.
    """
    need(scores, ("value", "latent"), "scores")
    for column in KIND:
        if column in scores and column not in apart_from:
            found = sorted(scores[column].fillna("").astype(str).unique())
            if len(found) > 1:
                raise UserError(
                    f"scores hold several kinds of number ({column}: {', '.join(map(repr, found))}); "
                    f"keep the rows of one {column} and call again"
                )
    values = scores["value"].astype(float)
    return scores.assign(value=values)[np.isfinite(values.to_numpy())]


def need(table: pd.DataFrame, columns: Iterable[str], name: str) -> None:
    missing = [column for column in columns if column not in table]
    if missing:
        raise UserError(f"table {name} has no column {', '.join(missing)}; docs/tables.md lists what it should have")


def present(table: pd.DataFrame, columns: Iterable[str]) -> list[str]:
    return [column for column in columns if column in table]


def per_unit(scores: pd.DataFrame, unit: Sequence[str]) -> pd.Series:
    """Mean value of each unit (columns that are not there are passed over), indexed and sorted by the unit.

    Poles, draws and repeated explanations of a latent are measurements of one unit, not more units: they are averaged.
    """
    keys = present(scores, unit)
    return scores.groupby(keys, sort=True, dropna=False)["value"].mean()


def slabs(n: int, size: int) -> list[int]:
    """n rows of `size` drawn numbers, in slabs that are held at once: what bounds the memory of resampling."""
    rows = max(1, SLAB // max(1, size))
    return [min(rows, n - done) for done in range(0, n, rows)]
