"""The card of a data set of a run: what is in it, what it was made with, and how far it reaches."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import pandas as pd
import yaml

from autointerp.exchange.folder import Tables
from autointerp.stats.summary import summarise
from scoring.types import GENERIC, SHUFFLED

ABOUT: dict[str, str] = {
    "scores": "one row per latent, explanation, method, metric and control, with its 95% interval",
    "explanations": "what was said of each latent, or why nothing was",
    "latents": "every latent of each SAE, scored or not: density, largest activation, state",
    "judgements": "one row per judged window",
    "windows": "the text that latents were explained from and scored on, with activations token by token",
    "sae_metrics": "reconstruction of each SAE",
    "lens": "the tokens whose logits a latent's decoder direction raises and lowers most",
    "usage": "calls, tokens and seconds by stage and model",
    "failures": "requests without a usable answer",
}
STATES = ("live", "dense", "rare", "dead")


def card(
    run: str, tables: Tables, counts: Mapping[str, int], settings: Mapping[str, Any], environment: Mapping[str, Any]
) -> str:
    """README.md of a data set with these tables, whose rows `counts` says: YAML that names them, then Markdown."""
    counts = {name: n for name, n in counts.items() if n}
    configs: list[dict[str, Any]] = [{"config_name": name, "data_files": f"{name}.parquet"} for name in counts]
    # What a reader gets who names none.
    next((each for each in configs if each["config_name"] == "scores"), configs[0])["default"] = True
    head = {
        "pretty_name": f"autointerp: {run}",
        "tags": ["interpretability", "sparse-autoencoders", "autointerp"],
        "configs": configs,
    }
    scores, latents, explanations = (tables.frame(name) for name in ("scores", "latents", "explanations"))
    parts = [
        f"---\n{_yaml(head)}---",
        f"# {_cell(run)}",
        "Latents of sparse autoencoders, explained in plain language, and how well each explanation was found to hold. "
        "Made with `autointerp-toolkit`, whose docs say what the columns mean.",
        "```python\nimport datasets\n\nscores = datasets.load_dataset(\"OWNER/NAME\", "
        f"\"{next(iter(counts))}\", split=\"train\").to_pandas()\n```",
        "## Tables",
        _table(["name", "rows", "holds"], [[name, f"{n:,}", ABOUT.get(name, "")] for name, n in counts.items()]),
        "## What was explained",
        _table(["SAE", "model", "architecture", "hookpoint", "width", "L0", "control"], _saes(scores)),
        "## Coverage",
        _table(["SAE", "latents", *STATES, "explained", "scored"], _coverage(scores, latents, explanations)),
        "Of live and dense latents a sample is scored; rare and dead ones are not, and no mean below speaks of them.",
        "## Scores",
        _table(["SAE", "method", "metric", "latents", "median", "95%", "minus shuffled", "95%"], _scores(scores)),
        "Medians and differences are over latents, with percentile bootstrap intervals that resample latents. "
        "`control` is `none` for a latent's own explanation; other rows grade other explanations on the same windows, "
        "or what stands in an SAE's place, and belong into no mean with them. Repeated draws are repeated measurements "
        "of one latent, not further latents.",
        "## Provenance",
        f"Seeds: {_values(scores, explanations, 'seed')}. Draws: {_values(scores, explanations, 'draw')}. "
        f"Corpora: {_values(scores, explanations, 'corpus')}. Explainers: {_values(scores, explanations, 'explainer')} "
        f"({_values(scores, explanations, 'explainer_model')}). "
        f"Judges: {_values(scores, explanations, 'scorer_model')}.",
        _fenced(_yaml({"environment": dict(environment), "settings": dict(settings)})),
    ]  # fmt: skip
    return "\n\n".join(parts) + "\n"


def _saes(scores: pd.DataFrame) -> list[list[str]]:
    facts = ["model", "arch", "hookpoint", "width", "l0"]
    rows = []
    for sae_id, group in scores.groupby("sae_id"):
        placed = sorted(set(group["control"].dropna()) - {"none", SHUFFLED, GENERIC})
        first = [group[name].dropna() for name in facts]
        rows.append([str(sae_id), *("" if some.empty else _text(some.iloc[0]) for some in first), ", ".join(placed)])
    return rows


def _coverage(scores: pd.DataFrame, latents: pd.DataFrame, explanations: pd.DataFrame) -> list[list[str]]:
    rows = []
    for sae_id in sorted({*latents["sae_id"].dropna(), *explanations["sae_id"].dropna(), *scores["sae_id"].dropna()}):
        of_sae = latents[latents["sae_id"] == sae_id].drop_duplicates("latent")
        told = explanations[(explanations["sae_id"] == sae_id) & (explanations["status"] == "ok")]
        graded = scores[(scores["sae_id"] == sae_id) & scores["value"].notna()]
        states = of_sae["state"].value_counts()
        counts = [len(of_sae), *(int(states.get(state, 0)) for state in STATES)]
        rows.append([sae_id, *map(str, counts), str(told["latent"].nunique()), str(graded["latent"].nunique())])
    return rows


def _scores(scores: pd.DataFrame) -> list[list[str]]:
    rows = []
    for sae_id, group in scores.groupby("sae_id"):
        for row in summarise(group).to_dict("records"):
            metric = f"{row['metric']} ({row['negatives']})" if row["negatives"] else str(row["metric"])
            rows.append([
                str(sae_id), str(row["method"]), metric, str(row["n"]), _number(row["median"]),
                _interval(row["ci_low"], row["ci_high"]), _number(row["difference"]),
                _interval(row["difference_low"], row["difference_high"]),
            ])  # fmt: skip
    return rows


def _values(scores: pd.DataFrame, explanations: pd.DataFrame, column: str) -> str:
    found = {_text(v) for frame in (scores, explanations) if column in frame for v in frame[column].dropna().unique()}
    return ", ".join(_cell(value) for value in sorted(found)) or "not recorded"


def _table(head: list[str], rows: list[list[str]]) -> str:
    if not rows:
        return "None."
    lines = [head, ["---"] * len(head), *([_cell(cell) for cell in row] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _cell(text: str) -> str:
    """Names come from files: nothing of them ends a cell or begins a tag."""
    line = " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;").replace("`", "'")
    return line.replace("[", "\\[")


def _fenced(text: str) -> str:
    """A block that no run of backticks in the text ends."""
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence}yaml\n{text}{fence}"


def _text(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _number(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.3f}"


def _interval(low: float, high: float) -> str:
    return "" if math.isnan(low) or math.isnan(high) else f"{low:.3f} to {high:.3f}"


def _yaml(value: Any) -> str:
    text: str = yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=100)
    return text
