"""Reading run folders for a comparison: their tables as one, and the settings and spending of each run.

A study's folder holds the tables of all its cells; settings and spending are in the cells, which are run folders.
"""

from __future__ import annotations

import glob
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from autointerp.errors import UserError
from autointerp.files import own_name
from autointerp.pipeline.cells import run_folders
from autointerp.stats.comparable import setting_of
from autointerp.stats.frames import LATENT
from autointerp.stats.variants import contents, identity, labelled
from autointerp.tables.parts import NULLABLE
from autointerp.tables.schemas import TABLES
from autointerp.tables.tolerant import complete, unreadable

READ = ("scores", "explanations", "latents", "sae_metrics")
"""Tables that every comparison reads; usage and failures are read run by run."""
CONDITION = (
    "run_id", "model", "sae_id", "arch", "hookpoint", "layer", "width", "l0", "explainer", "explainer_model", "method",
    "scorer_model", "control", "draw", "corpus",
)  # fmt: skip
"""Columns of scores that do not tell latents apart."""


@dataclass(frozen=True)
class Part:
    """One run, or one cell of a study: what was done there (`scores` without latents), how, and what it took."""

    folder: Path
    of: str
    """The folder that was named, as it was named."""
    settings: Mapping[str, Any]
    """By dotted name; empty where the folder has no config.yaml."""
    scores: pd.DataFrame = field(repr=False)
    usage: pd.DataFrame = field(repr=False)
    n_failures: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Gathered:
    """Tables of all folders one below the other, with all columns of their schema and `folder`."""

    folders: tuple[Path, ...]
    tables: dict[str, pd.DataFrame] = field(repr=False)
    parts: tuple[Part, ...]

    @property
    def settings(self) -> pd.DataFrame:
        """Settings that comparisons depend on, a row per dictionary and method of each part: sae_id, folder, method,
        name, value."""
        frames = []
        for part in self.parts:
            named = pd.DataFrame([
                {"name": name, "value": _shown(value)} for name, value in part.settings.items() if setting_of(name)
            ], columns=["name", "value"])  # fmt: skip
            frames.append(
                part.scores[["sae_id", "method"]].drop_duplicates().assign(folder=part.of).merge(named, how="cross")
            )
        return pd.concat(frames, ignore_index=True)

    @property
    def unsettled(self) -> list[str]:
        """Folders whose settings are not known."""
        return sorted({str(part.folder) for part in self.parts if not part.settings})


def folders_of(paths: str | Path | Iterable[str | Path]) -> tuple[Path, ...]:
    """Folders that paths and globs name, each once, in order.

    Raises:
        UserError: one names nothing that is there, or something without scores.
    """
    named = [paths] if isinstance(paths, str | Path) else list(paths)
    found: dict[Path, Path] = {}
    for each in named:
        there = [Path(each)] if Path(each).is_dir() else [Path(p) for p in sorted(glob.glob(str(each)))]  # noqa: PTH207
        star = glob.has_magic(str(each)) and not Path(each).is_dir()
        kept = [path for path in there if (path / "scores.parquet").is_file()]
        if not kept or (not star and len(kept) < len(there)):
            raise UserError(
                f"no scores.parquet in '{each}': compare wants folders of runs or studies that were scored "
                "(`autointerp score --run DIR`)"
            )
        for path in kept:
            found.setdefault(path.resolve(), path)
    if not found:
        raise UserError("nothing to compare: name run folders, e.g. `autointerp compare results/a results/b`")
    return tuple(found.values())


def gather(paths: str | Path | Iterable[str | Path], more: Sequence[str] = ()) -> Gathered:
    """Read what comparisons need, and the tables that `more` names.

    Raises:
        UserError: as `folders_of`; or a table that cannot be read.
    """
    folders = folders_of(paths)
    tables = {}
    parts: list[Part] = []
    for folder in folders:
        parts += [_part(cell, str(folder)) for cell in run_folders(folder, "scores.parquet")]
    for name in (*READ, *more):
        frames = [_frame(folder, name).assign(folder=str(folder)) for folder in folders]
        kept = [frame for frame in frames if len(frame)] or frames[:1]
        tables[name] = pd.concat(kept, ignore_index=True)
    known = {part.of: _corpus_of(part) for part in parts if Path(part.of) == part.folder}
    for name, frame in tables.items():
        if "draw" in frame:
            frame["draw"] = frame["draw"].fillna(0)
        if "corpus" in frame:
            # Runs from before that column have one corpus, which their settings name.
            frame["corpus"] = frame["corpus"].astype(object).where(frame["corpus"].notna(), frame["folder"].map(known))
        tables[name] = frame
    tables["scores"] = _with_prompts(tables["scores"], tables["explanations"])
    return Gathered(folders, tables, tuple(parts))


def latents_of(gathered: Gathered, scores: pd.DataFrame) -> pd.DataFrame:
    """`latents` under the `sae_id`s of labelled scores, each latent once per corpus.

    One SAE that was read on its own model and on a random one, within one folder, cannot be told apart there; it has
    no rows.
    """
    latents = gathered.tables["latents"]
    places = scores[["folder", "sae_id", "place"]].drop_duplicates()
    places = places.assign(sae_id=places["sae_id"].map(contents)).drop_duplicates(["folder", "sae_id"], keep=False)
    found = latents.merge(places, on=["folder", "sae_id"], how="inner")
    found["sae_id"] = identity(found["sae_id"], found["place"])
    return found.drop_duplicates([*LATENT, "corpus"], ignore_index=True)


def labelled_like(gathered: Gathered, scores: pd.DataFrame) -> Gathered:
    """The same with what labelled scores say of dictionaries in the scores of its parts; what is in no table is left
    out, such as a cell of a study that was taken out of it."""
    names = scores.drop_duplicates("sae_id").set_index("sae_id")["variant"]
    together = labelled(pd.concat([part.scores.assign(part=i) for i, part in enumerate(gathered.parts)]))
    together["variant"] = together["sae_id"].map(names)
    together = together[together["variant"].notna() & together["own"]].assign(control=lambda table: table["place"])
    parts = [
        replace(part, scores=together[together["part"] == i].drop(columns="part"))
        for i, part in enumerate(gathered.parts)
    ]
    return replace(gathered, parts=tuple(parts))


def _part(folder: Path, of: str) -> Part:
    scores = _frame(folder, "scores")[list(CONDITION)].drop_duplicates()
    scores["draw"] = scores["draw"].fillna(0)
    failures = _frame(folder, "failures")
    return Part(
        folder, of, _settings(folder / "config.yaml", scores["method"].unique()), scores.assign(folder=of),
        _frame(folder, "usage"),
        {str(stage): int(n) for stage, n in failures["stage"].value_counts().items()},
    )  # fmt: skip


def _with_prompts(scores: pd.DataFrame, explanations: pd.DataFrame) -> pd.DataFrame:
    """`explanation_prompt`: the prompt that a row's explainer was asked with, in its folder."""
    keys = ["folder", "sae_id", "explainer", "explainer_model"]
    asked = explanations.dropna(subset=["prompt_sha"])
    shas = asked.groupby(keys, dropna=False)["prompt_sha"].agg(lambda shas: "+".join(sorted(set(shas))))
    return scores.merge(shas.rename("explanation_prompt").reset_index(), on=keys, how="left")


def _frame(folder: Path, name: str) -> pd.DataFrame:
    """A table with all columns of its schema, those it lacks null; an empty one where there is no file."""
    schema, path = TABLES[name], folder / f"{name}.parquet"
    try:
        table = complete(pq.read_table(path), schema) if path.is_file() else schema.empty_table()
    except (pa.ArrowException, OSError) as error:
        raise unreadable(path, error) from error
    frame: pd.DataFrame = table.to_pandas(types_mapper=NULLABLE.get)
    return frame


def _settings(path: Path, methods: Iterable[str]) -> dict[str, Any]:
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"'{path}' is no valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(found, Mapping):
        return {}
    flat = dict(_flat(found, ""))
    options = flat.pop("score.options", None) or {}
    # A method without options has its defaults, which is a setting like any other.
    return flat | {f"score.options.{method}": options.get(method, {}) for method in methods}


def _flat(tree: Mapping[str, Any], above: str) -> Iterable[tuple[str, Any]]:
    for name, value in tree.items():
        dotted = f"{above}{name}"
        if isinstance(value, Mapping) and name != "options":
            yield from _flat(value, f"{dotted}.")
        else:
            yield dotted, value


def _corpus_of(part: Part) -> str | None:
    dataset = part.settings.get("data.dataset")
    return own_name(dataset) if isinstance(dataset, str) else None


def _shown(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
