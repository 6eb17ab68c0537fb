"""Pieces and activations of windows, streamed: a windows table can hold a billion tokens."""

from __future__ import annotations

from collections import deque

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from autointerp.report.by_latent import Ints
from autointerp.report.folder import RunFolder, shown
from autointerp.tables.schemas import TABLES

TEXTS = ["document", "pieces", "activations"]
BATCH = 4096
SCHEMA = pa.schema([TABLES["windows"].field(column) for column in TEXTS])


class WindowTexts:
    """Takes rows out of `windows.parquet`, one latent's after another's.

    As long as each request lies behind the one before it, as in a final table, only the part between is held. The
    first request that lies before what was dropped makes it read the whole table.
    """

    def __init__(self, folder: RunFolder, rows: Ints) -> None:
        self._folder, self._whole = folder, None
        self._kept: deque[tuple[int, pa.Table]] = deque()
        self._next = 0
        file = folder.path / "windows.parquet"
        if folder.latent is not None or not len(rows):
            self._whole = folder.table("windows", TEXTS)
            return
        source = pq.ParquetFile(file)
        starts = np.cumsum([0, *(source.metadata.row_group(n).num_rows for n in range(source.num_row_groups))])
        wanted = np.flatnonzero((starts[1:] > rows.min()) & (starts[:-1] <= rows.max())).tolist()
        self._next = int(starts[wanted[0]])
        present = [column for column in TEXTS if column in source.schema_arrow.names]
        self._batches = source.iter_batches(batch_size=BATCH, columns=present, row_groups=wanted)

    def take(self, rows: Ints) -> pa.Table:
        """The rows (row numbers of the table as `RunFolder` reads it), in this order."""
        if not len(rows):
            return SCHEMA.empty_table()
        low, high = int(rows.min()), int(rows.max())
        while self._kept and self._kept[0][0] + self._kept[0][1].num_rows <= low:
            self._kept.popleft()
        while self._whole is None and self._next <= high:
            batch = shown(pa.Table.from_batches([next(self._batches)]), TEXTS, TABLES["windows"])
            if self._next + batch.num_rows > low:
                self._kept.append((self._next, batch))
            self._next += batch.num_rows
        if self._whole is None and (not self._kept or self._kept[0][0] > low):
            self._whole = self._folder.table("windows", TEXTS)
        if self._whole is not None:
            return self._whole.take(pa.array(rows)).combine_chunks()
        held = pa.concat_tables([table for _, table in self._kept])
        return held.take(pa.array(rows - self._kept[0][0])).combine_chunks()
