"""Are neighbouring layers' dictionaries more alike than distant ones? And those of two seeds?

Everything is about the excess of a matched pair's cosine over a baseline (the shuffled match, or the match by chance):
baselines differ between layers. A latent stands in the matches of its dictionary with several others, and is therefore
one witness and not several:

- *Within an anchor*, one dictionary's latents are the units. Each has an excess with the nearer dictionaries and one
  with the farther ones; the difference is resampled over latents, and its p is of flipped signs.
- *Over all anchors* the same match counts for the dictionaries at both of its ends. Errors of matches that share a
  latent are added up before they are squared (Fafchamps and Gubert 2007; Aronow et al. 2015).

Neither says what other layers, models or training runs would show.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from autointerp.seeds import generator
from autointerp.stats.frames import Floats, need
from autointerp.stats.rank_shift import LEAST_PAIRS, PERMUTATIONS, sign_flip
from autointerp.stats.resampling import LEAST
from autointerp.stats.similarity import mean_interval

BASELINES = ("shuffled", "chance")
CONTRASTS = ((0, 1), (1, 2))
"""Nearer: this many steps apart. Farther: at least that many. No steps: the same layer, of another seed."""
GROUP = ["kind", "variant", "place", "seeds"]
"""Dictionaries are put in the order of their layers within these; `seeds` are the `same` or `different`."""
MATCHES = [
    "kind", "variant", "place", "a", "b", "layer_a", "layer_b", "seed_a", "seed_b", "latent_a", "latent_b", "value",
    "shuffled", "chance",
]  # fmt: skip
"""A matched pair of latents of two dictionaries; `place` is the hookpoint without its layer."""
SAME = 1e-9
"""Differences that spread by less are all the same, but for rounding."""
SIGNS = 10_000_000
"""Random signs in memory at a time."""

COLUMNS = [
    *GROUP, "what", "steps", "anchor", "against", "value", "ci_low", "ci_high", "p", "n_dictionaries", "n_latents",
    "status",
]  # fmt: skip


def by_distance(matches: pd.DataFrame, *, seed: int = 0) -> pd.DataFrame:
    """`matches` is a row per matched pair of latents (MATCHES), of dictionaries of one variant. Rows with COLUMNS:

    - `what = similarity`: the mean excess over the baseline `against` of matches `steps` apart, each pair of
      dictionaries counting alike.
    - `what = nearer - farther`: excess with dictionaries `steps` apart ("1 - 2+") less that with those farther apart,
      of the same latents, for each `anchor` that has both and for `all` of them.

    Steps count layers in the order of those that are there, so with layers 3, 9, 15 neighbours are one step apart.
    `p` is two-sided. NaN with `too_few_latents` below three matches (six latents of an anchor), `constant` where they
    do not differ, `no_baseline` where the baseline was not measured.
    """
    need(matches, MATCHES, "matches")
    rows: list[dict[str, Any]] = []
    for keys, group in _with_steps(matches).groupby(GROUP, sort=True, dropna=False):
        about = dict(zip(GROUP, keys, strict=True))
        for against in BASELINES:
            excess = group.assign(excess=group["value"] - group[against])
            known = excess[np.isfinite(excess["excess"].to_numpy(dtype=float))]
            shared = {**about, "against": against}
            if known.empty:
                rows.append({**shared, "what": "similarity", "anchor": "all", "status": "no_baseline"})
                continue
            for steps, level in known.groupby("steps", sort=True):
                rows.append({**shared, "what": "similarity", "steps": str(steps), "anchor": "all", **_mean(level)})
            for near, far in CONTRASTS:
                named = {**shared, "what": "nearer - farther", "steps": f"{near} - {far}+"}
                rows += [{**named, **row} for row in _contrast(known, near, far, seed, "/".join(map(str, keys)))]
    return pd.DataFrame(rows, columns=COLUMNS)


def _with_steps(matches: pd.DataFrame) -> pd.DataFrame:
    matches = matches[matches["layer_a"].notna() & matches["layer_b"].notna()]
    same = (matches["seed_a"] == matches["seed_b"]).fillna(False).astype(bool)
    parts = []
    for _, group in matches.groupby(["kind", "variant", "place"], dropna=False):
        ends = pd.concat([group["layer_a"], group["layer_b"]])
        order = {int(layer): at for at, layer in enumerate(sorted(ends.unique()))}
        steps = (group["layer_a"].map(order) - group["layer_b"].map(order)).abs().astype(int)
        parts.append(group.assign(steps=steps, seeds=np.where(same[group.index], "same", "different")))
    return pd.concat(parts) if parts else matches.assign(steps=0, seeds="same")


def _mean(level: pd.DataFrame) -> dict[str, Any]:
    """Mean excess, each pair of dictionaries counting alike."""
    pairs = level.groupby(["a", "b"], sort=True)["excess"]
    each = pairs.transform("size").to_numpy(dtype=float)
    weights = 1 / (each * pairs.ngroups)
    latents = _codes(level)
    n = len(np.unique(latents))
    row: dict[str, Any] = {"n_dictionaries": _dictionaries(level), "n_latents": n}
    if len(level) < LEAST:
        return row | {"status": "too_few_latents"}
    values = level["excess"].to_numpy(dtype=float)
    centred = values - pairs.transform("mean").to_numpy(dtype=float)
    return row | _normal(float((weights * values).sum()), weights * centred, latents)


def _contrast(known: pd.DataFrame, near: int, far: int, seed: int, purpose: str) -> Iterator[dict[str, Any]]:
    """A row per anchor, and one for all of them."""
    ends = _ends(known)
    ends = ends[(ends["steps"] == near) | (ends["steps"] >= far)]
    nearer = ends["steps"] == near
    weights = np.zeros(len(known))
    estimates: list[float] = []
    for anchor, own in ends.groupby("anchor", sort=True):
        sides = [own[nearer[own.index] == side] for side in (True, False)]
        means = [side.groupby("latent")["excess"].mean() for side in sides]
        gaps = (means[0] - means[1]).dropna()
        values = gaps.to_numpy(dtype=float)
        if any(side.empty for side in sides):
            continue
        row: dict[str, Any] = {"anchor": anchor, "n_latents": len(values), "n_dictionaries": 1 + own["other"].nunique()}
        if len(values) < LEAST_PAIRS:
            yield row | {"status": "too_few_latents"}
            continue
        if np.ptp(values) < SAME:
            yield row | {"value": float(values.mean()), "status": "constant"}
            continue
        rng = generator(seed, "by_distance", purpose, near, far, str(anchor))
        low, high = mean_interval(values, rng)
        p = _sign_flip(values, rng)
        yield row | {"value": float(values.mean()), "ci_low": low, "ci_high": high, "p": p, "status": "ok"}
        estimates.append(float(values.mean()))
        for side, sign in zip(sides, (1.0, -1.0), strict=True):
            kept = side[side["latent"].isin(gaps.index)]
            share = kept.groupby("latent")["excess"].transform("size").to_numpy(dtype=float)
            np.add.at(weights, kept["match"].to_numpy(), sign / (share * len(values)))
    if estimates:
        used = weights != 0
        pairs = known[used]
        centred = pairs["excess"] - pairs.groupby(["a", "b"])["excess"].transform("mean")
        latents = _codes(pairs)
        errors = weights[used] / len(estimates) * centred.to_numpy(dtype=float)
        yield {
            "anchor": "all", "n_latents": len(np.unique(latents)), "n_dictionaries": _dictionaries(pairs),
            **_normal(float(np.mean(estimates)), errors, latents),
        }  # fmt: skip


def _ends(known: pd.DataFrame) -> pd.DataFrame:
    """Every match twice, as seen from either end."""
    number = np.arange(len(known))
    parts = [
        pd.DataFrame({
            "match": number, "anchor": known[f"{x}"].to_numpy(), "other": known[f"{y}"].to_numpy(),
            "latent": known[f"latent_{x}"].to_numpy(), "steps": known["steps"].to_numpy(),
            "excess": known["excess"].to_numpy(dtype=float),
        })
        for x, y in (("a", "b"), ("b", "a"))
    ]  # fmt: skip
    return pd.concat(parts, ignore_index=True)


def _codes(matches: pd.DataFrame) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Numbers of the latents at both ends of each match, `[2, n]`."""
    ends = [pd.MultiIndex.from_arrays([matches[x], matches[f"latent_{x}"]]) for x in ("a", "b")]
    codes, _ = pd.factorize(ends[0].append(ends[1]))
    return np.asarray(codes, dtype=np.int64).reshape(2, -1)


def _dictionaries(matches: pd.DataFrame) -> int:
    return int(pd.concat([matches["a"], matches["b"]]).nunique())


def _normal(value: float, errors: Floats, latents: np.ndarray[Any, np.dtype[np.int64]]) -> dict[str, Any]:
    """Interval and p of a sum over matches from what each adds to its error; those that share a latent go together."""
    of_latents = np.bincount(latents.ravel(), weights=np.tile(errors, 2))
    variance = float((of_latents**2).sum() - (errors**2).sum())
    if variance <= 0:
        return {"value": value, "status": "constant"}
    sd = math.sqrt(variance)
    reach = float(stats.norm.ppf(0.975)) * sd
    p = float(2 * stats.norm.sf(abs(value) / sd))
    return {"value": value, "ci_low": value - reach, "ci_high": value + reach, "p": p, "status": "ok"}


def _sign_flip(values: Floats, rng: np.random.Generator) -> float:
    """`rank_shift.sign_flip` in bounded memory for any number of values."""
    step = max(1, SIGNS // len(values))
    if step >= PERMUTATIONS:
        return sign_flip(values, rng)
    sizes = [min(step, PERMUTATIONS - begin) for begin in range(0, PERMUTATIONS, step)]
    # The test counts what was seen among the random patterns; taken out of each part, it is counted once.
    reached = sum(round(sign_flip(values, rng, size) * (size + 1)) - 1 for size in sizes)
    return (1 + reached) / (1 + PERMUTATIONS)
