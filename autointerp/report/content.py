"""Everything that a page about some runs is made of, read once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

from autointerp.report.cards import Cards, Evidence
from autointerp.report.grades import Column, Grades, columns, varying_settings
from autointerp.report.groups import Group, read_groups
from autointerp.report.judged import judged_methods
from autointerp.report.text import visible, words


@dataclass(frozen=True)
class Content:
    """The groups of some runs, the score columns they share, and each group's scores in these."""

    groups: list[Group]
    columns: list[Column]
    grades: list[Grades]
    varying: list[str]
    methods: list[str]

    @cached_property
    def _parts(self) -> list[Cards]:
        evidence = {path: Evidence(folder, self.methods) for path, folder in self._folders.items()}
        return [
            Cards(group, place, self.columns, self.grades[place], evidence[group.folder.path], self.varying)
            for place, group in enumerate(self.groups)
        ]

    @property
    def _folders(self) -> dict[Path, Any]:
        return {group.folder.path: group.folder for group in self.groups}

    def head(self) -> dict[str, Any]:
        """What entries and cards refer to by number."""
        return {
            "groups": [group.label for group in self.groups],
            "saes": [group.sae_id for group in self.groups],
            "variants": [group.variant for group in self.groups],
            "layers": [group.layer for group in self.groups],
            "columns": [
                {"label": c.label, "method": c.method_label, "metric": words(c.metric), "primary": c.primary}
                for c in self.columns
            ],
            "methods": [words(name) for name in self.methods],
            "states": sorted(
                {visible(str(name)) for g in self.groups for name in g.latents["state"].dropna().unique()}
            ),
            "latents": sum(len(group.listed) for group in self.groups),
        }

    def entries(self) -> Iterator[list[Any]]:
        """The rows of the list, group after group (see `Cards.entries`)."""
        return chain.from_iterable(part.entries() for part in self._parts)

    def cards(self) -> Iterator[dict[str, Any]]:
        """One card per entry, in the same order."""
        return chain.from_iterable(part.cards() for part in self._parts)

    def card(self, place: int) -> dict[str, Any]:
        """The first card of one group: the only one, where the content is of one latent."""
        return next(self._parts[place].cards())


def read_content(run_dirs: Sequence[Path], latent: int | None = None) -> Content:
    """The runs' content; with `latent`, what they say of that one."""
    groups = read_groups(run_dirs, latent)
    shown = columns(groups)
    folders = {group.folder.path: group.folder for group in groups}
    return Content(
        groups, shown, [Grades(group, shown) for group in groups], varying_settings(groups),
        judged_methods(folders.values()),
    )  # fmt: skip
