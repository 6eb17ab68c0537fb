"""The top of the page: what was run, how much of the SAE it covers, how the methods came out, what failed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
from markupsafe import Markup

from autointerp.report import charts
from autointerp.report.folder import Row, RunFolder, records
from autointerp.report.grades import CONTROL, Column, Grades
from autointerp.report.groups import Group, run_name
from autointerp.report.text import count, figure, interval, number, percent, visible, words

STATES = ("live", "rare", "dead", "dense")
KEY_METRICS = ("fvu", "l0", "dead")
MAX_FAILURES = 200


@dataclass(frozen=True, slots=True)
class Fact:
    """One labelled figure; `note` is the smaller print beside it."""

    label: str
    value: str
    note: str = ""


def facts(group: Group) -> list[Fact]:
    """Who and what: run, model, SAE. The same labels for every group, so that several make a table."""
    rows = records(group.scores.head(1)) or records(group.metrics.head(1)) or [{}]
    first = rows[0]
    metrics = {str(row["metric"]).lower(): row for row in records(group.metrics)}
    found = [
        Fact("Run", group.run),
        Fact("Model", _text(first.get("model"))),
        Fact("SAE", _text(group.sae_id), group.replaced and f"control: {visible(group.replaced)}"),
        Fact("Architecture", _text(first.get("arch"))),
        Fact("Hookpoint", _text(first.get("hookpoint"))),
        Fact("Width", count(first.get("width"))),
    ]
    for key in KEY_METRICS:
        row = next((metrics[name] for name in sorted(metrics) if name == key or key in name.split("_")), None)
        if row is not None:
            decimals = 1 if key == "l0" else 3
            label = key.upper() if key != "dead" else "Dead share"
            found.append(Fact(label, figure(row["value"], decimals), interval(row["ci_low"], row["ci_high"], decimals)))
        elif key == "l0":
            found.append(Fact("L0", figure(first.get("l0"), 1), "as trained"))
        else:
            found.append(Fact("FVU" if key == "fvu" else "Dead share", "—"))
    return found


def coverage(group: Group) -> dict[str, Any]:
    """How many latents there are, of which kind, and how far each stage got with them."""
    states = group.latents["state"].value_counts() if len(group.latents) else pd.Series(dtype="int64")
    total = int(states.sum())
    shown = [state for state in STATES if state in states.index]
    shown += sorted(str(state) for state in states.index if state not in STATES)
    explained = group.explanations[group.explanations["text"].notna() & (group.explanations["status"] == "ok")]
    real = group.scores[group.scores["control"] == "none"]
    scored = set(real.loc[real["value"].notna(), "latent"].dropna())
    return {
        "total": total,
        "states": [
            {"name": visible(state), "n": count(states[state]), "share": percent(states[state], total),
             "part": int(states[state]) / total}
            for state in shown
        ],
        "explained": count(explained["latent"].nunique()),
        "unexplained": count(len(set(group.explanations["latent"].dropna()) - set(explained["latent"]))),
        "scored": count(len(scored)),
        "unscored": count(len(set(real["latent"].dropna()) - scored)),
    }  # fmt: skip


def sae_metrics(group: Group) -> list[Row]:
    """Every metric of the SAE, for the fold-out table."""
    return [
        {
            "metric": words(str(row["metric"])),
            "value": figure(row["value"]),
            "interval": interval(row["ci_low"], row["ci_high"]),
            "tokens": count(row["n_tokens"]),
        }
        for row in records(group.metrics)
    ]


def summary(group: Group, columns: Sequence[Column]) -> list[Row]:
    """Median per method and metric beside its control; primary metrics are marked."""
    if group.scores.empty:
        return []
    from autointerp.stats.summary import summarise

    primary = {(column.method, column.metric) for column in columns if column.primary}
    order = {(column.method, column.metric): at for at, column in reversed(list(enumerate(columns)))}
    rows = records(summarise(group.scores))
    rows.sort(key=lambda row: order.get((row["method"], row["metric"]), len(order)))
    return [
        {
            "method": words(str(row["method"])),
            "metric": words(str(row["metric"])),
            "primary": (row["method"], row["metric"]) in primary,
            "n": count(row["n"]),
            "median": figure(row["median"]),
            "interval": interval(row["ci_low"], row["ci_high"]),
            "control": figure(row["control_median"]),
            "difference": _signed(row["difference"]),
            "difference_interval": interval(row["difference_low"], row["difference_high"]),
        }
        for row in rows
    ]


def figures(group: Group, place: int, columns: Sequence[Column]) -> list[dict[str, Any]]:
    """One chart per method (its primary metric), where the group has values for it."""
    grades = Grades(group)
    drawn = []
    for at, column in enumerate(columns):
        real, control = (grades.values(column.name, kind) for kind in ("none", CONTROL)) if column.primary else ([], [])
        if real or control:
            svg: Markup = charts.distribution(column.label, column.metric, f"chart-{place}-{at}", real, control)
            drawn.append(
                {
                    "method": column.method_label,
                    "metric": words(column.metric),
                    "svg": svg,
                    "n": count(len(real)),
                    "n_control": count(len(control)),
                    "chance": column.metric in charts.CHANCE,
                }
            )
    return drawn


def unavailable(group: Group) -> list[Row]:
    """Real scores without a value, counted by method and reason: they are missing from every median above."""
    rows = group.scores[(group.scores["control"] == "none") & group.scores["value"].isna()]
    if rows.empty:
        return []
    counts = rows.groupby(["method", "status"])["latent"].nunique().reset_index()
    reasons: dict[str, list[str]] = {}
    for row in records(counts):
        reasons.setdefault(words(str(row["method"])), []).append(f"{count(row['latent'])} {words(str(row['status']))}")
    methods: dict[str, list[str]] = {}
    for method, said in reasons.items():  # methods usually lack the same latents: say so once
        methods.setdefault(", ".join(said), []).append(method)
    return [{"counts": said, "methods": ", ".join(names)} for said, names in methods.items()]


def usage(folders: Sequence[RunFolder]) -> list[Row]:
    """Calls, tokens and price per stage and model."""
    return [
        {
            "run": run_name(folder, frame),
            "stage": _text(row["stage"]),
            "model": _text(row["model"]),
            **{name: count(row[name]) for name in ("calls", "cached_calls", "prompt_tokens", "completion_tokens")},
            "unsure_tokens": count(row.get("unsure_tokens") or 0),
            "price": "unknown" if number(row["price"]) is None else f"${row['price']:,.2f}",
            "seconds": figure(row["seconds"], 1),
        }
        for folder in folders
        for frame in [folder.frame("usage")]
        for row in records(frame)
    ]


def failures(folders: Sequence[RunFolder]) -> dict[str, Any]:
    """The failures of all runs, counted by kind, and the first of them in full."""
    rows = [{**row, "run": row["run_id"] or folder.path.name} for folder in folders for row in _failures(folder)]
    kinds: dict[tuple[str, str], int] = {}
    for row in rows:
        key = _text(row["stage"]), _text(row["kind"])
        kinds[key] = kinds.get(key, 0) + 1
    return {
        "n": count(len(rows)),
        "kinds": [{"stage": stage, "kind": kind, "n": count(n)} for (stage, kind), n in sorted(kinds.items())],
        "rows": [
            {
                **{name: _text(row[name]) for name in ("run", "stage", "kind", "message")},
                "latent": "—" if row["latent"] is None else str(int(row["latent"])),
                "reply": visible(str(row["reply_sha"] or ""))[:8],
            }
            for row in rows[:MAX_FAILURES]
        ],
        "hidden": count(max(0, len(rows) - MAX_FAILURES)) if len(rows) > MAX_FAILURES else "",
    }


def _failures(folder: RunFolder) -> list[Row]:
    return records(folder.frame("failures"))


def _signed(value: Any) -> str:
    found = number(value)
    return figure(value) if found is None or found <= 0 else f"+{figure(value)}"


def _text(value: Any) -> str:
    return "—" if value is None or value == "" else visible(str(value))
