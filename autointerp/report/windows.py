"""Which windows a card shows, and how they are written into its shard."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

from autointerp.report.text import short, visible
from scoring.types import ACTIVATING

MAX_ACTIVATING = 12
MAX_OTHER = 6
SPLITS = ("explain", "score")


def spread(items: Sequence[int], take: int) -> list[int]:
    """`take` of the items at even distances, first and last included."""
    if take >= len(items):
        return list(items)
    if take <= 1:
        return list(items[:take])
    step = (len(items) - 1) / (take - 1)
    return [items[round(i * step)] for i in range(take)]


def choose(rows: Sequence[dict[str, Any]], judged: set[str]) -> list[int]:
    """Positions (in `rows`, one latent's windows) of those to show, ascending.

    For each split at most `MAX_ACTIVATING` activating windows, shared out over the quantiles, and `MAX_OTHER` of
    every other kind. Windows that a scorer judged come first: they can be shown with the verdict.
    """
    pools: dict[tuple[str, str], list[int]] = defaultdict(list)
    for at, row in enumerate(rows):
        pools[(str(row["split"]), str(row["kind"]))].append(at)
    shown: list[int] = []
    for (_, kind), pool in pools.items():
        if kind == ACTIVATING:
            shown += _over_quantiles(rows, pool, judged)
        else:
            shown += _judged_first(rows, pool, judged, MAX_OTHER)
    return sorted(shown)


def _over_quantiles(rows: Sequence[dict[str, Any]], pool: Sequence[int], judged: set[str]) -> list[int]:
    quantiles: dict[int, list[int]] = defaultdict(list)
    for at in pool:
        quantile = rows[at]["quantile"]
        quantiles[-1 if quantile is None else int(quantile)].append(at)
    shares = dict.fromkeys(quantiles, 0)
    left = min(MAX_ACTIVATING, len(pool))
    while left:
        # Strongest quantiles first, so that they get the odd ones.
        for quantile in sorted(quantiles, reverse=True):
            if left and shares[quantile] < len(quantiles[quantile]):
                shares[quantile] += 1
                left -= 1
    return [at for q, part in quantiles.items() for at in _judged_first(rows, part, judged, shares[q])]


def _judged_first(rows: Sequence[dict[str, Any]], pool: Sequence[int], judged: set[str], take: int) -> list[int]:
    known = [at for at in pool if rows[at]["window_id"] in judged]
    chosen = spread(known, take)
    if len(chosen) < take:
        chosen += spread([at for at in pool if rows[at]["window_id"] not in judged], take - len(chosen))
    return chosen


def window_groups(
    windows: Iterable[dict[str, Any]], totals: dict[tuple[str, str], int], verdicts: dict[str, list[dict[str, Any]]]
) -> list[dict[str, Any]]:
    """The shown windows by split, kind and quantile, strongest first, as the page draws them.

    `totals` counts all windows of a split and kind, so that the card can say how many it leaves out.
    """
    groups: dict[tuple[str, str, int | None], list[dict[str, Any]]] = defaultdict(list)
    top = 0
    for window in windows:
        quantile = window["quantile"]
        if quantile is not None:
            top = max(top, int(quantile))
        groups[(str(window["split"]), str(window["kind"]), quantile)].append(_written(window, verdicts))
    for part in groups.values():
        part.sort(key=lambda window: (-abs(window["peak"]), window["id"]))
    return [
        {
            "split": visible(split),
            "kind": visible(kind),
            "quantile": quantile,
            "quantiles": top + 1,
            "total": totals[(split, kind)],
            "windows": groups[(split, kind, quantile)],
        }
        for split, kind, quantile in sorted(groups, key=_group_order)
    ]


def _group_order(key: tuple[str, str, int | None]) -> tuple[int, str, int, str, int]:
    split, kind, quantile = key
    place = SPLITS.index(split) if split in SPLITS else len(SPLITS)
    return place, split, kind != ACTIVATING, kind, -(-1 if quantile is None else quantile)


def _written(window: dict[str, Any], verdicts: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    activations = [short(value) or 0.0 for value in window["activations"] or []]
    # Most positions are zero: only the others are written, as [position, activation].
    active = [[at, value] for at, value in enumerate(activations) if value]
    return {
        "id": visible(str(window["window_id"])),
        "document": window["document"],
        "peak": max((value for _, value in active), key=abs, default=0.0),
        "pieces": [visible(piece or "") for piece in window["pieces"] or []],
        "active": active,
        "verdicts": verdicts.get(str(window["window_id"]), []),
    }
