"""Variance components against planted effects, balanced and with most cells missing."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from autointerp.errors import UserError
from autointerp.stats.variance import FACTORS, Design, design_of, variance_components

PLANTED = {"arch": 0.15, "layer": 0.10, "latent": 0.35, "explainer": 0.10, "judge": 0.10, "residual": 0.20}
COLUMN = {"explainer": "explainer", "judge": "scorer_model", "arch": "arch", "layer": "layer", "draw": "draw"}


def cells(sizes: dict[str, int], latents: int, share: float, rng: np.random.Generator) -> pd.DataFrame:
    """Every combination of levels, for every latent of every SAE (an arch at a layer); a random `share` of them."""
    product = pd.MultiIndex.from_product([range(n) for n in sizes.values()], names=[COLUMN[k] for k in sizes])
    table = product.to_frame(index=False).merge(pd.DataFrame({"latent": range(latents)}), how="cross")
    table["sae_id"] = table["arch"].astype(str) + "@" + table["layer"].astype(str)
    return table.sample(frac=share, random_state=rng.integers(2**31)).reset_index(drop=True)


def effects(design: Design, truth: dict[str, float], rng: np.random.Generator, n: int) -> tuple[np.ndarray, dict]:
    """(rows, n) tables, and the variance that the drawn effects happen to have: what a table can tell of."""
    y = np.sqrt(truth["residual"]) * rng.standard_normal((design.n, n))
    realised = {"residual": y.var(axis=0, ddof=1)}
    for name, codes in zip(design.names, design.codes, strict=True):
        drawn = np.sqrt(truth[name]) * rng.standard_normal((design.n_levels[name], n))
        realised[name] = drawn.var(axis=0, ddof=1)
        y += drawn[codes]
    return y, realised


@pytest.mark.parametrize("share", [1.0, 0.15])
def test_components_are_recovered(share: float) -> None:
    """50 tables: the median error of each component, against what the planted effects have come out as, is < 20%."""
    rng = np.random.default_rng(1)
    sizes = {"arch": 6, "layer": 6, "explainer": 5, "judge": 5} if share < 1 else {"arch": 5, "layer": 5, "explainer": 3, "judge": 3}  # fmt: skip
    errors: dict[str, list[np.ndarray]] = {name: [] for name in PLANTED}
    for _ in range(10):
        design = design_of(cells(sizes, 20, share, rng))
        y, realised = effects(design, PLANTED, rng, 5)
        for name, row in zip([*design.names, "residual"], design.components(y), strict=True):
            errors[name].append(row / realised[name] - 1)
    for name, found in errors.items():
        relative = np.concatenate(found)
        assert len(relative) == 50
        print(share, name, np.median(np.abs(relative)).round(3), np.median(relative).round(3))
        assert np.median(np.abs(relative)) < 0.2, name
        assert abs(np.median(relative)) < 0.1, name


def test_components_are_those_of_the_population() -> None:
    """With 20 levels apiece, medians over 50 tables are within 20% of the variances that effects were drawn from."""
    rng = np.random.default_rng(3)
    sizes = {"arch": 20, "layer": 20, "explainer": 20, "judge": 20}
    found = []
    for _ in range(5):
        design = design_of(cells(sizes, 1, 0.02, rng).assign(latent=lambda t: np.arange(len(t)) % 4))
        y, _ = effects(design, PLANTED, rng, 10)
        found.append(design.components(y))
    medians = np.median(np.concatenate(found, axis=1), axis=1)
    print(dict(zip([*design.names, "residual"], medians.round(3), strict=True)))
    for name, median in zip([*design.names, "residual"], medians, strict=True):
        assert median == pytest.approx(PLANTED[name], rel=0.2), name


def test_balanced_tables_get_anovas_estimates() -> None:
    rng = np.random.default_rng(4)
    y = rng.normal(size=(7, 4)) + rng.normal(size=(7, 1)) + rng.normal(size=(1, 4))
    rows = [{"latent": i, "scorer_model": j, "value": y[i, j]} for i in range(7) for j in range(4)]
    table = variance_components(pd.DataFrame(rows)).set_index("component")
    a, b = y.mean(axis=1), y.mean(axis=0)
    error = ((y - a[:, None] - b[None, :] + y.mean()) ** 2).sum() / 18
    assert table.loc["residual", "variance"] == pytest.approx(error)
    assert table.loc["latent", "variance"] == pytest.approx(a.var(ddof=1) - error / 4)
    assert table.loc["judge", "variance"] == pytest.approx(b.var(ddof=1) - error / 7)
    assert table["share"].sum() == pytest.approx(1.0)


def test_intervals_cover() -> None:
    """Of 150 balanced tables: 95% intervals hold the planted variance in 90 to 99%, with four judges as with none at
    work (a component of 0) and with 25 latents."""
    rng = np.random.default_rng(5)
    truth = {"latent": 0.4, "draw": 0.0, "judge": 0.2, "residual": 0.4}
    sizes = {"latent": 25, "draw": 3, "scorer_model": 4}
    table = pd.MultiIndex.from_product([range(n) for n in sizes.values()], names=list(sizes)).to_frame(index=False)
    y, _ = effects(design_of(table), truth, rng, 150)
    inside = dict.fromkeys(truth, 0)
    for i in range(150):
        found = variance_components(table.assign(value=y[:, i]), seed=i, resamples=200).set_index("component")
        for name, value in truth.items():
            inside[name] += bool(found.loc[name, "ci_low"] - 1e-12 <= value <= found.loc[name, "ci_high"])
    print(inside)
    for name, count in inside.items():
        assert 0.90 <= count / 150 <= (1.0 if truth[name] == 0 else 0.99), name


def test_what_cannot_be_told_apart_is_said() -> None:
    rng = np.random.default_rng(6)
    rows: list[dict[str, Any]] = [
        {"arch": arch, "layer": layer, "sae_id": arch, "latent": i, "explainer": "one", "value": rng.normal()}
        for arch, layer in (("topk", 3), ("gated", 6), ("relu", 9))
        for i in range(10)
        for _ in range(2)
    ]
    table = variance_components(pd.DataFrame(rows)).set_index("component")
    assert table.loc["explainer", "status"] == "one_level"
    assert table.loc["layer", "status"] == "confounded"
    assert np.isnan(table.loc["layer", "variance"]) and table.loc["arch", "status"] == "ok"


def test_no_factor_and_no_scores_are_refused() -> None:
    with pytest.raises(UserError, match="no factor"):
        variance_components(pd.DataFrame({"latent": [1, 2, 3], "value": [1.0, 2.0, 3.0]}), {"judge": FACTORS["judge"]})
    with pytest.raises(UserError, match="score more latents"):
        variance_components(pd.DataFrame({"latent": [1, 2], "value": [1.0, np.nan]}))
    mixed = pd.DataFrame({"latent": [1, 2, 3], "value": 1.0, "metric": ["auroc", "recall", "auroc"]})
    with pytest.raises(UserError, match="several kinds"):
        variance_components(mixed)
