"""One pass of the subject model over contexts, stopped at the deepest hookpoint, into the latent stores of SAEs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from autointerp.collect.sites import rows_at
from autointerp.collect.tokenise import keep_beside
from autointerp.collect.tokens import BATCH_TOKENS, NO_DOCUMENT, TokenBlocks, batches
from autointerp.shards import WHOLE, Shard
from autointerp.store.merge import BUDGET, OnEntries
from autointerp.store.writer import PART_BYTES, StoreWriter, claim
from autointerp.subject.load import SubjectModel
from sae.base import SparseAutoencoder

OnTokens = Callable[[int], None]
"""Called with the number of counted tokens done."""


@dataclass(frozen=True)
class Target:
    """An SAE, where it reads, and the folder of its store, which is of `identity`."""

    sae: SparseAutoencoder
    hookpoint: str
    folder: Path
    identity: dict[str, Any]


def collect_store(
    subject: SubjectModel, sae: SparseAutoencoder, blocks: TokenBlocks, hookpoint: str, folder: Path,
    identity: dict[str, Any], on_tokens: OnTokens | None = None, *, batch_tokens: int = BATCH_TOKENS,
) -> None:  # fmt: skip
    """The store of a single SAE; see `collect_stores`."""
    target = Target(sae, hookpoint, folder, identity)
    collect_stores(subject, [target], blocks, batch_tokens=batch_tokens, on_tokens=on_tokens)


def collect_stores(
    subject: SubjectModel, targets: Sequence[Target], blocks: TokenBlocks, *, shard: Shard = WHOLE,
    batch_tokens: int = BATCH_TOKENS, budget: int = BUDGET, on_tokens: OnTokens | None = None,
    on_entries: OnEntries | None = None, say: Callable[[str], None] = lambda text: None,
) -> None:  # fmt: skip
    """Encode every counted position into the store of each target, all in one pass. Resumes after the last parts.

    Codes are sparse from the encoder on; memory does not grow with the number of tokens. `blocks` are the
    contexts of `shard`, and `folder` of a target is that shard's. Finished stores are left as they are.

    Raises:
        UserError: a folder holds a store of something else.
        Damaged: a part on the disk is not what was written; the next run collects it again.
        DiskFull: no room; everything finished is kept.
    """
    # By folder: an SAE that is named twice is collected once.
    todo = list({target.folder: target for target in targets if not claim(target.folder, target.identity)}.values())
    if not todo:
        return
    for target in todo:
        keep_beside(blocks, target.folder, targets[0].folder)
    writing = [(target, _writer(target, blocks, shard, len(todo))) for target in todo]
    for _, writer in writing:
        for path in writer.set_aside:
            say(f"'{path}' was damaged, or of other contexts, and is set aside; what it covered is collected anew")
    done = 0
    for span in batches(blocks, batch_tokens):
        # Stores that were killed at different moments miss different contexts.
        missing: dict[tuple[int, int], list[tuple[Target, StoreWriter]]] = {}
        for pair in writing:
            for piece in pair[1].missing(span):
                missing.setdefault((piece.start, piece.stop), []).append(pair)
        for piece_of, some in missing.items():
            _encode(subject, some, blocks, slice(*piece_of))
        done += int(np.count_nonzero(blocks.documents[span] != NO_DOCUMENT))
        if on_tokens:
            on_tokens(done)
    for _, writer in writing:
        writer.flush()  # of all, before finishing one fails
    for target, writer in writing:
        say(f"putting {writer.n_activations:,} activations in order in {target.folder}")
        writer.finalise(budget=budget, on_entries=on_entries)


def _writer(target: Target, blocks: TokenBlocks, shard: Shard, n_targets: int) -> StoreWriter:
    return StoreWriter(
        target.folder, target.identity, target.sae.n_latents, shard=shard, first_block=blocks.first,
        part_bytes=max(PART_BYTES // n_targets, 2**20),
    )  # fmt: skip


def _encode(
    subject: SubjectModel, writing: Sequence[tuple[Target, StoreWriter]], blocks: TokenBlocks, span: slice
) -> None:
    hookpoints = list(dict.fromkeys(target.hookpoint for target, _ in writing))
    rows = rows_at(subject, blocks, span, hookpoints)
    at = np.flatnonzero(np.asarray(blocks.documents[span]) != NO_DOCUMENT) + span.start * blocks.tokens.shape[1]
    for target, writer in writing:
        writer.add(span, at, target.sae.encode(rows[target.hookpoint]))
