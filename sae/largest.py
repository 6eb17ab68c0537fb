"""The k largest entries of each row, faster than `torch.topk` on the CPU and exactly as right.

An entry among the k largest lies in one of the k groups with the largest maxima. Groups are strided, so
that their maxima are elementwise maxima of long runs, which vectorise; what is left to select from is small.
"""

from __future__ import annotations

import torch
from torch import Tensor

GROUP_BITS = 3
GROUP = 1 << GROUP_BITS
"""Entries per group."""


def largest(x: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Values and indices `[n, k]` of the k largest entries of `[n, F]`, in no particular order.

    Among equal entries the choice is arbitrary but always the same for the same input.
    """
    n, width = x.shape
    groups = width // GROUP
    if x.device.type != "cpu" or width % GROUP or groups < 2 * k or not x.is_contiguous():
        values, indices = x.topk(k, dim=1, sorted=False)
        return values, indices
    strided = x.view(n, GROUP, groups)
    # [n, k]: groups that may hold one of the k largest.
    chosen = largest(strided.amax(dim=1), k)[1]
    candidates = strided.transpose(1, 2).gather(1, chosen[:, :, None].expand(n, k, GROUP)).view(n, k * GROUP)
    values, place = candidates.topk(k, dim=1, sorted=False)
    group, member = place >> GROUP_BITS, place & (GROUP - 1)
    return values, torch.add(chosen.gather(1, group), member, alpha=groups)
