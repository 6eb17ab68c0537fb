"""How far a half-written store is. Only looks: it is writers that set aside what is damaged."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from autointerp.errors import Damaged
from autointerp.files import read_array
from autointerp.store import layout
from autointerp.store.parts import parts_in


@dataclass(frozen=True, slots=True)
class Progress:
    """Contexts collected of how many (None: the text is not in contexts yet), and what is damaged, a line each."""

    collected: int
    contexts: int | None
    damaged: list[str]


def progress(folder: Path) -> Progress:
    """Of a store, or a shard, without a manifest; every part is compared with its checksum.

    Raises:
        Damaged: its tokens are cut off, or it was finished and has lost its manifest.
    """
    contexts = len(read_array(folder / layout.TOKENS)) if (folder / layout.TOKENS).is_file() else None
    covered = np.zeros(contexts or 0, dtype=np.bool_)
    damaged = []
    for _, part in parts_in(folder / layout.PARTS):
        try:
            if isinstance(part, Damaged):
                raise part
            part.verify()
            covered[part.first : part.end] = True
        except Damaged as problem:
            damaged.append(str(problem))
    # Parts go only after the manifest has come.
    if (folder / layout.VALUES).is_file() and not damaged and not covered.all():
        raise Damaged(f"'{folder / layout.MANIFEST}' is missing, and the parts it was made of are gone")
    return Progress(int(covered.sum()), contexts, damaged)
