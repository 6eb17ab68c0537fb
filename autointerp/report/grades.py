"""Scores arranged for the page: which columns the list has, and what each latent got in them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from autointerp.report.folder import records
from autointerp.report.groups import Group
from autointerp.report.text import number, words

CONTROL = "shuffled_explanation"
PREFERRED = ("balanced_accuracy", "auroc", "logprob_gain", "pearson", "spearman", "accuracy", "f1")
SECONDARY = frozenset({"precision", "recall"})

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


class Grades:
    """The scores of one group, by latent: real and control rows, in the table's order."""

    def __init__(self, group: Group) -> None:
        self._rows: dict[int, list[dict[str, Any]]] = defaultdict(list)
        for row in records(group.scores):
            if row["latent"] is not None:
                self._rows[int(row["latent"])].append(row)

    def rows(self, latent: int) -> list[dict[str, Any]]:
        return self._rows.get(latent, [])

    def cells(self, latent: int, explanation_id: str | None) -> dict[Name, tuple[float | None, float | None]]:
        """Value of the real explanation and of its control, by column.

        With several explanations the list shows the one it prints; a score that names no explanation we know
        (tables joined by hand) still counts.
        """
        real = _first(self.rows(latent), "none", explanation_id)
        control = _first(self.rows(latent), CONTROL, explanation_id)
        return {name: (real.get(name), control.get(name)) for name in {**real, **control}}

    def values(self, name: Name, control: str) -> list[float]:
        """All values of a column that could be computed, for the charts."""
        return [
            value
            for rows in self._rows.values()
            for row in rows
            if row["control"] == control and name_of(row) == name and (value := number(row["value"])) is not None
        ]


def name_of(row: dict[str, Any]) -> Name:
    return str(row["method"]), str(row["negatives"] or "random"), str(row["metric"])


def columns(groups: Iterable[Group]) -> list[Column]:
    """The columns of all groups: methods in alphabetical order, each with its primary metric first."""
    names: set[Name] = set()
    for group in groups:
        names |= {name_of(row) for row in records(group.scores[["method", "negatives", "metric"]].drop_duplicates())}
    found: list[Column] = []
    for method, negatives in sorted({name[:2] for name in names}):
        metrics = sorted((name[2] for name in names if name[:2] == (method, negatives)), key=_rank)
        several = len({name[1] for name in names if name[0] == method}) > 1
        found += [Column(method, negatives, metric, metric == metrics[0], several) for metric in metrics]
    return found


def primary_first(explanations: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The explanations of a latent, those that succeeded first, otherwise in the table's order."""
    return sorted(explanations, key=lambda row: row["text"] is None or row["status"] != "ok")


def _rank(metric: str) -> tuple[int, bool, str]:
    return PREFERRED.index(metric) if metric in PREFERRED else len(PREFERRED), metric in SECONDARY, metric


def _first(rows: Sequence[dict[str, Any]], control: str, explanation_id: str | None) -> dict[Name, float | None]:
    own: dict[Name, float | None] = {}
    other: dict[Name, float | None] = {}
    for row in rows:
        if row["control"] == control:
            target = own if row["explanation_id"] == explanation_id else other
            target.setdefault(name_of(row), number(row["value"]))
    return {**other, **own}
