"""A run folder of made-up tables, with text in it that tries to break out of the page."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from autointerp.tables.schemas import SORT_KEYS, TABLES

HOSTILE = [
    "<script>document.title='owned'</script>",
    "</script><script>document.title='owned'</script>",
    "<!-- <script>",
    "<img src=x onerror=\"document.title='owned'\">",
    "line\u2028separator",
    "nul\x00and\x1bescape",
    "bidi\u202eoverride",
    "\"quotes\" & \\backslash\\ 'single'",
]
SAE = "topk-32x/<b>layers.15</b>"
METHODS = {
    "detection": ["balanced_accuracy", "auroc", "precision"],
    "surprisal": ["auroc"],
    "intervention": ["logprob_gain", "kl_reached"],
}
SHARES = {"balanced_accuracy", "auroc", "precision"}
FAILED, SCORELESS, SIGNED = 5, 9, 11
LATENTS = range(3, 23)

Rows = list[dict[str, Any]]


def write(folder: Path, name: str, rows: Rows) -> None:
    """The table with null for every column that a row leaves out, in the order of final tables."""
    schema = TABLES[name]
    full = [{column: row.get(column) for column in schema.names} for row in rows]
    table = pa.Table.from_pylist(full, schema=schema)
    pq.write_table(table.sort_by([(key, "ascending") for key in SORT_KEYS[name]]), folder / f"{name}.parquet")


def explanation_of(latent: int) -> str:
    kinds = [
        "verbs of motion in the past tense, above all after a comma",
        "names of rivers and the towns on them",
        "closing brackets in C-like source code",
        "the second half of a comparison (“than …”)",
        "numbers that state a year",
    ]
    return HOSTILE[latent % len(HOSTILE)] + " zebra" if latent % 5 == 2 else kinds[latent % len(kinds)]


def score_rows(latents: range, rng: random.Random) -> Rows:
    rows: Rows = []
    for latent in latents:
        for method, metrics in METHODS.items():
            for metric in metrics:
                for control in ("none", "shuffled_explanation"):
                    real = control == "none"
                    share = min(1.0, rng.gauss(0.8 if real else 0.53, 0.09))
                    value = share if metric in SHARES else rng.gauss(1.9 if real else 0.1, 0.6)
                    missing = latent in (FAILED, SCORELESS)
                    rows.append(
                        {
                            "run_id": "synthetic", "model": "smol-135m", "sae_id": SAE, "arch": "topk", "layer": 15,
                            "hookpoint": "layers.15", "width": 64, "l0": 32.0, "latent": latent,
                            "explanation_id": f"e{latent}", "explainer": "max_activations", "method": method,
                            "control": control, "negatives": "random", "metric": metric,
                            "value": None if missing else value, "n": 40, "n_failed": 40 if missing else latent % 3,
                            "ci_low": None if missing else value - 0.07,
                            "ci_high": None if missing else value + 0.05,
                            "ci_method": "bootstrap", "seed": 0, "draw": 0,
                            "status": {FAILED: "no_explanation", SCORELESS: "failed"}.get(latent, "ok"),
                        }
                    )  # fmt: skip
    return rows


WORDS = [
    "The",
    " boat",
    " drifted",
    " past",
    " the",
    " mill",
    ",",
    " and",
    " nobody",
    " spoke",
    " until",
    " the",
    " river",
    " widened",
    " near",
    " the",
    " old",
    " town",
    ".",
    "\n",
    "\n",
    "She",
    " counted",
    " the",
    " years",
    " since",
    " 19",
    "84",
    " on",
    " her",
    " fingers",
    "\t",
    "if",
    " (",
    "x",
    " >",
    " 0",
    ")",
    " {",
    " return",
    " y",
    ";",
    " }",
]


def window_rows(latents: range, rng: random.Random) -> Rows:
    rows: Rows = []
    for latent in latents:
        for split in ("explain", "score"):
            for n in range(28):
                activating = n < 20
                start = rng.randrange(len(WORDS))
                pieces = (WORDS[start:] + WORDS)[:24]
                peak = (1 + n // 4) * 1.6
                activations = [0.0] * 24
                if activating:
                    for at in rng.sample(range(24), 4):
                        activations[at] = round(peak * rng.uniform(0.1, 1.0), 3)
                    activations[7] = peak
                if latent == SIGNED and activating:
                    activations[7] = -peak
                if n == 19:
                    pieces[3] = HOSTILE[(latent + (split == "score")) % len(HOSTILE)]
                    activations[3] = 3.21
                rows.append(
                    {
                        "run_id": "synthetic", "sae_id": SAE, "latent": latent, "split": split,
                        "window_id": f"{latent}-{split}-{n}", "document": n, "start": n * 24,
                        "kind": "activating" if activating else "random", "quantile": n // 4 if activating else None,
                        "tokens": list(range(24)), "pieces": pieces, "activations": activations,
                        "text": "".join(pieces),
                    }
                )  # fmt: skip
    return rows


def judgement_rows(latents: range, rng: random.Random) -> Rows:
    rows: Rows = []
    for latent in latents:
        for method in ("detection", "surprisal"):
            for control in ("none", "shuffled_explanation"):
                for n in range(28):
                    label = n < 20
                    good = rng.random() < (0.85 if control == "none" else 0.5)
                    failed = n == 5 and method == "detection"
                    rows.append(
                        {
                            "run_id": "synthetic", "sae_id": SAE, "latent": latent, "method": method,
                            "control": control, "explanation_id": f"e{latent}", "window_id": f"{latent}-score-{n}",
                            "label": label,
                            "kind": "activating" if label else "random", "quantile": n // 4 if label else None,
                            "prediction": None if failed else label == good, "status": "failed" if failed else "ok",
                            "probability": None if failed else rng.uniform(0, 0.5) + 0.5 * (label == good),
                        }
                    )  # fmt: skip
        for n in range(3):
            rows.append(
                {
                    "run_id": "synthetic", "sae_id": SAE, "latent": latent, "method": "intervention",
                    "control": "none", "explanation_id": f"e{latent}", "window_id": f"{latent}-steer-{n}",
                    "kind": "random", "status": "ok",
                    "probability": 0.25 * (n + 1),
                    "clean_text": f"The committee met on Tuesday to discuss the budget.\nItem {n}.",
                    "steered_text": f"The committee met by the river, {HOSTILE[n]} where the boats drifted past.",
                }
            )  # fmt: skip
    return rows


def build(folder: Path, latents: range = LATENTS, width: int = 64) -> Path:
    rng = random.Random(0)
    folder.mkdir(parents=True, exist_ok=True)
    common = {"run_id": "synthetic", "sae_id": SAE}
    write(folder, "scores", score_rows(latents, rng))
    write(folder, "windows", window_rows(latents, rng))
    write(folder, "judgements", judgement_rows(latents, rng))
    write(
        folder, "explanations",
        [{**common, "latent": n, "explanation_id": f"e{n}", "explainer": "max_activations", "explainer_model": "llm-9b",
          "text": None if n == FAILED else explanation_of(n), "status": "failed" if n == FAILED else "ok",
          "prompt_sha": "0123456789abcdef", "n_windows": 20, "seed": 0, "draw": 0} for n in latents],
    )  # fmt: skip
    states = {0: "dead", 1: "dead", 2: "rare", width - 1: "dense"}
    write(
        folder, "latents",
        [{**common, "latent": n, "n_fired": 40 * n, "n_tokens": 100_000, "density": 40 * n / 100_000,
          "max_activation": 8.0, "mean_activation": 2.5, "n_windows": 56, "state": states.get(n, "live")}
         for n in range(width)],
    )  # fmt: skip
    write(
        folder, "sae_metrics",
        [{**common, "arch": "topk", "hookpoint": "layers.15", "width": width, "n_tokens": 100_000, "metric": metric,
          "value": value, "ci_low": value * 0.98, "ci_high": value * 1.02}
         for metric, value in (("fvu", 0.213), ("l0", 32.0), ("dead_share", 0.031), ("loss_recovered", 0.94))],
    )  # fmt: skip
    write(
        folder, "usage",
        [{"run_id": "synthetic", "stage": stage, "model": "llm-9b", "calls": 120, "cached_calls": 20,
          "prompt_tokens": 81_234, "completion_tokens": 2_345, "price": price, "seconds": 61.5}
         for stage, price in (("explain", 0.42), ("score", None))],
    )  # fmt: skip
    write(
        folder, "failures",
        [{"run_id": "synthetic", "stage": "explain", "latent": FAILED, "kind": "unparsable",
          "message": "no explanation found in reply: " + HOSTILE[1], "reply_sha": "feedbeef00"},
         {"run_id": "synthetic", "stage": "score", "latent": SCORELESS, "kind": "timeout",
          "message": "no answer within 60 s", "reply_sha": None}],
    )  # fmt: skip
    return folder
