"""Where the spread of scores comes from: crossed random effects, by moments.

    y = mu + sum over factors k of u_k[level] + e,  u_k ~ (0, sigma_k^2), e ~ (0, sigma_e^2)

Henderson's method 1 in the form of MINQUE(0) (Searle, Casella and McCulloch 1992, sections 5.3 and 11.3): for
each factor, the sum of squares of its levels' totals of y - mean(y), and its expectation, which is linear in the
components with coefficients that only counts of rows go into. The estimates are unbiased for any pattern of missing
cells, and equal ANOVA's on balanced tables. They may be negative; such a component is reported as 0.

What is no factor is residual: interactions as well, such as an explainer that is good at some latents.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import sparse

from autointerp.errors import UserError
from autointerp.seeds import generator
from autointerp.stats.frames import Floats, present, single_kind

FACTORS: dict[str, tuple[str, ...]] = {
    "arch": ("arch",),
    "layer": ("layer",),
    "latent": ("sae_id", "latent", "pole"),
    "corpus": ("corpus",),
    "draw": ("draw",),
    "explainer": ("explainer", "explainer_model"),
    "judge": ("scorer_model",),
}
"""Columns that tell the levels of a factor; those a table has not are passed over. Latents are nested in SAEs."""
RESIDUAL = "residual"
RESAMPLES = 400


class Design:
    """Which row has which level of each factor, and what follows from that alone.

    `levels` maps a factor to (rows,) level numbers. Factors with one level, or whose levels cannot be told from
    other factors', are in `dropped` with the reason (`one_level`, `confounded`); an earlier factor is kept.
    """

    def __init__(self, levels: Mapping[str, NDArray[np.integer[Any]]], n: int) -> None:
        self.n = n
        self.dropped: dict[str, str] = {}
        self.names: list[str] = []
        self.indicators: list[sparse.csr_array] = []
        self.codes: list[NDArray[np.integer[Any]]] = []
        for name, codes in levels.items():
            n_levels = int(codes.max()) + 1
            if n_levels < 2:
                self.dropped[name] = "one_level"
                continue
            self._add(name, codes, n_levels)
            if np.linalg.cond(self._scaled()) > 1e8:
                self.dropped[name] = "confounded"
                for kept in (self.names, self.indicators, self.codes):
                    kept.pop()
        self.solve = np.linalg.inv(self._coefficients())
        self.n_levels = {name: z.shape[1] for name, z in zip(self.names, self.indicators, strict=True)}

    def _add(self, name: str, codes: NDArray[np.integer[Any]], n_levels: int) -> None:
        ones = np.ones(self.n)
        self.names.append(name)
        self.codes.append(codes)
        self.indicators.append(sparse.csr_array((ones, (np.arange(self.n), codes)), shape=(self.n, n_levels)))

    def _coefficients(self) -> Floats:
        """E[quadratic forms] = coefficients @ components; row and column of the residual are last.

        The form of factor k is y'M Z_k Z_k' M y with M = I - 11'/n, and its coefficient for factor j is
        ||Z_k' M Z_j||^2; the residual stands for Z = I.
        """
        k = len(self.names)
        out = np.empty((k + 1, k + 1))
        counts = [np.asarray(z.sum(axis=0)).ravel() for z in self.indicators]
        for i in range(k):
            for j in range(i, k):
                both = (self.indicators[i].T @ self.indicators[j]).tocoo()
                # ||N - c c'/n||^2 without making the dense matrix: latents times latents would be large.
                cross = float((both.data * counts[i][both.row] * counts[j][both.col]).sum()) / self.n
                square = float((counts[i] ** 2).sum() * (counts[j] ** 2).sum()) / self.n**2
                out[i, j] = out[j, i] = float((both.data**2).sum()) - 2 * cross + square
            out[i, k] = out[k, i] = self.n - float((counts[i] ** 2).sum()) / self.n
        out[k, k] = self.n - 1
        return out

    def _scaled(self) -> Floats:
        coefficients = self._coefficients()
        size = np.sqrt(np.diag(coefficients))
        return np.asarray(coefficients / np.outer(size, size))

    def components(self, y: Floats) -> Floats:
        """(factors + 1, ...) unbiased estimates, the residual's last, for y of (rows, ...); may be negative."""
        centred = y - y.mean(axis=0)
        forms = [((z.T @ centred) ** 2).sum(axis=0) for z in self.indicators]
        return np.asarray(self.solve @ np.stack([*forms, (centred**2).sum(axis=0)]))

    def simulate(self, components: Floats, rng: np.random.Generator, n: int) -> Floats:
        """(rows, n) tables with normal effects of these components."""
        y = math.sqrt(components[-1]) * rng.standard_normal((self.n, n))
        for z, component, codes in zip(self.indicators, components, self.codes, strict=False):
            y += (math.sqrt(component) * rng.standard_normal((z.shape[1], n)))[codes]
        return y

    def floor(self, components: Floats) -> Floats:
        """(factors + 1,) what the variance of a level's mean has on top of its own component: from the factors nested
        in it and the residual, at the mean number of levels and rows. 0 for the residual."""
        out = np.zeros(len(self.names) + 1)
        for i, outer in enumerate(self.codes):
            n_outer = int(outer.max()) + 1
            for j, inner in enumerate(self.codes):
                n_inner = int(inner.max()) + 1
                if j != i and n_inner > n_outer and len(np.unique(inner * n_outer + outer)) == n_inner:
                    out[i] += components[j] * n_outer / n_inner
            out[i] += components[-1] * n_outer / self.n
        return out


def design_of(scores: pd.DataFrame, factors: Mapping[str, Sequence[str]] = FACTORS) -> Design:
    """UserError where no factor has a column in the table."""
    levels = {}
    for name, columns in factors.items():
        if keys := present(scores, columns):
            levels[name] = scores.groupby(keys, dropna=False, sort=True).ngroup().to_numpy()
    if not levels:
        wanted = ", ".join(column for columns in factors.values() for column in columns)
        raise UserError(f"no factor of the variance has a column in the scores; give one of {wanted}")
    return Design(levels, len(scores))


def variance_components(
    scores: pd.DataFrame, factors: Mapping[str, Sequence[str]] = FACTORS, *, seed: int = 0, resamples: int = RESAMPLES
) -> pd.DataFrame:
    """One row per factor and for the residual: component, variance, sd, share, ci_low, ci_high (of the variance),
    share_low, share_high, n_levels, status.

    Rows of one kind. Shares are of the sum of all components; their bounds are those of the variance, with the other
    components as estimated. Factors are given as name -> columns; an
    interaction is the factor whose columns are both's, for example `{**FACTORS, "latent x draw": ("sae_id", "latent",
    "draw")}` where latents have several rows per draw.

    Intervals are by parametric bootstrap: tables are simulated from the estimates and estimated again. The ratio
    (estimate* + floor) / (estimate + floor), with the noise in a level's mean as floor, is nearly the same whatever the
    truth (a chi-square over its degrees of freedom on balanced tables), so its quantiles are turned round. Three
    explainers say little about explainers, and the interval shows it. `status`: `ok`, `one_level`, `confounded` (NaN).
    """
    kept = single_kind(scores)
    if len(kept) < 3:
        raise UserError(f"variance components need scores with a value, and there are {len(kept)}; score more latents")
    design = design_of(kept, factors)
    raw = design.components(kept["value"].to_numpy(dtype=float))
    found = np.maximum(raw, 0.0)
    total = float(found.sum())
    rng = generator(seed, "variance_components")
    drawn = design.components(design.simulate(found, rng, resamples))
    floor = design.floor(found)[:, None]
    ratios = (drawn + floor) / np.maximum(found[:, None] + floor, 1e-300)
    # Unbiased estimates may fall below minus the floor; no ratio of mean squares does.
    upper, lower = np.quantile(np.maximum(ratios, 1e-3), [0.025, 0.975], axis=1)
    low = np.maximum(0.0, (np.maximum(raw, -floor[:, 0]) + floor[:, 0]) / lower - floor[:, 0])
    high = np.maximum(found, (np.maximum(raw, -floor[:, 0]) + floor[:, 0]) / upper - floor[:, 0])
    rows = []
    for i, name in enumerate([*design.names, RESIDUAL]):
        rest = total - found[i]
        rows.append({
            "component": name, "variance": found[i], "sd": math.sqrt(found[i]), "ci_low": low[i], "ci_high": high[i],
            "share": found[i] / total if total else math.nan,
            "share_low": low[i] / (low[i] + rest) if total else math.nan,
            "share_high": high[i] / (high[i] + rest) if total else math.nan,
            "n_levels": design.n_levels.get(name, design.n), "status": "ok",
        })  # fmt: skip
    missing: list[dict[str, Any]] = [{"component": name, "status": why} for name, why in design.dropped.items()]
    columns = ["component", "variance", "sd", "share", "ci_low", "ci_high", "share_low", "share_high", "n_levels"]
    return pd.DataFrame(rows + missing, columns=[*columns, "status"])
