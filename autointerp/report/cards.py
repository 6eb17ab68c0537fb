"""The latent list and the latent cards: the data that the page's script draws from."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa

from autointerp.report.folder import WINDOW_KEYS, ByLatent, Row, records
from autointerp.report.grades import CONTROL, Column, Grades, name_of, primary_first
from autointerp.report.groups import Group
from autointerp.report.text import number, short, visible, words
from autointerp.report.windows import choose, window_groups
from scoring.types import EXPLANATION_CONTROLS

LIST_CHARACTERS = 400
MAX_PAIRS = 6


class Cards:
    """List entries and cards of one group. `place` is the group's number on the page."""

    def __init__(self, group: Group, place: int, columns: Sequence[Column]) -> None:
        self._group, self._place, self._columns = group, place, columns
        self._grades = Grades(group)
        listed = group.latents[group.latents["latent"].isin(group.listed)]
        self._facts = {int(row["latent"]): row for row in records(listed)}
        self._explanations: dict[int, list[Row]] = defaultdict(list)
        for row in records(group.explanations):
            if row["latent"] is not None:
                self._explanations[int(row["latent"])].append(row)
        self._judgements = ByLatent(_own_judgements(group))
        self._choose_windows()

    def _choose_windows(self) -> None:
        table = self._group.folder.table("windows", WINDOW_KEYS)
        keys = ByLatent(table)
        self._kept: dict[int, list[tuple[int, Row]]] = {}
        self._totals: dict[int, Counter[tuple[str, str]]] = {}
        for latent in self._group.listed:
            numbers, rows = keys.numbers(self._group.sae_id, latent), keys.rows(self._group.sae_id, latent)
            judged = {str(row["window_id"]) for row in self._judgements.rows(self._group.sae_id, latent)}
            self._kept[latent] = [(numbers[at], rows[at]) for at in choose(rows, judged)]
            self._totals[latent] = Counter((str(row["split"]), str(row["kind"])) for row in rows)
        wanted = sorted(row for kept in self._kept.values() for row, _ in kept)
        self._texts = self._group.folder.window_texts(wanted)
        self._text_at = {row: at for at, row in enumerate(wanted)}

    def entries(self) -> Iterator[list[Any]]:
        """Rows of the list: latent, group, density, max activation, explanation or None, its status, how many
        explanations more, value by column, control by column."""
        for latent in self._group.listed:
            explanations = primary_first(self._explanations.get(latent, []))
            first = explanations[0] if explanations else None
            cells = self._grades.cells(latent, first["explanation_id"] if first else None)
            pairs = [cells.get(column.name, (None, None)) for column in self._columns]
            facts = self._facts.get(latent, {})
            yield [
                latent, self._place, short(facts.get("density")), short(facts.get("max_activation")),
                _cut(first["text"]) if first else None,
                visible(str(first["status"])) if first else "none", max(0, len(explanations) - 1),
                [short(value) for value, _ in pairs], [short(control) for _, control in pairs],
            ]  # fmt: skip

    def cards(self) -> Iterator[dict[str, Any]]:
        """One card per entry, in the same order."""
        for latent in self._group.listed:
            yield self._card(latent)

    def _card(self, latent: int) -> dict[str, Any]:
        facts = self._facts.get(latent, {})
        judgements = self._judgements.rows(self._group.sae_id, latent)
        explanations = primary_first(self._explanations.get(latent, []))
        windows = self._windows(latent)
        largest = number(facts.get("max_activation"))
        if largest is None:
            largest = max((abs(a) for window in windows for a in window["activations"] or []), default=0.0)
        return {
            "facts": {
                name: short(facts.get(name), 6)
                for name in ("n_fired", "n_tokens", "density", "max_activation", "mean_activation", "n_windows")
            },
            "state": visible(str(facts["state"])) if facts else None,
            "max": short(abs(largest), 6),
            "explanations": [_explanation(row) for row in explanations],
            "scores": self._scores(latent, [row["explanation_id"] for row in explanations]),
            "tallies": _tallies(judgements),
            "windows": window_groups(windows, self._totals[latent], _verdicts(judgements)),
            **_interventions(judgements),
        }

    def _windows(self, latent: int) -> list[Row]:
        kept = self._kept[latent]
        texts = self._texts.take(pa.array([self._text_at[row] for row, _ in kept], pa.int64())).to_pylist()
        return [{**keys, **text} for (_, keys), text in zip(kept, texts, strict=True)]

    def _scores(self, latent: int, order: Sequence[str]) -> list[dict[str, Any]]:
        """Every score of the latent beside its control's; other controls follow as rows of their own."""
        rows = self._grades.rows(latent)
        controls = [row for row in rows if row["control"] == CONTROL]
        written = []
        for column in self._columns:
            for row in rows:
                if row["control"] == CONTROL or name_of(row) != column.name:
                    continue
                matching = [c for c in controls if name_of(c) == column.name and c["draw"] == row["draw"]]
                own = [c for c in matching if c["explanation_id"] == row["explanation_id"]] or matching
                real = row["control"] == "none"
                written.append(
                    {
                        "method": column.method_label,
                        "metric": words(column.metric),
                        "primary": column.primary,
                        "control_kind": None if real else words(str(row["control"])),
                        "explanation": order.index(row["explanation_id"]) if row["explanation_id"] in order else None,
                        "draw": None if row["draw"] is None else int(row["draw"]),
                        "real": _grade(row),
                        "control": _grade(own[0]) if own and real else None,
                    }
                )
        return written


def _own_judgements(group: Group) -> pa.Table:
    """Judgements of the latent's own explanation: those of the controls are graded but not shown."""
    columns = [
        "sae_id", "latent", "method", "window_id", "control", "label", "prediction", "probability", "status",
        "clean_text", "steered_text",
    ]  # fmt: skip
    table = group.folder.table("judgements", columns)
    shown = [str(name) not in EXPLANATION_CONTROLS for name in table.column("control").to_pylist()]
    return table.filter(pa.array(shown, pa.bool_()))


def _cut(text: Any) -> str | None:
    if text is None:
        return None
    clean = visible(str(text))
    return clean if len(clean) <= LIST_CHARACTERS else clean[: LIST_CHARACTERS - 1].rstrip() + "…"


def _explanation(row: Row) -> dict[str, Any]:
    return {
        "text": None if row["text"] is None else visible(str(row["text"])),
        "status": visible(str(row["status"])),
        "by": [visible(str(row[name])) for name in ("explainer", "explainer_model") if row[name]],
        "prompt": visible(str(row["prompt_sha"] or ""))[:8],
        "draw": None if row["draw"] is None else int(row["draw"]),
        "n_windows": None if row["n_windows"] is None else int(row["n_windows"]),
    }


def _grade(row: Row) -> dict[str, Any]:
    return {
        "value": short(row["value"]),
        "low": short(row["ci_low"]),
        "high": short(row["ci_high"]),
        "n": short(row["n"], 9),
        "failed": short(row["n_failed"], 9),
        "status": visible(str(row["status"])),
    }


def _right(row: Row) -> bool | None:
    if row["label"] is None or row["prediction"] is None:
        return None
    return bool(row["label"] == row["prediction"])


def _verdicts(judgements: Sequence[Row]) -> dict[str, list[dict[str, Any]]]:
    """What each scorer said of a window, by window id."""
    verdicts: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in judgements:
        if row["clean_text"] is None and row["steered_text"] is None:
            verdicts[str(row["window_id"])].append(
                {
                    "method": words(str(row["method"])),
                    "label": row["label"],
                    "prediction": row["prediction"],
                    "probability": short(row["probability"], 3),
                    "right": _right(row),
                    "status": visible(str(row["status"])),
                }
            )
    return verdicts


def _tallies(judgements: Sequence[Row]) -> list[dict[str, Any]]:
    """Right, wrong and failed verdicts per method, over all judged windows and not only the shown ones."""
    tallies: dict[str, Counter[str]] = defaultdict(Counter)
    for row in judgements:
        right = _right(row)
        outcome = "failed" if row["status"] != "ok" else "ungraded" if right is None else "right" if right else "wrong"
        tallies[words(str(row["method"]))][outcome] += 1
    return [{"method": method, **tallies[method]} for method in sorted(tallies)]


def _interventions(judgements: Sequence[Row]) -> dict[str, Any]:
    """Clean and steered texts side by side, each pair once (several questions may be asked about one pair)."""
    pairs: dict[tuple[str, str], dict[str, Any]] = {}
    for row in judgements:
        if row["clean_text"] is not None or row["steered_text"] is not None:
            clean, steered = visible(row["clean_text"] or ""), visible(row["steered_text"] or "")
            pairs.setdefault(
                (clean, steered),
                {
                    "clean": clean,
                    "steered": steered,
                    "probability": short(row["probability"], 3),
                    "right": _right(row),
                    "status": visible(str(row["status"])),
                },
            )
    return {"pairs": list(pairs.values())[:MAX_PAIRS], "n_pairs": len(pairs)}
