"""Compare runs: read them, find out whether they can be compared, and make the tables that decide."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from autointerp.errors import UserError
from autointerp.pipeline.comparison import Comparison
from autointerp.pipeline.gathering import Gathered, gather, labelled_like, latents_of
from autointerp.stats import comparable
from autointerp.stats.contrasts import contrasts
from autointerp.stats.coverage import STATES
from autointerp.stats.findings import findings, layers_alike, planned
from autointerp.stats.main_table import main_table
from autointerp.stats.planning import plan_table, resolvable_table
from autointerp.stats.repeats import agreement_table, ranking_table, variance_table
from autointerp.stats.spent import with_cost
from autointerp.stats.variants import contents, graded, labelled, once, own_of
from scoring.types import EXPLANATION_CONTROLS

Paths = str | Path | Iterable[str | Path]
BY = ("variant", "layer")
FIGURES = ("fvu", "shrinkage", "norm_ratio", "dead_share", "dense_share")
"""Of `sae_metrics`, what stands beside a dictionary."""


def compare(paths: Paths, by: Sequence[str] = BY, **options: Any) -> pd.DataFrame:
    """The main table of `comparison`, which takes the same `options`: one row per group of `by`, method, metric and
    kind of negatives (`stats.main_table` names the columns). `.attrs` holds the `findings` and `caveats`, lists of
    sentences.
    """
    found = comparison(paths, by, **options)
    table = found.main.copy()
    table.attrs |= {"findings": found.findings, "caveats": found.caveats}
    return table


def comparison(
    paths: Paths, by: Sequence[str] = BY, *, methods: Sequence[str] = (), metrics: Sequence[str] = (),
    plan: float | None = None, allow_different: Sequence[str] = (), windows: bool = False, similarity: bool = False,
    seed: int = 0, say: Callable[[str], None] | None = None,
) -> Comparison:  # fmt: skip
    """All tables of a comparison of runs or studies that `paths` and globs name.

    by: columns of scores, or `variant` and `site` (`stats.variants.labelled`), that rows of the main table go by.
    methods, metrics: only these; default: the headline metrics of all methods. plan: also say what this difference of
    means would need. allow_different: factors of `stats.comparable.FACTORS` that may differ; they become caveats.
    windows: draw windows again within latents as well, where each latent was judged once. similarity: also match the
    latents of dictionaries of one variant, which takes seconds to minutes a pair; `say` is told of each.

    Raises:
        UserError: nothing to compare, a name that is not there, or what is not comparable (one line names it).
    """
    by = [by] if isinstance(by, str) else list(dict.fromkeys(by))
    if not by:
        raise UserError("no columns to group by; leave --by out for variant,layer")
    gathered = gather(paths, more=("judgements",) if windows else ())
    scores = labelled(gathered.tables["scores"])
    gathered = labelled_like(gathered, scores)
    wanted = graded(scores, methods, metrics)
    caveats = comparable.refuse(comparable.differences(own_of(wanted), gathered.settings), allow_different)
    wanted = once(wanted)
    latents = latents_of(gathered, scores)
    judgements = _judgements(gathered) if windows else None
    main = main_table(wanted, latents, by, judgements=judgements, seed=seed)
    main = with_cost(main, [*by, "control"], gathered.parts)
    tests = contrasts(wanted, by, seed=seed)
    variance, ranking = variance_table(wanted, seed=seed), ranking_table(wanted)
    agreement, resolvable = agreement_table(wanted, seed=seed), resolvable_table(wanted)
    wanted_plan = pd.DataFrame() if plan is None else plan_table(wanted, plan)
    said = findings(main, tests, variance, ranking, agreement, resolvable) + planned(wanted_plan)
    alike, distance = _similarity(gathered.folders, seed, say) if similarity else (pd.DataFrame(), pd.DataFrame())
    return Comparison(
        main=main, tests=tests, variance=variance, ranking=ranking, agreement=agreement, resolvable=resolvable,
        plan=wanted_plan, dictionaries=_dictionaries(gathered, wanted, latents), cost=_cost(gathered), by=tuple(by),
        folders=gathered.folders, findings=said + layers_alike(distance),
        similarity=alike, distance=distance,
        caveats=caveats + comparable.crossed(own_of(wanted), by) + _caveats(gathered, own_of(wanted), by),
    )  # fmt: skip


def _similarity(
    folders: Sequence[Path], seed: int, say: Callable[[str], None] | None
) -> tuple[pd.DataFrame, pd.DataFrame]:
    # It reads the SAEs themselves: torch is loaded for nothing else here.
    from autointerp.pipeline.similarity import by_distance, similarities

    found = similarities(folders, seed=seed, say=say)
    return found.table, by_distance(found.matches, seed=seed)


def _judgements(gathered: Gathered) -> pd.DataFrame:
    """With controls named as in `own_of`."""
    table = gathered.tables["judgements"]
    own = ~table["control"].isin(EXPLANATION_CONTROLS)
    return table.assign(control=table["control"].where(~own, "none"))


def _dictionaries(gathered: Gathered, scores: pd.DataFrame, latents: pd.DataFrame) -> pd.DataFrame:
    """A row per dictionary, scored or not."""
    facts = ["variant", "arch", "hookpoint", "layer", "width", "model", "place"]
    own = own_of(scores)
    table = own.groupby("sae_id").agg(dict.fromkeys(facts, "first") | {"l0": "mean"})
    table["scored"] = own[own["value"].notna()].groupby("sae_id")["latent"].nunique().reindex(table.index).fillna(0)
    states = latents.groupby(["sae_id", "corpus"], dropna=False)["state"].value_counts().unstack(fill_value=0)
    states = states.reindex(columns=list(STATES), fill_value=0).astype(float).groupby(level="sae_id").mean()
    metrics = gathered.tables["sae_metrics"].drop_duplicates(["sae_id", "metric"]).set_index("sae_id")
    for name in FIGURES:
        rows = metrics[metrics["metric"] == name]
        table[name] = rows["value"].reindex(table.index)
        table[f"{name}_low"] = rows["ci_low"].reindex(table.index)
        table[f"{name}_high"] = rows["ci_high"].reindex(table.index)
    unscored = sorted(set(metrics.index.dropna()) - set(map(contents, table.index)))
    more = metrics[~metrics.index.duplicated()].loc[unscored, ["arch", "hookpoint", "width"]].assign(scored=0)
    table = pd.concat([table, more]) if len(more) else table
    table = table.join(states.assign(n_latents=states.sum(axis=1)), how="left")
    return table.rename_axis("sae_id").reset_index().sort_values(["place", "variant", "layer"], ignore_index=True)


def _cost(gathered: Gathered) -> pd.DataFrame:
    """Usage of each run or cell, with the requests that got no usable answer."""
    frames = []
    for part in gathered.parts:
        used = part.usage.assign(run=str(part.folder))
        used["failures"] = used["stage"].astype(str).map(dict(part.n_failures)).fillna(0)
        frames.append(used)
    kept = [frame for frame in frames if len(frame)] or frames[:1]
    table = pd.concat(kept, ignore_index=True)
    return table[["run", *(name for name in table if name not in ("run", "run_id"))]]


def _caveats(gathered: Gathered, own: pd.DataFrame, by: Sequence[str]) -> list[str]:
    said = []
    trained = own[own["place"] == "none"]
    places = trained.groupby(["variant", "site"])["hookpoint"].nunique()
    if (places > 1).any() and "hookpoint" not in by:
        variant, site = places.index[int(places.to_numpy().argmax())]
        said.append(f"Layer {site} of {variant} is several hookpoints; --by variant,hookpoint keeps them apart.")
    if trained["model"].nunique() > 1 and "model" not in by:
        models = ", ".join(f"'{name}'" for name in sorted(trained["model"].dropna().unique()))
        said.append(f"Subject models are put together ({models}); --by model,variant,layer keeps them apart.")
    draws = own.groupby("sae_id")["draw"].nunique()
    if draws.nunique() > 1:
        said.append(f"Some dictionaries have {draws.max()} draws and some {draws.min()}, which measure less well.")
    if unknown := gathered.unsettled:
        said.append(f"No config.yaml in {', '.join(unknown)}: whether sampling was the same is not known.")
    lost = int(own["value"].isna().sum())
    if lost:
        counts = own.loc[own["value"].isna(), "status"].fillna("unknown").value_counts()
        reasons = ", ".join(f"{status}: {n}" for status, n in counts.items())
        said.append(f"{lost} of {len(own)} scores are null and in no mean ({reasons}).")
    if trained.empty:
        said.append("No trained SAE is among these runs: only controls are shown.")
    return said
