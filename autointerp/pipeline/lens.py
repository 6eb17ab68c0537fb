"""`lens.parquet`: the tokens that each explained latent's decoder direction promotes and suppresses."""

from __future__ import annotations

from typing import Any

import pandas as pd
import torch

from autointerp.pipeline.session import Session
from autointerp.subject.lens import largest, logit_lens
from autointerp.tables.parts import write_final

TOKENS = 10
"""Of either direction."""
AT_ONCE = 64
"""Latents whose logits `[n, V]` are in memory together."""


def write_lens(session: Session) -> None:
    """Of every latent with an explanation. No rows where a direction does not reach the logits in a linear way, and
    none for a model with random weights, whose tokens mean nothing."""
    explained = session.run.rows("explain", "explanations")
    latents = sorted({int(latent) for latent in explained["latent"].dropna()})
    rows: list[dict[str, Any]] = []
    for begin in range(0, 0 if session.subject.null else len(latents), AT_ONCE):
        some = latents[begin : begin + AT_ONCE]
        directions = session.sae.directions(torch.tensor(some, device=session.subject.device)).float()
        changes = logit_lens(session.subject, session.hookpoint, directions)
        if changes is None:
            break
        for latent, change in zip(some, changes, strict=True):
            for direction, sign in (("top", 1), ("bottom", -1)):
                shown = largest(session.subject, sign * change, TOKENS, sign)
                rows += [
                    {"run_id": session.run.run_id, "sae_id": session.sae_id, "latent": latent, "direction": direction,
                     "rank": rank, "token": shift.text, "logit": shift.change}
                    for rank, shift in enumerate(shown)
                ]  # fmt: skip
    write_final(session.run.folder, "lens", pd.DataFrame(rows))
