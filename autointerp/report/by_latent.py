"""Rows of a table by SAE and latent: sorted once, then found as slices."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

Ints = NDArray[np.int64]


class ByLatent:
    """A table in the order of SAE and latent (and as it was within a latent); rows of no latent are left out.

    `spans` maps (sae_id, latent) to the slice of its rows, `starts` are where these begin.
    """

    def __init__(self, table: pa.Table) -> None:
        table = table.filter(pc.is_valid(table.column("latent"))).combine_chunks()
        names, saes = coded(table.column("sae_id"))
        latents = table.column("latent").to_numpy().astype(np.int64)
        if len(latents) and np.any((np.diff(saes) < 0) | ((np.diff(saes) == 0) & (np.diff(latents) < 0))):
            order = np.lexsort((latents, saes))
            table, saes, latents = table.take(pa.array(order)), saes[order], latents[order]
        self.table = table
        new = np.flatnonzero((np.diff(saes) != 0) | (np.diff(latents) != 0)) + 1
        self.starts: Ints = np.concatenate([[0], new]).astype(np.int64) if len(latents) else np.zeros(0, np.int64)
        stops = [*new.tolist(), len(latents)] if len(latents) else []
        self.spans: dict[tuple[str, int], slice] = {
            (names[saes[a]], int(latents[a])): slice(a, b) for a, b in zip(self.starts.tolist(), stops, strict=True)
        }

    def __len__(self) -> int:
        return int(self.table.num_rows)

    @property
    def owners(self) -> Ints:
        """(rows,) the number of each row's latent, counted along the table."""
        return np.repeat(np.arange(len(self.starts)), np.diff(np.append(self.starts, len(self))))

    def span(self, sae_id: str, latent: int) -> slice:
        """An empty slice where the table has no row of the latent."""
        return self.spans.get((sae_id, latent), slice(0, 0))

    def column(self, name: str) -> pa.Array:
        """The whole column in one piece."""
        column = self.table.column(name)
        return pa.concat_arrays(column.chunks) if column.num_chunks else pa.nulls(0, column.type)


def of_first_draw(table: pa.Table) -> ByLatent:
    """Of each latent the rows of its first corpus and draw: those of others repeat the same questions."""
    found = ByLatent(table)
    if not len(found):
        return found
    corpora, corpus = coded(found.column("corpus"))
    rank = np.argsort(np.argsort([name or "" for name in corpora], kind="stable")) if corpora else np.zeros(0, int)
    draw = numbers(found.column("draw"), -1)
    setting = rank[corpus] * (int(draw.max()) + 2) + draw
    first = np.minimum.reduceat(setting, found.starts)[found.owners]
    kept = setting == first
    return found if kept.all() else ByLatent(found.table.filter(pa.array(kept)))


def coded(column: pa.ChunkedArray | pa.Array) -> tuple[list[Any], Ints]:
    """Distinct values (null among them, as None) and each row's number among these."""
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    found = pc.dictionary_encode(column, null_encoding="encode")
    return found.dictionary.to_pylist(), found.indices.to_numpy(zero_copy_only=False).astype(np.int64)


def numbers(column: pa.Array, blank: float) -> NDArray[Any]:
    """The column as numpy, with `blank` for null; booleans become 0 and 1."""
    if pa.types.is_boolean(column.type):
        column = column.cast(pa.int8())
    return np.asarray(pc.fill_null(column, blank).to_numpy(zero_copy_only=False))
