"""Writes the report: one page, its script, an index of latents and shards of cards.

A page opened from `file://` may not fetch, but it may add script elements. So every data file is a script
that hands its content to `window.__autointerp_add`, and cards are loaded when one of them is opened. The same
tables give the same bytes.
"""

from __future__ import annotations

import gc
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import DictLoader, Environment, StrictUndefined
from markupsafe import Markup

from autointerp.batched import batched
from autointerp.errors import UserError
from autointerp.files import write_text
from autointerp.report import overview
from autointerp.report.content import Content, read_content
from autointerp.report.grid import grids
from autointerp.report.scorers import agreement, extremes
from autointerp.report.spread import variance
from autointerp.report.text import script_json

CARDS_PER_SHARD = 50
ENTRIES_PER_INDEX = 1000
PAGES = ("index.html.jinja", "sae.html.jinja", "scorers.html.jinja")
SCRIPTS = ("makers.js", "scores.js", "card.js", "filters.js", "report.js")
_OURS = re.compile(r"(data|index)-\d{3,}\.js")


def build_report(run_dirs: Sequence[Path], out: Path | None = None) -> Path:
    """Write the report of one or several run folders; returns the path of its `index.html`.

    `out` is the folder to write to, by default `report` in the first run folder. Every run needs a
    `scores.parquet`; any other table may be missing. Raises `UserError` for a folder that is not a run.
    """
    if not run_dirs:
        raise UserError("no run folder given; name at least one: `autointerp report results/NAME`")
    folder = Path(out) if out is not None else Path(run_dirs[0]) / "report"
    content = read_content([Path(path) for path in run_dirs])
    folder.mkdir(parents=True, exist_ok=True)
    page = folder / "index.html"
    # The page goes first and comes back last: a page beside shards of another build would show wrong cards.
    page.unlink(missing_ok=True)
    for old in folder.iterdir():
        if _OURS.fullmatch(old.name):
            old.unlink()
    _write_index(folder, content)
    with _no_cycles():
        for shard, cards in enumerate(batched(content.cards(), CARDS_PER_SHARD)):
            _write_script(folder / f"data-{shard:03d}.js", {"kind": "cards", "shard": shard, "cards": cards})
    write_text(folder / "report.js", _script())
    write_text(page, _render(content))
    return page


def _write_index(folder: Path, content: Content) -> None:
    """The list of latents in parts: the first is drawn at once, the others are loaded when they are asked for."""
    head = content.head() | {"per_index": ENTRIES_PER_INDEX, "per_shard": CARDS_PER_SHARD}
    # An empty report still needs its head.
    parts = batched(content.entries(), ENTRIES_PER_INDEX) if head["latents"] else iter([()])
    for part, rows in enumerate(parts):
        written = {"kind": "index", "part": part, "rows": rows}
        _write_script(folder / f"index-{part:03d}.js", {**written, "head": head} if part == 0 else written)


def _render(content: Content) -> str:
    groups, shown = content.groups, content.columns
    folders = list({group.folder.path: group.folder for group in groups}.values())
    environment = Environment(
        loader=DictLoader({name: _template(name) for name in PAGES}),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    summaries = [overview.summarised(group) for group in groups]
    return environment.get_template(PAGES[0]).render(
        style=Markup(_template("report.css")),  # noqa: S704  (a file of ours)
        title=" · ".join(dict.fromkeys(group.run for group in groups)),
        groups=[
            {
                "label": group.label,
                "facts": overview.facts(group),
                "coverage": overview.coverage(group),
                "metrics": overview.sae_metrics(group),
                "summary": overview.summary(summaries[place], shown),
                "figures": overview.figures(content.grades[place], place, shown),
                "unavailable": overview.unavailable(group),
            }
            for place, group in enumerate(groups)
        ],
        saes=overview.sae_table(groups) if len(groups) > 1 else None,
        grid=grids(groups, shown, summaries),
        agreement=agreement(groups, shown),
        variance=variance(groups, shown),
        extremes=extremes(groups, shown, content.grades),
        usage=overview.usage(folders),
        failures=overview.failures(folders),
    )


@contextmanager
def _no_cycles() -> Iterator[None]:
    """Cards are trees of lists, of which millions come and go: looking for cycles in them takes a fifth of the time."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


def _template(name: str) -> str:
    return (files("autointerp.report") / "templates" / name).read_text(encoding="utf-8")


def _script() -> str:
    """The page's script: its parts share names, which the enclosing function keeps off `window`."""
    parts = "\n".join(_template(name) for name in SCRIPTS)
    return f'(() => {{\n"use strict";\n\n{parts}}})();\n'


def _write_script(path: Path, content: dict[str, Any]) -> None:
    write_text(path, f"window.__autointerp_add({script_json(content)});\n")
