"""The logit lens of latents, where a run has one: `lens.parquet` in the run folder."""

from __future__ import annotations

from typing import Any

from autointerp.report.by_latent import ByLatent
from autointerp.report.folder import RunFolder
from autointerp.report.text import short, visible

DIRECTIONS = ("top", "bottom")
MOST = 10


class Lens:
    """The lens of every latent of a run; none where the table is missing."""

    def __init__(self, folder: RunFolder) -> None:
        self._rows = ByLatent(folder.table("lens"))

    def of(self, sae_id: str, latent: int) -> dict[str, list[list[Any]]] | None:
        """`top` and `bottom`: [token, logit], strongest first."""
        span = self._rows.span(sae_id, latent)
        if span.start == span.stop:
            return None
        rows = self._rows.table.slice(span.start, span.stop - span.start).to_pylist()
        rows.sort(key=lambda row: row["rank"] or 0)
        return {
            name: [[visible(row["token"] or ""), short(row["logit"], 3)] for row in rows if row["direction"] == name][
                :MOST
            ]
            for name in DIRECTIONS
        }
