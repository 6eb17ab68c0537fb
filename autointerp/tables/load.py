"""Read the tables of one or many runs into pandas."""

from __future__ import annotations

import glob
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq

from autointerp.errors import UserError
from autointerp.tables.parts import NULLABLE


def load_table(runs: str | Path, table: str) -> pd.DataFrame:
    """One table of every run that a path or a glob names, one below the other.

    Raises:
        UserError: no run there has that table.
    """
    folders = [Path(runs)] if Path(runs).is_dir() else map(Path, sorted(glob.glob(str(runs))))  # noqa: PTH207
    paths = [folder / f"{table}.parquet" for folder in folders]
    found = [path for path in paths if path.is_file()]
    if not found:
        raise UserError(f"no {table}.parquet in '{runs}'; a finished run folder holds one (see docs/tables.md)")
    frame: pd.DataFrame = pd.concat(
        [pq.read_table(p).to_pandas(types_mapper=NULLABLE.get) for p in found], ignore_index=True
    )
    return frame


def load_scores(runs: str | Path) -> pd.DataFrame:
    """`scores.parquet`: one row per latent x explanation x method x metric x control."""
    return load_table(runs, "scores")


def load_explanations(runs: str | Path) -> pd.DataFrame:
    """`explanations.parquet`: what was said of each latent, or why nothing was."""
    return load_table(runs, "explanations")


def load_latents(runs: str | Path) -> pd.DataFrame:
    """`latents.parquet`: every latent of the SAE, dead and rare ones included."""
    return load_table(runs, "latents")
