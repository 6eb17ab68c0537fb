"""A server in memory that does what a test says, and remembers when it was asked what."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from jumping_time import clock

from autointerp.types import Attempt, Finding
from prompts.requests import Chat, ChatReply, Message, Request, Usage


def chat(text: str, **fields: object) -> Chat:
    return Chat((Message("user", text),), **fields)  # type: ignore[arg-type]


def text_of(request: Request) -> str:
    assert isinstance(request, Chat)
    return request.messages[-1].content


def fine(request: Request, tried: int) -> Attempt:
    return Attempt(ChatReply("re: " + text_of(request)[:20], Usage(10, 2)))


@dataclass
class ScriptedServer:
    """`answer` gets the request and how often it was tried before; `seconds` is what an answer takes."""

    answer: Callable[[Request, int], Attempt] = fine
    seconds: float | Callable[[Request], float] = 1.0
    concurrency: int = 16
    name: str = "scripted"
    model: str = "m"
    identity: str = "here"
    price_url: str = "http://127.0.0.1/v1"
    room: int = 0
    supports: frozenset[type] = frozenset({Chat})
    asked: list[tuple[float, str]] = field(default_factory=list)
    answered: list[tuple[float, str]] = field(default_factory=list)
    in_flight: int = 0
    most: int = 0
    closed: bool = False
    _tried: Counter[str] = field(default_factory=Counter)

    async def attempt(self, request: Request) -> Attempt:
        self.asked.append((clock(), text_of(request)))
        tried = self._tried[text_of(request)]
        self._tried[text_of(request)] += 1
        self.in_flight += 1
        self.most = max(self.most, self.in_flight)
        try:
            await asyncio.sleep(self.seconds(request) if callable(self.seconds) else self.seconds)
            attempt = self.answer(request, tried)
            self.answered.append((clock(), text_of(request)))
            return attempt
        finally:
            self.in_flight -= 1

    def times(self, text: str) -> list[float]:
        """When this was asked."""
        return [moment for moment, asked in self.asked if asked == text]

    async def probe(self, features: frozenset[str]) -> list[Finding]:
        return []

    def probes(self, features: frozenset[str]) -> list[Request]:
        return []

    async def close(self) -> None:
        self.closed = True
