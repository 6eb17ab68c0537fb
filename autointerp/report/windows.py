"""The windows of a card: how those it shows are written into its shard, and how active the latent is in all of them."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from autointerp.report.by_latent import Ints, of_first_draw
from autointerp.report.choosing import Key, choose
from autointerp.report.folder import RunFolder
from autointerp.report.judged import Said
from autointerp.report.strengths import Strengths
from autointerp.report.text import SEPARATOR, visible, visible_pieces
from autointerp.report.window_texts import WindowTexts
from scoring.types import ACTIVATING

KEYS = ["sae_id", "latent", "pole", "split", "window_id", "kind", "quantile", "draw", "corpus"]
SPLITS = ("explain", "score")


class Windows:
    """The windows of a run's latents, of the first draw."""

    def __init__(self, folder: RunFolder) -> None:
        table = folder.table("windows", KEYS)
        self._keys = of_first_draw(table.append_column("row", pa.array(np.arange(table.num_rows))))
        self._rows: Ints = self._keys.column("row").to_numpy()
        names = ["pole", "split", "window_id", "kind", "quantile", "draw", "corpus"]
        self._columns = {name: self._keys.column(name) for name in names}
        self._texts = WindowTexts(folder, self._rows)

    def of(self, sae_id: str, latents: Sequence[int], said: Sequence[Said]) -> Iterator[dict[str, Any]]:
        """For each latent the shown windows (`windows`), the `histogram` over all, the `largest` activation, and which
        draw and corpus they are of. `said` is what scorers said of each latent.

        In the order of the table nothing is read twice.
        """
        spans = [self._keys.span(sae_id, latent) for latent in latents]
        keys = [self._keys_of(span) for span in spans]
        first = np.cumsum([0, *map(len, keys)]).tolist()
        rows = np.concatenate([self._rows[span] for span in spans])
        table = self._texts.take(rows)
        counted = [key["kind"] == ACTIVATING for part in keys for key in part]
        strengths = Strengths(table.column("activations"), first, counted)
        chosen = [choose(part, judged) for part, judged in zip(keys, said, strict=True)]
        at = pa.array([begin + n for part, begin in zip(chosen, first, strict=False) for n in part], pa.int64())
        shown = table.select(["pieces", "document"]).take(at)
        texts = iter(zip(joined(shown.column("pieces")), shown.column("document").to_pylist(), strict=True))
        for n, (part, kept, judged) in enumerate(zip(keys, chosen, said, strict=True)):
            written = []
            for place, (pieces, document) in zip(kept, texts, strict=False):
                active, peak = strengths.active(first[n] + place)
                window_id = part[place]["window_id"]
                written.append((part[place], {
                    "id": visible(str(window_id)), "document": document, "peak": peak, "pieces": pieces,
                    "active": active, "verdicts": judged.of(window_id),
                }))  # fmt: skip
            yield {
                "windows": _grouped(part, written), "histogram": strengths.histogram(n),
                "largest": strengths.largest[n],
                "draw": part[0]["draw"] if part else None,
                "corpus": visible(str(part[0]["corpus"])) if part and part[0]["corpus"] is not None else None,
            }  # fmt: skip

    def _keys_of(self, span: slice) -> list[Key]:
        columns = [column[span.start : span.stop].to_pylist() for column in self._columns.values()]
        return [dict(zip(self._columns, values, strict=True)) for values in zip(*columns, strict=True)]


def joined(column: pa.ChunkedArray | pa.Array) -> list[str]:
    """The pieces of each window in one string, made visible, SEPARATOR between them."""
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    flat = pc.replace_substring(pc.fill_null(column.flatten(), ""), SEPARATOR, "\u2421").to_pylist()
    ends = np.concatenate([[0], np.cumsum(pc.fill_null(column.value_lengths(), 0).to_numpy())]).tolist()
    return [visible_pieces(SEPARATOR.join(flat[a:b])) for a, b in pairwise(ends)]


def split_pieces(text: str) -> list[str]:
    """The pieces again."""
    return text.split(SEPARATOR) if text else []


def _grouped(all_rows: Sequence[Key], shown: Sequence[tuple[Key, dict[str, Any]]]) -> list[dict[str, Any]]:
    """The shown windows by pole, split, kind and quantile, strongest first.

    `total` counts all windows of a pole, split and kind, so that the card can say how many it leaves out.
    """
    totals = Counter((row["pole"], str(row["split"]), str(row["kind"])) for row in all_rows)
    groups: dict[tuple[Any, str, str, Any], list[dict[str, Any]]] = defaultdict(list)
    for key, window in shown:
        groups[(key["pole"], str(key["split"]), str(key["kind"]), key["quantile"])].append(window)
    top = max((int(q) for *_, q in groups if q is not None), default=0)
    for part in groups.values():
        part.sort(key=lambda window: (-abs(window["peak"]), window["id"]))
    several = len({pole for pole, *_ in totals}) > 1
    return [
        {
            "pole": pole if several else None, "split": visible(split), "kind": visible(kind), "quantile": quantile,
            "quantiles": top + 1, "total": totals[(pole, split, kind)],
            "windows": groups[(pole, split, kind, quantile)],
        }
        for pole, split, kind, quantile in sorted(groups, key=_group_order)
    ]  # fmt: skip


def _group_order(key: tuple[Any, str, str, Any]) -> tuple[Any, ...]:
    pole, split, kind, quantile = key
    place = SPLITS.index(split) if split in SPLITS else len(SPLITS)
    return place, split, -(pole or 0), kind != ACTIVATING, kind, -(-1 if quantile is None else quantile)
