"""Text documents from whatever `--dataset` names: files, saved data sets, hub ids, or `docstrings`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autointerp.collect.docstrings import docstrings
from autointerp.errors import UserError


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a row has to hold to be a document, and the columns where it is looked for."""

    what: str
    kind: type
    columns: tuple[str, ...]


TEXT = Wanted("text", str, ("text", "content", "document", "body"))
DIALOGUE = Wanted("dialogue", list, ("messages", "conversation", "conversations", "dialogue"))


@dataclass(frozen=True, slots=True)
class Where:
    """What of a data set is read: a column (default: the first that is known), a split, a hub id's configuration."""

    column: str | None = None
    split: str = "train"
    subset: str | None = None


ALL = Where()


def documents(dataset: str, *, seed: int, where: Where = ALL) -> Iterator[str]:
    """Documents of a data set in a reproducible order, one at a time, empty ones left out.

    `.txt` files hold one document per paragraph (blank lines between), `.jsonl` and `.parquet` one per row, folders
    what `save_to_disk` left or such files; `docstrings` is the built-in corpus. Anything else is a hub id, streamed.

    Raises:
        UserError: nothing is there, or there is no text column; on first use of the iterator.
    """
    if dataset == "docstrings":
        yield from docstrings(seed)
        return
    for text in _rows(dataset, where, TEXT):
        if text and not text.isspace():
            yield text


def dialogues(dataset: str, where: Where = ALL) -> Iterator[list[Any]]:
    """Dialogues of a data set, each a list of turns; from the same places as `documents`, but for `.txt`.

    Raises:
        UserError: nothing is there, or no column of it holds lists; on first use of the iterator.
    """
    if dataset == "docstrings" or dataset.endswith(".txt"):
        raise UserError(f"'{dataset}' holds no dialogues, only text; name a .jsonl, .parquet or hub id, or pack it")
    yield from _rows(dataset, where, DIALOGUE)


Reader = Callable[[Path, Where, Wanted], Iterator[Any]]


def _rows(dataset: str, where: Where, wanted: Wanted) -> Iterator[Any]:
    path = Path(dataset).expanduser()
    if path.is_file():
        reader = READERS.get(path.suffix.lower())
        if reader is None:
            raise UserError(f"cannot read '{dataset}': known endings are {', '.join(READERS)}")
        return reader(path, where, wanted)
    if path.is_dir():
        return _folder(path, where, wanted)
    if dataset.startswith((".", "/", "~")) or path.suffix.lower() in READERS:
        raise UserError(f"no data set at '{dataset}': there is no such file or folder")
    return _hub(dataset, where, wanted)


def _txt(path: Path, where: Where, wanted: Wanted) -> Iterator[Any]:
    paragraph: list[str] = []
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            if line.isspace():
                yield "".join(paragraph).removesuffix("\n")
                paragraph = []
            else:
                paragraph.append(line)
    yield "".join(paragraph)


def _table(builder: str) -> Reader:
    def read(path: Path, where: Where, wanted: Wanted) -> Iterator[Any]:
        if path.stat().st_size == 0:
            return
        from datasets import load_dataset

        try:
            rows = load_dataset(builder, data_files=str(path), split="train", streaming=True)
            yield from _column(rows, where.column, str(path), wanted)
        except UserError:
            raise
        except Exception as error:
            line = str(error).strip().split("\n")[0]
            raise UserError(f"cannot read '{path}' as {builder}: {line}") from error

    return read


def _folder(path: Path, where: Where, wanted: Wanted) -> Iterator[Any]:
    from datasets import DatasetDict, load_from_disk

    files = sorted(file for file in path.iterdir() if file.suffix.lower() in READERS)
    if not (path / "dataset_dict.json").exists() and not (path / "state.json").exists() and files:
        for file in files:
            yield from READERS[file.suffix.lower()](file, where, wanted)
        return
    try:
        loaded = load_from_disk(str(path))
    except (FileNotFoundError, ValueError) as error:
        raise UserError(
            f"'{path}' holds no {', '.join(READERS)} and is no data set saved with save_to_disk; name one that is"
        ) from error
    if isinstance(loaded, DatasetDict):
        if where.split not in loaded:
            raise UserError(f"'{path}' has no split '{where.split}', but {', '.join(loaded)}; name one with data.split")
        loaded = loaded[where.split]
    yield from _column(loaded, where.column, str(path), wanted)


def _hub(name: str, where: Where, wanted: Wanted) -> Iterator[Any]:
    from datasets import load_dataset

    try:
        rows = load_dataset(name, where.subset, split=where.split, streaming=True)
    except Exception as error:
        line = str(error).strip().split("\n")[0]
        raise UserError(
            f"no data set '{name}': it is neither a file nor a folder here, and the hub says: {line}"
        ) from error
    yield from _column(rows, where.column, name, wanted)


def _column(rows: Any, column: str | None, where: str, wanted: Wanted) -> Iterator[Any]:
    chosen = column
    for row in rows:
        if chosen is None or chosen not in row:
            if chosen is None:
                chosen = next((name for name in wanted.columns if name in row), None)
            if chosen is None or chosen not in row:
                raise UserError(
                    f"no {wanted.what} column in '{where}': it has {', '.join(row)}; name one with --text-column"
                )
        if isinstance(row[chosen], wanted.kind):
            yield row[chosen]


READERS: dict[str, Reader] = {
    ".txt": _txt,
    ".jsonl": _table("json"),
    ".json": _table("json"),
    ".parquet": _table("parquet"),
}
