"""Comparisons of two variants: false positives, planted shifts, what is paired with what, many at once."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from autointerp.errors import UserError
from autointerp.stats.paired import benjamini_hochberg, compare, compare_all, holm
from autointerp.stats.rank_shift import label_permutation, paired_shift, sign_flip, two_sample_shift

KIND = {"method": "detection", "metric": "auroc", "control": "none", "negatives": "random", "draw": 0}


def aurocs(rng: np.random.Generator, centre: np.ndarray) -> np.ndarray:
    """Scores as they are: of windows, hence in steps, bounded, and piled up at 1."""
    return np.round(np.clip(centre + rng.normal(0, 0.08, centre.shape), 0, 1) * 50) / 50


def table(explainer: str, values: np.ndarray, **more: Any) -> pd.DataFrame:
    return pd.DataFrame({"sae_id": "one", "hookpoint": "layers.3", "latent": range(len(values)), "explainer": explainer, "value": values, **KIND, **more})  # fmt: skip


def test_false_positives_are_as_promised() -> None:
    """1,500 pairs of explainers of one SAE that are equally good: p < 0.05 in 3 to 7%, and likewise two samples."""
    rng = np.random.default_rng(1)
    paired, samples, covered, covered_samples = 0, 0, 0, 0
    n, sims = 30, 1500
    for _ in range(sims):
        truth = rng.beta(8, 3, n)
        gaps = aurocs(rng, truth) - aurocs(rng, truth)
        paired += sign_flip(gaps, rng, 999) < 0.05
        a, b = aurocs(rng, rng.beta(8, 3, n)), aurocs(rng, rng.beta(8, 3, n + 10))
        samples += label_permutation([(a, b)], rng, 499) < 0.05
        low, high = paired_shift(gaps)[1:]
        covered += low <= 0 <= high
        # Ties widen an interval by a step; without them it is held to what it promises.
        low, high = two_sample_shift([(a + rng.uniform(-0.01, 0.01, n), b + rng.uniform(-0.01, 0.01, n + 10))])[1:]
        covered_samples += low <= 0 <= high
    print("fpr", paired / sims, samples / sims, "coverage", covered / sims, covered_samples / sims)
    assert 0.03 <= paired / sims <= 0.07
    assert 0.03 <= samples / sims <= 0.07
    assert 0.93 <= covered / sims <= 0.98
    assert 0.93 <= covered_samples / sims <= 0.97


def test_draws_are_no_more_latents() -> None:
    """Three draws of 10 latents are tested as the 10 differences of their means, however rows are ordered."""
    rng = np.random.default_rng(2)
    truth = rng.beta(8, 3, 10)
    draws = {name: np.stack([aurocs(rng, truth) for _ in range(3)]) for name in ("a", "b")}
    rows = pd.concat([table(name, draws[name][d]).assign(draw=d, run_id=name) for name in draws for d in range(3)])
    row = compare(rows.sample(frac=1, random_state=3), "explainer", "a", "b")
    gaps = draws["a"].mean(axis=0) - draws["b"].mean(axis=0)
    assert row["n_pairs"] == 10 and row["difference"] == pytest.approx(gaps.mean())
    exact = stats.permutation_test(
        (gaps,), lambda x, axis: x.mean(axis=axis), permutation_type="samples", n_resamples=2000
    )
    assert row["p"] == pytest.approx(exact.pvalue)


def test_pairing_by_latent_finds_what_two_samples_do_not() -> None:
    rng = np.random.default_rng(3)
    truth, gain = rng.beta(4, 3, 40), rng.normal(0.05, 0.02, 40)
    both = pd.concat([table("good", truth + gain), table("plain", truth)])
    row = compare(both, "explainer", "good", "plain")
    assert row["design"] == "latents" and row["p"] < 0.001
    assert row["ci_low"] < gain.mean() < row["ci_high"] and row["ci_high"] - row["ci_low"] < 0.03
    assert compare(both, "explainer", "plain", "good")["shift"] == pytest.approx(-row["shift"])
    apart = pd.concat(
        [
            both[both["explainer"] == "good"].assign(latent=lambda t: t["latent"] + 100),
            both[both["explainer"] == "plain"],
        ]
    )
    assert (unpaired := compare(apart, "explainer", "good", "plain"))["design"] == "two_sample" and unpaired["p"] > 0.05


def test_latents_of_two_saes_are_no_pairs() -> None:
    """Latent 7 here and latent 7 there: the result is the same under any renumbering of one of them."""
    rng = np.random.default_rng(4)
    one = table("default", rng.beta(8, 3, 30), arch="topk")
    two = table("default", rng.beta(6, 3, 25), arch="gated").assign(sae_id="two")
    row = compare(pd.concat([one, two]), "arch", "topk", "gated")
    mixed = two.assign(latent=rng.permutation(25))
    assert row["design"] == "two_sample" and (row["n_a"], row["n_b"], row["n_pairs"]) == (30, 25, 0)
    again = compare(pd.concat([one, mixed]), "arch", "topk", "gated")
    assert again["shift"] == row["shift"] and again["p"] == pytest.approx(row["p"], abs=0.03)


def test_architectures_are_paired_by_hookpoint() -> None:
    """Layers differ much more than architectures; pairs of group means see through that."""
    rng = np.random.default_rng(5)
    rows = [
        table("default", rng.normal(layer / 10 + shift, 0.01, 20), arch=arch).assign(hookpoint=f"layers.{layer}", sae_id=f"{arch}{layer}", draw=draw)
        for layer in range(8) for draw in range(2) for arch, shift in (("topk", 0.02), ("gated", 0.0))
    ]  # fmt: skip
    row = compare(pd.concat(rows), "arch", "topk", "gated")
    assert (row["design"], row["n_pairs"]) == ("groups", 8)
    assert row["p"] == pytest.approx(2 / 2**8) and row["shift"] == pytest.approx(0.02, abs=0.005)
    few = compare(pd.concat(rows[:4]), "arch", "topk", "gated")
    assert few["design"] == "two_sample" and few["n_a"] == 20
    # A layer that one of them lacks would pass for a difference.
    lopsided = compare(pd.concat([*rows[:4], rows[-2].assign(value=9.0)]), "arch", "topk", "gated")
    assert lopsided["difference"] == pytest.approx(few["difference"]) and lopsided["n_unpaired"] == 20


def test_draws_are_no_more_layers() -> None:
    """Three draws at each of three layers are three layers: they share their latents, and are averaged."""
    rng = np.random.default_rng(8)
    rows = []
    for layer in range(3):
        for arch in ("topk", "gated"):
            truth = rng.beta(8, 3, 20)
            rows += [
                table("default", aurocs(rng, truth), arch=arch).assign(hookpoint=f"layers.{layer}", sae_id=f"{arch}{layer}", draw=draw)
                for draw in range(3)
            ]  # fmt: skip
    drawn = pd.concat(rows)
    means = drawn.groupby(["sae_id", "hookpoint", "arch", "latent"], as_index=False)["value"].mean().assign(**KIND)
    row, averaged = (compare(one, "arch", "topk", "gated") for one in (drawn, means))
    assert (row["design"], row["n_a"], row["n_b"]) == ("two_sample", 60, 60)
    assert row["p"] == averaged["p"] and row["shift"] == pytest.approx(averaged["shift"])


def test_intervals_leave_out_what_the_exact_tests_reject() -> None:
    """A shift inside the interval is one that the exact test does not reject, and one outside is one it does."""
    rng = np.random.default_rng(6)
    for n in (6, 9, 20):
        gaps = rng.normal(0.3, 1, n)
        _, low, high = paired_shift(gaps)
        for shift, inside in ((low + 1e-6, True), (high - 1e-6, True), (low - 1e-6, False), (high + 1e-6, False)):
            assert bool(stats.wilcoxon(gaps - shift, method="exact").pvalue > 0.05) is inside
        a, b = rng.normal(0, 1, n), rng.normal(0, 1, n + 2)
        _, low, high = two_sample_shift([(a, b)])
        for shift, inside in ((low + 1e-6, True), (high - 1e-6, True), (low - 1e-6, False), (high + 1e-6, False)):
            assert bool(stats.mannwhitneyu(a - shift, b, method="exact").pvalue > 0.05) is inside


def test_few_pairs_have_no_p() -> None:
    row = compare(pd.concat([table("a", np.full(5, 0.9)), table("b", np.full(5, 0.2))]), "explainer", "a", "b")
    assert row["status"] == "too_few_pairs" and math.isnan(row["p"]) and row["difference"] == pytest.approx(0.7)
    none = compare(table("a", np.full(5, 0.9)), "explainer", "a", "b")
    assert none["status"] == "too_few_latents" and math.isnan(none["shift"])


def test_corrections_for_many_comparisons() -> None:
    """Holm's own steps by hand; of 20 comparisons without a difference, hardly any survives."""
    assert holm([0.01, 0.04, 0.03, math.nan]).tolist()[:3] == pytest.approx([0.03, 0.06, 0.06])
    assert math.isnan(holm([0.01, math.nan])[1])
    assert benjamini_hochberg([0.01, math.nan, 0.04, 0.03]).tolist()[2] == pytest.approx(0.04)
    rng = np.random.default_rng(7)
    truth = rng.beta(8, 3, 40)
    tables = [table(f"e{i}", aurocs(rng, truth)) for i in range(6)] + [table("good", aurocs(rng, truth + 0.15))]
    many = compare_all(pd.concat(tables), "explainer")
    assert len(many) == 21 and (many["p_holm"] >= many["p"]).all() and (many["p_bh"] <= many["p_holm"] + 1e-12).all()
    good = many["b"].eq("good") | many["a"].eq("good")
    assert (many.loc[good, "p_holm"] < 0.05).all() and (many.loc[~good, "p_holm"] > 0.05).all()


def test_what_cannot_be_compared_is_refused() -> None:
    both = pd.concat([table("a", np.ones(8)), table("b", np.ones(8)).assign(metric="recall")])
    with pytest.raises(UserError, match="several kinds"):
        compare(both, "explainer", "a", "b")
    with pytest.raises(UserError, match="cannot compare by latent"):
        compare(both, "latent", 1, 2)


def test_a_steered_random_model_is_no_other_judge() -> None:
    from autointerp.stats.variants import _readers

    assert _readers("smol+smol (random weights)") == _readers("smol") == "smol"
    assert _readers("gpt-a") != _readers("gpt-b")
    assert _readers("smol (random weights)") == "smol (random weights)"
