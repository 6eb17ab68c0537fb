"""What has to be the same for scores to be compared, and what differs.

A factor with several values is no obstacle where all dictionaries had all of them: two judges that both judged
everything are a component of the variance. Where one dictionary had one judge and another a second one, a difference of
the dictionaries cannot be told from one of the judges.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from autointerp.errors import UserError

FACTORS: dict[str, tuple[str, str]] = {
    "judge": ("were scored by different judges", "the judges'"),
    "prompt": ("were scored with different prompts", "the prompts'"),
    "negatives": ("were scored against different non-activating windows", "the windows'"),
    "explainer": ("were explained differently", "the explainers'"),
    "corpus": ("were read on different corpora", "the corpora's"),
    "sampling": ("were sampled with different settings", "the sampling's"),
}
"""What `--allow-different` takes: what it means if it differs, and whose the difference may then be."""

COLUMNS: dict[str, tuple[str, ...]] = {
    "judge": ("scorer_model",),
    "prompt": ("method_version", "prompt_sha"),
    "negatives": ("negatives",),
    "explainer": ("explainer", "explainer_model", "explanation_prompt"),
    "corpus": ("corpus",),
}
"""Columns of scores that tell; all others are settings of the runs."""

SAMPLING = (
    "data.tokens", "data.mode", "data.context_length", "data.skip_documents", "data.skip_first", "data.split",
    "data.subset", "data.text_column",
)  # fmt: skip
"""Settings of the factor `sampling`, with all of the section `sampling`."""
NOT_SAMPLING = ("sampling.draw", "sampling.draws")
"""Repetitions are no difference in how it was done."""


@dataclass(frozen=True, slots=True)
class Difference:
    """`a` and `b` name two folders or variants; `values` are what either had, of `name` (a method, or a setting)."""

    factor: str
    a: str
    b: str
    name: str
    values: tuple[str, str]

    @property
    def sentence(self) -> str:
        what = FACTORS[self.factor][0]
        return f"{self.a} and {self.b} {what} ({self.name}: {self.values[0]} and {self.values[1]})"


def setting_of(name: str) -> tuple[str, str] | None:
    """Factor and method (empty: all) that a setting of a run, as a dotted name, belongs to; None if to none."""
    if name in NOT_SAMPLING:
        return None
    if name in SAMPLING or name.startswith("sampling."):
        return "sampling", ""
    if name == "explain.options":
        return "explainer", ""
    if name.startswith("score.options."):
        return "prompt", name.split(".")[2]
    return ("sampling", "") if name == "score.ci_halfwidth" else None


def differences(scores: pd.DataFrame, settings: pd.DataFrame) -> list[Difference]:
    """At most one difference of each factor.

    `scores` are of own explanations, as `variants.labelled` and `graded` leave them. `settings` has a row per
    dictionary, folder and setting: sae_id, folder, method (of the dictionary), name, value.
    """
    unit = "sae_id" if scores["sae_id"].nunique() > 1 else "folder"
    facts = [_told_by_scores(scores, unit), _told_by_settings(scores, settings, unit)]
    found: dict[str, Difference] = {}
    for key, rows in pd.concat(facts).groupby(["factor", "scope", "name"], sort=True):
        factor, scope, name = map(str, key)
        values = {str(one): tuple(sorted(set(part))) for one, part in rows.groupby("unit")["value"]}
        if factor not in found and len(set(values.values())) > 1:
            first = next(iter(values))
            other = next(one for one, value in values.items() if value != values[first])
            # A column's name says little to who wrote "gpt-a"; the method does.
            told = name if scope == "" else scope if name in ("scorer_model", "negatives") else f"{scope}, {name}"
            names = _names(scores, unit, first, other)
            pair = (_listed(values[first]), _listed(values[other]))
            found[factor] = Difference(factor, names[0], names[1], told, pair)
    return [found[factor] for factor in FACTORS if factor in found]


def refuse(found: Sequence[Difference], allowed: Sequence[str]) -> list[str]:
    """Caveats for the differences that are `allowed`.

    Raises:
        UserError: an unknown factor, or a difference that is not allowed: one line that names it.
    """
    for name in allowed:
        if name not in FACTORS:
            raise UserError(f"--allow-different does not know '{name}'; choose from {', '.join(FACTORS)}")
    barred = [difference for difference in found if difference.factor not in allowed]
    if barred:
        also = ", ".join(difference.factor for difference in barred[1:])
        raise UserError(
            f"{barred[0].sentence}: a difference of their scores may be {FACTORS[barred[0].factor][1]}"
            + (f" (what else differs: {also})" if also else "")
            + f"; --allow-different {','.join(difference.factor for difference in barred)} compares them anyway"
        )
    return [f"{each.sentence}: a difference of their scores may be {FACTORS[each.factor][1]}." for each in found]


def _told_by_scores(scores: pd.DataFrame, unit: str) -> pd.DataFrame:
    columns = [name for names in COLUMNS.values() for name in names if name in scores]
    distinct = scores[[unit, "method", "metric", *columns]].drop_duplicates()
    rows = []
    for factor, names in COLUMNS.items():
        for name in names:
            if name not in distinct:
                continue
            # What is not known of old runs cannot differ.
            known = distinct[distinct[name].notna() & (distinct[name].astype(str) != "")]
            scope = known["method"].astype(str) if factor in ("judge", "prompt", "negatives") else ""
            rows.append(
                pd.DataFrame({
                    "unit": known[unit], "factor": factor, "scope": scope, "name": name,
                    "value": known[name].map(lambda value: f"'{value}'"),
                })
            )  # fmt: skip
    return pd.concat(rows, ignore_index=True)


def _told_by_settings(scores: pd.DataFrame, settings: pd.DataFrame, unit: str) -> pd.DataFrame:
    methods = set(scores["method"])
    rows = []
    for row in settings[settings["sae_id"].isin(scores["sae_id"])].drop_duplicates().to_dict("records"):
        place = setting_of(row["name"])
        if place is not None and (place[1] == "" or (place[1] == row["method"] and row["method"] in methods)):
            rows.append({
                "unit": row[unit], "factor": place[0], "scope": place[1], "name": row["name"], "value": row["value"],
            })  # fmt: skip
    return pd.DataFrame(rows, columns=["unit", "factor", "scope", "name", "value"])


def _names(scores: pd.DataFrame, unit: str, *which: str) -> list[str]:
    """Folders where they tell two units apart, else variants, else the dictionaries' ids."""
    rows = [scores[scores[unit] == one] for one in which]
    for column in ("folder", "variant"):
        names = [sorted(part[column].astype(str).unique()) for part in rows]
        if not set(names[0]) & set(names[1]):
            return [" and ".join(part) for part in names]
    return list(which)


def _listed(values: Sequence[str]) -> str:
    return ", ".join(values) or "nothing"


PLURAL = {
    "scorer_model": "judges", "explainer": "explainers", "explainer_model": "explaining models", "corpus": "corpora",
}  # fmt: skip


def crossed(scores: pd.DataFrame, by: Sequence[str]) -> list[str]:
    """What every dictionary had several values of, apart from columns of `by`: means are over them."""
    said = []
    for column, name in PLURAL.items():
        if column in by:
            continue
        for method, rows in scores.groupby("method") if column == "scorer_model" else [("", scores)]:
            values = [tuple(sorted(set(these.dropna().astype(str)))) for _, these in rows.groupby("sae_id")[column]]
            first = values[0]
            if len(first) > 1 and all(value == first for value in values):
                shown = ", ".join(f"'{value}'" for value in first)
                said.append(
                    f"{f'{method!s}: ' if method else ''}means are over {len(first)} {name} ({shown}); "
                    f"--by {','.join([*by, column])} keeps them apart."
                )
    return said
