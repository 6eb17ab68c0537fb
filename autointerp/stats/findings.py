"""What the numbers support, one plain sentence for each finding, and what they do not."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pandas as pd

from autointerp.stats.contrasts import ALL, CONTROLS, VARIANTS
from autointerp.stats.planning import ALL_LAYERS, TWO_SAES
from autointerp.stats.variants import MEASURE

NOISES = ("draw", "corpus", "explainer", "judge")
CONCLUSIONS = {
    "differs": "differ after Holm's correction, by more than the pipeline's own noise",
    "within_noise": "differ after Holm's correction for these latents, but by no more than another run of the pipeline "
    "might",
    "noise_unknown": "differ after Holm's correction for these latents; whether by more than the pipeline's own noise "
    "is not known",
    "not_told_apart": "are not told apart (Holm's p at least 0.05), which does not show that they are equal",
    "untested": "have too few latents or layers for a test",
}
MANY = 6
"""More names than these are counted, not listed."""


def findings(
    main: pd.DataFrame, tests: pd.DataFrame, variance: pd.DataFrame, ranking: pd.DataFrame, agreement: pd.DataFrame,
    resolvable: pd.DataFrame,
) -> list[str]:  # fmt: skip
    """Sentences, in the order of the tables that they are made from."""
    return [
        *_shuffled(main), *_controls(tests), *_variants(tests, resolvable), *_noise(tests), *_shares(variance),
        *_rankings(ranking), *_agreement(agreement), *_coverage(main),
    ]  # fmt: skip


def measure_name(row: pd.Series) -> str:
    parts = [str(row[name]) for name in MEASURE if isinstance(row[name], str) and row[name]]
    return f"{parts[0]} ({', '.join(parts[1:])})"


def _shuffled(main: pd.DataFrame) -> list[str]:
    said = []
    for (*_, control), rows in main.groupby([*MEASURE, "control"], sort=True):
        known = rows[rows["difference_low"].notna()]
        if known.empty:
            continue
        above, below = (known["difference_low"] > 0).sum(), (known["difference_high"] < 0).sum()
        least, most = known["difference"].min(), known["difference"].max()
        many = len(known) > 1
        whose = "trained SAEs" if control == "none" else control
        said.append(
            f"{measure_name(rows.iloc[0])}: explanations of {whose} score above another latent's on the same windows "
            f"(interval above 0) in {above} of {len(known)} row{'s' if many else ''} of the main table"
            + (f", and below it in {below}" if below else "")
            + f"; the mean difference{'s are' if many else ' is'} {_range(least, most)}."
        )
    return said


def _controls(tests: pd.DataFrame) -> list[str]:
    said = []
    whole = tests[(tests["question"] == CONTROLS) & (tests["site"] == ALL)]
    for _, rows in whole.groupby([*MEASURE, "b"], sort=True):
        groups: dict[str, list[str]] = {}
        for _, row in rows.iterrows():
            groups.setdefault(_against_control(row), []).append(f"{row['a']} {_difference(row)}")
        name, control = measure_name(rows.iloc[0]), rows["b"].iloc[0]
        for standing, members in groups.items():
            said.append(f"{name}: {standing.format(control=control)}: {_listed(members)}.")
    return said


def _against_control(row: pd.Series) -> str:
    if not isinstance(row["conclusion"], str):
        return "too little was scored to compare with {control}"
    if row["conclusion"] == "not_told_apart":
        return "not told apart from {control} (Holm's p at least 0.05)"
    side = "above" if row["difference"] > 0 else "below"
    if row["n_apart"] == row["n_sites"]:
        apart = "95% intervals apart" + ("" if row["n_sites"] == 1 else f" in all {row['n_sites']} layers")
    else:
        apart = f"but 95% intervals apart in only {row['n_apart']} of {_layers(row['n_sites'])}"
    return f"{side} {{control}}, {apart}{_of_noise(row)}"


def _variants(tests: pd.DataFrame, resolvable: pd.DataFrame) -> list[str]:
    said = []
    for question in [name for name in tests["question"].unique() if name != CONTROLS]:
        whole = tests[(tests["question"] == question) & (tests["site"] == ALL)]
        keys = [name for name in MEASURE if name != question]
        for _, rows in whole.groupby(keys, sort=True):
            name = measure_name(rows.iloc[0]) if question in (VARIANTS,) else f"{rows['method'].iloc[0]}, by {question}"
            groups: dict[str, list[str]] = {}
            for _, row in rows.iterrows():
                above, below = (row["a"], row["b"]) if row["difference"] >= 0 else (row["b"], row["a"])
                kind = str(row["conclusion"]) if isinstance(row["conclusion"], str) else "untested"
                told = row if above == row["a"] else _turned(row)
                groups.setdefault(kind, []).append(f"{above} over {below} {_difference(told)}")
            said += [f"{name}: {_told(kind, len(rows))}: {_listed(members)}." for kind, members in groups.items()]
            unclear = groups.get("not_told_apart")
            if unclear and question == VARIANTS:
                said += _resolution(rows.iloc[0], resolvable)
    return said


def _told(kind: str, n: int) -> str:
    return f"of {n} pair{'s' if n > 1 else ''}, these {CONCLUSIONS[kind]}"


def _resolution(row: pd.Series, resolvable: pd.DataFrame) -> list[str]:
    same = resolvable
    for name in MEASURE:
        same = same[same[name] == row[name]]
    for design in (ALL_LAYERS, TWO_SAES):
        found = same[(same["design"] == design) & same["difference"].notna()]
        if len(found):
            size, n = found["difference"].iloc[0], int(found["latents"].iloc[0])
            return [
                f"{measure_name(row)}: with {n} latents an SAE, this sample finds a true difference of {size:.3f} four "
                "times out of five, before correction for many pairs; smaller ones it mostly misses."
            ]
    return []


def _noise(tests: pd.DataFrame) -> list[str]:
    judged = tests[tests["verdict"].notna()]
    if judged.empty:
        return [
            "The pipeline's own noise was not measured (fewer than 3 draws, corpora, explainers and judges together), "
            "so no difference is shown to exceed it."
        ] if len(tests) else []  # fmt: skip
    unseen = {name for names in judged["unseen"].fillna("") for name in str(names).split(", ") if name}
    seen = [name for name in NOISES if name not in unseen]
    return [
        f"Verdicts take the noise of another {' or '.join(seen) or 'run'} into account"
        + (f"; that of another {' or '.join(sorted(unseen, key=NOISES.index))} was not measured." if unseen else ".")
    ]


def _shares(variance: pd.DataFrame) -> list[str]:
    said = []
    for _, rows in variance.groupby(list(MEASURE), sort=True):
        known = rows[rows["share"].notna()].sort_values("share", ascending=False)
        parts = ", ".join(f"{row['component']} {100 * row['share']:.0f}%" for _, row in known.iterrows())
        said.append(f"{measure_name(rows.iloc[0])}: the variance of scores of trained SAEs is {parts}.")
    return said


def _rankings(ranking: pd.DataFrame) -> list[str]:
    said = []
    for (*_, across), rows in ranking[ranking["spearman"].notna()].groupby([*MEASURE, "across"], sort=True):
        spearman, shared, chance = (rows[name] for name in ("spearman", "overlap", "overlap_by_chance"))
        said.append(
            f"{measure_name(rows.iloc[0])}: two levels of {across} rank the latents of an SAE with a Spearman "
            f"correlation of {spearman.mean():.2f} on average ({_range(spearman.min(), spearman.max())}), and share "
            f"{100 * shared.mean():.0f}% of their best tenth ({100 * chance.mean():.0f}% by chance)."
        )
    return said


def _agreement(agreement: pd.DataFrame) -> list[str]:
    known = agreement[agreement["spearman"].notna()]
    return [
        f"Scorers: {row['a']} and {row['b']} rank latents with a Spearman correlation of {row['spearman']:.2f} "
        f"[{row['ci_low']:.2f}, {row['ci_high']:.2f}] ({row['n']} latents)."
        for _, row in known.iterrows()
    ][:MANY]  # fmt: skip


def _coverage(main: pd.DataFrame) -> list[str]:
    known = main[main["share_scored"].notna()]
    if known.empty:
        return []
    low, high = (f"{100 * share:.1f}%" for share in (known["share_scored"].min(), known["share_scored"].max()))
    shares = low if low == high else f"{low} to {high}"
    return [
        f"Coverage: {shares} of the latents of a row are scored; the figure with coverage takes the others to be like "
        "them if live or dense, and to be explained by nothing if rare or dead."
    ]


def planned(plan: pd.DataFrame) -> list[str]:
    """What the wanted difference needs, a sentence for each measure."""
    said = []
    for _, rows in plan.groupby(list(MEASURE), sort=True) if len(plan) else ():
        row = rows.iloc[0]
        now = rows[rows["windows"].eq(row["windows_now"]).fillna(True)].iloc[0]
        name = f"{measure_name(row)}: a true difference of {row['difference']:g} between two SAEs"
        if row["status"] == "too_few_latents":
            said.append(f"{name} cannot be planned for: too few latents were scored.")
            continue
        latents = "no number of latents" if pd.isna(now["latents"]) else f"{now['latents']:,} latents of either"
        windows = ""
        if pd.notna(row["windows_now"]):
            do = "no number of windows does" if pd.isna(row["windows_needed"]) else (
                f"{row['windows_needed']:,} windows of either kind do"
            )  # fmt: skip
            windows = f"; with the {row['latents_now']:,} latents that there are, {do}"
        power = "unknown" if math.isnan(row["power_now"]) else f"{100 * row['power_now']:.0f}%"
        said.append(
            f"{name} is found four times out of five with {latents}, at the windows that there are{windows} (power "
            f"now: {power})."
        )
    return said


def _of_noise(row: pd.Series) -> str:
    return {
        "within_noise": ", by no more than the pipeline's own noise", "noise_unknown": ", pipeline noise unknown",
    }.get(str(row["conclusion"]), "")  # fmt: skip


def _turned(row: pd.Series) -> pd.Series:
    return pd.Series({**row, "shift": -row["shift"], "ci_low": -row["ci_high"], "ci_high": -row["ci_low"]})


def _difference(row: pd.Series) -> str:
    """The shift, which the interval is of."""
    if row["shift"] is None or math.isnan(row["shift"]):
        return "(no value)"
    bounds = "" if math.isnan(row["ci_low"]) else f" [{row['ci_low']:+.3f}, {row['ci_high']:+.3f}]"
    p = "" if math.isnan(row["p_holm"]) else f", p {_p(row['p_holm'])}"
    return f"by {row['shift']:+.3f}{bounds}{p}"


def _p(value: float) -> str:
    return f"{value:.3f}" if value >= 0.001 else "< 0.001"


def _range(low: float, high: float) -> str:
    return f"{low:+.3f}" if math.isclose(low, high) else f"{low:+.3f} to {high:+.3f}"


def _layers(n: float) -> str:
    return f"{n:.0f} layer{'s' if n != 1 else ''}"


def _listed(members: Sequence[str]) -> str:
    more = f"; and {len(members) - MANY} more in the table of tests" if len(members) > MANY else ""
    return "; ".join(members[:MANY]) + more


def layers_alike(distance: pd.DataFrame) -> list[str]:
    """Of the table `layers_apart.by_distance`, whether neighbouring layers are more alike than distant ones."""
    if distance.empty:
        return []
    asked = distance[
        (distance["what"] == "nearer - farther") & (distance["steps"] == "1 - 2+")
        & (distance["anchor"] == "all") & (distance["against"] == "shuffled")
    ]  # fmt: skip
    said = []
    for kind, rows in asked.groupby("kind", sort=True):
        known = rows[rows["ci_low"].notna()]
        if known.empty:
            reasons = ", ".join(sorted(rows["status"].dropna().unique()))
            said.append(f"Similarity by {kind}: too little to tell neighbouring layers from distant ones ({reasons}).")
            continue
        nearer, farther = (known["ci_low"] > 0).sum(), (known["ci_high"] < 0).sum()
        said.append(
            f"Similarity by {kind}: SAEs of neighbouring layers are more alike than those of distant ones, against the "
            f"shuffled match (interval above 0), in {nearer} of {len(known)} variants"
            + (f", and less alike in {farther}" if farther else "")
            + f"; the difference of cosines is {_range(known['value'].min(), known['value'].max())}."
        )
    return said
