"""Continue a batch of prompts token by token, each as it would be continued alone.

Prompts are prefilled once, left-padded; rows that have ended leave the batch. What a row becomes depends on its
company only through the rounding of floating-point sums: a batch can differ from single rows where two tokens are
equal to about 1e-5 in logits, and nowhere else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from autointerp.subject.load import SubjectModel
from autointerp.subject.prefill import pad, prefill

LEAVE_AT = 0.75
"""Share of rows still running at which the others are dropped: the copy of the cache costs about one step."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """Token ids to continue by at most `max_tokens`; greedily at temperature 0, else drawn under `seed`."""

    tokens: tuple[int, ...]
    max_tokens: int
    temperature: float = 0.0
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Continuation:
    """New tokens without the end token. `ended` is False for one that `max_tokens` cut off."""

    tokens: tuple[int, ...]
    ended: bool


def stop_ids(subject: SubjectModel) -> frozenset[int]:
    """Tokens that end an answer: those of the model's generation config, and the tokenizer's own."""
    configured = getattr(getattr(subject.model, "generation_config", None), "eos_token_id", None)
    ids = configured if isinstance(configured, list | tuple) else [configured]
    return frozenset(int(i) for i in (*ids, subject.tokenizer.eos_token_id) if i is not None)


@torch.inference_mode()
def generate(subject: SubjectModel, prompts: Sequence[Prompt], stop: frozenset[int]) -> list[Continuation]:
    """Continue prompts of one token or more in one batch, until a token of `stop` or `max_tokens` (1 or more).

    Equal prompts are prefilled once. The end token counts towards `max_tokens`. The cache holds up to
    `len(prompts) * (longest prompt + largest max_tokens)` positions.
    """
    rows = list(range(len(prompts)))  # the prompt that each row of the batch continues
    places_of = {tokens: i for i, tokens in enumerate(dict.fromkeys(prompt.tokens for prompt in prompts))}
    tokens, mask = pad(list(places_of), left=True, device=subject.device)
    cache, logits = prefill(subject, tokens, mask)
    index = torch.tensor([places_of[prompt.tokens] for prompt in prompts], device=tokens.device)
    if len(places_of) < len(prompts):
        cache.batch_select_indices(index)
    logits, mask = logits[index], mask[index]
    positions = mask.sum(dim=1)

    draws = [torch.Generator().manual_seed(p.seed) if p.temperature > 0 else None for p in prompts]
    chosen: list[list[int]] = [[] for _ in prompts]
    ended = [False] * len(prompts)
    running = [True] * len(prompts)
    while True:
        found = _choose(
            logits, [(prompts[row].temperature, draws[row]) if running[row] else (0.0, None) for row in rows]
        )
        for row, token in zip(rows, found, strict=True):
            if running[row]:
                ended[row] = token in stop
                if not ended[row]:
                    chosen[row].append(token)
                running[row] = not ended[row] and len(chosen[row]) < prompts[row].max_tokens
        live = [k for k, row in enumerate(rows) if running[row]]
        if not live:
            return [Continuation(tuple(ids), end) for ids, end in zip(chosen, ended, strict=True)]
        step = torch.tensor(found, device=mask.device)
        if len(live) <= LEAVE_AT * len(rows):
            index = torch.tensor(live, device=mask.device)
            cache.batch_select_indices(index)
            step, mask, positions = step[index], mask[index], positions[index]
            rows = [rows[k] for k in live]
        mask = torch.cat([mask, mask.new_ones(len(rows), 1)], dim=1)
        logits = subject.model(
            input_ids=step[:, None], attention_mask=mask, position_ids=positions[:, None],
            past_key_values=cache, use_cache=True,
        ).logits[:, -1]  # fmt: skip
        # A row that waits to be dropped stands still: it must not run beyond the positions that the model has.
        positions = positions + torch.tensor([int(running[row]) for row in rows], device=positions.device)


def _choose(logits: Tensor, how: Sequence[tuple[float, torch.Generator | None]]) -> list[int]:
    """The next token of each row of `logits` [B, V]: the likeliest, or a draw at the row's temperature.

    Draws are the argmax of logits plus Gumbel noise. Other company changes logits by rounding, which moves an
    argmax only at a near tie; a draw by cumulated probabilities it would move anywhere in the tail.
    """
    scores = logits.float()
    if any(draw is not None for _, draw in how):
        scores = torch.stack([
            row if draw is None else row + temperature * _gumbel(len(row), draw).to(row.device)
            for row, (temperature, draw) in zip(scores, how, strict=True)
        ])  # fmt: skip
    tokens: list[int] = scores.argmax(dim=-1).tolist()
    return tokens


def _gumbel(n: int, draw: torch.Generator) -> Tensor:
    """Standard Gumbel noise [n], always drawn on the CPU: every device gets the same."""
    uniform = torch.rand(n, generator=draw).clamp_min(1e-20)
    return -(-uniform.log()).clamp_min(1e-20).log()
