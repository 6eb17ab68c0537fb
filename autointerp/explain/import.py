# ruff: noqa: N999  (members are registered by their file name)
"""Take explanations from a file instead of asking anybody.

What can be read, told apart by name and content:

- a run folder or its `explanations.parquet`, or any parquet or JSONL file with a column of latents and one of texts;
- Neuronpedia's exports: JSONL, gzipped or not, with `index` and `description`, one file, a folder of batches, or a
  source's folder that has one called `explanations`;
- delphi's folder of text files, `<hookpoint>_latent<i>.txt`, with a JSON string or plain text in each, or a run's
  folder that has one called `explanations`.

Of several explanations of a latent the first is taken, of the record's pole where the file has poles; our own exports
for Neuronpedia have them in their notes. A file that has
explanations of several SAEs is refused unless `source` says which is meant. A latent that is not in the file has no
explanation, with the status `not_in_file`.

The module's name is a word of Python's: `importlib.import_module("autointerp.explain.import")` gets it.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import re
import zlib
from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from autointerp.errors import UserError
from autointerp.explain._proposal import Proposal
from autointerp.types import LatentRecord
from prompts.requests import Reply, Request

NAME = "import"
NEEDS: frozenset[type[Request]] = frozenset()
TEMPLATES: tuple[str, ...] = ()

LATENT_COLUMNS = ("latent", "index", "feature")
TEXT_COLUMNS = ("text", "description", "explanation")
SOURCE_COLUMNS = ("sae_id", "layer")
"""What tells the SAEs of one file apart: ours, Neuronpedia's."""
LINES = (".jsonl", ".jsonl.gz", ".ndjson", ".ndjson.gz")
DELPHI = re.compile(r"(.*)_latent(\d+)\.txt")
NOT_PARSED = "Explanation could not be parsed."
"""What delphi writes where an answer was none."""

Row = dict[str, Any]
Found = dict[tuple[int, int | None], Proposal]
"""By latent and pole; the pole is None where the file has none."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """Reads the file, so that one that cannot be read is found out before anything is collected.

    Raises:
        UserError: it cannot be read, or holds no explanations.
    """

    path: str = ""
    """File or folder with the explanations. Has to be given."""
    latent_column: str = ""
    """Column of the latents' indices. Default: the first there is of latent, index, feature."""
    text_column: str = ""
    """Column of the explanations. Default: the first there is of text, description, explanation."""
    source: str = ""
    """Of which SAE, where there are several: a value of the column sae_id or layer, or a hookpoint of delphi's."""
    sha256: str = field(init=False, default="")
    """Of what was read. Part of what a finished explanation is known by: a file that has changed is read again."""

    def __post_init__(self) -> None:
        if not isinstance(self.path, str) or not self.path:
            raise UserError("the explainer 'import' needs a file: --set explain.options.path=FILE")
        object.__setattr__(self, "sha256", _digest(_files(self.path)))
        read(self)


def explain(record: LatentRecord, config: Config) -> Generator[list[Request], Sequence[Reply], Proposal]:
    yield from ()
    found = read(config)
    for key in ((record.latent, record.pole), (record.latent, None)):
        if key in found:
            return found[key]
    return Proposal(None, "not_in_file")


@lru_cache(maxsize=8)
def read(config: Config) -> Found:
    """Explanations by latent; each file is read once.

    Raises:
        UserError: there are none, or they are of several SAEs.
    """
    rows = records(config.path)
    latent = config.latent_column or _column(rows, LATENT_COLUMNS, config.path, "latent_column")
    text = config.text_column or _column(rows, TEXT_COLUMNS, config.path, "text_column")
    rows = _of_one_sae(rows, config)
    found: Found = {}
    for number, row in enumerate(rows, start=1):
        index, pole = whole(row.get(latent)), pole_of(row)
        if index is None:
            raise UserError(
                f"'{config.path}': explanation {number} has no latent's index in '{latent}': name the column with "
                "explain.options.latent_column"
            )
        if text not in row:
            raise UserError(
                f"'{config.path}': explanation {number} has no '{text}': name the column with "
                "explain.options.text_column"
            )
        found.setdefault((index, pole), proposal(row[text], row.get("status")))
    return found


def records(path: str) -> list[Row]:
    """Every explanation there is, of every SAE, with the names that the file has for things.

    Raises:
        UserError: there are none, or they cannot be read.
    """
    rows = [row for file in _files(path) for row in _rows(file)]
    if not rows:
        raise UserError(f"no explanations in '{path}': it is empty")
    return rows


def pole_of(row: Row) -> int | None:
    """What its column says, or the note of an explanation that we exported; None where nothing does."""
    notes = row.get("notes")
    if row.get("pole") is None and isinstance(notes, str) and '"autointerp"' in notes:
        try:
            noted = json.loads(notes)
        except (ValueError, RecursionError):
            return None
        return whole(noted.get("pole")) if isinstance(noted, dict) and "autointerp" in noted else None
    return whole(row.get("pole"))


def proposal(text: Any, status: Any) -> Proposal:
    said = " ".join(text.split()) if isinstance(text, str) else ""
    if said and said != NOT_PARSED:
        return Proposal(said)
    return Proposal(None, status if isinstance(status, str) and status not in ("", "ok") else "failed")


def _files(path: str) -> tuple[Path, ...]:
    """The files behind a path, in order."""
    place = Path(path).expanduser()
    if place.is_file():
        return (place,)
    if not place.is_dir():
        raise UserError(f"no explanations at '{path}': there is no such file or folder")
    if (place / "explanations.parquet").is_file():
        return (place / "explanations.parquet",)
    below = place / "explanations"
    # A run of ours that is not finished has such a folder too, of parts that may not be its result.
    if below.is_dir() and any(of_lines(file) or _of_delphi(file) for file in below.iterdir()):
        place = below
    for wanted in (of_lines, (lambda p: p.suffix == ".parquet"), _of_delphi):
        files = tuple(sorted(file for file in place.iterdir() if file.is_file() and wanted(file)))
        if files:
            return files
    raise UserError(
        f"no explanations in the folder '{path}': it has neither explanations.parquet, nor .parquet or .jsonl[.gz] "
        "files, nor delphi's *_latent<i>.txt"
    )


def of_lines(path: Path) -> bool:
    return path.name.endswith(LINES)


def _of_delphi(path: Path) -> bool:
    return DELPHI.fullmatch(path.name) is not None


def _digest(files: Iterable[Path]) -> str:
    whole = hashlib.sha256()
    for file in files:
        try:
            whole.update(
                f"{file.name}\0".encode("utf-8", "surrogateescape") + hashlib.sha256(file.read_bytes()).digest()
            )
        except OSError as error:
            raise _unreadable(file, error) from error
    return whole.hexdigest()[:16]


def _rows(path: Path) -> list[Row]:
    if path.suffix == ".parquet":
        return _table(path)
    if _of_delphi(path):
        return [_delphi(path)]
    if of_lines(path):
        return json_lines(path)
    raise UserError(
        f"'{path}' is no file of explanations that can be read: .parquet, .jsonl, .jsonl.gz, or delphi's "
        "<hookpoint>_latent<i>.txt"
    )


def _table(path: Path) -> list[Row]:
    try:
        rows: list[Row] = pq.ParquetFile(path).read().to_pylist()
    except (OSError, ValueError, NotImplementedError) as error:  # what pyarrow raises is one of these
        raise _unreadable(path, error) from error
    return rows


def _delphi(path: Path) -> Row:
    named = DELPHI.fullmatch(path.name)
    assert named is not None
    try:
        content = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise _unreadable(path, error) from error
    try:
        said = json.loads(content)
    except (ValueError, RecursionError):
        said = content
    # Text that happens to be JSON of another kind, such as a number, is text.
    text = said if isinstance(said, str) else content
    return {"layer": named.group(1), "latent": int(named.group(2)), "text": text}


def json_lines(path: Path) -> list[Row]:
    """The objects of a JSONL file, gzipped or not.

    Raises:
        UserError: it cannot be read, or a line is no object.
    """
    rows = []
    try:
        with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                if not line.strip():
                    continue
                try:
                    row = json.loads(line)
                except (ValueError, RecursionError) as error:
                    raise UserError(f"'{path}', line {number}: not JSON: {error}") from error
                if not isinstance(row, dict):
                    raise UserError(f"'{path}', line {number}: a JSON object is expected")
                rows.append(row)
    except (OSError, EOFError, UnicodeDecodeError, zlib.error) as error:
        raise _unreadable(path, error) from error
    return rows


def _unreadable(path: Path, error: Exception) -> UserError:
    why = " ".join(str(error).split()) or type(error).__name__
    return UserError(f"'{path}' cannot be read: {why}")


def _column(rows: Sequence[Row], known: Sequence[str], path: str, option: str) -> str:
    for name in known:
        if name in rows[0]:
            return name
    raise UserError(
        f"'{path}' has no column {' or '.join(known)} (but {', '.join(map(str, rows[0]))}): name it with "
        f"explain.options.{option}"
    )


def _of_one_sae(rows: list[Row], config: Config) -> list[Row]:
    """The rows of the SAE that is meant."""
    column = next((name for name in SOURCE_COLUMNS if name in rows[0]), "")
    sources = sorted({str(row.get(column)) for row in rows}) if column else []
    if config.source:
        if config.source not in sources:
            known = ", ".join(sources) or "none is named"
            raise UserError(f"'{config.path}' has no explanations of '{config.source}' (of: {known})")
        return [row for row in rows if str(row.get(column)) == config.source]
    if len(sources) > 1:
        raise UserError(
            f"'{config.path}' has explanations of several SAEs ({', '.join(sources)}): say which with "
            "explain.options.source"
        )
    return rows


def whole(value: Any) -> int | None:
    """A whole number, also as Neuronpedia writes it, in quotes; None where it is none."""
    if isinstance(value, bool):
        return None
    if isinstance(value, str):
        return int(value) if re.fullmatch(r"\s*-?[0-9]{1,18}\s*", value) else None
    if isinstance(value, float):
        return int(value) if value.is_integer() else None
    return value if isinstance(value, int) else None
