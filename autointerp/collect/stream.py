"""Activations as they come, for training without a cache: parts of the token blocks, one forward pass each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from autointerp.collect.cache import BATCH_BLOCKS
from autointerp.collect.sites import GRADIENT, counted_rows, to_half
from autointerp.collect.tokens import NO_DOCUMENT, TokenBlocks
from autointerp.subject.load import SubjectModel
from sae.mixing import Held, Stream
from sae.world import ALONE, World


def activation_stream(
    subject: SubjectModel, blocks: TokenBlocks, sites: Sequence[str], *, epochs: int = 1, world: World = ALONE
) -> tuple[Stream, int]:
    """This process's share of the blocks as a stream of rows, and how many rows every process has at least."""
    batches = [slice(start, start + BATCH_BLOCKS) for start in range(0, len(blocks.tokens), BATCH_BLOCKS)]
    counts = [int((blocks.documents[span] != NO_DOCUMENT).sum()) for span in batches]
    shares = [range(rank, len(batches), world.size) for rank in range(world.size)]
    n_rows = epochs * min(int(np.sum([counts[i] for i in share])) for share in shares)
    mine = list(shares[world.rank])

    def stream(position: int) -> Iterator[tuple[int, Held]]:
        for at in range(position, epochs * len(mine)):
            span = batches[mine[at % len(mine)]]
            # float16 halves the buffer; gradients would underflow in it.
            rows = counted_rows(subject, blocks, span, sites)
            yield at + 1, {site: rows[site] if site.endswith(GRADIENT) else to_half(site, rows[site]) for site in sites}

    return stream, n_rows
