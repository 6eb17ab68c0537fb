"""What a study consists of: dictionaries, and one ordinary run for each combination of what is crossed.

A cell is a run folder like any other. Cells that differ in the draw, the explainer, the judge or the corpus are about
the same latents, so that their differences are those of the pipeline.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path

from autointerp.config import RunSettings, StudySettings
from prompts.requests import fingerprint

STAGES = ("train", "collect", "explain", "score")
CELLS, STORES = "cells", "store"
FINISHED, DICTIONARIES = "finished.json", "dictionaries.json"
CHOSEN = "chosen.json"
"""The latents of a run, so that others can be about the same."""
OF_DICTIONARIES = {"sae", "null", "seed", "subject", "data", "train", "study"}
"""Settings that say which dictionaries there are."""


@dataclass(frozen=True)
class Dictionary:
    """A dictionary of a study: what `--sae` and `--null` would name, and where it reads (None: its metadata says)."""

    name: str
    sae: str
    null: str | None = None
    hookpoint: str | None = None


@dataclass(frozen=True)
class Cell:
    """One run. What does not depend on draw, explainer and judge is written by the cell that `leads`."""

    name: str
    folder: Path
    dictionary: Dictionary
    settings: RunSettings = field(repr=False)
    leads: bool
    latents_of: Path | None = None
    """Run folder whose latents this cell is about as well."""
    explanations_of: Path | None = None
    """Run folder whose explanations another judge grades here."""


def none_live(cell: Cell) -> bool:
    """Its latents are known, and none was chosen."""
    return (cell.folder / "latents.parquet").is_file() and not (cell.folder / CHOSEN).is_file()


def run_folders(folder: Path, having: str) -> list[Path]:
    """The cells of a study that have a file of this name; the folder itself where it has no such cells."""
    return sorted(path.parent for path in (folder / CELLS).glob(f"*/{having}")) or [folder]


def dictionaries_mark(settings: RunSettings) -> str:
    """What the settings that say which dictionaries there are are known by."""
    return fingerprint(settings.model_dump(mode="json", include=OF_DICTIONARIES))


def known_cells(settings: RunSettings, out: Path) -> list[Cell] | None:
    """The study's cells, from what was written down when its dictionaries were made; None before that."""
    path = out / DICTIONARIES
    known = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if known.get("of") != dictionaries_mark(settings):
        return None
    return cells_of(settings, [Dictionary(**one) for one in known["dictionaries"]], out)


def cells_of(settings: RunSettings, dictionaries: Sequence[Dictionary], out: Path) -> list[Cell]:
    """Every combination, dictionary by dictionary; a single one is run in `out` itself."""
    study = settings.study
    corpora = study.corpora or (settings.data.dataset,)
    explainers = study.explainers or (settings.explain.explainer,)
    judges = study.judges or (settings.score.llm,)
    crossed = list(product(range(len(corpora)), range(study.draws), range(len(explainers)), range(len(judges))))
    stores = Path(settings.stores) if settings.stores else out / STORES
    alone = len(dictionaries) * len(crossed) == 1

    def name_of(dictionary: Dictionary, place: tuple[int, int, int, int]) -> str:
        c, draw, e, j = place
        parts = [dictionary.name]
        parts += [_slug(str(corpora[c]))] if len(corpora) > 1 else []
        parts += [f"draw{draw}"] if study.draws > 1 else []
        parts += [_slug(explainers[e])] if len(explainers) > 1 else []
        parts += [_slug(str(judges[j]))] if len(judges) > 1 else []
        return "-".join(parts)

    def folder_of(dictionary: Dictionary, place: tuple[int, int, int, int]) -> Path:
        return out if alone else out / CELLS / name_of(dictionary, place)

    found = []
    for dictionary, place in product(dictionaries, crossed):
        c, draw, e, j = place
        methods = tuple(name for name in settings.score.methods if draw == 0 or name not in study.once)
        own = settings.model_copy(
            update={
                "out": str(folder_of(dictionary, place)), "sae": dictionary.sae, "null": dictionary.null, "draw": draw,
                "stores": str(stores / _slug(str(corpora[c])) if len(corpora) > 1 else stores),
                "study": StudySettings(),
                "data": settings.data.model_copy(update={"dataset": corpora[c]}),
                "explain": settings.explain.model_copy(update={"explainer": explainers[e]}),
                "score": settings.score.model_copy(update={"llm": judges[j], "methods": methods}),
            }
        )  # fmt: skip
        if dictionary.hookpoint is not None:
            subject = settings.subject.model_copy(update={"hookpoint": dictionary.hookpoint})
            own = own.model_copy(update={"subject": subject})
        found.append(
            Cell(
                name=name_of(dictionary, place), folder=folder_of(dictionary, place), dictionary=dictionary,
                settings=own, leads=(draw, e, j) == (0, 0, 0),
                latents_of=folder_of(dictionary, (0, 0, 0, 0)) if place != (0, 0, 0, 0) else None,
                explanations_of=folder_of(dictionary, (c, draw, e, 0)) if j else None,
            )
        )  # fmt: skip
    return found


def _slug(text: str) -> str:
    """Of a name or a path, what can stand in a folder's name; corpora that differ in their folders only are told apart
    by those."""
    return re.sub(r"[^\w.]+", "_", text).strip("_")
