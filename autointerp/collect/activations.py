"""One pass of the subject model over token blocks, stopped at the hookpoint: cached for training, or encoded."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from autointerp.collect.tokens import NO_DOCUMENT, TokenBlocks
from autointerp.errors import AutointerpError, UserError
from autointerp.files import read_array, write_json
from autointerp.store.writer import StoreWriter
from autointerp.subject.load import SubjectModel
from sae.base import SparseAutoencoder

OnTokens = Callable[[int, int], None]
"""Called with (tokens done, tokens in all)."""

PART_BLOCKS = 32
"""Blocks per part of a store and per flush of a cache: what a kill can lose."""

BATCH_BLOCKS = 8


def width_at(subject: SubjectModel, hookpoint: str) -> int:
    """Dimension of the activations at a hookpoint; also finds out whether it exists."""
    return int(subject.activations(torch.zeros(1, 2, dtype=torch.int64), hookpoint).shape[-1])


def cache_activations(
    subject: SubjectModel, blocks: TokenBlocks, hookpoint: str, folder: Path, on_tokens: OnTokens | None = None
) -> NDArray[np.float16]:
    """Activations of every counted position, float16 `[N, D]`, memory-mapped from `folder`. Resumes."""
    folder.mkdir(parents=True, exist_ok=True)
    path, progress = folder / "activations.npy", folder / "progress.json"
    n = blocks.n_counted
    identity = {"model": subject.fingerprint, "hookpoint": hookpoint, "tokens": _digest(blocks)}
    done, rows = 0, 0
    if path.is_file() and progress.is_file():
        state = json.loads(progress.read_text())
        if state["identity"] != identity:
            raise UserError(f"'{folder}' caches activations of something else; use --fresh or another --out")
        done, rows = state["blocks"], state["rows"]
        array = np.lib.format.open_memmap(path, mode="r+")
    else:
        width = width_at(subject, hookpoint)
        array = np.lib.format.open_memmap(path, mode="w+", dtype=np.float16, shape=(n, width))
    for start in range(done, len(blocks.tokens), PART_BLOCKS):
        end = min(start + PART_BLOCKS, len(blocks.tokens))
        for begin in range(start, end, BATCH_BLOCKS):
            span = slice(begin, min(begin + BATCH_BLOCKS, end))
            counted, _ = _counted(subject, blocks, span, hookpoint)
            half = counted.half()
            if not torch.isfinite(half).all():
                raise AutointerpError(
                    f"activations at '{hookpoint}' exceed float16 (largest {float(counted.abs().max()):.3g}); "
                    "leave out attention sinks with a larger --skip-first"
                )
            array[rows : rows + len(half)] = half.numpy()
            rows += len(half)
            if on_tokens:
                on_tokens(rows, n)
        array.flush()
        write_json(progress, {"identity": identity, "blocks": end, "rows": rows})
    return read_array(path)


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
            counted, at = _counted(subject, blocks, slice(begin, min(begin + BATCH_BLOCKS, end)), hookpoint)
            positions.append(at)
            codes.append(sae.encode(counted))
            done += len(at)
            if on_tokens:
                on_tokens(done, n)
        writer.add(part, np.concatenate(positions), type(codes[0]).cat(codes))
    writer.finalise()


def _counted(
    subject: SubjectModel, blocks: TokenBlocks, span: slice, hookpoint: str
) -> tuple[torch.Tensor, NDArray[np.int64]]:
    """Activations `[n, D]` of the positions that count, and their flat positions."""
    tokens = torch.from_numpy(np.ascontiguousarray(blocks.tokens[span])).long()
    keep = blocks.documents[span] != NO_DOCUMENT
    activations = subject.activations(tokens, hookpoint)
    at = np.flatnonzero(keep) + span.start * blocks.tokens.shape[1]
    return activations[torch.from_numpy(keep).to(activations.device)].cpu(), at


def _digest(blocks: TokenBlocks) -> str:
    return hashlib.sha256(blocks.tokens.tobytes() + blocks.documents.tobytes()).hexdigest()[:16]
