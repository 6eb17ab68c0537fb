"""Neuronpedia's activations as rows of `windows.parquet`."""

from __future__ import annotations

import importlib
import re
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from autointerp.errors import UserError
from autointerp.exchange.neuronpedia import SPLITS
from autointerp.exchange.plain import finite
from autointerp.tables.schemas import TABLES
from scoring.types import ACTIVATING

imported = importlib.import_module("autointerp.explain.import")

Row = dict[str, Any]

OURS = re.compile(rf"({'|'.join(SPLITS)})/(.+)", re.DOTALL)
"""What our own exports write for `dataIndex`: the split, and the window."""


def read_activations(path: str | Path) -> pd.DataFrame:
    """Windows with their pieces (str) and activations (float32), one row each, in the columns of `windows.parquet`.

    `path` is a JSONL file, gzipped or not, a folder of them, or a source's folder with one called `activations`.
    `sae_id` is the source. What the files do not say is null: token ids, documents, and where the export is not ours,
    the split. `pole` is the sign of the strongest value, `quantile` the rank of the row's bin among its latent's
    (0 = weakest). Rows whose values are all 0 are no activations, and left out.

    Raises:
        UserError: there are none, or a line is none.
    """
    rows = [
        _window(line, f"'{file}', activation {number}")
        for file in _files(Path(path).expanduser())
        for number, line in enumerate(imported.json_lines(file), start=1)
    ]
    if not rows:
        raise UserError(f"no activations in '{path}': it is empty")
    kept = [row for row in rows if any(row["activations"])]
    _rank_bins(kept)
    frame = pd.DataFrame(kept, columns=TABLES["windows"].names)
    whole = dict.fromkeys(("latent", "pole", "document", "start", "quantile", "draw"), "Int64")
    return frame.astype(whole)


def _files(place: Path) -> list[Path]:
    if place.is_file():
        return [place]
    folder = place / "activations" if (place / "activations").is_dir() else place
    files = sorted(file for file in folder.iterdir() if imported.of_lines(file)) if folder.is_dir() else []
    if not files:
        raise UserError(f"no activations at '{place}': no .jsonl[.gz] file, and no folder of them")
    return sorted(files, key=lambda file: (len(file.name), file.name))


def _window(line: Row, where: str) -> Row:
    tokens, values, index = line.get("tokens"), line.get("values"), imported.whole(line.get("index"))
    if index is None:
        raise UserError(f"{where}: it has no latent's 'index'")
    if not isinstance(tokens, list) or not isinstance(values, list) or not tokens or len(tokens) != len(values):
        raise UserError(f"{where}: 'tokens' and 'values' are wanted, one value a token")
    if not all(isinstance(token, str) for token in tokens):
        raise UserError(f"{where}: its tokens are no strings")
    if not all(isinstance(value, int | float) and finite(value) for value in values):
        raise UserError(f"{where}: its values are no numbers")
    ours = OURS.fullmatch(line.get("dataIndex") or "") if isinstance(line.get("dataIndex"), str | None) else None
    activations = np.asarray(values, dtype=np.float32)
    strongest = activations[np.abs(activations).argmax()]
    return {
        "sae_id": str(line.get("layer")), "latent": index, "pole": -1 if strongest < 0 else 1,
        "split": ours.group(1) if ours else None, "window_id": ours.group(2) if ours else str(line.get("id")),
        "kind": ACTIVATING, "pieces": tokens, "activations": activations.tolist(), "text": "".join(tokens),
        "corpus": line.get("dataSource") if isinstance(line.get("dataSource"), str) else None, "draw": 0,
        # Replaced by its rank among those of the latent.
        "quantile": (line.get("binMin"), line.get("binMax")),
    }  # fmt: skip


def _rank_bins(rows: list[Row]) -> None:
    bins: dict[tuple[Any, ...], set[tuple[float, float]]] = defaultdict(set)
    known = [row for row in rows if all(isinstance(end, int | float) for end in row["quantile"])]
    for row in known:
        bins[row["sae_id"], row["latent"], row["pole"]].add(row["quantile"])
    ranks = {
        key: {edges: rank for rank, edges in enumerate(sorted(some, key=lambda ends: (key[2] * ends[0], ends)))}
        for key, some in bins.items()
    }
    for row in rows:
        of_latent = ranks.get((row["sae_id"], row["latent"], row["pole"]), {})
        row["quantile"] = of_latent.get(row["quantile"])
