"""The tables of a study: those of its cells, one below the other, under the study's name."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from autointerp.pipeline.cells import Cell
from autointerp.pipeline.run import Run, total_usage
from autointerp.tables.load import load_table
from autointerp.tables.parts import write_final
from autointerp.tables.schemas import TABLES

ONCE = {
    "explanations": ["sae_id", "latent", "pole", "explanation_id", "explainer", "explainer_model", "draw", "corpus"],
    "windows": ["sae_id", "latent", "pole", "split", "window_id", "draw", "corpus"],
}
"""What two cells may both hold (another judge grades the same explanations), and what tells two rows of it apart."""
OF_LEADERS = ("latents", "sae_metrics", "lens")
"""Tables about dictionaries: nothing in them depends on the explainer or the judge."""


def unite(study: Run, cells: Sequence[Cell], trained: Sequence[pd.DataFrame] = ()) -> None:
    """Write the study's tables. `trained` are figures that were measured when dictionaries were trained: they stand
    beside what was measured on the study's own text, where that has not got them."""
    for table in TABLES:
        frames = [
            load_table(cell.folder, table)
            for cell in cells
            if (cell.leads or table not in OF_LEADERS) and (cell.folder / f"{table}.parquet").is_file()
        ]
        if table == "sae_metrics":
            frames += list(trained)
        if table == "usage":
            frames += study.spent()
        frames = [frame for frame in frames if len(frame)]
        frame = pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()
        if len(frame):
            frame["run_id"] = study.run_id
            if table in ONCE:
                frame = frame.drop_duplicates(ONCE[table])
            if table == "sae_metrics":
                frame = frame.drop_duplicates(["sae_id", "metric"])
            if table == "usage":
                frame = total_usage(frame)
        write_final(study.folder, table, frame)
