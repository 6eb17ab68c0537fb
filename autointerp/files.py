"""Write files such that a killed process never leaves half of one under its final name."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from autointerp.errors import Damaged, DiskFull

FULL = {errno.ENOSPC, errno.EDQUOT}
SLAB = 2**24
"""Bytes of an array that are copied at once where it has to be copied to be written."""


@contextmanager
def full_disk_named(folder: Path) -> Iterator[None]:
    """Turn the system's "no space left" into an error that says where, and how much there is."""
    try:
        yield
    except OSError as error:
        if error.errno not in FULL:
            raise
        there = next(path for path in (folder, *folder.absolute().parents) if path.is_dir())
        raise DiskFull(
            f"the disk of '{folder}' is full ({shutil.disk_usage(there).free / 1e6:,.0f} MB free): what was finished "
            "is kept; free some space and run the same command again"
        ) from error


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`, renamed onto it when the block ends without an error.

    Raises:
        DiskFull: there was no room for it; nothing of it is left.
    """
    # Processes of two hosts may have one number.
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        with full_disk_named(path.parent):
            path.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def sweep(folder: Path) -> None:
    """Remove what killed processes left of files they were writing; nobody may be writing there now."""
    for left in folder.glob(".*.tmp"):
        left.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        # Texts vouch for other files; one that a power cut leaves empty would lose those with it.
        file.flush()
        os.fsync(file.fileno())


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n")


def write_array(path: Path, array: NDArray[Any]) -> None:
    with replacing(path) as temporary, ArrayWriter(temporary, array.dtype, array.shape) as writer:
        writer.append(array)


def read_array(path: Path) -> NDArray[Any]:
    """Memory-mapped, read-only; never unpickles.

    Raises:
        FileNotFoundError: there is none.
        Damaged: it is cut off, or no array.
    """
    try:
        array: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except OSError:
        raise
    except Exception as error:  # a damaged header fails in whatever way numpy's parser does
        raise Damaged(f"'{path}' is damaged: it is cut off, or no array; delete it, or use --fresh") from error
    return array


def own_name(name: str) -> str:
    """A file's or folder's own name, without where it lies; any other name, such as one on a hub, as it is."""
    path = Path(name).expanduser()
    return path.name if path.exists() else name


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class ArrayWriter:
    """A `.npy` file written from front to back, along the first axis; only what is appended is ever in memory.

    `shape` may leave the first axis open (None). Closing checks the length, and puts the file on the disk.
    """

    def __init__(self, path: Path, dtype: DTypeLike, shape: tuple[int | None, ...]) -> None:
        self.path, self.dtype, self.shape, self.length = path, np.dtype(dtype), shape, 0
        self._file = path.open("wb")
        self._header(shape[0] or 0)

    def _header(self, length: int) -> None:
        # numpy pads its header so that the first axis can grow in place.
        described = {
            "descr": np.lib.format.dtype_to_descr(self.dtype),
            "fortran_order": False,
            "shape": (length, *self.shape[1:]),
        }
        np.lib.format.write_array_header_1_0(self._file, described)

    def append(self, rows: NDArray[Any]) -> None:
        """`rows [n, ...]` go behind what is there.

        Raises:
            ValueError: another shape than was announced.
        """
        if rows.shape[1:] != self.shape[1:]:
            raise ValueError(f"rows of shape {rows.shape[1:]} do not belong into an array of {self.shape}")
        self.length += len(rows)
        step = max(1, SLAB // max(1, rows[:1].nbytes))
        for begin in range(0, len(rows), step):
            slab = np.ascontiguousarray(rows[begin : begin + step], dtype=self.dtype)
            # Not `tofile`: its error on a full disk carries no error number.
            self._file.write(slab.reshape(-1).view(np.uint8).data)

    def close(self) -> None:
        expected = self.shape[0]
        if expected is not None and self.length != expected:
            raise ValueError(f"{self.path} got {self.length} rows where {expected} were announced")
        if expected is None:
            self._file.flush()
            self._file.seek(0)
            self._header(self.length)
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()

    def __enter__(self) -> ArrayWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self.close()
        finally:
            if not self._file.closed:
                # What could not be written stays in the buffer, and closing would try, and fail, once more.
                try:
                    self._file.close()
                except OSError:
                    if kind is None:
                        raise
