"""Shares of live, rare and dead latents, and means that take account of them, for any group of dictionaries.

A group may hold several dictionaries (seeds, layers), and they may have been read on several corpora, on which a latent
has different densities: figures are computed on each corpus, and averaged. So are the bounds of the intervals, which
are then at least as wide as they should be.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import pandas as pd

from autointerp.stats.aggregate import CHANCE, ELIGIBLE, at_common_density, by_density, with_coverage

STATES = ("live", "rare", "dead", "dense")
VARIANT = frozenset({"variant", "arch", "width", "l0", "sae_id", "sae_sha", "control", "place", "folder", "run_id"})
"""Columns that tell variants apart; rows that agree in the others are compared at one density."""

NOTHING = {
    "at_density": math.nan, "at_density_low": math.nan, "at_density_high": math.nan, "at_density_weight": math.nan,
}  # fmt: skip


def coverage(group: pd.DataFrame, latents: pd.DataFrame, *, seed: int = 0) -> dict[str, Any]:
    """share_live, share_rare, share_dead, share_dense, share_scored, covered with its interval, and its status."""
    found = []
    for scores, every in _corpora(group, latents):
        states = every["state"].value_counts(normalize=True)
        metric = str(scores["metric"].iloc[0]).partition("@")[0]
        row = with_coverage(scores, every, chance=CHANCE.get(metric, math.nan), seed=seed).iloc[0]
        found.append({
            **{f"share_{state}": float(states.get(state, 0.0)) for state in STATES},
            "share_scored": row["share_scored"], "covered": row["value"], "covered_low": row["ci_low"],
            "covered_high": row["ci_high"],
            "covered_status": row["status"] if metric in CHANCE else "chance_unknown",
        })  # fmt: skip
    return _averaged(found, "covered_status", "no_latents")


def at_same_density(
    groups: Mapping[Any, pd.DataFrame], latents: pd.DataFrame, by: Sequence[str], *, seed: int = 0
) -> dict[Hashable, dict[str, Any]]:
    """at_density with its interval, weight and status for each of the groups of `by`.

    The densities are the mean of those of the trained SAEs among groups that agree in all but VARIANT. Controls, whose
    densities may be quite different, are weighted to the same ones by as many bins as they fill themselves.
    """
    held = [place for place, column in enumerate(by) if column not in VARIANT]
    together: dict[Any, list[Hashable]] = {}
    for key in groups:
        parts = key if isinstance(key, tuple) else (key,)
        together.setdefault(tuple(str(parts[place]) for place in held), []).append(key)
    found: dict[Hashable, dict[str, Any]] = {}
    for keys in together.values():
        frames = {key: _corpora(groups[key], latents) for key in keys}
        rounds = max((len(parts) for parts in frames.values()), default=0)
        rows: dict[Hashable, list[dict[str, Any]]] = {key: [] for key in keys}
        for i in range(rounds):
            present = {key: parts[i] for key, parts in frames.items() if len(parts) > i}
            for key, row in _one_corpus(present, groups, seed).items():
                rows[key].append(row)
        found |= {key: _averaged(parts, "at_density_status", "no_latents") for key, parts in rows.items()}
    return found


def _one_corpus(
    frames: Mapping[Hashable, tuple[pd.DataFrame, pd.DataFrame]], groups: Mapping[Hashable, pd.DataFrame], seed: int
) -> dict[Hashable, dict[str, Any]]:
    trained = [key for key in frames if groups[key]["place"].eq("none").all()]
    if not trained:
        return {key: {**NOTHING, "at_density_status": "no_trained_sae"} for key in frames}
    names = {key: str(number) for number, key in enumerate(frames)}
    apart = {
        key: (scores.assign(sae_id=names[key]), every.assign(sae_id=names[key]))
        for key, (scores, every) in frames.items()
    }
    scores = pd.concat([apart[key][0] for key in trained])
    every = pd.concat([apart[key][1] for key in trained])
    shares = by_density(scores, every).pivot(index="sae_id", columns="bin", values="share").fillna(0.0)
    target = dict(zip(map(int, shares.columns), map(float, shares.mean()), strict=True))
    tables = [at_common_density(scores, every, target=target, seed=seed)]
    tables += [
        at_common_density(*apart[key], target=target, seed=seed)
        for key in frames
        if key not in trained and apart[key][1]["state"].isin(ELIGIBLE).any()
    ]
    rows = pd.concat(tables).set_index("sae_id")
    found = {}
    for key, name in names.items():
        if name not in rows.index:
            found[key] = {**NOTHING, "at_density_status": "too_few_latents"}
            continue
        row = rows.loc[name]
        found[key] = {
            "at_density": row["value"], "at_density_low": row["ci_low"], "at_density_high": row["ci_high"],
            "at_density_weight": row["weight_used"], "at_density_status": row["status"],
        }  # fmt: skip
    return found


def _corpora(group: pd.DataFrame, latents: pd.DataFrame) -> list[tuple[pd.DataFrame, pd.DataFrame]]:
    """Scores and latents of a group for each corpus, as if of one dictionary (`sae_id` is the same for all)."""
    every = latents[latents["sae_id"].isin(group["sae_id"])]
    found = []
    for corpus, rows in every.groupby("corpus", dropna=False):
        known = isinstance(corpus, str) and group["corpus"].notna().all()
        scores = group[group["corpus"] == corpus] if known else group
        if scores.empty or not set(scores["sae_id"]) & set(rows["sae_id"]):
            continue
        keys = pd.concat([scores[["sae_id", "latent"]], rows[["sae_id", "latent"]]])
        codes = keys.groupby(["sae_id", "latent"]).ngroup().to_numpy()
        found.append((
            scores.assign(sae_id="all", latent=codes[: len(scores)]),
            rows.assign(sae_id="all", latent=codes[len(scores) :]).drop_duplicates("latent"),
        ))  # fmt: skip
    return found


def _averaged(rows: Sequence[Mapping[str, Any]], status: str, without: str) -> dict[str, Any]:
    if not rows:
        return {status: without}
    frame = pd.DataFrame(rows)
    numbers = frame.drop(columns=status).astype(float)
    bad = frame.loc[frame[status] != "ok", status]
    # A figure that one corpus lacks is not the mean of the others.
    means = {str(name): float(value) for name, value in numbers.mean(skipna=False).items()}
    return {**means, status: "ok" if bad.empty else bad.iloc[0]}
