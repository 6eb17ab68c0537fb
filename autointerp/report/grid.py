"""Variants against layers: what each method says of an SAE's explanations beyond their control, one cell per SAE."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from autointerp.report.folder import Row
from autointerp.report.grades import Column
from autointerp.report.groups import Group
from autointerp.report.text import count, interval, number, signed, visible, words

Summaries = Sequence[Mapping[tuple[str, str, str], Row]]
"""Of each group, the rows of `stats.summary.summarise` by (method, negatives, metric)."""

NAMES: tuple[Callable[[Group], str], ...] = (
    lambda group: group.variant,
    lambda group: group.arch if group.replaced else "",
    lambda group: _of(group, "width"),
    lambda group: "" if (l0 := _of(group, "l0")) == "" else f"L0 {float(l0):.0f}",
    lambda group: group.run,
    lambda group: group.label,
)
"""What a row is called after: as many of these as it takes to give every SAE a cell of its own."""


def grids(groups: Sequence[Group], shown: Sequence[Column], summaries: Summaries) -> dict[str, Any] | None:
    """One grid per method; None where there are fewer than two SAEs."""
    if len(groups) < 2:
        return None
    layers = _layers(groups)
    rows = _rows(groups, layers)
    names = sorted(set(rows), key=lambda name: (groups[rows.index(name)].replaced != "", name))
    heads = sorted(set(layers), key=lambda name: (not name.isdecimal(), int(name) if name.isdecimal() else 0, name))
    found = []
    for column in shown:
        cells = [summary.get(column.name) for summary in summaries]
        sizes = [abs(d) for row in cells if row and (d := number(row["difference"])) is not None]
        if column.primary and sizes:
            found.append({
                "method": column.method_label, "metric": words(column.metric),
                "rows": [
                    {"name": name, "cells": [
                        _cell(next((at for at in range(len(groups)) if (rows[at], layers[at]) == (name, layer)), None),
                              cells, max(sizes))
                        for layer in heads
                    ]} for name in names
                ],
            })  # fmt: skip
    return {"layers": heads, "grids": found} if found else None


def _layers(groups: Sequence[Group]) -> list[str]:
    """The layer; the hookpoint where one layer is read at several."""
    hookpoints = [visible(_of(group, "hookpoint")) or group.layer for group in groups]
    layers = [group.layer for group in groups]
    plain = len(set(zip(layers, hookpoints, strict=True))) == len(set(layers))
    return layers if plain else hookpoints


def _rows(groups: Sequence[Group], layers: Sequence[str]) -> list[str]:
    names = [""] * len(groups)
    for name in NAMES:
        parts = [name(group) for group in groups]
        # What is the same for all tells nothing apart, except for what a variant is called.
        if name is NAMES[0] or len(set(parts)) > 1:
            names = [", ".join(filter(None, pair)) for pair in zip(names, parts, strict=True)]
        if len(set(zip(names, layers, strict=True))) == len(groups):
            break
    return names


def _cell(at: int | None, rows: Sequence[Row | None], largest: float) -> dict[str, Any]:
    row = None if at is None else rows[at]
    value = number(row["difference"]) if row else None
    if row is None or value is None:
        return {"value": "—", "interval": "", "n": "", "tint": "0", "place": at, "css": "empty"}
    low, high = number(row["difference_low"]), number(row["difference_high"])
    apart = low is not None and high is not None and (low > 0 or high < 0)
    return {
        "value": signed(value), "interval": interval(low, high), "n": count(row["n"]), "place": at,
        "tint": f"{abs(value) / largest:.2f}" if largest else "0",
        "css": ("above" if value > 0 else "below") if apart else "within",
    }  # fmt: skip


def _of(group: Group, column: str) -> str:
    known = group.scores[column].dropna()
    value = known.iloc[0] if len(known) else ""
    return "" if isinstance(value, float) and math.isnan(value) else str(value)
