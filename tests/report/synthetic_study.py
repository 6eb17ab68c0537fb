"""A study's united tables with planted truth: two layers, an SAE and a random one at each, three draws.

In every draw an explanation's score is chance + the SAE's gain + its latent's effect + the draw's, its control's the
same without the gain. `surprisal` turns the latents' order round, `embedding` keeps it.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from synthetic_run import WORDS, write

DRAWS, LATENTS, POLED = 3, range(3, 15), 7
GAINS = {("topk", 6): 0.2, ("topk", 9): 0.1, ("random_sae", 6): 0.0, ("random_sae", 9): 0.02}
SIGNS = {"detection": 1, "embedding": 1, "surprisal": -1}
METRICS = {"detection": "balanced_accuracy", "embedding": "auroc", "surprisal": "auroc"}
STEP, DRAW_STEP = 0.01, 0.001


def sae_of(variant: str, layer: int) -> str:
    return f"{variant}-layers.{layer}"


def score(variant: str, layer: int, latent: int, method: str, draw: int) -> float:
    effect = STEP * (latent - LATENTS.start) * SIGNS[method]
    return 0.5 + GAINS[variant, layer] + effect + DRAW_STEP * draw


def build_study(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random(0)
    tables: dict[str, list[dict[str, Any]]] = {
        name: [] for name in ("scores", "explanations", "windows", "judgements", "latents")
    }
    for variant, layer in GAINS:
        common = {"run_id": "study", "sae_id": sae_of(variant, layer), "corpus": "docs"}
        trained = variant != "random_sae"
        about = {
            "model": "smol",
            "arch": "topk",
            "layer": layer,
            "hookpoint": f"layers.{layer}",
            "width": 64,
            "l0": 8.0,
        }
        for latent in LATENTS:
            tables["latents"].append(common | {
                "latent": latent, "density": latent / 1000, "n_fired": latent, "n_tokens": 1000, "max_activation": 5.0,
                "state": "live",
            })  # fmt: skip
            for draw in range(DRAWS):
                for pole in (1, -1) if latent == POLED else (1,):
                    key = common | {"latent": latent, "pole": pole, "draw": draw}
                    said = f"{variant} {layer} {latent} draw {draw} pole {pole}"
                    who = {"explanation_id": said, "explainer": "tokens"}
                    tables["explanations"].append(
                        key | who | {"text": said, "status": "ok", "prompt_sha": "feed" * 4, "n_windows": 4}
                    )
                    for method, metric in METRICS.items():
                        value = score(variant, layer, latent, method, draw)
                        row = key | who | about | {
                            "method": method, "metric": metric, "scorer_model": f"judge of {method}", "n": 8, "status": "ok",
                            "negatives": "random", "n_failed": 0,
                        }  # fmt: skip
                        tables["scores"].append(row | {"control": "none" if trained else variant, "value": value})
                        tables["scores"].append(
                            row | {"control": "shuffled_explanation", "value": value - GAINS[variant, layer]}
                        )
                    for n in range(8):
                        window_id, fires = f"{said} {n}", n < 4
                        strength = [0.0, 0.0, 1.0 + n + draw, 0.0] if fires else [0.0] * 4
                        tables["windows"].append(key | {
                            "split": "score", "window_id": window_id, "kind": "activating" if fires else "random",
                            "quantile": n // 2 if fires else None, "document": n, "start": n, "pieces": rng.sample(WORDS, 4),
                            "activations": [pole * a for a in strength],
                        })  # fmt: skip
                        tables["judgements"].append(key | {
                            "explanation_id": said, "method": "embedding", "control": "none", "window_id": window_id,
                            # The last window of either kind is on the wrong side of all others.
                            "label": fires, "probability": {3: 0.0, 7: 1.0}.get(n, 0.6 if fires else 0.4), "status": "ok",
                        })  # fmt: skip
    for name, rows in tables.items():
        write(folder, name, rows)
    return folder
