"""Scorers against each other, draws against each other, variants against the pipeline's own noise."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from autointerp.errors import UserError
from autointerp.stats.agreement import spearman_matrix, spearman_table
from autointerp.stats.stability import ranking_stability, verdict


def two_scorers(rng: np.random.Generator, n: int, rho: float) -> pd.DataFrame:
    values = rng.multivariate_normal([0, 0], [[1, rho], [rho, 1]], n)
    return pd.concat([
        pd.DataFrame({"sae_id": "one", "latent": range(n), "method": name, "metric": "auroc", "control": "none", "value": values[:, i]})
        for i, name in enumerate(("detection", "fuzzing"))
    ])  # fmt: skip


def test_intervals_of_rank_correlations_cover() -> None:
    rng = np.random.default_rng(1)
    truth = 6 / math.pi * math.asin(0.5 / 2)
    covered = []
    for n in (30, 100):
        tables = [spearman_table(two_scorers(rng, n, 0.5), seed=i, resamples=300).iloc[0] for i in range(100)]
        covered.append(np.mean([row["ci_low"] <= truth <= row["ci_high"] for row in tables]))
    print("spearman coverage", covered)
    assert 0.92 <= np.mean(covered) <= 0.98


def test_agreement_is_over_latents_that_both_scored() -> None:
    rng = np.random.default_rng(2)
    scores = two_scorers(rng, 40, 0.6)
    lost = (scores["method"] == "fuzzing") & (scores["latent"] < 10)
    scores = pd.concat(
        [scores.assign(value=scores["value"].mask(lost)), scores.assign(control="shuffled_explanation", value=0.0)]
    )
    table = spearman_table(scores)
    real = scores[scores["control"] == "none"].pivot(index="latent", columns="method", values="value").dropna()
    row = table.iloc[0]
    assert row["n"] == 30 and row["spearman"] == pytest.approx(stats.spearmanr(real.to_numpy()).statistic)
    square = spearman_matrix(table)
    assert (
        square.loc["fuzzing/auroc", "detection/auroc"] == row["spearman"]
        and square.loc["fuzzing/auroc", "fuzzing/auroc"] == 1
    )
    assert spearman_table(scores[scores["latent"] < 12]).iloc[0]["status"] == "too_few_latents"
    constant = spearman_table(scores.assign(value=0.5))
    assert constant.iloc[0]["status"] == "constant" and math.isnan(constant.iloc[0]["spearman"])


def test_rankings_across_draws() -> None:
    """Correlation of two noisy readings is the share of true variance; the best of a draw are found again as often."""
    rng = np.random.default_rng(3)
    truth = rng.normal(size=2000)
    scores = pd.concat(
        [
            pd.DataFrame({"sae_id": "one", "latent": range(2000), "draw": d, "value": truth + rng.normal(0, 0.5, 2000)})
            for d in range(3)
        ]
    )
    table = ranking_stability(scores)
    assert len(table) == 3 and (table["k"] == 200).all() and (table["overlap_by_chance"] == 0.1).all()
    assert table["spearman"].to_numpy() == pytest.approx([6 / math.pi * math.asin(0.4)] * 3, abs=0.03)
    assert table["overlap"].between(0.45, 0.75).all()
    noise = ranking_stability(scores.assign(value=rng.normal(size=6000)))
    assert noise["overlap"].to_numpy() == pytest.approx([0.1] * 3, abs=0.06)
    alike = ranking_stability(scores.assign(value=0.5))
    assert alike["status"].eq("constant").all() and alike["overlap"].to_numpy() == pytest.approx([0.1] * 3)
    with pytest.raises(UserError, match="top is a share"):
        ranking_stability(scores, top=0)


def conditions(rng: np.random.Generator, shift: float, sds: dict[str, float], n: int = 4) -> pd.DataFrame:
    """Two architectures of 10 latents under n x n x n draws, explainers, judges, which favour one of them by chance."""
    effects = {name: rng.normal(0, sd, n) for name, sd in sds.items()}
    rows = []
    for d, e, j in product(range(n), repeat=3):
        gap = shift + effects["draw"][d] + effects["explainer"][e] + effects["judge"][j] + rng.normal(0, 0.002)
        rows += [
            {
                "arch": arch,
                "sae_id": arch,
                "latent": i,
                "draw": d,
                "explainer": f"e{e}",
                "scorer_model": f"j{j}",
                "value": 0.7 + i / 100 + part * gap,
            }
            for arch, part in (("topk", 1), ("gated", 0))
            for i in range(10)
        ]
    return pd.DataFrame(rows)


def test_noise_of_the_pipeline_is_recovered_and_compared_with() -> None:
    rng = np.random.default_rng(4)
    sds = {"draw": 0.01, "explainer": 0.03, "judge": 0.02}
    small = [verdict(conditions(rng, 0.0, sds), "arch", "topk", "gated") for _ in range(40)]
    large = [verdict(conditions(rng, 0.3, sds), "arch", "topk", "gated") for _ in range(10)]
    for name, sd in sds.items():
        assert np.sqrt(np.mean([row[f"sd_{name}"] ** 2 for row in small])) == pytest.approx(sd, rel=0.2), name
    assert sum(row["verdict"] == "exceeds" for row in small) <= 2
    assert all(row["verdict"] == "exceeds" for row in large)
    assert small[0]["n_conditions"] == 64 and small[0]["unseen"] == "corpus"


def test_verdicts_need_conditions() -> None:
    rng = np.random.default_rng(5)
    table = conditions(rng, 0.3, {"draw": 0.01, "explainer": 0.0, "judge": 0.0})
    one = table[(table["draw"] == 0) & (table["explainer"] == "e0") & (table["scorer_model"] == "j0")]
    row = verdict(one, "arch", "topk", "gated")
    assert row["verdict"] is None and row["status"] == "too_few_conditions"
    draws = verdict(table[(table["explainer"] == "e0") & (table["scorer_model"] == "j0")], "arch", "topk", "gated")
    assert (
        draws["verdict"] == "exceeds"
        and draws["df"] == pytest.approx(3)
        and draws["unseen"] == "corpus, explainer, judge"
    )
    assert draws["noise_sd"] == pytest.approx(draws["sd_rest"])
    assert verdict(table, "arch", "topk", "relu")["status"] == "too_few_conditions"
