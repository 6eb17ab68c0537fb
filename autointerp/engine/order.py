"""The order of requests in which a server's prefix cache helps most.

Requests that begin alike are sent next to each other, and the first of a long common beginning goes ahead of the
others, so that they find it in the cache.
"""

from __future__ import annotations

from collections.abc import Sequence

from prompts.requests import Chat, Choice, Likelihood, Request

WORTH = 1000
"""Characters of a common beginning from which it pays to let one request go ahead."""
AT_LEAST = 3
"""Requests that share it."""


def written(request: Request) -> str:
    """The text that a model reads, from its start."""
    if isinstance(request, Chat | Choice):
        return "\n".join(message.content for message in request.messages)
    return request.prompt + request.text if isinstance(request, Likelihood) else ""


def grouped(requests: Sequence[Request]) -> list[list[int]]:
    """Indices in groups; the first of a group goes ahead of its others, groups go side by side."""
    if len(requests) < AT_LEAST:
        return [[i] for i in range(len(requests))]
    texts = [written(request) for request in requests]
    order = sorted(range(len(requests)), key=lambda i: (texts[i], i))
    groups: list[list[int]] = []
    for i in order:
        if groups and _begin_alike(texts[groups[-1][0]], texts[i]):
            groups[-1].append(i)
        else:
            groups.append([i])
    return [part for group in groups for part in ([group] if len(group) >= AT_LEAST else [[i] for i in group])]


def _begin_alike(a: str, b: str) -> bool:
    return len(a) >= WORTH and a[:WORTH] == b[:WORTH]
