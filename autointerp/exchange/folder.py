"""The tables of a run folder, with whatever is missing from it, and text in them that is none made into text."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import yaml

from autointerp.errors import UserError
from autointerp.tables.schemas import TABLES
from autointerp.tables.tolerant import complete, unreadable

Row = dict[str, Any]


class Tables:
    """Final tables of one run or study. A table that is not there reads as an empty one with the right columns."""

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        if not self.path.is_dir():
            raise UserError(f"no run folder at '{path}': name the folder that a run was written to (--out)")
        if not any(self.has(name) for name in TABLES):
            raise UserError(
                f"no tables in '{path}': none of {', '.join(f'{name}.parquet' for name in TABLES)} is there; "
                "a finished run folder holds them (see docs/tables.md)"
            )

    def file(self, name: str) -> Path:
        return self.path / f"{name}.parquet"

    def has(self, name: str) -> bool:
        return self.file(name).is_file()

    def batches(self, name: str, columns: list[str] | None = None, size: int = 4096) -> Iterator[pa.Table]:
        """The table in pieces of at most `size` rows, with the columns of its schema; those the file lacks are null.

        Raises:
            UserError: the file cannot be read.
        """
        schema = TABLES[name]
        wanted = schema if columns is None else pa.schema([schema.field(column) for column in columns])
        if not self.has(name):
            return
        try:
            source = pq.ParquetFile(self.file(name))
            there = [column for column in wanted.names if column in source.schema_arrow.names]
            for batch in source.iter_batches(batch_size=size, columns=there):
                yield complete(pa.Table.from_batches([batch]), wanted)
        except (pa.ArrowException, OSError) as error:
            raise unreadable(self.file(name), error) from error

    def table(self, name: str, columns: list[str] | None = None) -> pa.Table:
        wanted = columns if columns is not None else TABLES[name].names
        empty = pa.schema([TABLES[name].field(column) for column in wanted]).empty_table()
        return pa.concat_tables([empty, *self.batches(name, columns)])

    def frame(self, name: str) -> pd.DataFrame:
        """As pandas, with integers that stay integers and null as None or NaN."""
        frame: pd.DataFrame = self.table(name).to_pandas(types_mapper={pa.int64(): pd.Int64Dtype()}.get)
        return frame

    def rows(self, name: str) -> list[Row]:
        rows: list[Row] = self.table(name).to_pylist()
        return rows

    def windows(self, sae_id: str) -> Iterator[tuple[int, list[Row]]]:
        """`(latent, windows)` of one SAE, by latent, read piece by piece: the table may not fit in memory.

        Raises:
            UserError: the table cannot be read, or is not sorted as final tables are.
        """
        last = -1
        for latent, group in groupby(self._windows(sae_id), key=lambda row: int(row["latent"])):
            if latent <= last:
                raise UserError(f"'{self.file('windows')}' is not sorted by sae_id and latent, as final tables are")
            last = latent
            yield latent, list(group)

    def _windows(self, sae_id: str) -> Iterator[Row]:
        for batch in self.batches("windows"):
            yield from batch.filter((pc.field("sae_id") == sae_id) & pc.field("latent").is_valid()).to_pylist()

    def settings(self) -> dict[str, Any]:
        """`config.yaml`, or nothing where there is none that can be read."""
        path = self.path / "config.yaml"
        try:
            found = yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else {}
        except (OSError, UnicodeDecodeError, yaml.YAMLError):
            return {}
        return found if isinstance(found, dict) else {}
