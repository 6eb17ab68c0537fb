"""The top of the page: what was run, how much of the SAE it covers, how the methods came out, what failed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
from markupsafe import Markup

from autointerp.report import charts
from autointerp.report.folder import Row, RunFolder, records
from autointerp.report.grades import Column, Grades
from autointerp.report.groups import Group, run_name
from autointerp.report.text import count, figure, interval, number, percent, signed, visible, words

STATES = ("live", "rare", "dead", "dense")
KEY_METRICS = ("fvu", "l0", "dead")
MAX_FAILURES = 200


@dataclass(frozen=True, slots=True)
class Fact:
    """One labelled figure; `note` is the smaller print beside it."""

    label: str
    value: str
    note: str = ""
    numeric: bool = False


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
        Fact("Width", count(first.get("width")), numeric=True),
    ]
    for key in KEY_METRICS:
        row = next((metrics[name] for name in sorted(metrics) if name == key or key in name.split("_")), None)
        if row is not None:
            decimals = 1 if key == "l0" else 3
            label = key.upper() if key != "dead" else "Dead share"
            found.append(
                Fact(label, figure(row["value"], decimals), interval(row["ci_low"], row["ci_high"], decimals), True)
            )
        elif key == "l0":
            found.append(Fact("L0", figure(first.get("l0"), 1), "as trained", True))
        else:
            found.append(Fact("FVU" if key == "fvu" else "Dead share", "—", numeric=True))
    return found


def sae_table(groups: Sequence[Group]) -> dict[str, Any]:
    """Several SAEs one below the other: trained ones first, variants together, layers in order.

    What is said of none, and the model and run where all share one, is left out.
    """
    said = [{fact.label: fact for fact in facts(group)} for group in groups]
    shared = {name for name in ("Run", "Model") if len({row[name].value for row in said}) == 1}
    heads = [
        name for name in said[0]
        if name != "SAE" and name not in shared and any(row[name].value != "—" for row in said)
    ]  # fmt: skip

    def order(place: int) -> tuple[Any, ...]:
        group = groups[place]
        numeric = group.layer.isdecimal()
        return group.replaced, group.arch, not numeric, int(group.layer) if numeric else 0, group.layer, place

    return {
        "heads": [(name, said[0][name].numeric) for name in heads],
        "rows": [(place, [said[place][name] for name in heads]) for place in sorted(range(len(groups)), key=order)],
    }


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
        "live": count(states.get("live", 0)) if len(states) else "—",
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


def summarised(group: Group) -> dict[tuple[str, str, str], Row]:
    """Median over latents and difference to the control, by method, negatives and metric."""
    if group.scores.empty:
        return {}
    from autointerp.stats.summary import summarise

    rows = records(summarise(group.scores))
    return {(str(row["method"]), str(row["negatives"] or "random"), str(row["metric"])): row for row in rows}


def summary(found: dict[tuple[str, str, str], Row], columns: Sequence[Column]) -> list[Row]:
    """The group's `summarised` scores in the order of the columns; primary metrics are marked."""
    return [
        {
            "method": column.method_label,
            "metric": words(column.metric),
            "primary": column.primary,
            "n": count(row["n"]),
            "median": figure(row["median"]),
            "interval": interval(row["ci_low"], row["ci_high"]),
            "control": figure(row["control_median"]),
            "difference": signed(row["difference"]),
            "difference_interval": interval(row["difference_low"], row["difference_high"]),
        }
        for column in columns
        for row in [found.get(column.name)]
        if row is not None
    ]


def figures(grades: Grades, place: int, columns: Sequence[Column]) -> list[dict[str, Any]]:
    """One chart per method (its primary metric), where the group has values for it."""
    drawn = []
    for at, column in enumerate(columns):
        real, control = (grades.values(at, control) for control in (False, True)) if column.primary else ([], [])
        if real or control:
            svg: Markup = charts.distribution(column.label, column.metric, f"chart-{place}-{at}", real, control)
            drawn.append(
                {
                    "method": column.method_label,
                    "metric": words(column.metric),
                    "svg": svg,
                    "n": count(len(real)),
                    "n_control": count(len(control)),
                    "chance": column.metric.partition("@")[0] in charts.CHANCE,
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


def _text(value: Any) -> str:
    return "—" if value is None or value == "" else visible(str(value))
