"""In-process transformers: exact teacher-forced likelihoods.

Requests that share a prompt share its prefill: prompts are run once, left-padded, and their keys and
values copied to each text scored after them. Nothing written for one text is ever read by another.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from autointerp.clients._batches import by_length
from autointerp.subject.load import SubjectModel, load_subject
from autointerp.subject.prefill import copy_rows, log_prob, pad, prefill
from prompts.requests import Failure, Likelihood, LikelihoodReply, Reply, Request, Usage

BATCH_TOKENS = 768
"""Padded tokens per forward pass; their logits (vocabulary x this) are the peak of memory."""


class HFClient:
    """Likelihoods from a causal LM in this process. A loaded subject model can be shared."""

    name = "hf"
    supports: frozenset[type] = frozenset({Likelihood})
    concurrency = 1

    def __init__(self, subject: SubjectModel) -> None:
        self.subject = subject
        self.model = subject.label

    async def answer(self, requests: Sequence[Request]) -> list[Reply]:
        return self.likelihoods([request for request in requests if isinstance(request, Likelihood)])

    async def close(self) -> None:
        return None

    @torch.inference_mode()
    def likelihoods(self, requests: Sequence[Likelihood]) -> list[Reply]:
        encode = self.subject.tokenizer
        prompts = list(dict.fromkeys(request.prompt for request in requests))
        prompt_ids = [encode(p, verbose=False)["input_ids"] for p in prompts]
        text_ids = [encode(r.text, add_special_tokens=False, verbose=False)["input_ids"] for r in requests]
        of_prompt: dict[int, list[int]] = {i: [] for i in range(len(prompts))}
        index = {prompt: i for i, prompt in enumerate(prompts)}
        replies: list[Reply | None] = [None] * len(requests)
        limit = getattr(self.subject.model.config, "max_position_embeddings", None) or 10**9
        for i, request in enumerate(requests):
            p = index[request.prompt]
            failure = _unusable(len(prompt_ids[p]), len(text_ids[i]), limit)
            if failure:
                replies[i] = failure
            else:
                of_prompt[p].append(i)
        wanted = [p for p, members in of_prompt.items() if members]
        for group in by_length([len(prompt_ids[p]) for p in wanted], BATCH_TOKENS):
            chunk = [wanted[g] for g in group]
            prefix = Prefix(self.subject, [prompt_ids[p] for p in chunk])
            pairs = [(row, i) for row, p in enumerate(chunk) for i in of_prompt[p]]
            for batch in by_length([len(text_ids[i]) for _, i in pairs], BATCH_TOKENS):
                rows = [pairs[b][0] for b in batch]
                members = [pairs[b][1] for b in batch]
                scored = prefix.score(rows, [text_ids[i] for i in members])
                for i, row, logprobs in zip(members, rows, scored, strict=True):
                    usage = Usage(prompt_tokens=len(prompt_ids[chunk[row]]) + len(text_ids[i]))
                    replies[i] = LikelihoodReply(tuple(logprobs), usage)
        return [reply if reply is not None else Failure("error", "no answer was computed") for reply in replies]


class Prefix:
    """Prompts `[G]` run once; `score` continues copies of them."""

    def __init__(self, subject: SubjectModel, ids: list[list[int]]) -> None:
        self.subject = subject
        self.tokens, self.mask = pad(ids, left=True, device=subject.device)
        self.lengths = self.mask.sum(dim=1)
        self.cache, self.last_logits = prefill(subject, self.tokens, self.mask)

    def score(self, rows: list[int], texts: list[list[int]]) -> list[list[float]]:
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


def _unusable(prompt: int, text: int, limit: int) -> Failure | None:
    if prompt == 0 or text == 0:
        return Failure("empty", "the prompt or the text to score has no tokens")
    if prompt + text > limit:
        return Failure("context_overflow", f"{prompt + text} tokens do not fit the model's context of {limit}")
    return None


def create(model: str, *, device: str = "cpu", dtype: str = "float32", **_: Any) -> HFClient:
    return HFClient(load_subject(model, device=device, dtype=dtype))
