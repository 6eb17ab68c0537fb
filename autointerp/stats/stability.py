"""Would another run of the pipeline say the same? Rankings of latents across draws, and differences of variants
against the pipeline's own noise."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from autointerp.errors import UserError
from autointerp.stats.frames import LATENT, need, present, single_kind
from autointerp.stats.variance import Design

NOISE: dict[str, tuple[str, ...]] = {
    "draw": ("draw",),
    "corpus": ("corpus",),
    "explainer": ("explainer", "explainer_model"),
    "judge": ("scorer_model",),
}
"""What another run could have done otherwise, with the same SAE."""


def ranking_stability(scores: pd.DataFrame, *, across: str = "draw", top: float = 0.1) -> pd.DataFrame:
    """How alike two levels of `across` rank the latents, for all pairs of levels.

    Columns a, b, n (latents scored in both), spearman, k, overlap (share of the k best that both name; k is `top` of
    n, at least 1), overlap_by_chance (k / n), status. Ties at the k-th place share it in parts: overlap is what is
    expected when they are broken at random. NaN below 3 latents (`too_few_latents`) and, for spearman, where a
    level gives all latents the same (`constant`).
    """
    if not 0 < top <= 1:
        raise UserError(f"top is a share of the latents, above 0 and up to 1, not {top}; 0.1 is usual")
    kept = single_kind(scores)
    need(kept, (across,), "scores")
    wide = kept.pivot_table(index=present(kept, LATENT), columns=across, values="value", aggfunc="mean")
    rows = []
    for a, b in combinations(wide.columns, 2):
        both = wide[[a, b]].dropna().to_numpy(dtype=float)
        n = len(both)
        row: dict[str, Any] = {"a": a, "b": b, "n": n, "spearman": math.nan, "status": "too_few_latents"}
        if n >= 3:
            k = max(1, round(top * n))
            chosen = [_chosen(both[:, i], k) for i in (0, 1)]
            row |= {"k": k, "overlap": float((chosen[0] * chosen[1]).sum() / k), "overlap_by_chance": k / n}
            constant = bool((np.ptp(both, axis=0) == 0).any())
            row["status"] = "constant" if constant else "ok"
            if not constant:
                row["spearman"] = float(stats.spearmanr(both[:, 0], both[:, 1]).statistic)
        rows.append(row)
    return pd.DataFrame(rows, columns=["a", "b", "n", "spearman", "k", "overlap", "overlap_by_chance", "status"])


def _chosen(values: np.ndarray[Any, np.dtype[np.float64]], k: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    """How likely each latent is among the k best, ties being broken at random."""
    edge = np.sort(values)[-k]
    above, level = values > edge, values == edge
    return np.asarray(above + level * (k - above.sum()) / level.sum())


def verdict(scores: pd.DataFrame, column: str, a: object, b: object) -> dict[str, Any]:
    """Does the difference of two variants, values of `column`, exceed what the pipeline itself makes of it?

    A condition is one draw, corpus, explainer and judge (NOISE, but for what `column` is) with which both variants were
    scored; in each, d is the mean over a's latents minus that over b's. The variance of d is split into components of
    draw, corpus, explainer, judge and the rest, and `noise_sd`, the root of their sum, is what one more condition
    with none of these in common would spread by. `difference` (the mean of d over conditions) `exceeds` the noise if

        |difference| > t noise_sd

    with t of 97.5% and Satterthwaite's degrees of freedom (`df`), in which two explainers are one degree of freedom;
    else it is `within`. `sd_draw` and so on are roots of the components. What had one level is listed in `unseen`: that
    noise was not measured, and the verdict is silent on it. So it is on the choice of latents, which all
    conditions share: for that see `paired.compare`. With fewer than 3 conditions `verdict` is None
    (`too_few_conditions`).
    """
    need(scores, (column,), "scores")
    kept = single_kind(scores[scores[column].isin([a, b])], apart_from=(column,))
    factors = {
        name: keys for name, columns in NOISE.items() if (keys := [c for c in present(kept, columns) if c != column])
    }
    condition = [key for keys in factors.values() for key in keys]
    need(kept, condition[:1] or ("draw",), "scores")
    latent = [*condition, column, *present(kept, LATENT)]
    means = kept.groupby(latent, dropna=False)["value"].mean()
    wide = means.groupby(level=[*condition, column], dropna=False).mean().unstack(column)
    row: dict[str, Any] = {"column": column, "a": a, "b": b, "n_conditions": 0, "verdict": None}
    if not {a, b} <= set(wide.columns):
        return row | {"status": "too_few_conditions"}
    gaps = (wide[a] - wide[b]).dropna().rename("gap").reset_index()
    row |= {"n_conditions": len(gaps), "difference": float(gaps["gap"].mean()) if len(gaps) else math.nan}
    if len(gaps) < 3:
        return row | {"status": "too_few_conditions"}
    codes = {name: gaps.groupby(keys, dropna=False).ngroup().to_numpy() for name, keys in factors.items()}
    # Where every condition is a draw of its own, the draw's component and the rest are one.
    several = {name: code for name, code in codes.items() if code.max() + 1 < len(gaps)}
    design = Design(several, len(gaps))
    found = np.maximum(design.components(gaps["gap"].to_numpy(dtype=float)), 0.0)
    degrees = _degrees(design)
    total = float(found.sum())
    df = total**2 / float((found**2 / degrees).sum()) if total > 0 else float(degrees[-1])
    t = float(stats.t.ppf(0.975, df))
    row |= {f"sd_{name}": math.sqrt(part) for name, part in zip([*design.names, "rest"], found, strict=True)}
    unseen: Sequence[str] = [name for name in NOISE if name not in codes or codes[name].max() == 0]
    unseen = [name for name in unseen if column not in NOISE[name]]
    noise = math.sqrt(total)
    return row | {
        "noise_sd": noise, "df": df, "ratio": abs(row["difference"]) / noise if noise else math.inf,
        "verdict": "exceeds" if abs(row["difference"]) > t * noise else "within", "unseen": ", ".join(unseen),
        "status": "ok",
    }  # fmt: skip


def _degrees(design: Design) -> np.ndarray[Any, np.dtype[np.float64]]:
    own = [design.n_levels[name] - 1.0 for name in design.names]
    return np.array([*own, max(1.0, design.n - 1 - sum(own))])
