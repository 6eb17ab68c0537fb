"""Which of a latent's windows its card shows."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Container, Sequence
from typing import Any

from scoring.types import ACTIVATING

MAX_ACTIVATING = 12
MAX_OTHER = 6

Key = dict[str, Any]
"""What tells a window from others: pole, split, window_id, kind, quantile."""


def spread(items: Sequence[int], take: int) -> list[int]:
    """`take` of the items at even distances, first and last included."""
    if take >= len(items):
        return list(items)
    if take <= 1:
        return list(items[:take])
    step = (len(items) - 1) / (take - 1)
    return [items[round(i * step)] for i in range(take)]


def choose(rows: Sequence[Key], judged: Container[str]) -> list[int]:
    """Positions (in `rows`, one latent's windows) of those to show, ascending.

    For each pole and split at most `MAX_ACTIVATING` activating windows, shared out over the quantiles, and `MAX_OTHER`
    of every other kind. Windows that a scorer judged come first: they can be shown with the verdict.
    """
    pools: dict[tuple[Any, str, str], list[int]] = defaultdict(list)
    for at, row in enumerate(rows):
        pools[(row["pole"], str(row["split"]), str(row["kind"]))].append(at)
    shown: list[int] = []
    for (_, _, kind), pool in pools.items():
        if kind == ACTIVATING:
            shown += _over_quantiles(rows, pool, judged)
        else:
            shown += _judged_first(rows, pool, judged, MAX_OTHER)
    return sorted(shown)


def _over_quantiles(rows: Sequence[Key], pool: Sequence[int], judged: Container[str]) -> list[int]:
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


def _judged_first(rows: Sequence[Key], pool: Sequence[int], judged: Container[str], take: int) -> list[int]:
    known = [at for at in pool if rows[at]["window_id"] in judged]
    chosen = spread(known, take)
    if len(chosen) < take:
        chosen += spread([at for at in pool if rows[at]["window_id"] not in judged], take - len(chosen))
    return chosen
