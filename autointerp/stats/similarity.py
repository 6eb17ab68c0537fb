"""How alike two dictionaries are: the cosines of their matched latents, against two baselines.

- The *shuffled* match keeps the pairs' members and pairs each with another's partner. It says how alike two directions
  are that were not chosen for each other.
- The match by *chance* is made as the real one is, with a dictionary that has nothing to do with this one. The best
  partner among thousands is never at a right angle: matched cosines of unrelated dictionaries are above 0, and above
  the shuffled ones.

The unit is the matched pair, one for each latent of the smaller dictionary.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autointerp.stats.frames import Floats
from autointerp.stats.matching import Directions, Matching, cosine_chunks, match, unit
from autointerp.stats.resampling import LEAST, RESAMPLES, interval, resample

SHARED = 0.7
"""Matched latents whose cosine is above this count as the same one, a convention (Paulo and Belrose 2025)."""
CHANCE_PAIRS, CHANCE_DRAWS = 2000, 8
"""The match by chance is drawn anew until it has as many pairs, at most so often: few latents need more draws."""
ALIKE = 1.25
"""Principal axes whose spreads differ by less than this factor are turned into each other."""
BLOCK_NUMBERS = 4_000_000
"""Resampled values in memory at a time."""

COLUMNS = [
    "value", "ci_low", "ci_high", "shuffled", "shuffled_low", "shuffled_high", "difference", "difference_low",
    "difference_high", "chance_matched", "chance_low", "chance_high", "over_chance", "over_chance_low",
    "over_chance_high", "share_above", "max_cosine_a", "max_cosine_b", "same_number", "n_a", "n_b", "n_matched",
    "matching", "status",
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Measured:
    """The matched pairs, with what each adds to the baselines: `shuffled` `[n]`, and `chance` `[n]` (NaN without).

    The means of both are the baselines. `max_cosine_a` and `_b` are the mean largest cosine of a latent with any of the
    other side, not one-to-one.
    """

    pairs: Matching
    shuffled: Floats
    chance: Floats
    max_cosine_a: float
    max_cosine_b: float


def similarity(
    a: Directions, b: Directions, *, rng: np.random.Generator, live_a: NDArray[np.bool_] | None = None,
    live_b: NDArray[np.bool_] | None = None, method: str = "auto", absolute: bool = False,
    chance_draws: int | None = None,
) -> dict[str, Any]:  # fmt: skip
    """A row with COLUMNS for two dictionaries (unit rows `[F_a, D]`, `[F_b, D]`); see `match` for the arguments.

    All intervals are 95% bootstrap intervals over matched pairs; NaN with `too_few_latents` below three of them.
    """
    found = measure(
        a, b, rng=rng, live_a=live_a, live_b=live_b, method=method, absolute=absolute, chance_draws=chance_draws
    )
    return row_of(found, rng)


def measure(
    a: Directions, b: Directions, *, rng: np.random.Generator, live_a: NDArray[np.bool_] | None = None,
    live_b: NDArray[np.bool_] | None = None, method: str = "auto", absolute: bool = False,
    chance_draws: int | None = None,
) -> Measured:  # fmt: skip
    """Match two dictionaries, and measure both baselines. `chance_draws` 0 leaves the second one out; without it there
    are as many as CHANCE_PAIRS asks for."""
    pairs = match(a, b, method, live_a=live_a, live_b=live_b, absolute=absolute)
    all_a = a[live_a] if live_a is not None else a
    all_b = b[live_b] if live_b is not None else b
    n = len(pairs.cosines)
    if chance_draws is None:
        chance_draws = min(CHANCE_DRAWS, -(-CHANCE_PAIRS // max(1, n)))
    draws = []
    for rows in unrelated(all_b, rng, chance_draws) if n and chance_draws else ():
        turned = np.zeros_like(b)
        turned[live_b if live_b is not None else slice(None)] = rows
        draws.append(match(a, turned, method, live_a=live_a, live_b=live_b, absolute=absolute).cosines)
    chance = np.mean(draws, axis=0) if draws else np.full(n, math.nan)
    x, y = a[pairs.rows_a], b[pairs.rows_b]
    return Measured(pairs, shuffled(x, y, pairs.cosines, absolute), chance, *_best_of_each(all_a, all_b, absolute))


def unrelated(rows: Directions, rng: np.random.Generator, draws: int = 1) -> Iterator[Directions]:
    """The same directions `[n, D]`, turned about their mean at random: what is left is what chance could share.

    The turn keeps their mean, their spread along every principal axis and how they lie to one another: axes of about
    equal spread are turned into each other, an axis alone is flipped or left. What it destroys is how the dictionary
    stands to another one. With fewer rows than dimensions they stay in the space that they span, and what this makes
    of a related dictionary is above chance rather than below.
    """
    mean = rows.mean(axis=0, dtype=np.float64)
    rest = rows - mean
    spread, axes = np.linalg.eigh(rest.T @ rest)
    kept = spread > 1e-9 * max(float(spread[-1]), 1e-9)
    spread, axes = spread[kept][::-1], axes[:, kept][:, ::-1]
    along = rest @ axes
    for _ in range(draws):
        turned, begin = np.empty_like(along), 0
        while begin < len(spread):
            end = begin + int(np.searchsorted(-spread[begin:], -spread[begin] / ALIKE, side="right"))
            turned[:, begin:end] = along[:, begin:end] @ _rotation(end - begin, rng)
            begin = end
        yield unit(turned @ axes.T + mean)[0]


def _rotation(size: int, rng: np.random.Generator) -> Floats:
    """Uniform among orthogonal matrices (Mezzadri 2007)."""
    q, r = np.linalg.qr(rng.normal(size=(size, size)))
    return np.asarray(q * np.sign(np.diag(r)))


def shuffled(x: Directions, y: Directions, cosines: Floats, absolute: bool = False) -> Floats:
    """What each pair `(x_i, y_i)` adds to the mean cosine of x_i and y_j, i != j: `[n]`, with that mean as theirs.

    That is the mean over all shuffled matches. A pair stands in it on both sides, as x_i and as y_i, so its deviation
    counts twice (the projection of a U-statistic, Hoeffding 1948): resampled, these values spread as the mean does.
    """
    n = len(x)
    if n < 2:
        return np.full(n, math.nan)
    if absolute:
        sums = np.zeros((2, n))
        for rows, part in cosine_chunks(x, y, absolute=True):
            sums[0, rows] = part.sum(axis=1)
            sums[1] += part.sum(axis=0)
    else:
        sums = np.stack([x @ y.sum(axis=0, dtype=np.float64), y @ x.sum(axis=0, dtype=np.float64)])
    own = (sums.sum(axis=0) - 2 * cosines) / (2 * (n - 1))
    mean = own.mean()
    return np.asarray(mean + 2 * (own - mean))


def _best_of_each(x: Directions, y: Directions, absolute: bool) -> tuple[float, float]:
    """Mean over the rows of x of the largest cosine with any of y, and the other way about."""
    if not (len(x) and len(y)):
        return math.nan, math.nan
    of_x, of_y = np.empty(len(x)), np.full(len(y), -1.0)
    for rows, part in cosine_chunks(x, y, absolute):
        of_x[rows] = part.max(axis=1)
        np.maximum(of_y, part.max(axis=0), out=of_y)
    return float(of_x.mean()), float(of_y.mean())


def row_of(found: Measured, rng: np.random.Generator) -> dict[str, Any]:
    """COLUMNS of what was measured."""
    pairs = found.pairs
    n = len(pairs.cosines)
    row: dict[str, Any] = dict.fromkeys(COLUMNS, math.nan) | {
        "n_a": pairs.n_a, "n_b": pairs.n_b, "n_matched": n, "matching": pairs.method, "status": "too_few_latents",
    }  # fmt: skip
    if n < LEAST:
        return row
    for (name, low, high), values in (
        (("value", "ci_low", "ci_high"), pairs.cosines),
        (("shuffled", "shuffled_low", "shuffled_high"), found.shuffled),
        (("difference", "difference_low", "difference_high"), pairs.cosines - found.shuffled),
        (("chance_matched", "chance_low", "chance_high"), found.chance),
        (("over_chance", "over_chance_low", "over_chance_high"), pairs.cosines - found.chance),
    ):
        if np.isfinite(values).all():
            row[name] = float(values.mean())
            row[low], row[high] = mean_interval(values, rng)
    return row | {
        "share_above": float((pairs.cosines > SHARED).mean()), "max_cosine_a": found.max_cosine_a,
        "max_cosine_b": found.max_cosine_b, "same_number": float((pairs.rows_a == pairs.rows_b).mean()), "status": "ok",
    }  # fmt: skip


def mean_interval(values: Floats, rng: np.random.Generator) -> tuple[float, float]:
    """95% bootstrap interval of a mean, as `resampling.interval`, in bounded memory for any number of values."""
    step = max(1, BLOCK_NUMBERS // max(1, len(values)))
    sizes = [min(step, RESAMPLES - begin) for begin in range(0, RESAMPLES, step)]
    estimates = np.concatenate([resample(values, "mean", rng, size) for size in sizes])
    return interval(estimates, len(values))
