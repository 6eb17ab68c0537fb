"""A run folder: what it was asked to do, where it ran, and its final tables."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from autointerp.config import RunSettings, to_yaml
from autointerp.engine.account import BATCH_DISCOUNT, Account
from autointerp.engine.ledger import Ledger
from autointerp.engine.replies import COUNTED, open_cache
from autointerp.errors import UserError
from autointerp.files import write_json, write_text
from autointerp.shards import WHOLE, Shard
from autointerp.tables.parts import write_final
from prompts import render

VERSIONS = (
    "autointerp-toolkit",
    "torch",
    "transformers",
    "numpy",
    "pandas",
    "pyarrow",
    "scipy",
    "scikit-learn",
    "openai",
)

FROM_LEDGERS = ("explanations", "windows", "judgements", "scores", "failures", "usage")

WRITTEN = [
    "store", "work", "done", "selected", *FROM_LEDGERS, "prompts", "report", "cells", "random_model", "comparison",
    "shards", "trained",
]  # fmt: skip
"""Folders that a run makes."""


class Run:
    """One folder under `results/`. Its name is the `run_id` of every row."""

    def __init__(self, folder: Path, settings: RunSettings, *, study: Path | None = None, shard: Shard = WHOLE) -> None:
        """`study` is the folder of the study that this run is a cell of: it keeps the books, and names the rows.
        `shard` is this process's share of the latents."""
        self.folder, self.settings, self.shard = folder, settings, shard
        self.books = study or folder
        self.run_id = self.books.resolve().name

    def open(self, *, fresh: bool = False, own_sae: bool = False) -> None:
        """Make the folder, and write down what is about to happen in it.

        `fresh` empties it of an earlier run first; `own_sae` says that the SAEs in it were trained by that run.
        """
        try:
            if fresh and self.folder.exists():
                self._empty([*WRITTEN, "sae", "saes"] if own_sae else WRITTEN)
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"cannot write to '{self.folder}': {error.strerror}; choose another --out") from error
        if fresh and self.has_books:
            # What was paid for them stays in the books.
            self.account.cache.forget_replies()
        self._describe()

    @cached_property
    def account(self) -> Account:
        """The books: replies that are there already, the budget, and what was spent.

        Raises:
            UserError: the budget is none.
        """
        discount = BATCH_DISCOUNT if self.settings.batch else 1.0
        account = Account(open_cache(self.books, self.shard), own_prices=self.settings.prices, discount=discount)
        account.begin(self.settings.budget, shares=self.shard.count)
        return account

    def _describe(self) -> None:
        """Write the resolved settings, the command and the environment. Keys are in none of them."""
        # Shards differ in where they ran, and in nothing else.
        place = self.folder if self.shard.whole else self.folder / "shards" / self.shard.label
        write_text(self.folder / "config.yaml", to_yaml(self.settings))
        write_text(place / "command.txt", shlex.join(["autointerp", *sys.argv[1:]]) + "\n")
        write_json(place / "environment.json", environment())

    def close(self) -> None:
        """Let other processes have the books."""
        if "account" in self.__dict__:
            self.account.close()
            del self.account

    @property
    def has_books(self) -> bool:
        """Whether anything was asked, by this process or an earlier one."""
        return "account" in self.__dict__ or any(self.books.glob("replies*.sqlite"))

    def keep_prompts(self, names: tuple[str, ...]) -> None:
        """A copy of each template used."""
        for name in names:
            write_text(self.folder / "prompts" / f"{name}.jinja", render.source(name))

    def select(self, stage: str, keys: list[str]) -> None:
        """These units are the stage's current result; final tables are made of what is selected. Their order is that
        in which shards divide them."""
        write_json(self.folder / "selected" / f"{stage}.json", keys)

    def selected(self, stage: str) -> set[str]:
        path = self.folder / "selected" / f"{stage}.json"
        return set(json.loads(path.read_text())) if path.is_file() else set()

    @property
    def stages(self) -> list[str]:
        """Those that have a current result."""
        return sorted(path.stem for path in (self.folder / "selected").glob("*.json"))

    def unfinished(self, *stages: str) -> int:
        """How many units of the current result of these stages (default: of all) are missing."""
        return sum(len(self.selected(s) - Ledger(self.folder, s).where.keys()) for s in stages or self.stages)

    def unselect(self, prefix: str) -> list[str]:
        """Take stages out of the current result; their rows stay on disk and are found again by their keys."""
        paths = sorted((self.folder / "selected").glob(f"{prefix}*.json"))
        for path in paths:
            path.unlink()
        return [path.stem for path in paths]

    def rows(self, stage: str, table: str) -> pd.DataFrame:
        return Ledger(self.folder, stage).rows(table, self.selected(stage))

    def merge(self, tables: Sequence[str] = FROM_LEDGERS) -> None:
        """Write the final tables of everything selected so far, and of everything that was spent."""
        stages = self.stages
        for table in tables:
            frames = [frame for stage in stages if len(frame := self.rows(stage, table))]
            if table == "usage" and self.books == self.folder:
                frames += self.spent()
            frame = pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()
            if table == "usage" and len(frame):
                frame = total_usage(frame)
            write_final(self.folder, table, frame)

    def spent(self) -> list[pd.DataFrame]:
        """What the books say was spent; nothing where there is nothing to say."""
        rows = [{"run_id": self.run_id, **row} for row in self.account.cache.spent()] if self.has_books else []
        return [pd.DataFrame(rows)] if rows else []

    def _empty(self, names: list[str]) -> None:
        """Remove what a run writes, and nothing else that may lie in the folder."""
        for name in names:
            shutil.rmtree(self.folder / name, ignore_errors=True)
        for path in self.folder.glob("*.parquet"):
            path.unlink()


def total_usage(frame: pd.DataFrame) -> pd.DataFrame:
    """Usage by stage and model; a price that is unknown for one part is unknown for the sum."""
    keys, prices = ["run_id", "stage", "model"], ["price", "saved_price"]
    numbers = [name for name in COUNTED if name not in prices]
    counts = frame.reindex(columns=[*keys, *numbers]).fillna(dict.fromkeys(numbers, 0))
    total: pd.DataFrame = counts.groupby(keys, as_index=False)[numbers].sum()
    sums = frame.astype(dict.fromkeys(prices, float)).groupby(keys)[prices].agg(_known_sum)
    return total.merge(sums.reset_index(), on=keys)


def _known_sum(prices: pd.Series[float]) -> float:
    return float(prices.sum(skipna=False))


def environment() -> dict[str, Any]:
    """Versions, hardware and the git commit: what a reader needs to run it again."""
    versions = {}
    for name in VERSIONS:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processors": os.cpu_count(),
        "versions": versions,
        "git": _git(),
    }


def _git() -> str | None:
    here = Path(__file__).resolve().parent
    try:
        done = subprocess.run(
            ["git", "-C", str(here), "describe", "--always", "--dirty", "--abbrev=12"],
            capture_output=True, text=True, timeout=10, check=False,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None
