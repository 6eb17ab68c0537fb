"""Aggregates over latents against planted populations: coverage, density, what could not be scored."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest

from autointerp.errors import UserError
from autointerp.stats.aggregate import aggregate, at_common_density, by_density, stratified_mean, with_coverage
from autointerp.stats.resampling import Judged, interval, resample, two_stage

KIND = {"method": "detection", "metric": "auroc", "control": "none", "negatives": "random"}


def scored(values: np.ndarray, sae_id: str = "one", latents: Any = None, **more: Any) -> pd.DataFrame:
    return pd.DataFrame({"run_id": "r", "sae_id": sae_id, "latent": range(len(values)) if latents is None else latents, "value": values, **KIND, **more})  # fmt: skip


@pytest.mark.parametrize("statistic", ["mean", "median"])
def test_one_stage_intervals_cover(statistic: str) -> None:
    """Skewed, bounded scores, 30 and 100 latents, 800 samples each: 93 to 97% on the mean over designs."""
    rng = np.random.default_rng(1)
    truth = {"mean": 8 / 10.5, "median": float(np.median(rng.beta(8, 2.5, 2_000_000)))}[statistic]
    covered = []
    for n in (30, 100):
        inside = 0
        for _ in range(800):
            low, high = interval(resample(rng.beta(8, 2.5, n), statistic, rng, 300), n)
            inside += low <= truth <= high
        covered.append(inside / 800)
    print("coverage", statistic, covered)
    assert 0.93 <= np.mean(covered) <= 0.97
    assert min(covered) >= 0.92


@pytest.mark.parametrize(("sd", "windows"), [(0.12, 20), (0.02, 10)])
def test_two_stage_intervals_cover(sd: float, windows: int) -> None:
    """Latents' true rates differ by sd, answers are binomial; 30 and 100 latents. With sd 0.02 nearly all spread is
    that of windows: counting it twice would cover over 99%."""
    rng = np.random.default_rng(2)
    total = 0.8 * 0.2 / sd**2 - 1
    covered = []
    for n in (30, 100):
        inside, repeats = 0, 600 if n == 30 else 250
        for _ in range(repeats):
            rates = rng.beta(0.8 * total, 0.2 * total, n)
            judged = [
                Judged((rng.random(windows) < p).astype(float), (rng.random(windows) < 1 - p).astype(float))
                for p in rates
            ]
            drawn = two_stage(judged, "balanced_accuracy", "mean", rng, 300)
            low, high = interval(drawn.estimates, n)
            inside += low <= 0.8 <= high
        covered.append(inside / repeats)
    print("two-stage coverage", sd, covered)
    assert 0.93 <= np.mean(covered) <= 0.97


def test_windows_and_latents_share_the_spread_as_planted() -> None:
    rng = np.random.default_rng(3)
    rates = rng.normal(0.7, 0.1, 400).clip(0.05, 0.95)
    judged = [Judged((rng.random(25) < p).astype(float), np.zeros(1)) for p in rates]
    found = two_stage(judged, "recall", "mean", rng, 300)
    assert found.sd_latents == pytest.approx(0.1 / 20, rel=0.15)
    assert found.sd_windows == pytest.approx(math.sqrt(0.2 / 25) / 20, rel=0.1)
    assert found.estimates.std() == pytest.approx(math.hypot(found.sd_latents, found.sd_windows), rel=0.15)


def test_judgements_are_those_of_the_scores() -> None:
    """AUROCs remade from judgements equal those of pairwise counting, and rows of others change nothing."""
    rng = np.random.default_rng(4)
    rows, values = [], []
    for latent in range(6):
        label = np.arange(20) < 8
        answers = rng.integers(0, 6, 20) + label * rng.integers(0, 4)
        pairs = answers[label][:, None] - answers[~label][None, :]
        values.append((pairs > 0).mean() + (pairs == 0).mean() / 2)
        same = {"run_id": "r", "sae_id": "one", "latent": latent, "method": "detection", "control": "none"}
        rows += [
            {**same, "label": bool(fires), "kind": "activating" if fires else "random", "probability": float(a)}
            for fires, a in zip(label, answers, strict=True)
        ]
    other = [{**row, "control": "shuffled_explanation", "probability": 0.5} for row in rows] + [
        {**row, "kind": "hard:near", "probability": 99.0} for row in rows if not row["label"]
    ]
    failed = [{**rows[0], "probability": None}]
    table = aggregate(scored(np.array(values)), judgements=pd.DataFrame([*rows, *other, *failed])).set_index(
        "statistic"
    )
    assert table.loc["mean", "value"] == pytest.approx(np.mean(values))
    assert table.loc["median", "value"] == pytest.approx(np.median(values))
    assert (table["stages"] == 2).all() and table.loc["mean", "ci_low"] < np.mean(values) < table.loc["mean", "ci_high"]
    with pytest.raises(UserError, match="cannot be drawn again"):
        aggregate(scored(np.array(values), metric="pearson"), judgements=pd.DataFrame(rows))


def test_draws_of_a_latent_are_one_latent() -> None:
    values = np.linspace(0.5, 0.9, 10)
    once = aggregate(scored(values)).set_index("statistic")
    thrice = aggregate(pd.concat([scored(values, draw=d) for d in range(3)])).set_index("statistic")
    pd.testing.assert_frame_equal(once, thrice)
    holed = aggregate(scored(np.r_[values, np.nan])).set_index("statistic")
    assert holed.loc["mean", "n_null"] == 1 and holed.loc["mean", "value"] == once.loc["mean", "value"]
    few = aggregate(scored(values[:2]))
    assert few["status"].eq("too_few_latents").all() and few["ci_low"].isna().all()
    assert math.isnan(aggregate(scored(np.array([np.nan])))["value"].iloc[0])
    with pytest.raises(UserError, match="several kinds"):
        aggregate(pd.concat([scored(values), scored(values, negatives="hard:near")]))


def densities(rng: np.random.Generator, sae_id: str, share_dense: float, n: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Scores that depend on density alone: 0.9 at 10^-2.2, 0.6 at 10^-3.7; and a dead latent."""
    dense = rng.random(n) < share_dense
    density = np.where(dense, 10**-2.2, 10**-3.7)
    latents = pd.DataFrame({"sae_id": sae_id, "latent": range(n), "state": "live", "density": density})
    dead = pd.DataFrame({"sae_id": sae_id, "latent": [n], "state": "dead", "density": [0.0]})
    return scored(np.where(dense, 0.9, 0.6) + rng.normal(0, 0.03, n), sae_id), pd.concat([latents, dead])


def test_saes_that_differ_in_density_only_are_alike_at_common_density() -> None:
    rng = np.random.default_rng(5)
    (a, a_latents), (b, b_latents) = densities(rng, "a", 0.8, 300), densities(rng, "b", 0.2, 300)
    scores, latents = pd.concat([a, b]), pd.concat([a_latents, b_latents])
    table = at_common_density(scores, latents).set_index("sae_id")
    assert table.loc["a", "unweighted"] - table.loc["b", "unweighted"] > 0.15
    assert table["value"].to_numpy() == pytest.approx([0.75, 0.75], abs=0.01)
    assert (table["ci_low"] < table["value"]).all() and (table["ci_high"] - table["ci_low"] < 0.02).all()
    assert table["weight_used"].eq(1.0).all()
    bins = by_density(scores, latents)
    assert bins.groupby("sae_id")["share"].sum().to_numpy() == pytest.approx([1, 1])
    assert bins["n_latents"].sum() == 600 and set(bins["value"].round(1)) == {0.6, 0.9}
    given = at_common_density(scores, latents, target={int(bins["bin"].max()): 1.0})
    assert given["value"].to_numpy() == pytest.approx([0.9, 0.9], abs=0.01)


def test_saes_without_common_densities_are_not_compared() -> None:
    rng = np.random.default_rng(6)
    (a, a_latents), (b, b_latents) = densities(rng, "a", 1.0, 20), densities(rng, "b", 0.0, 20)
    table = at_common_density(pd.concat([a, b]), pd.concat([a_latents, b_latents]))
    assert table["status"].eq("densities_differ").all() and table["value"].isna().all()


def test_stratified_intervals_cover() -> None:
    """Two bins of 6 and 24 latents: small bins are where a plain bootstrap is too narrow."""
    rng = np.random.default_rng(7)
    inside = 0
    for _ in range(600):
        strata = [rng.normal(0.9, 0.05, 6), rng.normal(0.6, 0.05, 24)]
        row = stratified_mean(strata, np.array([0.5, 0.5]), rng)
        inside += row["ci_low"] <= 0.75 <= row["ci_high"]
    print("stratified coverage", inside / 600)
    assert 0.93 <= inside / 600 <= 0.97


def test_dead_and_rare_latents_count_as_chance() -> None:
    """Of 10 latents 5 are eligible and 4 of them scored: 0.5 x 0.9 + 0.5 x 0.5."""
    latents = pd.DataFrame(
        {"sae_id": "one", "latent": range(10), "state": ["live"] * 4 + ["dense"] + ["rare"] * 2 + ["dead"] * 3}
    )
    scores = scored(np.array([0.8, 0.9, 1.0, 0.9, np.nan, 0.99]))
    row = with_coverage(scores, latents).iloc[0]
    assert row["value"] == pytest.approx(0.5 * 0.9 + 0.5 * 0.5)
    assert (row["share_scored"], row["share_eligible_scored"]) == (0.4, 0.8)
    assert (row["share_eligible"], row["share_rare"], row["share_dead"]) == (0.5, 0.2, 0.3)
    assert row["ci_low"] < row["value"] < row["ci_high"] and row["ci_high"] - row["ci_low"] < 0.2
    nothing = with_coverage(scores.assign(value=np.nan), latents).iloc[0]
    assert math.isnan(nothing["value"]) and nothing["status"] == "too_few_latents"
    with pytest.raises(UserError, match="pass chance="):
        with_coverage(scores.assign(metric="accuracy"), latents)
    assert with_coverage(scores.assign(metric="accuracy"), latents, chance=0.2).iloc[0]["value"] == pytest.approx(0.55)
