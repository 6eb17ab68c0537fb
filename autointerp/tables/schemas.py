"""The columns of every table, in order, with their types. `docs/tables.md` explains them."""

from __future__ import annotations

import pyarrow as pa

S, N, F, B = pa.string(), pa.int64(), pa.float64(), pa.bool_()


def _schema(**columns: pa.DataType) -> pa.Schema:
    return pa.schema(list(columns.items()))


SCORES = _schema(
    run_id=S, model=S, sae_id=S, sae_sha=S, arch=S, hookpoint=S, layer=N, width=N, l0=F, latent=N,
    pole=N, explanation_id=S, explainer=S, explainer_model=S, method=S, method_version=S, scorer_model=S,
    control=S, negatives=S, metric=S, value=F, n=N, n_failed=N, ci_low=F, ci_high=F, ci_method=S,
    status=S, prompt_sha=S, seed=N, draw=N, corpus=S,
)  # fmt: skip

JUDGEMENTS = _schema(
    run_id=S, sae_id=S, latent=N, pole=N, explanation_id=S, method=S, control=S, window_id=S, kind=S, quantile=N,
    label=B, prediction=B, probability=F, status=S, reply_sha=S, prompt_tokens=N, completion_tokens=N,
    clean_text=S, steered_text=S, draw=N, corpus=S,
)  # fmt: skip

EXPLANATIONS = _schema(
    run_id=S, sae_id=S, latent=N, pole=N, explanation_id=S, explainer=S, explainer_model=S, text=S, status=S,
    prompt_sha=S, n_windows=N, seed=N, draw=N, prompt_tokens=N, completion_tokens=N, corpus=S,
)  # fmt: skip

LATENTS = _schema(
    run_id=S, sae_id=S, latent=N, n_fired=N, n_negative=N, n_tokens=N, density=F, max_activation=F, mean_activation=F,
    n_windows=N, state=S, corpus=S,
)  # fmt: skip

WINDOWS = _schema(
    run_id=S, sae_id=S, latent=N, pole=N, split=S, window_id=S, document=N, start=N, kind=S, quantile=N,
    tokens=pa.list_(pa.int32()), pieces=pa.list_(S), activations=pa.list_(pa.float32()), text=S,
    draw=N, corpus=S,
)  # fmt: skip

SAE_METRICS = _schema(
    run_id=S, sae_id=S, arch=S, hookpoint=S, width=N, seed=N, n_tokens=N, metric=S, value=F, ci_low=F, ci_high=F,
)  # fmt: skip

LENS = _schema(run_id=S, sae_id=S, latent=N, direction=S, rank=N, token=S, logit=F)

USAGE = _schema(
    run_id=S, stage=S, model=S, calls=N, retries=N, cached_calls=N, prompt_tokens=N, completion_tokens=N,
    prefix_cached_tokens=N, unsure_tokens=N, price=F, saved_tokens=N, saved_price=F, seconds=F,
)  # fmt: skip

FAILURES = _schema(run_id=S, stage=S, latent=N, kind=S, message=S, reply_sha=S)

TABLES: dict[str, pa.Schema] = {
    "scores": SCORES,
    "judgements": JUDGEMENTS,
    "explanations": EXPLANATIONS,
    "latents": LATENTS,
    "windows": WINDOWS,
    "sae_metrics": SAE_METRICS,
    "lens": LENS,
    "usage": USAGE,
    "failures": FAILURES,
}

SORT_KEYS: dict[str, list[str]] = {
    "scores": ["sae_id", "latent", "method", "control", "negatives", "metric", "explanation_id", "draw", "pole"],
    "judgements": ["sae_id", "latent", "method", "control", "explanation_id", "window_id", "pole"],
    "explanations": ["sae_id", "latent", "explainer", "draw", "explanation_id", "pole"],
    "latents": ["sae_id", "latent"],
    "windows": ["sae_id", "latent", "split", "kind", "start", "pole"],
    "sae_metrics": ["sae_id", "metric"],
    "lens": ["sae_id", "latent", "direction", "rank"],
    "usage": ["stage", "model"],
    "failures": ["stage", "latent", "kind", "message"],
}
"""Final tables are sorted by these, so that shards, order and resumption leave no trace in them."""
