"""Continue prompts with and without an edit of one latent, at the strength that reaches a target KL.

Prompts are prefilled up to their last token, once; the edit acts from there on, so the search for the
strength costs one token per prompt and try, and clean and steered continuations run in one batch on the
same random numbers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from autointerp.seeds import derive
from autointerp.subject.hookpoints import editing
from autointerp.subject.load import SubjectModel
from autointerp.subject.prefill import copy_rows, pad, prefill
from autointerp.subject.splice import Splice
from prompts.requests import Failure, Reply, Request, Steer, SteerReply, Usage
from sae.base import SparseAutoencoder

MAX_TRIES = 24


@dataclass(frozen=True, slots=True)
class Found:
    strength: float
    kl: float
    converged: bool


class SteerClient:
    """Answers `Steer` for one subject model and one SAE at one hookpoint."""

    name = "steer"
    supports: frozenset[type] = frozenset({Steer})
    concurrency = 1

    def __init__(self, subject: SubjectModel, sae: SparseAutoencoder, hookpoint: str) -> None:
        self.subject, self.sae, self.hookpoint = subject, sae, hookpoint
        self.model = subject.label
        self.identity = f"steer {subject.fingerprint} {subject.model.dtype}"

    async def answer(self, requests: Sequence[Request]) -> list[Reply]:
        return [self.steer(request) for request in requests if isinstance(request, Steer)]

    async def close(self) -> None:
        return None

    @torch.inference_mode()
    def steer(self, request: Steer) -> Reply:
        if not request.prompts or min(len(prompt) for prompt in request.prompts) < 2:
            return Failure("empty", "a prompt to steer needs at least two tokens")
        run = _Run(self, request)
        found = run.find_strength()
        clean, steered = run.generate(found.strength)
        decode = self.subject.tokenizer.decode
        return SteerReply(
            prompt_texts=tuple(decode(list(p), clean_up_tokenization_spaces=False) for p in request.prompts),
            clean=clean,
            steered=steered,
            strength=found.strength,
            reached_kl=found.kl,
            converged=found.converged,
            usage=Usage(
                prompt_tokens=sum(map(len, request.prompts)),
                completion_tokens=2 * len(request.prompts) * request.max_new_tokens,
            ),
        )


class _Run:
    """One request: prompts prefilled without their last token, which every later pass begins with."""

    def __init__(self, client: SteerClient, request: Steer) -> None:
        self.client, self.request = client, request
        subject = client.subject
        heads = [prompt[:-1] for prompt in request.prompts]
        tokens, self.mask = pad(heads, left=True, device=subject.device)
        self.cache, _ = prefill(subject, tokens, self.mask)
        self.last = torch.tensor([prompt[-1] for prompt in request.prompts], device=subject.device)
        self.lengths = self.mask.sum(dim=1)
        norms: list[Tensor] = []

        def measure(x: Tensor) -> Tensor:
            norms.append(x[:, -1].float().norm(dim=-1))
            return x

        with editing(subject.model, client.hookpoint, measure):
            self.clean_logprobs = self._next(0.0).log_softmax(dim=-1)
        self.scale = max(float(norms[0].mean()), 1e-6)

    def _forward(self, cache: Any, tokens: Tensor, mask: Tensor, places: Tensor, strengths: Tensor) -> Tensor:
        client = self.client
        latents = torch.full((len(tokens),), self.request.latent, device=tokens.device)
        with editing(client.subject.model, client.hookpoint, Splice(client.sae, latents, strengths)):
            out = client.subject.model(
                input_ids=tokens[:, None], attention_mask=mask, position_ids=places[:, None],
                past_key_values=cache, use_cache=True,
            )  # fmt: skip
        logits: Tensor = out.logits[:, -1].float()
        return logits

    def _next(self, strength: float) -> Tensor:
        """Logits `[P, V]` after the last prompt token under an edit of this strength."""
        everyone = torch.arange(len(self.last), device=self.last.device)
        mask = torch.cat([self.mask, self.mask.new_ones(len(self.last), 1)], dim=1)
        strengths = torch.full((len(self.last),), strength, device=self.last.device)
        return self._forward(copy_rows(self.cache, everyone), self.last, mask, self.lengths, strengths)

    def kl(self, strength: float) -> float:
        """Mean over prompts of KL(intervened || clean) of the next token, in nats."""
        steered = self._next(strength).log_softmax(dim=-1)
        return float((steered.exp() * (steered - self.clean_logprobs)).sum(dim=-1).mean())

    def find_strength(self) -> Found:
        """Search the strength, starting at the activations' own norm; see `next_strength`."""
        target, tolerance = self.request.target_kl, self.request.tolerance
        best = Found(0.0, 0.0, False)
        low: tuple[float, float] | None = None
        high: tuple[float, float] | None = None
        strength = self.scale
        for attempt in range(MAX_TRIES):
            reached = self.kl(strength)
            if math.isfinite(reached) and abs(reached - target) < abs(best.kl - target):
                best = Found(strength, reached, abs(reached - target) <= tolerance * target)
            if best.converged:
                break
            # A KL that overflowed lies beyond the target, however far.
            tried = (strength, reached if math.isfinite(reached) else 1e6 * target)
            low, high = (tried, high) if tried[1] < target else (low, tried)
            strength = next_strength(low, high, target, bisect=attempt >= MAX_TRIES // 2)
        return best

    def generate(self, strength: float) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Clean and steered continuations, sampled with the same Gumbel noise per prompt and step."""
        request, subject = self.request, self.client.subject
        n = len(self.last)
        twice = torch.arange(n, device=self.last.device).repeat(2)
        strengths = torch.zeros(2 * n, device=self.last.device)
        strengths[n:] = strength
        cache, mask = copy_rows(self.cache, twice), self.mask[twice]
        tokens, places = self.last[twice], self.lengths[twice]
        generators = [torch.Generator().manual_seed(derive(request.seed, "steer", request.latent, i)) for i in range(n)]
        stop = subject.tokenizer.eos_token_id
        ended = torch.zeros(2 * n, dtype=torch.bool)
        chosen: list[list[int]] = [[] for _ in range(2 * n)]
        for _ in range(request.max_new_tokens):
            mask = torch.cat([mask, mask.new_ones(2 * n, 1)], dim=1)
            logits = self._forward(cache, tokens, mask, places, strengths) / max(request.temperature, 1e-6)
            noise = torch.stack([torch.rand(logits.shape[1], generator=g) for g in generators]).repeat(2, 1)
            gumbel = -(-noise.clamp_min(1e-20).log()).clamp_min(1e-20).log()
            tokens = (logits + gumbel.to(logits.device)).argmax(dim=1)
            places = places + 1
            ended |= tokens.cpu() == stop
            for row, token in enumerate(tokens.tolist()):
                if not ended[row]:
                    chosen[row].append(token)
        texts = [subject.tokenizer.decode(ids, clean_up_tokenization_spaces=False) for ids in chosen]
        return tuple(texts[:n]), tuple(texts[n:])


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
