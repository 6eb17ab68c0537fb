"""The tensors that training reads, token by token: activations at hookpoints, and gradients there.

A site is a hookpoint's name, or `NAME@gradient` for the gradient of the subject model's loss.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from autointerp.collect.tokens import NO_DOCUMENT, TokenBlocks
from autointerp.errors import AutointerpError
from autointerp.subject.load import SubjectModel

GRADIENT = "@gradient"


def width_at(subject: SubjectModel, hookpoint: str) -> int:
    """Dimension of the activations at a hookpoint; also finds out whether it exists."""
    return int(subject.activations(torch.zeros(1, 2, dtype=torch.int64), hookpoint).shape[-1])


def gradient_site(hookpoint: str) -> str:
    return hookpoint + GRADIENT


def counted_rows(subject: SubjectModel, blocks: TokenBlocks, span: slice, sites: Sequence[str]) -> dict[str, Tensor]:
    """`rows_at`, on the CPU."""
    return {site: rows.cpu() for site, rows in rows_at(subject, blocks, span, sites).items()}


def rows_at(subject: SubjectModel, blocks: TokenBlocks, span: slice, sites: Sequence[str]) -> dict[str, Tensor]:
    """Rows `[n, D]` (float32) of each site at the positions of these contexts that count, in order.

    Raises:
        AutointerpError: the subject model gave a number that is not finite.
    """
    keep = torch.from_numpy(np.array(blocks.documents[span] != NO_DOCUMENT))
    # Under causal attention nothing after the last counted position (padding, say) reaches what comes before.
    width = int(keep.any(dim=0).nonzero().max()) + 1 if bool(keep.any()) else 1
    keep = keep[:, :width]
    tokens = torch.from_numpy(np.array(blocks.tokens[span, :width])).long()
    hookpoints = [site for site in sites if not site.endswith(GRADIENT)]
    found = subject.activations_at(tokens, hookpoints) if hookpoints else {}
    for site in sites:
        if site.endswith(GRADIENT):
            found[site] = subject.gradients_at(tokens, site.removesuffix(GRADIENT), keep)
    rows = {site: found[site][keep.to(found[site].device)] for site in sites}
    for site, values in rows.items():
        if not torch.isfinite(values).all():
            raise AutointerpError(f"'{site}' of {subject.label} gave NaN or infinity; try --dtype float32")
    return rows


def to_half(site: str, rows: Tensor) -> Tensor:
    """Rows in float16.

    Raises:
        AutointerpError: a value does not fit.
    """
    half = rows.half()
    if not torch.isfinite(half).all():
        raise AutointerpError(
            f"activations at '{site}' exceed float16 (largest {float(rows.abs().max()):.3g}); "
            "leave out attention sinks with a larger --skip-first, or cache in int8"
        )
    return half
