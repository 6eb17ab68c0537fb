"""Run a generator without asking anybody: what it asks is written down, and plausible answers keep it going."""

from __future__ import annotations

import json
from zlib import crc32

from autointerp.types import Asking
from prompts.requests import (
    Chat,
    ChatReply,
    Choice,
    ChoiceReply,
    Effects,
    EffectsReply,
    Embed,
    EmbedReply,
    Likelihood,
    LikelihoodReply,
    Reply,
    Request,
    Shift,
    SteerReply,
)
from prompts.schemas import instance

PHRASE = "words that stand for a pretended explanation of about the usual length in a short sentence"
"""As long as explanations of the default kind mostly are."""
MOST_ROUNDS = 200
"""Rounds of questions after which a generator is left alone: pretended answers may never satisfy it."""


def asked_by(asking: Asking) -> list[Request]:
    """Everything that a unit asks, with pretended answers."""
    requests: list[Request] = []
    try:
        now = next(asking)
        for _ in range(MOST_ROUNDS):
            requests += now
            now = asking.send([pretended(request) for request in now])
    except StopIteration:
        return requests
    asking.close()
    return requests


def pretended(request: Request) -> Reply:
    """An answer of the right form that says nothing."""
    if isinstance(request, Chat):
        return ChatReply(PHRASE if request.schema is None else json.dumps(instance(request.schema, PHRASE)))
    if isinstance(request, Choice):
        return ChoiceReply(tuple(1 / len(request.choices) for _ in request.choices))
    if isinstance(request, Likelihood):
        return LikelihoodReply((-1.0,))
    if isinstance(request, Embed):
        # Never twice the same direction, so that a search among texts has something to compare.
        return EmbedReply((1.0, (crc32(request.text.encode("utf-8", "surrogatepass")) % 997) / 997))
    n = len(request.prompts)
    if isinstance(request, Effects):
        lens, gains = ((Shift(0, " word", 0.5),) * k for k in (request.lens_tokens, request.n_tokens))
        text = " ".join(PHRASE.split() * 3)
        return EffectsReply(lens, lens, (text,) * n, (gains,) * n, 1.0, request.target_kl, True)
    text = " ".join(PHRASE.split()[: request.max_new_tokens])
    return SteerReply(("",) * n, (text,) * n, (text,) * n, 1.0, request.target_kl, True)
