"""Prompts run once, left-padded, and their keys and values copied for whatever continues them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from autointerp.subject.load import SubjectModel


def pad(ids: Sequence[Sequence[int]], *, left: bool, device: torch.device) -> tuple[Tensor, Tensor]:
    """Token ids and mask `[B, longest]`."""
    longest = max(len(row) for row in ids)
    tokens = torch.zeros(len(ids), longest, dtype=torch.int64)
    mask = torch.zeros_like(tokens)
    for i, row in enumerate(ids):
        span = slice(longest - len(row), longest) if left else slice(0, len(row))
        tokens[i, span] = torch.tensor(row)
        mask[i, span] = 1
    return tokens.to(device), mask.to(device)


def prefill(subject: SubjectModel, tokens: Tensor, mask: Tensor) -> tuple[Any, Tensor]:
    """Keys and values of left-padded prompts, and the logits `[B, V]` after their last tokens."""
    places = (mask.cumsum(dim=1) - 1).clamp(min=0)
    out = subject.model(
        input_ids=tokens, attention_mask=mask, position_ids=places, use_cache=True, logits_to_keep=1
    )  # fmt: skip
    return out.past_key_values, out.logits[:, -1]


def copy_rows(cache: Any, index: Tensor) -> Any:
    """A new cache with the given rows; the forward pass extends the copy and leaves the original as it is."""
    from transformers import DynamicCache

    copied = DynamicCache()
    for number, layer in enumerate(cache.layers):
        copied.update(layer.keys[index], layer.values[index], number)
    return copied


def log_prob(logits: Tensor, tokens: Tensor) -> Tensor:
    """log p of `tokens` [...] under `logits` [..., V]."""
    logits = logits.float()
    return logits.gather(-1, tokens[..., None])[..., 0] - logits.logsumexp(dim=-1)
