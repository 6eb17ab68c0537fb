"""Continue prompts with and without an edit of one latent: at the strength that reaches a target KL, or removed.

Prompts are prefilled up to their last token, once; the edit acts from there on, so the search for the
strength costs one token per prompt and try, and clean and steered continuations run in one batch on the
same random numbers. Several requests (latents, targets) share every pass: each row of a batch carries
its own latent and strength, and a request whose strength is found leaves the search.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from autointerp.seeds import derive
from autointerp.subject.hookpoints import editing, resolve
from autointerp.subject.load import SubjectModel
from autointerp.subject.prefill import copy_rows, pad, prefill
from autointerp.subject.splice import EDITS
from prompts.requests import Failure, Reply, Request, Steer, SteerReply, Usage
from sae.base import SparseAutoencoder

MAX_TRIES = 24
MAX_ROWS = 256
"""Prompts steered in one batch, over all its requests; their logits (vocabulary x this) are the peak of memory."""


@dataclass(frozen=True, slots=True)
class Found:
    """`strength` as the rows' edits take it: negative along a latent's negative pole."""

    strength: float
    kl: float
    converged: bool


class SteerClient:
    """Answers `Steer` for one subject model and one SAE: edits are made where it reads, or where a transcoder writes.

    A run asks for one latent a call (`concurrency`): the last bits of logits depend on the rows that share a batch.
    """

    name = "steer"
    supports: frozenset[type] = frozenset({Steer})
    concurrency = 1

    def __init__(self, subject: SubjectModel, sae: SparseAutoencoder, hookpoint: str) -> None:
        read = resolve(subject.model, hookpoint)
        self.subject, self.sae = subject, sae
        self.hookpoint = resolve(subject.model, sae.metadata.target_hookpoint or hookpoint)
        self.transcodes = self.hookpoint != read
        self.model = subject.label
        self.identity = f"steer {subject.fingerprint} {subject.model.dtype}"

    async def answer(self, requests: Sequence[Request]) -> list[Reply]:
        return self.steer_all([request for request in requests if isinstance(request, Steer)])

    async def close(self) -> None:
        return None

    def steer(self, request: Steer) -> Reply:
        return self.steer_all([request])[0]

    @torch.inference_mode()
    def steer_all(self, requests: Sequence[Steer]) -> list[Reply]:
        """One reply per request, in their order; those that can share their passes do."""
        replies: list[Reply | None] = [self._unusable(request) for request in requests]
        for members in _batches(requests, [i for i, failure in enumerate(replies) if failure is None]):
            batch = Batch(self, [requests[i] for i in members])
            for i, reply in zip(members, batch.replies(), strict=True):
                replies[i] = reply
        return [reply for reply in replies if reply is not None]

    def _unusable(self, request: Steer) -> Failure | None:
        if not request.prompts or min(map(len, request.prompts)) < 2:
            return Failure("empty", "a prompt to steer needs at least two tokens")
        if request.edit == "zero" and self.transcodes:
            return Failure("rejected", "a transcoder's latent cannot be removed where it writes: steer it (edit: add)")
        return None


def _batches(requests: Sequence[Steer], usable: Sequence[int]) -> Iterator[list[int]]:
    """Indices of requests that run together: one edit, as many new tokens, one temperature, within `MAX_ROWS`."""
    alike: dict[tuple[str, int, float], list[int]] = {}
    for i in usable:
        alike.setdefault((requests[i].edit, requests[i].max_new_tokens, requests[i].temperature), []).append(i)
    for members in alike.values():
        batch: list[int] = []
        for i in members:
            if batch and sum(len(requests[j].prompts) for j in [*batch, i]) > MAX_ROWS:
                yield batch
                batch = []
            batch.append(i)
        yield batch


@dataclass
class _Search:
    """The strength of one request, as far as it is known; see `next_strength`."""

    request: Steer
    strength: float
    tries: int = 0
    best: Found = field(default=Found(0.0, 0.0, False))
    low: tuple[float, float] | None = None
    high: tuple[float, float] | None = None

    @property
    def over(self) -> bool:
        return self.best.converged or self.tries >= MAX_TRIES

    def learn(self, reached: float) -> None:
        """What KL the present strength reaches."""
        target = self.request.target_kl
        if math.isfinite(reached) and abs(reached - target) < abs(self.best.kl - target):
            near = abs(reached - target) <= self.request.tolerance * target
            self.best = Found(self.strength, reached, near)
        # A KL that overflowed lies beyond the target, however far.
        tried = (self.strength, reached if math.isfinite(reached) else 1e6 * target)
        self.low, self.high = (tried, self.high) if tried[1] < target else (self.low, tried)
        self.strength = next_strength(self.low, self.high, target, bisect=self.tries >= MAX_TRIES // 2)
        self.tries += 1


@dataclass
class Rows:
    """Rows of a batch: which prompt each continues, and with which edit."""

    prompts: list[int]
    latents: list[int]
    strengths: list[float]


class Batch:
    """Requests whose prompts are prefilled without their last token, which every later pass begins with."""

    def __init__(self, client: SteerClient, requests: Sequence[Steer]) -> None:
        self.client, self.requests = client, requests
        subject = client.subject
        prompts = list(dict.fromkeys(prompt for request in requests for prompt in request.prompts))
        place = {prompt: i for i, prompt in enumerate(prompts)}
        self.places = [[place[prompt] for prompt in request.prompts] for request in requests]
        tokens, self.mask = pad([prompt[:-1] for prompt in prompts], left=True, device=subject.device)
        self.cache, _ = prefill(subject, tokens, self.mask)
        self.last = torch.tensor([prompt[-1] for prompt in prompts], device=subject.device)
        self.lengths = self.mask.sum(dim=1)
        norms: list[Tensor] = []

        def measure(x: Tensor) -> Tensor:
            norms.append(x[:, -1].float().norm(dim=-1))
            return x

        everyone = list(range(len(prompts)))
        with editing(subject.model, client.hookpoint, measure):
            logits = self.next_logits(Rows(everyone, [0] * len(everyone), [0.0] * len(everyone)))
        self.clean_logprobs, self.norms = logits.log_softmax(dim=-1), norms[0]

    def replies(self) -> list[Reply]:
        found = self.find_strengths()
        decode = self.client.subject.tokenizer.decode
        replies: list[Reply] = []
        for request, strength, (clean, steered) in zip(self.requests, found, self.generate(found), strict=True):
            n_new = 2 * len(request.prompts) * request.max_new_tokens
            texts = tuple(decode(list(prompt), clean_up_tokenization_spaces=False) for prompt in request.prompts)
            replies.append(
                SteerReply(
                    texts, clean, steered, strength.strength, strength.kl, strength.converged,
                    Usage(prompt_tokens=sum(map(len, request.prompts)), completion_tokens=n_new),
                )
            )  # fmt: skip
        return replies

    def find_strengths(self) -> list[Found]:
        """Search all strengths at once, each starting at its activations' own norm; a removal has none to search."""
        if self.requests[0].edit == "zero":
            return [Found(1.0, reached, True) for reached in self.kl(dict.fromkeys(range(len(self.requests)), 1.0))]
        searches = [
            _Search(request, max(float(self.norms[places].mean()), 1e-6))
            for request, places in zip(self.requests, self.places, strict=True)
        ]
        while left := [i for i, search in enumerate(searches) if not search.over]:
            tried = {i: searches[i].request.pole * searches[i].strength for i in left}
            for i, reached in zip(left, self.kl(tried), strict=True):
                searches[i].learn(reached)
        return [replace(search.best, strength=search.request.pole * search.best.strength) for search in searches]

    def kl(self, strengths: dict[int, float]) -> list[float]:
        """Mean over a request's prompts of KL(intervened || clean) of the next token, in nats, by request."""
        rows = Rows([], [], [])
        for i, strength in strengths.items():
            rows.prompts += self.places[i]
            rows.latents += [self.requests[i].latent] * len(self.places[i])
            rows.strengths += [strength] * len(self.places[i])
        steered = self.next_logits(rows).log_softmax(dim=-1)
        each = (steered.exp() * (steered - self.clean_logprobs[rows.prompts])).sum(dim=-1)
        sizes = [len(self.places[i]) for i in strengths]
        return [float(part.mean()) for part in torch.split(each, sizes)]

    def next_logits(self, rows: Rows) -> Tensor:
        """Logits `[rows, V]` after the last prompt token under the rows' edits."""
        index = torch.tensor(rows.prompts, device=self.last.device)
        mask = torch.cat([self.mask[index], self.mask.new_ones(len(index), 1)], dim=1)
        cache = copy_rows(self.cache, index)
        return self._forward(cache, self.last[index], mask, self.lengths[index], rows)

    def _forward(self, cache: Any, tokens: Tensor, mask: Tensor, places: Tensor, rows: Rows) -> Tensor:
        client, device = self.client, tokens.device
        edit = EDITS[self.requests[0].edit](
            client.sae, torch.tensor(rows.latents, device=device), torch.tensor(rows.strengths, device=device)
        )
        with editing(client.subject.model, client.hookpoint, edit):
            out = client.subject.model(
                input_ids=tokens[:, None], attention_mask=mask, position_ids=places[:, None],
                past_key_values=cache, use_cache=True,
            )  # fmt: skip
        logits: Tensor = out.logits[:, -1].float()
        return logits

    def generate(self, found: Sequence[Found]) -> list[tuple[tuple[str, ...], tuple[str, ...]]]:
        """Clean and steered continuations by request, sampled with the same Gumbel noise per prompt and step.

        Requests that differ in their target only share the clean ones.
        """
        rows, noises = Rows([], [], []), []
        clean: dict[tuple[Any, ...], range] = {}
        spans: list[tuple[range, range]] = []
        seeds: dict[tuple[int, int, int], int] = {}
        for request, places, strength in zip(self.requests, self.places, found, strict=True):
            n = len(places)
            drawn = [(request.seed, request.latent, i) for i in range(n)]
            key = (request.seed, request.latent, request.prompts)
            for edited in (False, True):
                if not edited and key in clean:
                    continue
                begin = len(rows.prompts)
                rows.prompts += places
                rows.latents += [request.latent] * n
                rows.strengths += [strength.strength if edited else 0.0] * n
                noises += [seeds.setdefault(one, len(seeds)) for one in drawn]
                if not edited:
                    clean[key] = range(begin, begin + n)
            spans.append((clean[key], range(begin, begin + n)))
        texts = self._sample(rows, noises, [derive(seed, "steer", latent, i) for seed, latent, i in seeds])
        return [(tuple(texts[i] for i in a), tuple(texts[i] for i in b)) for a, b in spans]

    def _sample(self, rows: Rows, noises: list[int], seeds: list[int]) -> list[str]:
        request, subject, n = self.requests[0], self.client.subject, len(rows.prompts)
        index = torch.tensor(rows.prompts, device=self.last.device)
        cache, mask = copy_rows(self.cache, index), self.mask[index]
        tokens, places = self.last[index], self.lengths[index]
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        stop = subject.tokenizer.eos_token_id
        ended = torch.zeros(n, dtype=torch.bool)
        chosen: list[list[int]] = [[] for _ in range(n)]
        for _ in range(request.max_new_tokens):
            mask = torch.cat([mask, mask.new_ones(n, 1)], dim=1)
            logits = self._forward(cache, tokens, mask, places, rows) / max(request.temperature, 1e-6)
            noise = torch.stack([torch.rand(logits.shape[1], generator=g) for g in generators])[noises]
            gumbel = -(-noise.clamp_min(1e-20).log()).clamp_min(1e-20).log()
            tokens = (logits + gumbel.to(logits.device)).argmax(dim=1)
            places = places + 1
            ended |= tokens.cpu() == stop
            for row, token in enumerate(tokens.tolist()):
                if not ended[row]:
                    chosen[row].append(token)
        return [subject.tokenizer.decode(ids, clean_up_tokenization_spaces=False) for ids in chosen]


def next_strength(
    low: tuple[float, float] | None, high: tuple[float, float] | None, target: float, *, bisect: bool
) -> float:
    """The strength to try next, from the nearest tries below and above the target as (strength, KL).

    A small edit's KL grows with the square of its size, so outside a bracket the step follows that law, by
    a factor of 8 at most; inside, KL is taken as a power of the strength between both ends. `bisect` halves
    the bracket on the logarithm instead, which no shape of the curve can defeat.
    """
    if low is None or high is None:
        strength, reached = low or high or (1.0, target)
        step = math.sqrt(target / max(reached, 1e-12)) * (1.05 if high is None else 0.95)
        return strength * min(8.0, max(1 / 8, step))
    below, above = math.log(low[0]), math.log(high[0])
    share = 0.5
    if not bisect and low[1] > 0:
        share = math.log(target / low[1]) / math.log(high[1] / low[1])
    return math.exp(below + (above - below) * min(0.9, max(0.1, share)))
