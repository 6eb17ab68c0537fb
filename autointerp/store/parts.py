"""Part files: the activations of a range of contexts, sorted by latent, with a checksum in front.

They are what a kill cannot take, and what finalising merges. Each is one header and three arrays, 12 bytes
per activation.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autointerp.errors import Damaged
from autointerp.files import replacing

HEADER, SEAL = struct.Struct("<8sQQQ16sI"), struct.Struct("<I8x")
"""Magic, first context, end, activations, owner and checksum of the content; then the checksum of all that."""
BEGIN = HEADER.size + SEAL.size
MAGIC = b"AILPART2"
FIELDS: tuple[tuple[str, str], ...] = (("latents", "<u4"), ("positions", "<u4"), ("values", "<f4"))
SUFFIX = ".part"


@dataclass(frozen=True, slots=True)
class Part:
    """Activations of contexts `first` to `end`: `n` latents (ascending), positions (ascending within one), values.

    `owner` (16 bytes) tells parts of one store from those of another.
    """

    path: Path
    first: int
    end: int
    n: int
    owner: bytes
    checksum: int

    @classmethod
    def write(cls, folder: Path, first: int, end: int, arrays: dict[str, NDArray[Any]], owner: bytes) -> Part:
        """`arrays` holds `latents`, `positions` and `values`, `[n]` each, in order."""
        data = [
            np.ascontiguousarray(arrays[name], dtype=dtype).data.cast("B")
            for name, dtype in FIELDS
            if len(arrays[name])
        ]
        checksum = 0
        for piece in data:
            checksum = zlib.crc32(piece, checksum)
        n = len(arrays["latents"])
        path = folder / f"{first:010d}-{end:010d}{SUFFIX}"
        head = HEADER.pack(MAGIC, first, end, n, owner, checksum)
        with replacing(path) as temporary, temporary.open("wb") as file:
            file.write(head + SEAL.pack(zlib.crc32(head)))
            for piece in data:
                file.write(piece)
        return cls(path, first, end, n, owner, checksum)

    @classmethod
    def open(cls, path: Path) -> Part:
        """A part by its header; its length is checked, its content not yet.

        Raises:
            Damaged: it is cut off, or no part.
        """
        with path.open("rb") as file:
            head, seal = file.read(HEADER.size), file.read(SEAL.size)
        if head[:8] != MAGIC or len(head) < HEADER.size or seal != SEAL.pack(zlib.crc32(head)):
            raise Damaged(f"'{path}' is damaged: it does not begin as a part of a store does")
        _, first, end, n, owner, checksum = HEADER.unpack(head)
        size = path.stat().st_size
        if size != BEGIN + 12 * n:
            raise Damaged(f"'{path}' is truncated: {size:,} of {BEGIN + 12 * n:,} bytes")
        return cls(path, first, end, n, owner, checksum)

    def verify(self) -> None:
        """Compare the content with its checksum.

        Raises:
            Damaged: a byte is not what was written.
        """
        checksum = 0
        with self.path.open("rb") as file:
            file.seek(BEGIN)
            while piece := file.read(2**22):
                checksum = zlib.crc32(piece, checksum)
        if checksum != self.checksum:
            raise Damaged(f"'{self.path}' is damaged: its checksum is not the one that was written")

    def read(self, field: str, low: int = 0, high: int | None = None) -> NDArray[Any]:
        """Entries `low` to `high` of one array."""
        index = next(i for i, (name, _) in enumerate(FIELDS) if name == field)
        count = (self.n if high is None else high) - low
        offset = BEGIN + 4 * (index * self.n + low)
        array: NDArray[Any] = np.fromfile(self.path, dtype=FIELDS[index][1], count=count, offset=offset)
        return array


def parts_in(folder: Path) -> Iterator[tuple[Path, Part | Damaged]]:
    """Every part file of a folder in order, or what is wrong with it."""
    for path in sorted(folder.glob(f"*{SUFFIX}")):
        try:
            yield path, Part.open(path)
        except Damaged as problem:
            yield path, problem
