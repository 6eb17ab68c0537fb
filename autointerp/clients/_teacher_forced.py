"""Exact log-probabilities of texts after their prompts, each prompt run once for all its texts.

Prompts are left-padded, and their keys and values copied to each text scored after them. Nothing written for
one text is ever read by another.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import torch

from autointerp.clients._batches import by_length
from autointerp.subject.load import SubjectModel
from autointerp.subject.prefill import copy_rows, log_prob, pad, prefill
from prompts.requests import Failure

BATCH_TOKENS = 768
"""Padded tokens per forward pass; their logits (vocabulary x this) are the peak of memory."""

CACHE_TOKENS = 8192
"""Padded tokens whose keys and values a batch may hold, where that is bounded."""

Item = TypeVar("Item")
Result = TypeVar("Result")


@torch.inference_mode()
def teacher_forced(
    subject: SubjectModel,
    prompts: Sequence[Sequence[int]],
    texts: Mapping[int, tuple[int, Sequence[int]]],
    *,
    bound_cache: bool,
) -> dict[int, list[float] | Failure]:
    """Log-probability in nats of each token of each text.

    `prompts` are token ids; a text is (number of its prompt, token ids) under a key of the caller's, by which its
    result is found. No prompt and no text may be empty, and each pair has to fit the model's context.
    `bound_cache` keeps the copies of the prompts' keys and values within `CACHE_TOKENS` tokens: texts far shorter
    than their prompts need that. What the model cannot do even for one text alone is a `Failure`.
    """
    results: dict[int, list[float] | Failure] = {}
    members: list[list[int]] = [[] for _ in prompts]
    for key, (prompt, _) in texts.items():
        members[prompt].append(key)

    def run(group: list[int]) -> list[None]:
        prefix = Prefix(subject, [prompts[p] for p in group])
        pairs = [(row, key) for row, p in enumerate(group) for key in members[p]]
        costs = [len(texts[key][1]) for _, key in pairs]
        if bound_cache:
            width = prefix.tokens.shape[1]
            costs = [max(cost, math.ceil((width + cost) * BATCH_TOKENS / CACHE_TOKENS)) for cost in costs]

        def score(batch: list[tuple[int, int]]) -> list[list[float]]:
            return prefix.score([row for row, _ in batch], [texts[key][1] for _, key in batch])

        for chosen in by_length(costs, BATCH_TOKENS):
            batch = [pairs[i] for i in chosen]
            results.update(zip([key for _, key in batch], halving(score, batch), strict=True))
        return [None] * len(group)

    wanted = [p for p, keys in enumerate(members) if keys]
    for chosen in by_length([len(prompts[p]) for p in wanted], BATCH_TOKENS):
        group = [wanted[i] for i in chosen]
        for p, failure in zip(group, halving(run, group), strict=True):
            if failure is not None:
                results.update((key, failure) for key in members[p])
    return results


class Prefix:
    """Prompts `[G]` run once; `score` continues copies of them."""

    def __init__(self, subject: SubjectModel, ids: Sequence[Sequence[int]]) -> None:
        self.subject = subject
        self.tokens, self.mask = pad(ids, left=True, device=subject.device)
        self.lengths = self.mask.sum(dim=1)
        self.cache, self.last_logits = prefill(subject, self.tokens, self.mask)

    def score(self, rows: Sequence[int], texts: Sequence[Sequence[int]]) -> list[list[float]]:
        """Log-probabilities of each text's tokens after the prompt in `rows`."""
        tokens, mask = pad(texts, left=False, device=self.subject.device)
        index = torch.tensor(rows, device=tokens.device)
        full_mask = torch.cat([self.mask[index], mask], dim=1)
        places = self.lengths[index][:, None] + torch.arange(tokens.shape[1], device=tokens.device)
        out = self.subject.model(
            input_ids=tokens, attention_mask=full_mask, position_ids=places,
            past_key_values=copy_rows(self.cache, index), use_cache=True,
        ).logits  # fmt: skip
        first = log_prob(self.last_logits[index], tokens[:, 0])
        later = log_prob(out[:, :-1], tokens[:, 1:])
        logprobs = torch.cat([first[:, None], later], dim=1)
        return [logprobs[i, : len(text)].tolist() for i, text in enumerate(texts)]


def halving(run: Callable[[list[Item]], Sequence[Result]], batch: list[Item]) -> list[Result | Failure]:
    """`run(batch)`; if that raises, its halves one after the other, and a `Failure` for an item that fails alone.

    Whatever is raised is taken for want of memory: CUDA has an exception of its own for that, other devices do not.
    """
    try:
        return list(run(batch))
    except Exception as error:
        failure = Failure("error", f"{type(error).__name__}: {error}")
    # Tried again outside the handler: the exception would keep the tensors of the failed pass alive.
    if len(batch) == 1:
        return [failure]
    middle = len(batch) // 2
    return [*halving(run, batch[:middle]), *halving(run, batch[middle:])]
