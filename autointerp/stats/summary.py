"""Per method: the median over latents, its interval, and the paired difference to the control."""

from __future__ import annotations

import pandas as pd

from autointerp.seeds import generator
from autointerp.stats.frames import Floats
from autointerp.stats.resampling import LEAST, STATISTICS, interval, resample
from scoring.types import EXPLANATION_CONTROLS, SHUFFLED

HEADLINE = {"auroc", "balanced_accuracy", "logprob_gain", "pearson"}
"""Metrics that grade an explanation (before an @, which says at what setting); others (a reached KL, a strength)
describe how the grading went."""
ALONE = {"intruder": "accuracy"}
"""Headline metrics of methods that grade latents and no explanations; they have no control on the same windows."""

COLUMNS = [
    "control", "method", "metric", "negatives", "n", "n_null", "median", "ci_low", "ci_high", "control_median",
    "difference", "difference_low", "difference_high",
]  # fmt: skip


def summarise(scores: pd.DataFrame) -> pd.DataFrame:
    """One row per method, metric and kind of non-activating windows (`negatives`, empty where there are none), and for
    random SAEs, random models and neurons (`control`) one of their own.

    `median` and its interval are of the real explanations, over latents. `difference` is the mean over latents of
    real minus shuffled, on the same windows. Intervals resample latents (`resampling`): draws and poles of one are
    averaged first. Null scores are counted in `n_null`, and left out.
    """
    rows = []
    headline = scores["metric"].map(lambda name: str(name).partition("@")[0]).isin(HEADLINE)
    graded = scores[headline | (scores["metric"] == scores["method"].map(ALONE))]
    if graded.empty:
        return pd.DataFrame(columns=COLUMNS)
    own = ~graded["control"].isin(EXPLANATION_CONTROLS)
    # What a dictionary is, the real thing or a control, is said by the rows of its own explanations.
    dictionary = [name for name in ("run_id", "sae_id") if name in graded]
    placed = graded.loc[own].groupby(dictionary)["control"].first().rename("place")
    kinds = graded["negatives"].fillna("") if "negatives" in graded else ""
    graded = graded.assign(own=own, negatives=kinds).join(placed, on=dictionary)
    latent = [*dictionary, "latent"]
    for (place, method, metric, negatives), group in graded.groupby(
        ["place", "method", "metric", "negatives"], sort=True
    ):
        asked = group[group["own"]]
        against = group[group["control"] == SHUFFLED]
        wide = pd.DataFrame(
            {"real": asked.groupby(latent)["value"].mean(), "control": against.groupby(latent)["value"].mean()}
        ).astype(float)
        real = wide["real"].dropna().to_numpy()
        paired = wide.dropna()
        gaps = (paired["real"] - paired["control"]).to_numpy()
        purpose = "/".join(str(part) for part in (method, metric, negatives) if part)
        low, high = bootstrap(real, "median", f"{purpose}/median")
        gap_low, gap_high = bootstrap(gaps, "mean", f"{purpose}/gap")
        rows.append({
            "control": place, "method": method, "metric": metric, "negatives": negatives, "n": len(real),
            "n_null": int(asked["value"].isna().sum()),
            "median": _or_nan("median", real), "ci_low": low, "ci_high": high,
            "control_median": _or_nan("median", paired["control"].to_numpy()),
            "difference": _or_nan("mean", gaps), "difference_low": gap_low, "difference_high": gap_high,
        })  # fmt: skip
    return pd.DataFrame(rows, columns=COLUMNS)


def bootstrap(values: Floats, statistic: str, purpose: str) -> tuple[float, float]:
    """95% interval over resampled latents; NaN below three of them. Seeded by its purpose."""
    if len(values) < LEAST:
        return float("nan"), float("nan")
    return interval(resample(values, statistic, generator(0, "bootstrap", purpose)), len(values))


def _or_nan(statistic: str, values: Floats) -> float:
    return float(STATISTICS[statistic](values)) if len(values) else float("nan")
