"""What is compared: dictionaries, the variants that they are of, and the scores that grade them."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from autointerp.errors import UserError
from autointerp.stats.summary import ALONE, HEADLINE
from scoring.types import EXPLANATION_CONTROLS

MEASURE = ("method", "metric", "negatives")
"""Scores that agree in these measure the same thing."""
RANDOM_MODEL, ON_RANDOM, RANDOM_WEIGHTS = "random_model", " (random_model)", " (random weights)"
SAME_L0 = 1.15
"""Dictionaries of one architecture whose L0s differ by less than this factor are repetitions, not variants."""

SCORE = (
    "sae_id", "latent", "pole", "explanation_id", "explainer", "explainer_model", "method", "metric", "control", "draw",
    "corpus", "negatives", "scorer_model",
)  # fmt: skip
"""What makes two rows the same score, wherever they were found."""


def labelled(scores: pd.DataFrame) -> pd.DataFrame:
    """Scores with `own`, `place`, `variant` and `site`; `folder` tells where a row was read.

    `own`: the row grades an explanation of the latent's own. `place`: `none` for a trained SAE, else which control
    stands in its place; shuffled and generic rows have that of their dictionary. `variant`: the architecture of a
    trained SAE, with its width or L0 only where one architecture has several, or the control. `site`: the layer, or
    the hookpoint where that is no layer. An SAE that is read on a random model as well keeps two `sae_id`s.
    """
    # Text that arrow holds is slow to take rows of, and nothing else is done here.
    scores = scores.astype({name: object for name in scores if isinstance(scores[name].dtype, pd.StringDtype)})
    own = ~scores["control"].isin(EXPLANATION_CONTROLS)
    dictionary = scores.groupby(["folder", "run_id", "sae_id", "model"], dropna=False).ngroup()
    place = scores.loc[own, "control"].groupby(dictionary[own]).first()
    found = scores.assign(own=own, place=dictionary.map(place).fillna("none"))
    found["sae_id"] = identity(found["sae_id"], found["place"])
    if "scorer_model" in found:
        found["scorer_model"] = found["scorer_model"].map(_readers, na_action="ignore")
    layer = found["layer"].astype("Int64").astype("string")
    found["site"] = layer.fillna(found["hookpoint"].astype("string")).fillna("").astype(object)
    found["variant"] = found["sae_id"].map(variants(found)).fillna(found["place"])
    return found


def _readers(names: object) -> str:
    """Who judges. An intervention's name holds the model that is steered, too: a random one is what is scored."""
    parts = list(dict.fromkeys(str(names).split("+")))
    return "+".join([part for part in parts if not part.endswith(RANDOM_WEIGHTS)] or parts)


def identity(sae_id: pd.Series, place: pd.Series) -> pd.Series:
    """The same SAE on a random model is another dictionary; its `sae_id`, which names contents, does not say so."""
    return sae_id.where(place != RANDOM_MODEL, sae_id.astype(str) + ON_RANDOM)


def contents(sae_id: str) -> str:
    """`identity` undone: the name of the SAE's contents."""
    return sae_id.removesuffix(ON_RANDOM)


def variants(scores: pd.DataFrame) -> dict[str, str]:
    """Names of variants by `sae_id`."""
    taken = {"place": "first", "arch": "first", "width": "first", "site": "first", "l0": "mean"}
    facts = scores.groupby("sae_id", sort=True).agg(taken)
    names = {str(sae_id): str(place) for sae_id, place in facts["place"].items() if place != "none"}
    trained = facts[facts["place"] == "none"]
    for arch, same in trained.groupby("arch", dropna=False):
        plain = str(arch) if isinstance(arch, str) else "unknown"
        several = same["width"].nunique() > 1
        for width, alike in same.groupby("width", dropna=False):
            stem = f"{plain}-{width}" if several else plain
            for sae_id, level in _levels(alike).items():
                names[str(sae_id)] = f"{stem}-L0={level}" if level else stem
    return names


def _levels(alike: pd.DataFrame) -> dict[object, str]:
    """The L0 that a variant is named by, for dictionaries that are alike but for it; empty where there is one level.

    Levels are told apart within a site. A level may be sparser in one layer than in another: where all sites have as
    many levels, they are matched by rank, and named by their median.
    """
    at_sites = {site: _steps(rows["l0"]) for site, rows in alike.groupby("site", dropna=False)}
    counts = {int(ranks.max()) + 1 for ranks in at_sites.values() if len(ranks)}
    if counts <= {1}:
        return dict.fromkeys(alike.index, "")
    ranks = pd.concat(list(at_sites.values())) if len(counts) == 1 else _steps(alike["l0"])
    middle = alike["l0"].groupby(ranks.reindex(alike.index)).median()
    named = middle.map(lambda l0: f"{l0:.3g}")
    return {sae_id: str(named.get(ranks.get(sae_id), "unknown")) for sae_id in alike.index}


def _steps(l0: pd.Series) -> pd.Series:
    """Rank of the level of each, where a level ends at the first gap of SAME_L0."""
    ordered = l0.astype(float).dropna().sort_values()
    return (ordered / ordered.shift() > SAME_L0).cumsum()


def graded(scores: pd.DataFrame, methods: Sequence[str] = (), metrics: Sequence[str] = ()) -> pd.DataFrame:
    """Rows of the headline metrics (or of the `metrics` named) of the `methods` named (or all), each score once.

    An explanation that failed has one null row without `negatives`; it is null for all kinds of its method.
    """
    wanted = scores[scores["method"].isin(methods)] if methods else scores
    if metrics:
        wanted = wanted[wanted["metric"].isin(metrics)]
    else:
        head = wanted["metric"].map(lambda name: str(name).partition("@")[0]).isin(HEADLINE)
        wanted = wanted[head | (wanted["metric"] == wanted["method"].map(ALONE))]
    if wanted.empty:
        there = scores[["method", "metric"]].drop_duplicates().sort_values(["method", "metric"])
        listed = ", ".join(f"{row.method}/{row.metric}" for row in there.itertuples())
        raise UserError(f"no scores of that kind to compare; there are (method/metric): {listed or 'none at all'}")
    return _spread(wanted)


def once(scores: pd.DataFrame) -> pd.DataFrame:
    """Without scores that were found before, in another folder."""
    return scores.drop_duplicates([name for name in SCORE if name in scores], ignore_index=True)


def own_of(scores: pd.DataFrame) -> pd.DataFrame:
    """Own explanations, of all dictionaries alike: `control` is `none` and `place` says what they are."""
    return scores[scores["own"]].assign(control="none")


def measures(scores: pd.DataFrame) -> list[tuple[dict[str, str], pd.DataFrame]]:
    """The scores of each method, metric and kind of negatives."""
    groups = scores.groupby(list(MEASURE), sort=True, dropna=False)
    return [(dict(zip(MEASURE, map(str, key), strict=True)), rows) for key, rows in groups]


def _spread(scores: pd.DataFrame) -> pd.DataFrame:
    nowhere = scores["negatives"].isna() & scores["value"].isna()
    kinds = scores.loc[scores["negatives"].notna(), ["method", "metric", "negatives"]].drop_duplicates()
    lost = scores[nowhere].drop(columns="negatives").merge(kinds, on=["method", "metric"], how="left")
    together = pd.concat([scores[~nowhere], lost[scores.columns]], ignore_index=True) if len(lost) else scores
    return together.assign(negatives=together["negatives"].astype(object).where(together["negatives"].notna(), ""))
