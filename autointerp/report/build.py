"""Writes the report: one page, its script, an index of latents and shards of cards.

A page opened from `file://` may not fetch, but it may add script elements. So every data file is a script
that hands its content to `window.__autointerp_add`, and cards are loaded when one of them is opened. The same
tables give the same bytes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from importlib.resources import files
from itertools import islice
from pathlib import Path
from typing import Any

from jinja2 import DictLoader, Environment, StrictUndefined
from markupsafe import Markup

from autointerp.errors import UserError
from autointerp.files import write_text
from autointerp.report import overview
from autointerp.report.cards import Cards
from autointerp.report.grades import Column, columns
from autointerp.report.groups import Group, read_groups
from autointerp.report.text import script_json

CARDS_PER_SHARD = 50
ENTRIES_PER_INDEX = 1000
_OURS = re.compile(r"(data|index)-\d{3,}\.js")


def build_report(run_dirs: Sequence[Path], out: Path | None = None) -> Path:
    """Write the report of one or several run folders; returns the path of its `index.html`.

    `out` is the folder to write to, by default `report` in the first run folder. Every run needs a
    `scores.parquet`; any other table may be missing. Raises `UserError` for a folder that is not a run.
    """
    if not run_dirs:
        raise UserError("no run folder given; name at least one: `autointerp report results/NAME`")
    folder = Path(out) if out is not None else Path(run_dirs[0]) / "report"
    groups = read_groups([Path(path) for path in run_dirs])
    shown = columns(groups)
    folder.mkdir(parents=True, exist_ok=True)
    page = folder / "index.html"
    # The page goes first and comes back last: a page beside shards of another build would show wrong cards.
    page.unlink(missing_ok=True)
    for old in folder.iterdir():
        if _OURS.fullmatch(old.name):
            old.unlink()
    latents = [Cards(group, place, shown) for place, group in enumerate(groups)]
    _write_index(folder, groups, shown, (entry for part in latents for entry in part.entries()))
    for shard, cards in enumerate(_batched((card for part in latents for card in part.cards()), CARDS_PER_SHARD)):
        _write_script(folder / f"data-{shard:03d}.js", {"kind": "cards", "shard": shard, "cards": cards})
    write_text(folder / "report.js", _script())
    write_text(page, _render(groups, shown))
    return page


def _write_index(folder: Path, groups: Sequence[Group], shown: Sequence[Column], entries: Iterable[list[Any]]) -> None:
    """The list of latents in parts: the first is drawn at once, the others arrive behind it."""
    total = sum(len(group.listed) for group in groups)
    head = {
        "groups": [group.label for group in groups],
        "saes": [group.sae_id for group in groups],
        "columns": [{"label": c.label, "method": c.method_label, "primary": c.primary} for c in shown],
        "latents": total,
        "per_index": ENTRIES_PER_INDEX,
        "per_shard": CARDS_PER_SHARD,
    }
    parts = _batched(entries, ENTRIES_PER_INDEX) if total else iter([()])  # an empty report still needs its head
    for part, rows in enumerate(parts):
        content = {"kind": "index", "part": part, "rows": rows}
        _write_script(folder / f"index-{part:03d}.js", {**content, "head": head} if part == 0 else content)


def _render(groups: Sequence[Group], shown: Sequence[Column]) -> str:
    folders = list({group.folder.path: group.folder for group in groups}.values())
    environment = Environment(
        loader=DictLoader({"index": _template("index.html.jinja")}),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("index").render(
        style=Markup(_template("report.css")),  # noqa: S704  (a file of ours)
        title=" · ".join(dict.fromkeys(group.run for group in groups)),
        groups=[
            {
                "label": group.label,
                "facts": overview.facts(group),
                "coverage": overview.coverage(group),
                "metrics": overview.sae_metrics(group),
                "summary": overview.summary(group, shown),
                "figures": overview.figures(group, place, shown),
                "unavailable": overview.unavailable(group),
            }
            for place, group in enumerate(groups)
        ],
        usage=overview.usage(folders),
        failures=overview.failures(folders),
    )


def _batched(items: Iterable[Any], size: int) -> Iterator[tuple[Any, ...]]:
    source = iter(items)
    while batch := tuple(islice(source, size)):
        yield batch


def _template(name: str) -> str:
    return (files("autointerp.report") / "templates" / name).read_text(encoding="utf-8")


def _script() -> str:
    """The page's script: its parts share names, which the enclosing function keeps off `window`."""
    parts = "\n".join(_template(name) for name in ("makers.js", "card.js", "report.js"))
    return f'(() => {{\n"use strict";\n\n{parts}}})();\n'


def _write_script(path: Path, content: dict[str, Any]) -> None:
    write_text(path, f"window.__autointerp_add({script_json(content)});\n")
