"""The k largest entries of each row, faster than `torch.topk` on the CPU and exactly as right.

An entry among the k largest lies in one of the k groups with the largest maxima. Groups are strided, so
that their maxima are elementwise maxima of long runs, which vectorise; what is left to select from is small.
"""

from __future__ import annotations

import torch
from torch import Tensor

OUTER_BITS, INNER_BITS = 3, 2
"""log2 of the entries per group: of a row's entries, and of the groups' maxima in turn. Measured, not derived."""


def largest(x: Tensor, k: int, bits: int = OUTER_BITS) -> tuple[Tensor, Tensor]:
    """Values and indices `[n, k]` of the k largest entries of `[n, F]`, in no particular order.

    Among equal entries the choice is arbitrary but always the same for the same input.
    """
    n, width = x.shape
    size = 1 << bits
    groups = width // size
    if x.device.type != "cpu" or width % size or groups < 2 * k or not x.is_contiguous():
        values, indices = x.topk(k, dim=1, sorted=False)
        return values, indices
    strided = x.view(n, size, groups)
    # [n, k]: groups that may hold one of the k largest.
    chosen = largest(strided.amax(dim=1), k, INNER_BITS)[1]
    candidates = strided.transpose(1, 2).gather(1, chosen[:, :, None].expand(n, k, size)).view(n, k * size)
    values, place = candidates.topk(k, dim=1, sorted=False)
    group, member = place >> bits, place & (size - 1)
    return values, torch.add(chosen.gather(1, group), member, alpha=groups)
