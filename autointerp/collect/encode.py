"""One pass of the subject model over token blocks, stopped at the hookpoint and encoded into a latent store."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from autointerp.collect.sites import counted_rows
from autointerp.collect.tokens import NO_DOCUMENT, TokenBlocks
from autointerp.store.writer import StoreWriter
from autointerp.subject.load import SubjectModel
from sae.base import SparseAutoencoder

OnTokens = Callable[[int, int], None]
"""Called with (tokens done, tokens in all)."""

PART_BLOCKS = 32
"""Blocks per part of a store: what a kill can lose."""

BATCH_BLOCKS = 8


def collect_store(
    subject: SubjectModel,
    sae: SparseAutoencoder,
    blocks: TokenBlocks,
    hookpoint: str,
    folder: Path,
    identity: dict[str, Any],
    on_tokens: OnTokens | None = None,
) -> None:
    """Encode every counted position into a latent store. Resumes after its last part."""
    n_parts = -(-len(blocks.tokens) // PART_BLOCKS)
    writer = StoreWriter(folder, identity, sae.n_latents, n_parts)
    writer.write_tokens(blocks.tokens, blocks.documents)
    done, n = 0, blocks.n_counted
    for part in range(n_parts):
        start = part * PART_BLOCKS
        end = min(start + PART_BLOCKS, len(blocks.tokens))
        if writer.has(part):
            done += int((blocks.documents[start:end] != NO_DOCUMENT).sum())
            continue
        positions, codes = [], []
        for begin in range(start, end, BATCH_BLOCKS):
            span = slice(begin, min(begin + BATCH_BLOCKS, end))
            counted = counted_rows(subject, blocks, span, [hookpoint])[hookpoint]
            at = np.flatnonzero(blocks.documents[span] != NO_DOCUMENT) + begin * blocks.tokens.shape[1]
            positions.append(at)
            codes.append(sae.encode(counted))
            done += len(at)
            if on_tokens:
                on_tokens(done, n)
        writer.add(part, np.concatenate(positions), type(codes[0]).cat(codes))
    writer.finalise()
