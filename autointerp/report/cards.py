"""The latent list and the latent cards: the data that the page's script, and `autointerp show`, draw from."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from autointerp.report.folder import Row, RunFolder, records
from autointerp.report.grades import Column, Grades, headline, paired, setting
from autointerp.report.groups import Group
from autointerp.report.judged import Judged
from autointerp.report.lens import Lens
from autointerp.report.text import number, short, significant, visible
from autointerp.report.windows import Windows

LIST_CHARACTERS = 400
BATCH = 50
FACTS = ("n_fired", "n_negative", "n_tokens", "density", "max_activation", "mean_activation", "n_windows")


class Evidence:
    """What a run folder holds beside scores and explanations: windows, judgements, a lens."""

    def __init__(self, folder: RunFolder, methods: Sequence[str]) -> None:
        self.windows, self.judged, self.lens = Windows(folder), Judged(folder, methods), Lens(folder)


class Cards:
    """List entries and cards of one group. `place` is the group's number on the page, `varying` the settings in which
    repeated scores differ."""

    def __init__(
        self, group: Group, place: int, shown: Sequence[Column], grades: Grades, evidence: Evidence,
        varying: Sequence[str],
    ) -> None:  # fmt: skip
        self._group, self._place, self._shown = group, place, shown
        self._grades, self._evidence, self._varying = grades, evidence, varying
        listed = group.latents[group.latents["latent"].isin(group.listed)]
        self._facts = {int(row["latent"]): row for row in records(listed[["latent", *FACTS, "state"]])}
        self._explanations: dict[int, list[Row]] = defaultdict(list)
        for row in records(group.explanations):
            if row["latent"] is not None:
                self._explanations[int(row["latent"])].append(row)
        for rows in self._explanations.values():
            rows.sort(key=_order)

    def entries(self) -> Iterator[list[Any]]:
        """Rows of the list: latent, group, density, max activation, explanation or None, its status, how many
        explanations more, value by column, control by column, state."""
        real, control = (_rounded(table) for table in (self._grades.real, self._grades.control))
        for at, latent in enumerate(self._group.listed):
            explanations = self._explanations.get(latent, [])
            first = explanations[0] if explanations else None
            facts = self._facts.get(latent, {})
            yield [
                latent, self._place, short(facts.get("density")), short(facts.get("max_activation")),
                _cut(first["text"]) if first else None,
                visible(str(first["status"])) if first else "none", max(0, len(explanations) - 1),
                real[at], control[at], visible(str(facts["state"])) if facts.get("state") else None,
            ]  # fmt: skip

    def cards(self) -> Iterator[dict[str, Any]]:
        """One card per entry, in the same order."""
        for begin in range(0, len(self._group.listed), BATCH):
            yield from self._batch(self._group.listed[begin : begin + BATCH])

    def _batch(self, latents: Sequence[int]) -> Iterator[dict[str, Any]]:
        sae_id, judged = self._group.sae_id, self._evidence.judged
        said = judged.of(sae_id, latents, [self._questioned(latent) for latent in latents])
        windows = self._evidence.windows.of(sae_id, latents, said)
        for latent, verdicts, drawn in zip(latents, said, windows, strict=True):
            pairs, n_pairs = judged.pairs(sae_id, latent)
            facts, explanations = self._facts.get(latent, {}), self._explanations.get(latent, [])
            rows = self._grades.rows(latent)
            scores = paired(rows, [row["explanation_id"] for row in explanations], self._differing(rows))
            told = [name for name in self._differing(explanations) if not name.startswith("explainer")]
            largest = number(facts.get("max_activation"))
            yield {
                "facts": {name: short(facts.get(name), 6) for name in FACTS},
                "state": visible(str(facts["state"])) if facts else None,
                "max": short(abs(drawn["largest"] if largest is None else largest), 6),
                "explanations": [_explanation(row, told) for row in explanations],
                "scores": scores,
                "headline": headline(scores, self._shown),
                "tallies": verdicts.tallies,
                "windows": drawn["windows"],
                "histogram": drawn["histogram"],
                "lens": self._evidence.lens.of(sae_id, latent),
                "draw": drawn["draw"] if "draw" in self._varying else None,
                "corpus": drawn["corpus"] if "corpus" in self._varying else None,
                "prompts": self._prompts(rows, explanations),
                "pairs": pairs,
                "n_pairs": n_pairs,
            }

    def _differing(self, rows: Sequence[Row]) -> list[str]:
        """The settings that tell this latent's rows apart."""
        return [name for name in self._varying if len({row.get(name) for row in rows}) > 1]

    def _questioned(self, latent: int) -> set[str]:
        """The explanations whose judgements a card shows: of each pole the first."""
        first: dict[Any, str] = {}
        for row in self._explanations.get(latent, []):
            first.setdefault(row["pole"], str(row["explanation_id"]))
        return set(first.values())

    def _prompts(self, rows: Sequence[Row], explanations: Sequence[Row]) -> list[list[str]]:
        """What asked and the start of the prompt's digest, as the copies in the run's folder `prompts/` are named."""
        asked = [("explain", row["prompt_sha"]) for row in explanations]
        asked += [(self._shown[row["column"]].method_label, row["prompt_sha"]) for row in rows]
        return [[who, visible(str(sha))[:8]] for who, sha in dict.fromkeys(asked) if sha]


def _order(row: Row) -> tuple[Any, ...]:
    """Those that succeeded first, then the positive pole, then the first corpus and draw."""
    failed = row["text"] is None or row["status"] != "ok"
    return failed, -(row["pole"] or 1), str(row["corpus"] or ""), row["draw"] or 0


def _rounded(table: np.ndarray[Any, np.dtype[np.float64]]) -> list[list[float | None]]:
    rows = significant(np.nan_to_num(table)).astype(object)
    rows[~np.isfinite(table)] = None
    found: list[list[float | None]] = rows.tolist()
    return found


def _cut(text: Any) -> str | None:
    if text is None:
        return None
    clean = visible(str(text))
    return clean if len(clean) <= LIST_CHARACTERS else clean[: LIST_CHARACTERS - 1].rstrip() + "…"


def _explanation(row: Row, varying: Sequence[str]) -> dict[str, Any]:
    return {
        "text": None if row["text"] is None else visible(str(row["text"])),
        "status": visible(str(row["status"])),
        "by": [visible(str(row[name])) for name in ("explainer", "explainer_model") if row[name]],
        "setting": setting(row, varying),
        "n_windows": None if row["n_windows"] is None else int(row["n_windows"]),
    }
