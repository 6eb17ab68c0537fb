"""Which variants differ, and which are above their controls: tests and verdicts for every pair."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import pandas as pd

from autointerp.stats.frames import LATENT
from autointerp.stats.main_table import means_at_sites
from autointerp.stats.paired import PAIRED_BY, compare_all
from autointerp.stats.stability import verdict
from autointerp.stats.variants import MEASURE, own_of

VARIANTS, CONTROLS = "variants", "controls"
READ = (
    "value", *LATENT, "pole", *MEASURE, "control", "variant", "place", "site", "hookpoint", "draw", "corpus",
    "explainer", "explainer_model", "scorer_model",
)  # fmt: skip
"""What tests and verdicts read of scores."""
ALL = "all"
"""Stands in `site` for a test over all layers that both sides have."""

COLUMNS = [
    "question", *MEASURE, "site", "a", "b", "difference", "shift", "ci_low", "ci_high", "p", "p_holm", "p_bh", "design",
    "n_pairs", "n_a", "n_b", "n_unpaired", "status", "n_sites", "n_apart", "verdict", "noise_sd", "ratio",
    "n_conditions", "unseen", "verdict_status", "conclusion",
]  # fmt: skip


def contrasts(scores: pd.DataFrame, by: Sequence[str] = (), *, seed: int = 0) -> pd.DataFrame:
    """A row per pair, method, metric, kind of negatives, and site (or all together): columns COLUMNS.

    `question` is `variants` for two trained SAEs and `controls` for a trained one against a random SAE, a random model
    or neurons; where `by` names explainers, explaining models or judges, it is that column, and pairs are of its
    values, latent by latent. Tests are `paired.compare`'s, of means over draws. Each question over all sites, and each
    by site, is one family for `p_holm` and `p_bh`.

    n_apart of n_sites layers have 95% intervals of the two means apart, in the direction of the difference. `verdict`
    and what follows are `stability.verdict`'s. `conclusion` joins both: `differs` (Holm's p < 0.05, and exceeds the
    noise), `within_noise` (p < 0.05, but no more than another run of the pipeline might differ by), `noise_unknown`
    (p < 0.05, and too few conditions to know the noise), `not_told_apart`, or null without a test.
    """
    own = own_of(scores)[[name for name in READ if name in scores]]
    own = own.assign(value=own["value"].astype(float))
    cells = dict(list(own.groupby([*MEASURE, "site"], sort=False)))
    means = means_at_sites(scores, seed).set_index([*MEASURE, "variant", "site"]).sort_index()
    trained = sorted(own.loc[own["place"] == "none", "variant"].unique())
    controls = sorted(own.loc[own["place"] != "none", "variant"].unique())
    asked: list[tuple[str, str, list[tuple[object, object]]]] = [
        (VARIANTS, "variant", list(combinations(trained, 2))),
        (CONTROLS, "variant", [(variant, control) for variant in trained for control in controls]),
    ]
    asked += [
        (column, column, list(combinations(sorted(own[column].dropna().unique()), 2)))
        for column in by
        if PAIRED_BY.get(column) == LATENT and column != "control"
    ]
    # What two variants share is the layer: neurons are read inside the block that an SAE is read behind.
    table = own.assign(hookpoint=own["site"])
    parts = []
    for question, column, pairs in asked:
        if not pairs:
            continue
        several = table["site"].nunique() > 1
        families = [compare_all(table, column, by=MEASURE, pairs=pairs, seed=seed).assign(site=ALL)]
        families += [compare_all(table, column, by=(*MEASURE, "site"), pairs=pairs, seed=seed)] if several else []
        for tests in families:
            rows = [{str(name): value for name, value in test.items()} for test in tests.to_dict("records")]
            told = [{**test, "question": question} | _verdict(cells, test) | _apart(means, test) for test in rows]
            parts += [pd.DataFrame(told)] if told else []
    found = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=COLUMNS)
    if len(parts):
        # Layers by number, not as text.
        order = found["site"].map(lambda site: int(site) if str(site).isdigit() else -1)
        keys = ["question", *MEASURE, "order"]
        found = found.assign(order=order).sort_values(keys, kind="stable", key=_in_order, ignore_index=True)
    found["conclusion"] = [
        _conclusion(p, verdict) for p, verdict in zip(found["p_holm"], found["verdict"], strict=True)
    ]
    return found.reindex(columns=COLUMNS)


def _verdict(cells: Mapping[Any, pd.DataFrame], test: dict[str, Any]) -> dict[str, Any]:
    """On sites that both sides have: a layer that one lacks would pass for a difference."""
    column = str(test["column"])
    wanted = [test[name] for name in MEASURE if name != column]
    shared = []
    for (*measure, site), part in cells.items():
        same = [value for name, value in zip(MEASURE, measure, strict=True) if name != column] == wanted
        if same and test["site"] in (ALL, site):
            pair = part[part[column].isin([test["a"], test["b"]])]
            shared += [pair] if pair[column].nunique() == 2 or column in MEASURE else []
    if not shared:
        return {"n_conditions": 0, "verdict_status": "too_few_conditions"}
    found = verdict(pd.concat(shared), column, test["a"], test["b"])
    kept = ("verdict", "noise_sd", "ratio", "n_conditions", "unseen")
    return {name: found.get(name) for name in kept} | {"verdict_status": found["status"]}


def _apart(means: pd.DataFrame, test: dict[str, Any]) -> dict[str, Any]:
    if test["column"] != "variant":
        return {}
    measure = tuple(test[name] for name in MEASURE)
    sides = [means.loc[(*measure, which)] for which in (test["a"], test["b"])]
    both = sides[0].join(sides[1], how="inner", lsuffix="_a", rsuffix="_b")
    both = both if test["site"] == ALL else both[both.index == test["site"]]
    upper, lower = ("a", "b") if test["difference"] >= 0 else ("b", "a")
    apart = both[f"ci_low_{upper}"] > both[f"ci_high_{lower}"]
    return {"n_sites": len(both), "n_apart": int(apart.sum())}


def _in_order(column: pd.Series) -> pd.Series:
    questions = {VARIANTS: 0, CONTROLS: 1}
    return column.map(lambda name: questions.get(name, 2)) if column.name == "question" else column


def _conclusion(p: float, verdict: Any) -> str | None:
    if math.isnan(p):
        return None
    if p >= 0.05:
        return "not_told_apart"
    return {"exceeds": "differs", "within": "within_noise"}.get(str(verdict), "noise_unknown")
