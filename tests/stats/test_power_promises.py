"""Power against simulated comparisons of judged windows."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from autointerp.errors import UserError
from autointerp.stats.power import NOISE, Plan, designs, latents_needed, power, sd_of_latents, windows_needed
from autointerp.stats.rank_shift import label_permutation, sign_flip


def judged_aurocs(rng: np.random.Generator, truth: np.ndarray, m: int, n: int) -> np.ndarray:
    """Observed AUROCs from m activating and n other windows, whose scores are normal with the separation that gives
    the true AUROC: not the model that the noise formula was derived from."""
    high = rng.standard_normal((*truth.shape, m)) + np.sqrt(2) * stats.norm.ppf(truth)[..., None]
    low = rng.standard_normal((*truth.shape, n))
    ranks = stats.rankdata(np.concatenate([high, low], axis=-1), axis=-1)[..., :m].sum(axis=-1)
    return (ranks - m * (m + 1) / 2) / (m * n)


def truths(rng: np.random.Generator, mean: float, sd: float, shape: tuple[int, ...]) -> np.ndarray:
    total = mean * (1 - mean) / sd**2 - 1
    return rng.beta(mean * total, (1 - mean) * total, shape)


@pytest.mark.parametrize(
    ("paired", "latents", "windows", "difference"), [(True, 40, 20, 0.04), (False, 60, 30, 0.04), (False, 30, 10, 0.08)]
)
def test_power_is_kept(paired: bool, latents: int, windows: int, difference: float) -> None:
    """800 experiments: the share of p < 0.05 is within 5 points of the promise."""
    rng = np.random.default_rng(1)
    sd = 0.08
    if paired:
        base = truths(rng, 0.75, 0.06, (800, latents))
        gaps = rng.normal(difference, sd / 2, (800, latents))
        plan = Plan("auroc", 0.75 + difference / 2, sd / 2, latents, windows, windows)
        a, b = (
            judged_aurocs(rng, np.clip(t, 0.02, 0.98), windows, windows) for t in (base + gaps / 2, base - gaps / 2)
        )
        plan = replace(plan, typical=0.75)
        found = np.mean([sign_flip(x - y, rng, 499) < 0.05 for x, y in zip(a, b, strict=True)])
    else:
        plan = Plan("auroc", 0.75, sd, latents, windows, windows, paired=False)
        a, b = (
            judged_aurocs(rng, truths(rng, 0.75 + s * difference / 2, sd, (800, latents)), windows, windows)
            for s in (1, -1)
        )
        found = np.mean([label_permutation([pair], rng, 499) < 0.05 for pair in zip(a, b, strict=True)])
    promised = power(plan, difference)
    print("power", paired, latents, windows, "promised", round(promised, 3), "found", round(float(found), 3))
    assert 0.3 < promised < 0.97
    assert abs(found - promised) < 0.05


def test_binomial_noise_is_that_of_rates() -> None:
    rng = np.random.default_rng(2)
    hits, rejections = rng.binomial(20, 0.7, 20000) / 20, rng.binomial(30, 0.7, 20000) / 30
    assert NOISE["balanced_accuracy"](0.7, 20, 30) == pytest.approx(((hits + rejections) / 2).var(), rel=0.05)
    assert NOISE["recall"](0.7, 20, 30) == pytest.approx(hits.var(), rel=0.05)
    assert NOISE["auroc"](0.75, 20, 30) == pytest.approx(judged_aurocs(rng, np.full(5000, 0.75), 20, 30).var(), rel=0.1)


def test_smallest_designs_are_the_smallest() -> None:
    plan = Plan("auroc", 0.8, 0.1)
    latents = latents_needed(plan, 0.03)
    assert latents is not None
    assert power(replace(plan, latents=latents), 0.03) >= 0.8 > power(replace(plan, latents=latents - 1), 0.03)
    enough = replace(plan, latents=latents + 10)
    windows = windows_needed(enough, 0.03)
    assert windows is not None and windows <= 50
    assert power(replace(enough, positives=windows, negatives=windows), 0.03) >= 0.8
    assert power(replace(enough, positives=windows - 1, negatives=windows - 1), 0.03) < 0.8
    assert power(plan, 0.0) == pytest.approx(0.05, abs=1e-6)


def test_no_number_of_windows_makes_up_for_latents() -> None:
    assert windows_needed(Plan("auroc", 0.8, 0.2, latents=10), 0.05) is None
    assert latents_needed(Plan("auroc", 0.8, 0.2), 1e-6) is None
    table = designs(Plan("auroc", 0.8, 0.1, paired=False), 0.05)
    assert (table["latents"].diff().dropna() <= 0).all() and (
        table["judgements"] == 4 * table["positives"] * table["latents"]
    ).all()
    assert designs(Plan("auroc", 0.8, 0.2), 1e-6)["status"].eq("out_of_reach").all()


def test_pilot_tells_latents_from_windows() -> None:
    """The planted sd of true scores, and of true differences, from scores that windows make noisy."""
    rng = np.random.default_rng(3)
    base = truths(rng, 0.75, 0.08, (2000,))
    gap = rng.normal(0, 0.05, 2000)
    tables = [
        pd.DataFrame({"sae_id": "one", "latent": range(2000), "metric": "auroc", "n": 40, "value": judged_aurocs(rng, np.clip(truth, 0.02, 0.98), 20, 20)})
        for truth in (base, base + gap)
    ]  # fmt: skip
    observed = tables[0]["value"].std()
    print("sd observed", observed, "found", sd_of_latents(tables[0]), sd_of_latents(*tables))
    assert observed > 0.1
    assert sd_of_latents(tables[0]) == pytest.approx(0.08, rel=0.1)
    assert sd_of_latents(*tables) == pytest.approx(0.05, rel=0.25)


def test_impossible_plans_are_refused() -> None:
    with pytest.raises(UserError, match="window noise of metric pearson"):
        Plan("pearson", 0.5, 0.1)
    with pytest.raises(UserError, match="at least one latent"):
        Plan("auroc", 0.5, 0.1, latents=0)
    with pytest.raises(UserError, match="power wanted"):
        latents_needed(Plan("auroc", 0.5, 0.1), 0.1, 1.0)
