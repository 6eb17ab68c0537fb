"""How faithful the SAE is on the run's own tokens: `sae_metrics.parquet`, and the check of `doctor --sae`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from autointerp.collect.tokens import TokenBlocks
from autointerp.pipeline.evaluate import Figure, Placed, evaluate
from autointerp.pipeline.session import Session
from autointerp.subject.load import SubjectModel
from autointerp.tables.parts import write_final
from sae.base import SparseAutoencoder
from sae.metrics import shares

BLOCKS = 32


def reconstruction(
    subject: SubjectModel, sae: SparseAutoencoder, blocks: TokenBlocks, hookpoint: str, n_blocks: int = BLOCKS
) -> dict[str, Figure]:
    """`fvu`, `l0` and the like over the first blocks."""
    some = TokenBlocks(blocks.tokens[:n_blocks], blocks.documents[:n_blocks])
    placed = Placed(sae, hookpoint, sae.metadata.target_hookpoint)
    return evaluate(subject, {"sae": placed}, some, losses=False)["sae"]


def write_sae_metrics(session: Session) -> None:
    """FVU and L0 on a sample of the store's tokens; dead and dense shares on all of them."""
    store = session.store
    blocks = TokenBlocks(store.tokens, store.documents)
    session.reporter.say("measuring the SAE's reconstruction")
    measured = reconstruction(session.subject, session.sae, blocks, session.hookpoint)
    for name, share in shares(torch.from_numpy(np.array(store.n_fired)), max(1, store.n_tokens)).items():
        measured[name] = Figure(share, float("nan"), float("nan"), store.n_tokens)
    rows = metric_rows(session.run.run_id, session.sae_id, session.sae, session.hookpoint, measured)
    write_metrics(session.run.folder, rows)


def metric_rows(
    run_id: str, sae_id: str, sae: SparseAutoencoder, hookpoint: str, figures: Mapping[str, Figure]
) -> list[dict[str, Any]]:
    """Rows of `sae_metrics.parquet`. A figure that could not be computed is null."""
    return [
        {
            "run_id": run_id, "sae_id": sae_id, "arch": sae.architecture, "hookpoint": hookpoint,
            "width": sae.n_latents, "seed": sae.metadata.seed, "n_tokens": figure.n_tokens, "metric": name,
            "value": figure.value, "ci_low": figure.low, "ci_high": figure.high,
        }
        for name, figure in figures.items()
    ]  # fmt: skip


def write_metrics(folder: Path, rows: list[dict[str, Any]]) -> None:
    frame = pd.DataFrame(rows)
    frame["seed"] = frame["seed"].astype("Int64")
    write_final(folder, "sae_metrics", frame)
