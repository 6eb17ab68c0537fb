"""Reading the final tables of a run folder, whatever is missing from it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from autointerp.errors import UserError
from autointerp.report.text import decode
from autointerp.tables.schemas import TABLES
from autointerp.tables.tolerant import complete, unreadable

Row = dict[str, Any]


class RunFolder:
    """The tables of one run. A table that is missing reads as an empty one with the right columns.

    With `latent`, every table but those about a run as a whole has the rows of that latent only.
    """

    def __init__(self, path: Path, latent: int | None = None) -> None:
        self.path, self.latent = Path(path), latent
        if not self.path.is_dir():
            raise UserError(f"there is no run folder {self.path}; give the folder that a run was written to (--out)")
        if not (self.path / "scores.parquet").is_file():
            raise UserError(
                f"no scores.parquet in {self.path}: nothing has been scored there yet; "
                f"run `autointerp score --run {self.path} --method surprisal`"
            )

    def table(self, name: str, columns: Sequence[str] | None = None) -> pa.Table:
        """The table with the columns of its schema, in order; columns the file lacks are null."""
        schema = TABLES[name]
        wanted = list(columns) if columns is not None else schema.names
        file = self.path / f"{name}.parquet"
        if not file.is_file():
            return pa.schema([schema.field(column) for column in wanted]).empty_table()
        try:
            present = set(pq.read_schema(file).names)
            only = [("latent", "=", self.latent)] if self.latent is not None and "latent" in present else None
            table = pq.read_table(file, columns=[column for column in wanted if column in present], filters=only)
        except (pa.ArrowException, OSError) as error:
            raise unreadable(file, error) from error
        return shown(table, wanted, schema)

    def frame(self, name: str) -> pd.DataFrame:
        """The table as pandas; nullable integers stay integers."""
        frame: pd.DataFrame = self.table(name).to_pandas(types_mapper={pa.int64(): pd.Int64Dtype()}.get)
        return frame


def records(frame: pd.DataFrame) -> list[Row]:
    """Rows as dictionaries in which every kind of missing value is None."""
    columns = [plain(frame[name]) for name in frame.columns]
    names = [str(name) for name in frame.columns]
    return [dict(zip(names, values, strict=True)) for values in zip(*columns, strict=True)]


def plain(column: pd.Series) -> list[Any]:
    """The values as Python's own, with None for every kind of missing one."""
    known = column.notna()
    values: list[Any] = column.astype(object).tolist()
    return values if bool(known.all()) else [v if k else None for v, k in zip(values, known.tolist(), strict=True)]


def shown(table: pa.Table, wanted: Sequence[str], schema: pa.Schema) -> pa.Table:
    """The wanted columns in the schema's types; blank where null would split a group."""
    full = complete(table, pa.schema([schema.field(name) for name in wanted]), decode)
    for name, blank in (("sae_id", ""), ("control", "none")):
        if name in wanted:
            at = full.column_names.index(name)
            full = full.set_column(at, name, pc.fill_null(full.column(name), blank))
    return full
