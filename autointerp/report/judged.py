"""What the scorers said of each window, and whether they were right."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from autointerp.report.by_latent import coded, numbers, of_first_draw
from autointerp.report.folder import RunFolder
from autointerp.report.text import short, significant, visible, words
from scoring.types import EXPLANATION_CONTROLS

COLUMNS = [
    "sae_id", "latent", "explanation_id", "method", "window_id", "control", "label", "prediction", "probability",
    "status", "clean_text", "steered_text", "draw", "corpus",
]  # fmt: skip
PAIR = ["clean_text", "steered_text", "probability", "label", "prediction", "status"]
MAX_PAIRS = 6
OUTCOMES = ("right", "wrong", "ungraded", "failed")

Verdict = list[Any]
"""Method (its number in `Judged.methods`), 1 right or 0 wrong or None, label, prediction, the scorer's number, how many
of the windows of the other kind it puts on the other side, status unless ok."""


class Judged:
    """Judgements of the latents' own explanations, of the first draw; those of controls are graded but not shown."""

    def __init__(self, folder: RunFolder, methods: Sequence[str]) -> None:
        table = folder.table("judgements", COLUMNS)
        table = table.filter(pc.invert(pc.is_in(table.column("control"), pa.array(EXPLANATION_CONTROLS))))
        texts = pc.or_(pc.is_valid(table.column("clean_text")), pc.is_valid(table.column("steered_text")))
        self._pairs = of_first_draw(table.filter(texts))
        self._pair_texts = self._pairs.table.select(PAIR)
        self._rows = rows = of_first_draw(table.filter(pc.invert(texts)))
        names, method = coded(rows.column("method"))
        place = {name: at for at, name in enumerate(methods)}
        self._method = np.array([place[str(name)] for name in names] or [0])[method]
        self._states, self._status = coded(rows.column("status"))
        explanations, self._explanation = coded(rows.column("explanation_id"))
        self._explanations = {str(name): at for at, name in enumerate(explanations)}
        self._window = rows.column("window_id")
        self._label, self._said = (numbers(rows.column(name), -1) for name in ("label", "prediction"))
        self._number = numbers(rows.column("probability"), np.nan).astype(float)
        ok = np.array([state == "ok" for state in self._states] or [False])[self._status]
        usable = ok & (self._said < 0) & (self._label >= 0) & np.isfinite(self._number)
        self._share = np.full(len(rows), np.nan)
        group = (rows.owners * len(methods) + self._method) * max(1, len(self._explanations)) + self._explanation
        self._share[usable] = sides(group[usable], self._label[usable] == 1, self._number[usable])
        self._right = np.where(self._share == 0.5, np.nan, (self._share > 0.5).astype(float))
        self._right[np.isnan(self._share)] = np.nan
        told = ok & (self._said >= 0) & (self._label >= 0)
        self._right[told] = self._said[told] == self._label[told]
        self._methods = [words(name) for name in methods]
        outcome = np.where(np.isnan(self._right), OUTCOMES.index("ungraded"), self._right == 0)
        self._outcome = self._method * len(OUTCOMES) + np.where(ok, outcome, OUTCOMES.index("failed")).astype(np.int64)
        self._ranks = [bool(usable[self._method == n].any()) for n in range(len(methods))]
        self._number, self._share = significant(self._number, 3), significant(self._share, 2)

    def of(self, sae_id: str, latents: Sequence[int], explanations: Sequence[Collection[str]]) -> list[Said]:
        """What was said of each latent, by the judgements of its `explanations` (by all, if none is of these: tables
        joined by hand)."""
        spans = [self._rows.span(sae_id, latent) for latent in latents]
        found = []
        for span, chosen in zip(spans, explanations, strict=True):
            windows = self._window[span.start : span.stop].to_pylist()
            codes = self._explanation[span].tolist()
            wanted = {self._explanations.get(name) for name in chosen}
            kept = [n for n, code in enumerate(codes) if code in wanted] if any(c in wanted for c in codes) else None
            found.append(Said(self, span, windows, range(len(windows)) if kept is None else kept))
        return found

    def parts(self, span: slice) -> list[tuple[Any, ...]]:
        """What verdicts are made of, row by row, as Python's own numbers."""
        parts = (self._method, self._right, self._label, self._said, self._number, self._share, self._status)
        return list(zip(*(part[span].tolist() for part in parts), strict=True))

    def verdict(
        self, method: int, right: float, label: int, said: int, number: float, share: float, status: int
    ) -> Verdict:
        """One judgement, of what `parts` has for it."""
        state = self._states[status]
        return [
            method, None if right != right else int(right), None if label < 0 else int(label),
            None if said < 0 else int(said), None if number != number else number, None if share != share else share,
            None if state == "ok" else visible(str(state)),
        ]  # fmt: skip

    def tallies(self, rows: NDArray[np.int64]) -> list[dict[str, Any]]:
        """Per method: right, wrong, failed, and answered without being right or wrong; `ranked` where the scorer gives
        numbers and no yes or no."""
        counts = np.bincount(self._outcome[rows], minlength=len(self._methods) * len(OUTCOMES))
        found = []
        for method in sorted(range(len(self._methods)), key=self._methods.__getitem__):
            mine = counts[method * len(OUTCOMES) : (method + 1) * len(OUTCOMES)].tolist()
            if any(mine):
                found.append({
                    "method": method, **{name: n for name, n in zip(OUTCOMES, mine, strict=True) if n},
                    "ranked": self._ranks[method],
                })  # fmt: skip
        return found

    def pairs(self, sae_id: str, latent: int) -> tuple[list[dict[str, Any]], int]:
        """Clean and steered texts side by side, each pair once (several questions may be asked about one pair); and how
        many pairs there are."""
        span = self._pairs.span(sae_id, latent)
        found: dict[tuple[str, str], dict[str, Any]] = {}
        for row in self._pair_texts.slice(span.start, span.stop - span.start).to_pylist():
            clean, steered = visible(row["clean_text"] or ""), visible(row["steered_text"] or "")
            told = row["label"] is not None and row["prediction"] is not None
            found.setdefault((clean, steered), {
                "clean": clean, "steered": steered, "probability": short(row["probability"], 3),
                "right": row["label"] == row["prediction"] if told else None, "status": visible(str(row["status"])),
            })  # fmt: skip
        return list(found.values())[:MAX_PAIRS], len(found)


class Said:
    """The judgements of one latent: of which windows there are some, what they are, and how many were right."""

    def __init__(self, judged: Judged, span: slice, windows: Sequence[str], kept: Sequence[int]) -> None:
        self._judged, self._parts = judged, judged.parts(span)
        self._rows: dict[str, list[int]] = {}
        for n in kept:
            self._rows.setdefault(windows[n], []).append(n)
        self.tallies = judged.tallies(np.fromiter((span.start + n for n in kept), np.int64, len(kept)))

    def __contains__(self, window_id: object) -> bool:
        return window_id in self._rows

    def of(self, window_id: str) -> list[Verdict]:
        """The verdicts on a window, in the order of the table."""
        return [self._judged.verdict(*self._parts[row]) for row in self._rows.get(window_id, ())]


def judged_methods(folders: Iterable[RunFolder]) -> list[str]:
    """The methods that judged windows in any of these runs."""
    found: set[str] = set()
    for folder in folders:
        found |= {str(name) for name in pc.unique(folder.table("judgements", ["method"]).column("method")).to_pylist()}
    return sorted(found)


def sides(group: NDArray[Any], fires: NDArray[np.bool_], value: NDArray[np.float64]) -> NDArray[np.float64]:
    """(rows,) for each window the share of its group's windows of the other kind that it stands on the right side of:
    above those where the latent is silent if it fires, below those where it fires if not. Ties count a half; NaN where
    the other kind is missing. The mean over either kind is the AUROC, to which this is the window's contribution."""
    out = np.full(len(group), np.nan)
    if not len(group):
        return out
    order = np.lexsort((value, group))
    g, v, y = group[order], value[order], fires[order]
    new_group = np.append(True, g[1:] != g[:-1])
    block = np.cumsum(np.append(True, new_group[1:] | (v[1:] != v[:-1]))) - 1
    which = np.cumsum(new_group) - 1
    first_block = block[np.flatnonzero(new_group)]
    below, total = {}, {}
    for kind in (True, False):
        counts = np.bincount(block, weights=y == kind)
        before = np.concatenate([[0.0], np.cumsum(counts)])
        below[kind] = before[block] - before[first_block][which] + counts[block] / 2
        total[kind] = np.bincount(which, weights=y == kind)[which]
    with np.errstate(invalid="ignore", divide="ignore"):
        found = np.where(y, below[False] / total[False], 1 - below[True] / total[True])
    out[order] = np.where(np.where(y, total[False], total[True]) > 0, found, np.nan)
    return out
