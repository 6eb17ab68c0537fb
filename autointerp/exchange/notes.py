"""Scores of an explanation as the text of a note: Neuronpedia's files and uploads have no place for them.

{"autointerp": 1, "pole": 1,
 "explanation_id": ..., "explainer": ..., "explainer_model": ..., "draw": 0, "corpus": ...,
 "sae": {"sae_id": ..., "arch": ..., "hookpoint": ..., "width": ...},
 "scores": [{"method": ..., "metric": ..., "negatives": ..., "scorer_model": ..., "draw": 0,
             "value": 0.8, "ci_low": 0.7, "ci_high": 0.9, "n": 100, "status": "ok",
             "controls": {"shuffled_explanation": {"value": 0.5, "ci_low": 0.4, "ci_high": 0.6, "n": 100}}}]}
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

from autointerp.stats.summary import ALONE, HEADLINE
from scoring.types import EXPLANATION_CONTROLS

Row = dict[str, Any]

VERSION = 1
MADE = ("explanation_id", "explainer", "explainer_model", "draw", "corpus")
"""What is noted of how the explanation was made."""
SAE = ("sae_id", "sae_sha", "arch", "hookpoint", "width", "l0")
GRADED = ("method", "metric", "negatives", "scorer_model", "draw")
FIGURES = ("value", "ci_low", "ci_high", "n")
PARTNERS = ("latent", "explainer", "explainer_model", "corpus", *GRADED)
"""What a score and its control agree in, besides the pole."""


class ScoresOfExplanations:
    """The headline scores of one SAE, found by the explanation that they grade."""

    def __init__(self, rows: Iterable[Row]) -> None:
        self._own: dict[tuple[Any, ...], list[Row]] = defaultdict(list)
        self._controls: dict[tuple[Any, ...], dict[str, Row]] = defaultdict(dict)
        for row in rows:
            headline = str(row["metric"]).partition("@")[0] in HEADLINE or row["metric"] == ALONE.get(row["method"])
            if not headline:
                continue
            if row["control"] in EXPLANATION_CONTROLS:
                self._controls[_partners(row)][row["control"]] = row
            else:
                self._own[row["latent"], _pole(row), row["explanation_id"]].append(row)

    def note(self, explanation: Mapping[str, Any]) -> str:
        """The note of one row of `explanations.parquet`. Numbers that are missing are null."""
        key = explanation["latent"], _pole(explanation), explanation["explanation_id"]
        own = self._own.get(key, ())
        note = {
            "autointerp": VERSION,
            "pole": explanation["pole"],
            **{name: explanation[name] for name in MADE},
            "sae": {name: _known(own[0].get(name)) for name in SAE} if own else {},
            "scores": [self._score(row) for row in own],
        }
        return json.dumps(note, ensure_ascii=False, allow_nan=False)

    def _score(self, row: Row) -> Row:
        controls = self._controls.get(_partners(row), {})
        return {
            **{name: row[name] for name in GRADED},
            **_figures(row),
            "status": row["status"],
            "controls": {name: _figures(control) for name, control in sorted(controls.items())},
        }


def read_note(text: Any) -> Row | None:
    """A note of ours, or None for any other text."""
    if not isinstance(text, str) or '"autointerp"' not in text:
        return None
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) and found.get("autointerp") == VERSION else None


def scores_in(note: Mapping[str, Any], about: Mapping[str, Any]) -> list[Row]:
    """Rows of `scores.parquet`: those noted, each with its controls'. `about` is what the note does not say."""
    rows: list[Row] = []
    for score in note.get("scores", ()):
        sae = {name: note.get("sae", {}).get(name) for name in SAE if name != "sae_id"}
        common = {**sae, **about, **{name: note.get(name) for name in ("pole", *MADE)}}
        common |= {name: score.get(name) for name in GRADED}
        own = {**common, "control": "none", **{name: score.get(name) for name in FIGURES}}
        rows.append(own | {"status": score.get("status")})
        for control, figures in score.get("controls", {}).items():
            status = "ok" if figures.get("value") is not None else "failed"
            # A control's explanation is another's, of which only the score is noted.
            other = {"control": control, "explanation_id": None, "status": status}
            rows.append({**common, **other, **{name: figures.get(name) for name in FIGURES}})
    return rows


def _pole(row: Mapping[str, Any]) -> int:
    """Old tables say none, and mean the positive one."""
    return -1 if row["pole"] == -1 else 1


def _partners(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return _pole(row), *(row[name] for name in PARTNERS)


def _figures(row: Mapping[str, Any]) -> Row:
    return {name: _known(row[name]) for name in FIGURES}


def _known(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
