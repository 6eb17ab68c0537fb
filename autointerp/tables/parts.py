"""Part files and final tables in parquet, always with the schema of `schemas.py`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from autointerp.files import replacing
from autointerp.tables.schemas import SORT_KEYS, TABLES


def write_rows(path: Path, table: str, rows: Sequence[dict[str, Any]]) -> None:
    """A part file: the table's columns and `work_key`. A row with another column is an error of ours."""
    schema = TABLES[table].append(pa.field("work_key", pa.string()))
    for row in rows:
        unknown = row.keys() - set(schema.names)
        if unknown:
            raise ValueError(f"table {table} has no column {', '.join(sorted(unknown))}")
    with replacing(path) as temporary:
        pq.write_table(pa.Table.from_pylist([clean(row) for row in rows], schema=schema), temporary, compression="zstd")


def clean(row: dict[str, Any]) -> dict[str, Any]:
    """Text that UTF-8 cannot hold (lone surrogates from a tokenizer) becomes the replacement character."""
    return {key: _utf8(value) for key, value in row.items()}


def _utf8(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, list | tuple):
        return [_utf8(item) for item in value]
    return value


def read_rows(paths: Sequence[Path], table: str) -> pd.DataFrame:
    """Part files as one frame, with `work_key` and the `part` each row stands in."""
    if paths:
        # One conversion for all: every shard of a large run reads the parts of all the others.
        parts = [_read(path) for path in paths]
        united = pa.concat_tables(parts, promote_options="permissive")
        joined: pd.DataFrame = united.to_pandas(types_mapper=NULLABLE.get)
        names = [path.stem.rsplit("-", 1)[-1] for path in paths]
        joined["part"] = np.repeat(np.array(names, dtype=object), [len(part) for part in parts])
        return joined
    return pd.DataFrame({name: [] for name in [*TABLES[table].names, "work_key", "part"]})


def _read(path: Path) -> pa.Table:
    # Three times as fast as `read_table`, which looks for a data set of several files first.
    with pq.ParquetFile(path) as file:
        return file.read()


def write_final(run: Path, table: str, frame: pd.DataFrame) -> Path:
    """`RUN/<table>.parquet`, sorted by the table's keys so that no trace of order or shards is left."""
    schema = TABLES[table]
    keys = [key for key in SORT_KEYS[table] if key in frame]
    tidy = frame.reindex(columns=schema.names)
    if len(tidy):
        tidy = tidy.sort_values(keys, kind="stable", na_position="first")
        rows = pa.Table.from_pandas(tidy, schema=schema, preserve_index=False)
    else:
        # A column without values has lost its type, and arrow makes no lists of it.
        rows = schema.empty_table()
    path = run / f"{table}.parquet"
    with replacing(path) as temporary:
        pq.write_table(rows, temporary, compression="zstd")
    return path


NULLABLE: dict[pa.DataType, Any] = {pa.int64(): pd.Int64Dtype(), pa.bool_(): pd.BooleanDtype()}
"""Integers and booleans that may be null keep their type in pandas."""
