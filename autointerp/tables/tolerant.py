"""Final tables as they are found: with columns missing, of another type, or with strings that are no text."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa

from autointerp.errors import UserError


def complete(table: pa.Table, schema: pa.Schema, decode: Callable[[bytes], str] | None = None) -> pa.Table:
    """The columns of a schema, in its types; null where the table has none.

    Strings that are not UTF-8, which parquet does not forbid, are read by `decode`; by default with the replacement
    character for what is none.
    """
    columns = []
    for field in schema:
        if field.name not in table.column_names:
            columns.append(pa.nulls(table.num_rows, field.type))
            continue
        column = table.column(field.name)
        columns.append(_text(column if column.type == field.type else column.cast(field.type), decode or _replaced))
    return pa.Table.from_arrays(columns, schema=schema)


def unreadable(file: Path, error: Exception) -> UserError:
    """The error of a table that is damaged: which, why, and what to do."""
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    return UserError(f"cannot read '{file}': {reason}; delete it and run the stage that writes it again")


def _text(column: pa.ChunkedArray, decode: Callable[[bytes], str]) -> pa.ChunkedArray:
    if not (pa.types.is_string(column.type) or column.type == pa.list_(pa.string())):
        return column
    try:
        column.validate(full=True)
    except pa.ArrowInvalid:
        binary = pa.binary() if pa.types.is_string(column.type) else pa.list_(pa.binary())
        return pa.chunked_array([pa.array(_decoded(column.cast(binary).to_pylist(), decode), column.type)])
    return column


def _decoded(value: Any, decode: Callable[[bytes], str]) -> Any:
    if isinstance(value, list):
        return [_decoded(item, decode) for item in value]
    # Arrow cannot hold a surrogate, so its escaped spelling is what is kept.
    return decode(value).encode("utf-8", "backslashreplace").decode("utf-8") if isinstance(value, bytes) else value


def _replaced(raw: bytes) -> str:
    return raw.decode("utf-8", "replace")
