"""Text documents from whatever `--dataset` names: files, saved data sets, hub ids, or `docstrings`."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from autointerp.collect.docstrings import docstrings
from autointerp.errors import UserError

TEXT_COLUMNS = ("text", "content", "document", "body")


def documents(dataset: str, *, seed: int, column: str | None = None) -> Iterator[str]:
    """Documents of a data set in a reproducible order, empty ones left out.

    `.txt` files hold one document per paragraph (blank lines between), `.jsonl` and `.parquet` one per row,
    `docstrings` is the built-in corpus.

    Raises:
        UserError: nothing is there, or there is no text column; on first use of the iterator.
    """
    if dataset == "docstrings":
        yield from docstrings(seed)
        return
    path = Path(dataset).expanduser()
    if path.is_file():
        reader = READERS.get(path.suffix.lower())
        if reader is None:
            raise UserError(f"cannot read '{dataset}': known endings are {', '.join(READERS)}")
        texts = reader(path, column)
    elif path.is_dir():
        texts = _folder(path, column)
    elif dataset.startswith((".", "/", "~")) or path.suffix.lower() in READERS:
        raise UserError(f"no data set at '{dataset}': there is no such file or folder")
    else:
        texts = _hub(dataset, column)
    for text in texts:
        if text and not text.isspace():
            yield text


def _txt(path: Path, column: str | None) -> Iterator[str]:
    yield from re.split(r"\n\s*\n", path.read_text(encoding="utf-8", errors="replace"))


def _table(builder: str) -> Callable[[Path, str | None], Iterator[str]]:
    def read(path: Path, column: str | None) -> Iterator[str]:
        if path.stat().st_size == 0:
            return
        from datasets import load_dataset

        try:
            rows = load_dataset(builder, data_files=str(path), split="train", streaming=True)
            yield from _column(rows, column, str(path))
        except UserError:
            raise
        except Exception as error:
            line = str(error).strip().split("\n")[0]
            raise UserError(f"cannot read '{path}' as {builder}: {line}") from error

    return read


def _folder(path: Path, column: str | None) -> Iterator[str]:
    from datasets import DatasetDict, load_from_disk

    try:
        loaded = load_from_disk(str(path))
    except (FileNotFoundError, ValueError) as error:
        raise UserError(f"'{path}' is no data set saved with save_to_disk; name a .txt, .jsonl or .parquet") from error
    rows = loaded["train"] if isinstance(loaded, DatasetDict) and "train" in loaded else loaded
    if isinstance(rows, DatasetDict):
        rows = next(iter(rows.values()))
    yield from _column(rows, column, str(path))


def _hub(name: str, column: str | None) -> Iterator[str]:
    from datasets import load_dataset

    try:
        rows = load_dataset(name, split="train", streaming=True)
    except Exception as error:
        line = str(error).strip().split("\n")[0]
        raise UserError(
            f"no data set '{name}': it is neither a file nor a folder here, and the hub says: {line}"
        ) from error
    yield from _column(rows, column, name)


def _column(rows: Any, column: str | None, where: str) -> Iterator[str]:
    chosen = column
    for row in rows:
        if chosen is None or chosen not in row:
            if chosen is None:
                chosen = next((name for name in TEXT_COLUMNS if name in row), None)
            if chosen is None or chosen not in row:
                raise UserError(f"no text column in '{where}': it has {', '.join(row)}; name one with --text-column")
        if isinstance(row[chosen], str):
            yield row[chosen]


READERS: dict[str, Callable[[Path, str | None], Iterator[str]]] = {
    ".txt": _txt,
    ".jsonl": _table("json"),
    ".json": _table("json"),
    ".parquet": _table("parquet"),
}
