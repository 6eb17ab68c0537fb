"""The loop that answers an explainer or a scorer by hand."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from typing import Any

from prompts.requests import Reply


def by_hand(asking: Generator[Any, Any, Any], reply: Callable[[Any], Reply]) -> tuple[Any, list[Sequence[Any]]]:
    """Answer every request with `reply`; the result, and the requests of each round."""
    rounds: list[Sequence[Any]] = []
    try:
        requests = next(asking)
        while True:
            rounds.append(requests)
            requests = asking.send([reply(request) for request in requests])
    except StopIteration as stop:
        return stop.value, rounds
