"""Scores arranged for the page: which columns the list has, and what each latent got in them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from autointerp.report.folder import plain
from autointerp.report.groups import Group
from autointerp.report.text import short, visible, words
from scoring.types import SHUFFLED as CONTROL

PREFERRED = ("balanced_accuracy", "auroc", "logprob_gain", "pearson", "spearman", "accuracy", "f1")
SECONDARY = frozenset({"precision", "recall"})
SETTING: dict[str, str] = {
    "pole": "pole", "corpus": "corpus", "draw": "draw", "explainer": "explainer", "explainer_model": "explainer",
    "scorer_model": "judge",
}  # fmt: skip
"""Columns in which repeated scores of a latent may differ, and what the page calls them."""
ROW = ["value", "ci_low", "ci_high", "n", "n_failed", "status", "explanation_id", "control", "prompt_sha"]

Name = tuple[str, str, str]
"""Method, negatives, metric."""


@dataclass(frozen=True, slots=True)
class Column:
    """One kind of score. `primary` is the metric that stands for its method in the list and the charts."""

    method: str
    negatives: str
    metric: str
    primary: bool
    several: bool

    @property
    def name(self) -> Name:
        return self.method, self.negatives, self.metric

    @property
    def method_label(self) -> str:
        return f"{words(self.method)} ({words(self.negatives)})" if self.several else words(self.method)

    @property
    def label(self) -> str:
        return f"{self.method_label}, {words(self.metric)}"

    def of(self, scores: pd.DataFrame) -> pd.DataFrame:
        """The rows of this kind."""
        same = (scores["method"] == self.method) & (scores["metric"] == self.metric)
        return scores[same & (scores["negatives"].fillna("random") == self.negatives)]


class Grades:
    """The scores of one group.

    `real` and `control` are (listed latents, columns), NaN where there is no value: the mean over draws, poles,
    explainers and judges, which are repeated measurements of one latent.
    """

    def __init__(self, group: Group, shown: Sequence[Column]) -> None:
        self._group, self._shown = group, shown
        scores = group.scores[group.scores["latent"].notna()]
        place = {column.name: at for at, column in enumerate(shown)}
        names = zip(scores["method"], scores["negatives"].fillna("random"), scores["metric"], strict=True)
        self._scores = scores.assign(
            latent=scores["latent"].astype("int64"), column=[place[(str(m), str(n), str(k))] for m, n, k in names],
            negatives=scores["negatives"].fillna("random"),
        )  # fmt: skip
        self.real, self.control = self._means("none"), self._means(CONTROL)

    def _means(self, control: str) -> NDArray[np.float64]:
        rows = self._scores[self._scores["control"] == control]
        values = rows.assign(value=rows["value"].astype(float).replace([np.inf, -np.inf], np.nan))
        wide = values.groupby(["latent", "column"])["value"].mean().unstack("column")
        return wide.reindex(index=self._group.listed, columns=range(len(self._shown))).to_numpy(dtype=float)

    def values(self, column: int, control: bool = False) -> list[float]:
        """Of each latent that has one, for the charts."""
        found = (self.control if control else self.real)[:, column]
        values: list[float] = found[np.isfinite(found)].tolist()
        return values

    @cached_property
    def _rows(self) -> tuple[dict[int, tuple[int, int]], dict[str, list[Any]]]:
        """The rows as lists, in the order of latents and columns, and where each latent's are."""
        ordered = self._scores.sort_values(["latent", "column"], kind="stable")
        latents = ordered["latent"].to_numpy()
        new = np.flatnonzero(np.diff(latents)) + 1
        bounds: list[int] = [0, *new.tolist(), len(latents)] if len(latents) else []
        spans = {int(latents[a]): (a, b) for a, b in pairwise(bounds)}
        return spans, {name: plain(ordered[name]) for name in ["column", *ROW, *SETTING]}

    def rows(self, latent: int) -> list[dict[str, Any]]:
        """The scores of a latent, columns in order and within them as in the table."""
        spans, columns = self._rows
        a, b = spans.get(latent, (0, 0))
        return [
            dict(zip(columns, values, strict=True))
            for values in zip(*(column[a:b] for column in columns.values()), strict=True)
        ]


def paired(rows: Sequence[dict[str, Any]], order: Sequence[str], varying: Sequence[str]) -> list[dict[str, Any]]:
    """A latent's scores as a card lists them: each beside its shuffled control; other controls as rows of their own."""
    controls: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows:
        if row["control"] == CONTROL:
            controls.setdefault(_key(row), []).append(row)
    written = []
    for row in rows:
        if row["control"] == CONTROL:
            continue
        matching = controls.get(_key(row), [])
        own = [c for c in matching if c["explanation_id"] == row["explanation_id"]] or matching
        real = row["control"] == "none"
        written.append({
            "column": row["column"],
            "control_kind": None if real else words(str(row["control"])),
            "explanation": order.index(row["explanation_id"]) if row["explanation_id"] in order else None,
            "setting": setting(row, varying),
            "real": _grade(row),
            "control": _grade(own[0]) if own and real else None,
        })  # fmt: skip
    return written


def headline(written: Sequence[dict[str, Any]], shown: Sequence[Column]) -> list[Any]:
    """What stands for each method on a card: the number in `written` of its primary metric's score; where that was
    measured repeatedly (draws, poles, explainers, judges), a score of their mean, with their range for an interval."""
    found: dict[int, list[int]] = {}
    for n, score in enumerate(written):
        if shown[score["column"]].primary and score["control_kind"] is None:
            found.setdefault(score["column"], []).append(n)
    return [
        numbers[0] if len(numbers) == 1 else {
            **written[numbers[0]], "explanation": None, "setting": f"mean and range of {len(numbers)}",
            "real": _together([written[n]["real"] for n in numbers]),
            "control": _together([written[n]["control"] for n in numbers if written[n]["control"]]),
        } for numbers in found.values()
    ]  # fmt: skip


def _together(grades: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    if not grades:
        return None
    values = [one["value"] for one in grades if one["value"] is not None]
    totals = {name: sum(one[name] or 0 for one in grades) for name in ("n", "failed")}
    if not values:
        return {**grades[0], **totals}
    mean = short(sum(values) / len(values))
    return {"value": mean, "low": min(values), "high": max(values), **totals, "status": "ok"}


def setting(row: dict[str, Any], varying: Sequence[str]) -> str:
    """What tells a repeated score or explanation from others of its latent: `draw 1, judge x`."""
    return ", ".join(
        f"{SETTING[name]} {visible(str(row[name]))}" for name in varying if row.get(name) is not None
    )  # fmt: skip


def varying_settings(groups: Iterable[Group]) -> list[str]:
    """The columns of SETTING in which repeated scores of one method really differ somewhere."""
    found = set()
    for group in groups:
        if len(group.scores):
            counts = group.scores.groupby("method")[list(SETTING)].nunique()
            found |= {str(name) for name in counts.columns if (counts[name] > 1).any()}
    return [name for name in SETTING if name in found]


def columns(groups: Iterable[Group]) -> list[Column]:
    """The columns of all groups: methods in alphabetical order, each with its primary metric first."""
    names: set[Name] = set()
    for group in groups:
        kinds = group.scores[["method", "negatives", "metric"]].fillna({"negatives": "random"}).drop_duplicates()
        names |= {(str(a), str(b), str(c)) for a, b, c in kinds.itertuples(index=False)}
    found: list[Column] = []
    for method, negatives in sorted({name[:2] for name in names}):
        metrics = sorted((name[2] for name in names if name[:2] == (method, negatives)), key=_rank)
        several = len({name[1] for name in names if name[0] == method}) > 1
        found += [Column(method, negatives, metric, metric == metrics[0], several) for metric in metrics]
    return found


def _rank(metric: str) -> tuple[int, bool, str]:
    kind = metric.partition("@")[0]
    return PREFERRED.index(kind) if kind in PREFERRED else len(PREFERRED), metric in SECONDARY, metric


def _key(row: dict[str, Any]) -> tuple[Any, ...]:
    return row["column"], *(row[name] for name in SETTING if not name.startswith("explainer"))


def _grade(row: dict[str, Any]) -> dict[str, Any]:
    return {
        "value": short(row["value"]),
        "low": short(row["ci_low"]),
        "high": short(row["ci_high"]),
        "n": short(row["n"], 9),
        "failed": short(row["n_failed"], 9),
        "status": visible(str(row["status"])),
    }
