"""What is finished, and where its rows are. A killed run goes on from here.

Units of work have keys. The rows of finished units go to part files, one per table; a marker that lists
the keys is renamed into place after them. Rows without a marker do not exist.
"""

from __future__ import annotations

import json
import shutil
import time
import uuid
from collections import defaultdict
from pathlib import Path
from typing import Any

import pandas as pd

from autointerp.files import replacing, write_json
from autointerp.tables.parts import read_rows, write_rows
from autointerp.types import Rows
from prompts.requests import fingerprint


def work_key(stage: str, **parts: Any) -> str:
    """Key of one unit: everything that shapes its result, and nothing that does not."""
    return fingerprint({"stage": stage, **parts})


class Ledger:
    """Finished units of one stage of a run. `flush_units` and `flush_seconds` bound what a crash can lose."""

    def __init__(self, run: Path, stage: str, *, flush_units: int = 32, flush_seconds: float = 10.0) -> None:
        self.run, self.stage = run, stage
        self.flush_units, self.flush_seconds = flush_units, flush_seconds
        self.folder = run / "done" / stage
        self.folder.mkdir(parents=True, exist_ok=True)
        self.where: dict[str, str] = {}
        markers = {path.stem: json.loads(path.read_text()) for path in self.folder.glob("*.json")}
        # A unit that was done again counts as it was done last.
        for part in sorted(markers, key=lambda part: (markers[part].get("at", 0), part)):
            self.where.update(dict.fromkeys(markers[part]["keys"], part))
        self._keys: list[str] = []
        self._rows: Rows = defaultdict(list)
        self._flushed = time.monotonic()

    def __contains__(self, key: str) -> bool:
        return key in self.where

    def record(self, key: str, rows: Rows) -> None:
        """Remember a unit with its rows; each row carries the key, so that only wanted units are read back."""
        if key in self._keys:
            return
        self._keys.append(key)
        for table, some in rows.items():
            self._rows[table] += [{**row, "work_key": key} for row in some]
        if len(self._keys) >= self.flush_units or time.monotonic() - self._flushed >= self.flush_seconds:
            self.flush()

    def flush(self) -> None:
        if self._keys:
            part = uuid.uuid4().hex[:12]
            for table, rows in self._rows.items():
                write_rows(self.run / table / f"{self.stage}-{part}.parquet", table, rows)
            write_json(
                self.folder / f"{part}.json", {"keys": self._keys, "tables": sorted(self._rows), "at": time.time_ns()}
            )
            self.where.update(dict.fromkeys(self._keys, part))
        self._keys, self._rows = [], defaultdict(list)
        self._flushed = time.monotonic()

    def forget(self, keys: set[str]) -> None:
        """Treat these units as never done (`--fresh`, `--retry-failed`)."""
        for key in keys:
            self.where.pop(key, None)

    def rows(self, table: str, keys: set[str]) -> pd.DataFrame:
        """Rows of the given finished units. A key that two parts hold counts once."""
        parts = sorted({part for key, part in self.where.items() if key in keys})
        paths = [self.run / table / f"{self.stage}-{part}.parquet" for part in parts]
        frame = read_rows([path for path in paths if path.is_file()], table)
        owner = frame["work_key"].map(self.where)
        return frame[frame["work_key"].isin(keys) & (owner == frame["part"])]


def adopt(stage: str, source: Path, target: Path) -> None:
    """Take over the finished units of a stage, and which of them count, from another run folder: same keys, same rows.

    What was taken over before is not copied again.
    """
    for marker in sorted((source / "done" / stage).glob("*.json")):
        if (target / "done" / stage / marker.name).is_file():
            continue
        for table in json.loads(marker.read_text())["tables"]:
            name = f"{stage}-{marker.stem}.parquet"
            with replacing(target / table / name) as temporary:
                shutil.copyfile(source / table / name, temporary)
        with replacing(target / "done" / stage / marker.name) as temporary:
            shutil.copyfile(marker, temporary)
