"""What the bodies of OpenAI-compatible servers mean. Whatever a server makes of a body, reading it never raises."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from prompts.requests import (
    ChatReply,
    ChoiceReply,
    EmbedReply,
    Failure,
    LikelihoodReply,
    Usage,
)


def response_format(schema: Mapping[str, Any]) -> dict[str, Any]:
    """The `response_format` that holds a chat to `schema`.

    Strict decoding needs closed objects, so they are closed here. It also needs every property to be required;
    a schema with optional ones is sent without `strict`.
    """
    optional = False

    def close(node: Any) -> Any:
        nonlocal optional
        if isinstance(node, (list, tuple)):
            return [close(item) for item in node]
        if not isinstance(node, Mapping):
            return node
        closed = {key: close(value) for key, value in node.items()}
        if node.get("type") == "object":
            closed.setdefault("additionalProperties", False)
            optional |= set(node.get("properties", ())) != set(node.get("required", ()))
        return closed

    closed = close(schema)
    return {"type": "json_schema", "json_schema": {"name": "answer", "strict": not optional, "schema": closed}}


def read_chat(payload: object) -> ChatReply | Failure:
    """The reply in a decoded `/chat/completions` response."""
    usage, finish = read_usage(payload), at(payload, "choices", 0, "finish_reason")
    message = at(payload, "choices", 0, "message")
    if not isinstance(message, Mapping):
        # OpenRouter reports a provider's error with status 200.
        return Failure("error", f"not a chat completion: {said(at(payload, 'error') or payload)}", usage)
    refusal, content = message.get("refusal"), message.get("content")
    if refusal or finish == "content_filter":
        return Failure("refused", str(refusal or content or "stopped by the content filter"), usage)
    if finish == "length":
        return Failure("truncated", "stopped at max_tokens before the answer was complete", usage)
    if content is None or (isinstance(content, str) and not content.strip()):
        return Failure("empty", f"no text in the answer (finish_reason {finish})", usage)
    if not isinstance(content, str):
        return Failure("error", f"not a chat completion: content is {type(content).__name__}", usage)
    return ChatReply(content, usage)


def read_choice(payload: object, choices: Sequence[str]) -> ChoiceReply | Failure:
    """Probabilities of `choices` in a chat completion of one token with its likeliest alternatives.

    A choice counts by the token that is its whole text, else by the longest token that it begins with. One that is
    not among the alternatives gets 0: its probability is below the smallest of those.
    """
    usage, found = read_usage(payload), at(payload, "choices", 0, "logprobs", "content", 0, "top_logprobs")
    if not isinstance(found, list) or not found:
        return Failure("error", "the server gives no log-probabilities of the answer", usage)
    listed: dict[str, float] = {}
    for entry in found:
        token, logprob = at(entry, "token"), at(entry, "logprob")
        if not isinstance(token, str) or type(logprob) not in (int, float) or math.isnan(logprob):
            return Failure("error", f"not a log-probability: {said(entry)}", usage)
        listed[token] = listed.get(token, 0.0) + math.exp(min(logprob, 0.0))
    if sum(listed.values()) > 1.01:
        return Failure("error", f"the probabilities of the answers add up to {sum(listed.values()):.2f}", usage)
    tokens = [max((t for t in listed if t and choice.startswith(t)), key=len, default=None) for choice in choices]
    known = [token for token in tokens if token is not None]
    if not known:
        return Failure("unparsable", f"none of {', '.join(choices)} is among the likeliest answers", usage)
    if len(set(known)) < len(known):
        return Failure("error", f"{', '.join(choices)} do not differ in their first token", usage)
    return ChoiceReply(tuple(0.0 if token is None else listed[token] for token in tokens), usage)


def read_echo(payload: object, text: str, n_tokens: int | None = None) -> LikelihoodReply | Failure | None:
    """Log-probabilities of the tokens at the end of an echoed prompt that make up `text`, or are `n_tokens` many.

    None where no token begins where `text` does: the server has joined its start with the end of the prompt.
    """
    usage, logprobs = read_usage(payload), at(payload, "choices", 0, "logprobs")
    tokens, values = at(logprobs, "tokens"), at(logprobs, "token_logprobs")
    if not isinstance(tokens, list) or not isinstance(values, list) or len(tokens) != len(values):
        return Failure("error", "the server gives no log-probabilities of the prompt", usage)
    if n_tokens is None:
        n_tokens = _tokens_at_the_end(tokens, text)
        if n_tokens is None:
            return None
    taken = values[len(values) - n_tokens :]
    if not 0 < n_tokens <= len(values) or any(type(value) not in (int, float) for value in taken):
        return Failure("error", "some tokens of the text have no log-probability", usage)
    return LikelihoodReply(tuple(float(value) for value in taken), usage)


def _tokens_at_the_end(tokens: Sequence[object], text: str) -> int | None:
    """How many of the last tokens spell `text`. Counted from the end: what stands before may begin with special
    tokens, which the servers' text offsets count in different ways."""
    spelled = ""
    for n, token in enumerate(reversed(tokens), start=1):
        spelled = f"{token}{spelled}"
        if len(spelled) >= len(text):
            return n if spelled == text else None
    return None


def read_embedding(payload: object) -> EmbedReply | Failure:
    """The unit-length vector in a decoded `/embeddings` response."""
    usage, values = read_usage(payload), at(payload, "data", 0, "embedding")
    if not isinstance(values, list) or not all(type(value) in (int, float) for value in values):
        return Failure("error", f"not an embedding: {said(at(payload, 'error') or payload)}", usage)
    length = math.hypot(*values)
    if not (math.isfinite(length) and length > 0):
        return Failure("error", f"an embedding of {len(values)} numbers and length {length}", usage)
    return EmbedReply(tuple(value / length for value in values), usage)


def read_usage(payload: object) -> Usage:
    """A server's own count; 0 where it gives none."""
    found = at(payload, "usage")
    counts = [at(found, "prompt_tokens"), at(found, "completion_tokens")]
    counts.append(at(found, "prompt_tokens_details", "cached_tokens"))
    return Usage(*(count if type(count) is int and count >= 0 else 0 for count in counts))


def at(value: Any, *path: str | int) -> Any:
    """What stands at `path` in JSON from outside, or None if nothing does."""
    for step in path:
        try:
            value = value[step]
        except (LookupError, TypeError):
            return None
    return value


def said(body: object) -> str:
    """The readable part of an error body."""
    found = at(body, "message") or at(body, "detail") or body
    return found if isinstance(found, str) else json.dumps(found, ensure_ascii=False, default=str) if found else ""
