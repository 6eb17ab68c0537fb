"""Reading the final tables of a run folder, whatever is missing from it, one latent at a time."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from autointerp.errors import UserError
from autointerp.report.text import decode
from autointerp.tables.schemas import TABLES

WINDOW_KEYS = ["sae_id", "latent", "split", "window_id", "kind", "quantile"]
WINDOW_TEXTS = ["document", "pieces", "activations"]

Row = dict[str, Any]


class RunFolder:
    """The tables of one run. A table that is missing reads as an empty one with the right columns."""

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
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
            table = pq.read_table(file, columns=[column for column in wanted if column in present])
        except (pa.ArrowException, OSError) as error:
            raise _unreadable(file, error) from error
        return _complete(table, wanted, schema)

    def frame(self, name: str) -> pd.DataFrame:
        """The table as pandas; nullable integers stay integers."""
        frame: pd.DataFrame = self.table(name).to_pandas(types_mapper={pa.int64(): pd.Int64Dtype()}.get)
        return frame

    def window_texts(self, rows: Sequence[int]) -> pa.Table:
        """The heavy columns of the given rows (ascending row numbers of windows.parquet).

        A windows table can hold tens of millions of tokens of which the report shows a few per cent, so it is
        streamed and never held whole.
        """
        file = self.path / "windows.parquet"
        schema = pa.schema([TABLES["windows"].field(column) for column in WINDOW_TEXTS])
        found: list[pa.Table] = [schema.empty_table()]
        if not rows or not file.is_file():
            return found[0]
        start, cursor = 0, 0
        source = pq.ParquetFile(file)
        present = [column for column in WINDOW_TEXTS if column in source.schema_arrow.names]
        for batch in source.iter_batches(batch_size=4096, columns=present):
            stop = cursor
            while stop < len(rows) and rows[stop] < start + batch.num_rows:
                stop += 1
            if stop > cursor:
                here = pa.array([row - start for row in rows[cursor:stop]], pa.int64())
                found.append(_complete(pa.Table.from_batches([batch]).take(here), WINDOW_TEXTS, TABLES["windows"]))
            start, cursor = start + batch.num_rows, stop
        return pa.concat_tables(found).combine_chunks()


def records(frame: pd.DataFrame) -> list[Row]:
    """Rows as dictionaries in which every kind of missing value is None."""
    plain = frame.astype(object).where(frame.notna(), None)
    return [{str(name): value for name, value in row.items()} for row in plain.to_dict("records")]


class ByLatent:
    """Rows of a table, found by SAE and latent."""

    def __init__(self, table: pa.Table) -> None:
        self._table = table.combine_chunks()
        keys = self._table.select(["sae_id", "latent"]).to_pandas()
        # pandas drops rows with a null key, which is right here: a row of no latent belongs on no card.
        self._rows = keys.groupby(["sae_id", "latent"], sort=False).indices

    def numbers(self, sae_id: str, latent: int) -> list[int]:
        """Row numbers, in the table's order."""
        found = self._rows.get((sae_id, latent))
        return [] if found is None else [int(row) for row in found]

    def rows(self, sae_id: str, latent: int) -> list[Row]:
        """The rows as dictionaries, in the table's order."""
        numbers = self.numbers(sae_id, latent)
        if not numbers:
            return []
        rows: list[Row] = self._table.take(pa.array(numbers, pa.int64())).to_pylist()
        return rows


def _complete(table: pa.Table, wanted: Sequence[str], schema: pa.Schema) -> pa.Table:
    columns = []
    for name in wanted:
        kind = schema.field(name).type
        if name not in table.column_names:
            columns.append(pa.nulls(table.num_rows, kind))
            continue
        column = table.column(name)
        if column.type != kind:
            column = column.cast(kind)
        columns.append(_repaired(column))
    complete = pa.Table.from_arrays(columns, schema=pa.schema([schema.field(name) for name in wanted]))
    for name, blank in (("sae_id", ""), ("control", "none")):
        if name in wanted:
            at = complete.column_names.index(name)
            complete = complete.set_column(at, name, complete.column(name).fill_null(blank))
    return complete


def _repaired(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Strings that are not UTF-8 (byte-level token pieces written carelessly) become readable text."""
    if not (pa.types.is_string(column.type) or column.type == pa.list_(pa.string())):
        return column
    try:
        column.validate(full=True)
    except pa.ArrowInvalid:
        binary = pa.binary() if pa.types.is_string(column.type) else pa.list_(pa.binary())
        return pa.chunked_array([pa.array(_decoded(column.cast(binary).to_pylist()), column.type)])
    return column


def _decoded(value: Any) -> Any:
    if isinstance(value, list):
        return [_decoded(item) for item in value]
    # Arrow cannot hold a surrogate, so its escaped spelling is what reaches the page.
    return decode(value).encode("utf-8", "backslashreplace").decode("utf-8") if isinstance(value, bytes) else value


def _unreadable(file: Path, error: Exception) -> UserError:
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    return UserError(f"cannot read {file}: {reason}; delete it and run the stage that writes it again")
