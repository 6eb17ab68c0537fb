"""Ask a language model what a latent does to the output: its logit lens, and the next tokens that steering raises.

Experimental. Paulo et al. 2024 (section 4.4) show an explainer ten prompts with the next tokens that rise most,
Gur-Arieh et al. 2025 (arXiv 2501.08319) the tokens of the vocabulary projection; that both stand in one prompt, how
many tokens are shown and how the question is put are ours. Made for the scorer `intervention`, whose prompts come from
other documents.

A latent without prompts is explained from the lens alone, one that does not write into the residual stream from the
prompts alone. Where the target KL is not reached, the rises are those at the nearest strength that was tried, and the
prompt says so: for an explanation they need not be comparable between latents.
"""

from __future__ import annotations

import json
import math
from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass

from autointerp.errors import UserError
from autointerp.explain._proposal import Proposal
from autointerp.explain.default import SCHEMA, proposed
from autointerp.types import LatentRecord
from prompts import render
from prompts.requests import Chat, Effects, EffectsReply, Reply, Request, Shift

NAME = "output"
NEEDS: frozenset[type[Request]] = frozenset({Chat, Effects})
TEMPLATES = ("explain_output.v1",)

LEAST = 0.001
"""Rise of a probability that is shown: less would be written as 0.000."""


@dataclass(frozen=True, kw_only=True)
class Config:
    target_kl: float = 1.0
    """Mean KL(intervened || clean) of the next token, in nats, that the strength is tuned to."""
    next_tokens: int = 10
    """Next tokens that are shown of each prompt (`sampling.explain_prompts` says how many prompts)."""
    lens_tokens: int = 20
    """Tokens that are shown of either end of the logit lens; 0 leaves it out."""
    max_tokens: int = 200
    """Longest answer."""
    temperature: float = 0.0

    def __post_init__(self) -> None:
        if not 0 < self.target_kl < math.inf:
            raise UserError(f"the explainer 'output' steers to a target_kl above 0, not to {self.target_kl!r}")
        if self.next_tokens < 0 or self.lens_tokens < 0:
            raise UserError("the explainer 'output' shows no fewer than 0 tokens: see next_tokens and lens_tokens")


def explain(record: LatentRecord, config: Config) -> Generator[Sequence[Request], Sequence[Reply], Proposal]:
    # Without next tokens to show, the prompts are not even drawn.
    prompts = tuple(window.tokens for window in record.explain_prompts) if config.next_tokens else ()
    (effects,) = yield [
        Effects(
            record.latent, prompts, float(config.target_kl), config.next_tokens, config.lens_tokens, pole=record.pole
        )
    ]
    if not isinstance(effects, EffectsReply):
        return Proposal(None, getattr(effects, "kind", "failed"))
    shown = [
        {"text": text, "tokens": risen}
        for text, gains in zip(effects.prompt_texts, effects.gains, strict=True)
        if (risen := rises(gains))
    ]
    promoted, suppressed = listed(effects.promoted or ()), listed(effects.suppressed or ())
    if not (shown or promoted or suppressed):
        return Proposal(None, "no_effect")
    request = Chat(
        messages=render.messages(
            TEMPLATES[0], promoted=promoted, suppressed=suppressed, prompts=shown, converged=effects.converged
        ),
        max_tokens=config.max_tokens,
        temperature=config.temperature,
        schema=SCHEMA,
    )
    (reply,) = yield [request]
    return proposed(reply)


def listed(shifts: Iterable[Shift]) -> str:
    """`" apple", " pear"`. JSON keeps what a token may hold, line breaks and quotes, within its own."""
    return ", ".join(json.dumps(shift.text, ensure_ascii=False) for shift in shifts)


def rises(shifts: Iterable[Shift]) -> str:
    """`" apple" +0.213, " pear" +0.020`."""
    return ", ".join(
        f"{json.dumps(shift.text, ensure_ascii=False)} +{shift.change:.3f}" for shift in shifts if shift.change >= LEAST
    )
