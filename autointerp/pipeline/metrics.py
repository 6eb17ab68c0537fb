"""How faithful the SAE is on the run's own tokens: `sae_metrics.parquet`, and the check of `doctor --sae`."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import torch

from autointerp.collect.tokens import NO_DOCUMENT, TokenBlocks
from autointerp.pipeline.latents import DENSE
from autointerp.pipeline.session import Session
from autointerp.seeds import generator
from autointerp.subject.load import SubjectModel
from autointerp.tables.parts import write_final
from sae.base import SparseAutoencoder

BLOCKS = 32


def reconstruction(
    subject: SubjectModel, sae: SparseAutoencoder, blocks: TokenBlocks, hookpoint: str, n_blocks: int = BLOCKS
) -> dict[str, tuple[float, float, float, int]]:
    """`fvu` and `l0` over the first blocks as (value, low, high, tokens); blocks are what the bootstrap resamples.

    FVU is pooled: residual over variance around the overall mean, both summed over all tokens.
    """
    sums = []
    n_blocks = min(n_blocks, len(blocks.tokens))
    for index in range(n_blocks):
        x = subject.activations(torch.from_numpy(np.array(blocks.tokens[index : index + 1])).long(), hookpoint)
        x = x[0][torch.from_numpy(blocks.documents[index] != NO_DOCUMENT)].cpu()
        codes = sae.encode(x)
        error = float((sae.decode(codes) - x).double().square().sum())
        sums.append(
            (len(x), error, float(x.double().square().sum()), x.double().sum(dim=0).numpy(), codes.latents.numel())
        )
    counts, errors, squares, firings = (np.array([s[i] for s in sums], dtype=np.float64) for i in (0, 1, 2, 4))
    totals = np.stack([s[3] for s in sums])

    def figures(pick: Any) -> tuple[float, float]:
        n = counts[pick].sum()
        variance = squares[pick].sum() - float(np.square(totals[pick].sum(axis=0)).sum()) / n
        return float(errors[pick].sum() / variance), float(firings[pick].sum() / n)

    rng = generator(0, "reconstruction")
    draws = np.array([figures(rng.integers(0, n_blocks, n_blocks)) for _ in range(500)])
    low, high = np.quantile(draws, [0.025, 0.975], axis=0)
    fvu, l0 = figures(slice(None))
    n = int(counts.sum())
    return {"fvu": (fvu, float(low[0]), float(high[0]), n), "l0": (l0, float(low[1]), float(high[1]), n)}


def write_sae_metrics(session: Session) -> None:
    """FVU and L0 on a sample of the store's tokens; dead and dense shares on all of them."""
    store = session.store
    blocks = TokenBlocks(store.tokens, store.documents)
    session.reporter.say("measuring the SAE's reconstruction")
    measured = reconstruction(session.subject, session.sae, blocks, session.hookpoint)
    density = store.n_fired / max(1, store.n_tokens)
    for name, share in (("dead_share", density == 0), ("dense_share", density > DENSE)):
        measured[name] = (float(share.mean()), float("nan"), float("nan"), store.n_tokens)
    frame = pd.DataFrame(
        [
            {
                "run_id": session.run.run_id, "sae_id": session.sae_id, "arch": session.sae.architecture,
                "hookpoint": session.hookpoint, "width": session.sae.n_latents, "seed": session.sae.metadata.seed,
                "n_tokens": n, "metric": name, "value": value, "ci_low": low, "ci_high": high,
            }
            for name, (value, low, high, n) in measured.items()
        ]
    )  # fmt: skip
    frame["seed"] = frame["seed"].astype("Int64")
    write_final(session.run.folder, "sae_metrics", frame)
