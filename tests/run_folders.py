"""Small run folders whose scores are planted, for whatever reads finished tables."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from autointerp.tables.parts import write_final

SETTINGS: dict[str, Any] = {
    "data": {"dataset": "pile", "tokens": 1000, "context_length": 64}, "sampling": {"window": 32, "score_random": 50},
    "explain": {"options": {}}, "score": {"options": {}},
}  # fmt: skip


def rows(sae_id: str, values: np.ndarray, **more: Any) -> pd.DataFrame:
    """Scores of one dictionary: `values` are (draws, latents)."""
    draws, latents = values.shape
    told = {
        "run_id": "run", "model": "small", "arch": "topk", "hookpoint": "layers.3", "layer": 3, "width": 64, "l0": 8.0,
        "pole": 1, "explainer": "default", "explainer_model": "writer", "method": "detection", "method_version": "1",
        "scorer_model": "gpt-a", "control": "none", "negatives": "random", "metric": "balanced_accuracy", "n": 100,
        "n_failed": 0, "prompt_sha": "abc", "seed": 0, "corpus": "pile",
    } | more  # fmt: skip
    frame = pd.DataFrame({
        "sae_id": sae_id, "latent": np.tile(np.arange(latents), draws), "draw": np.repeat(np.arange(draws), latents),
        "value": values.ravel(), **told,
    })  # fmt: skip
    frame["explanation_id"] = [
        f"{sae_id}/{latent}/{draw}" for latent, draw in zip(frame["latent"], frame["draw"], strict=True)
    ]
    return frame.assign(status=np.where(frame["value"].isna(), "failed", "ok"))


def with_control(own: pd.DataFrame, gap: float) -> pd.DataFrame:
    """The scores, and those of shuffled explanations that lie `gap` below."""
    shuffled = own.assign(control="shuffled_explanation", value=own["value"] - gap, explanation_id="other")
    return pd.concat([own, shuffled], ignore_index=True)


def latents_of(scores: pd.DataFrame, dead: int = 0) -> pd.DataFrame:
    """A live latent for each that was scored, and dead ones."""
    parts = []
    for sae_id, group in scores.groupby("sae_id"):
        n = group["latent"].nunique()
        parts.append(pd.DataFrame({
            "run_id": "run", "sae_id": sae_id, "latent": range(n + dead), "n_tokens": 1000, "corpus": "pile",
            "state": ["live"] * n + ["dead"] * dead,
            "density": [10 ** -(2 + (i % 3) / 2) for i in range(n)] + [0.0] * dead,
        }))  # fmt: skip
    return pd.concat(parts)


def write_run(
    folder: Path, scores: pd.DataFrame, *, settings: dict[str, Any] | None = SETTINGS, dead: int = 0, **tables: pd.DataFrame
) -> Path:  # fmt: skip
    write_final(folder, "scores", scores)
    write_final(folder, "latents", tables.get("latents", latents_of(scores, dead)))
    usage = pd.DataFrame([
        {"run_id": "run", "stage": f"score-{method}", "model": "gpt-a", "calls": 10, "prompt_tokens": 100, "completion_tokens": 5, "price": 0.25}
        for method in scores["method"].unique()
    ])  # fmt: skip
    write_final(folder, "usage", tables.get("usage", usage))
    for name in ("explanations", "failures", "sae_metrics", "judgements"):
        if name in tables:
            write_final(folder, name, tables[name])
    if settings is not None:
        (folder / "config.yaml").write_text(yaml.safe_dump(settings))
    return folder
