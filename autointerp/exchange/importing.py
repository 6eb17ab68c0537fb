"""Other programs' explanations and activations as the tables of a run folder."""

from __future__ import annotations

import hashlib
import importlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from autointerp.errors import UserError
from autointerp.exchange.activations import read_activations
from autointerp.exchange.notes import read_note, scores_in
from autointerp.exchange.plain import finite
from autointerp.files import write_json
from autointerp.tables.parts import clean, write_final
from autointerp.tables.schemas import TABLES

imported = importlib.import_module("autointerp.explain.import")

Row = dict[str, Any]

MARK = "import.json"
"""Says of a run folder that it was made here, and may be made again."""
FROM_NOTE = ("explanation_id", "explainer", "explainer_model", "draw", "corpus")


def import_neuronpedia(path: Path, out: Path, source: str | None = None) -> Counter[str]:
    """A run folder of a source's folder, of one of its folders of batches, or of one JSONL file of explanations.

    Of all sources in it, or of the one that is named. Scores are those in the notes of our own exports.

    Raises:
        UserError: there is nothing to read, or something else in `out`.
    """
    lines = _records(path, source)
    run_id = _prepare(out)
    explanations, scores = [], []
    for line in lines:
        row = _explanation(line, run_id)
        explanations.append(row)
        if note := read_note(line.get("notes")):
            about = {"run_id": run_id, "model": line.get("modelId"), "sae_id": row["sae_id"], "latent": row["latent"]}
            scores += scores_in(note, {**about, "layer": imported.whole(row["sae_id"].partition("-")[0])})
    tables = {"explanations": pd.DataFrame(explanations), "scores": pd.DataFrame(scores)}
    if (Path(path) / "activations").is_dir():
        windows = read_activations(path).assign(run_id=run_id)
        tables["windows"] = windows if source is None else windows[windows["sae_id"] == source]
    if (Path(path) / "features").is_dir():
        features = [
            _latent(line, run_id) for file in sorted((Path(path) / "features").iterdir()) if imported.of_lines(file)
            for line in imported.json_lines(file) if source in (None, line.get("layer"))
        ]  # fmt: skip
        tables["latents"] = pd.DataFrame([row for row in features if row["latent"] is not None])
    return _write(out, "neuronpedia", path, tables)


def import_delphi(path: Path, out: Path, source: str | None = None) -> Counter[str]:
    """A run folder of delphi's folder of explanations, or of a run's that holds one. Its scores are not read.

    Raises:
        UserError: there is nothing to read, or something else in `out`.
    """
    lines = _records(path, source)
    run_id = _prepare(out)
    explanations = pd.DataFrame([_explanation(line, run_id) for line in lines])
    return _write(out, "delphi", path, {"explanations": explanations, "scores": pd.DataFrame()})


IMPORTERS: dict[str, Callable[[Path, Path, str | None], Counter[str]]] = {
    "neuronpedia": import_neuronpedia,
    "delphi": import_delphi,
}


def _records(path: Path, source: str | None) -> list[Row]:
    lines: list[Row] = imported.records(str(path))
    known = sorted({str(line.get("layer")) for line in lines})
    if source is not None and source not in known:
        raise UserError(f"'{path}' has no explanations of '{source}' (but of {', '.join(known)})")
    for number, line in enumerate(lines, start=1):
        if imported.whole(_first(line, imported.LATENT_COLUMNS)) is None:
            raise UserError(f"'{path}': explanation {number} has no latent's index")
    return [line for line in lines if source in (None, str(line.get("layer")))]


def _explanation(line: Row, run_id: str) -> Row:
    found = imported.proposal(_first(line, imported.TEXT_COLUMNS), line.get("status"))
    note: Mapping[str, Any] = read_note(line.get("notes")) or {}
    named = line.get("id") or hashlib.sha256(str(found.text).encode("utf-8", "surrogatepass")).hexdigest()[:16]
    latent = imported.whole(_first(line, imported.LATENT_COLUMNS))
    row = {
        "run_id": run_id, "sae_id": str(line.get("layer")), "latent": latent, "pole": imported.pole_of(line),
        "text": found.text, "status": found.status, "draw": 0, "explanation_id": named,
        "explainer": line.get("typeName"), "explainer_model": line.get("explanationModelName"),
        **{name: note[name] for name in FROM_NOTE if note.get(name) is not None},
    }  # fmt: skip
    return clean(row)


def _latent(line: Row, run_id: str) -> Row:
    density, largest = line.get("frac_nonzero"), line.get("maxActApprox")
    known = isinstance(density, int | float) and finite(density) and density >= 0
    return {
        "run_id": run_id, "sae_id": str(line.get("layer")), "latent": imported.whole(line.get("index")),
        "density": density if known else None,
        "max_activation": largest if isinstance(largest, int | float) and finite(largest) else None,
        # Live or rare depends on how windows are cut and counted, which the files do not say.
        "state": "dead" if density == 0 else None,
    }  # fmt: skip


def _first(line: Row, names: Iterable[str]) -> Any:
    return next((line[name] for name in names if name in line), None)


def _prepare(out: Path) -> str:
    if out.exists() and not (out / MARK).is_file() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"'{out}' holds something else already; choose another --out")
    out.mkdir(parents=True, exist_ok=True)
    for name in TABLES:
        (out / f"{name}.parquet").unlink(missing_ok=True)
    return out.resolve().name


def _write(out: Path, program: str, path: Path, tables: Mapping[str, pd.DataFrame]) -> Counter[str]:
    counts: Counter[str] = Counter({name: len(frame) for name, frame in tables.items()})
    write_json(out / MARK, {"program": program, "from": Path(path).resolve().name, "rows": dict(counts)})
    for name, frame in tables.items():
        whole = frame.reindex(columns=TABLES[name].names).astype(object)
        write_final(out, name, whole.where(whole.notna(), None))
    counts["explanations without a text"] = int(tables["explanations"]["text"].isna().sum())
    return counts
