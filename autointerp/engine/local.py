"""The way into a model in this process: one call at a time, generations of several units together.

What is generated does not depend on its company, so chats of all units in flight make one batch. Likelihoods and
embeddings would change in their last bits: they stay within their unit, and a resumed run gets the same ones.
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Callable, Sequence

from autointerp.engine.account import Account
from autointerp.engine.replies import Cost, key_of
from autointerp.engine.sending import known
from autointerp.types import Client
from prompts.requests import Chat, Choice, Reply, Request, Usage

KEPT = (Chat, Choice)
"""Replies that go to the reply cache. Others are cheap to compute again, and large."""
QUIET = 4
"""Turns of the event loop without a new request after which a batch is complete."""


async def all_have_asked(waiting: Callable[[], int]) -> None:
    """Until no more units ask: what waits has not grown for some turns of the event loop."""
    seen, quiet = waiting(), 0
    while quiet < QUIET:
        await asyncio.sleep(0)
        quiet = quiet + 1 if waiting() == seen else 0
        seen = waiting()


def identity(client: Client) -> str:
    """Tells weights apart, where a client says which it has; names of folders do not."""
    found: str = getattr(client, "identity", client.name)
    return found


class LocalSender:
    def __init__(self, client: Client, account: Account) -> None:
        self.client, self.account, self.units = client, account, client.concurrency
        self._gate = asyncio.Semaphore(1)
        self._waiting: list[tuple[Chat, str, asyncio.Future[Reply]]] = []
        self._worker: asyncio.Task[None] | None = None

    async def ask(self, requests: Sequence[Request], stage: str) -> list[Reply]:
        """Answers in the order of the requests."""
        answers: list[Reply | None] = [None] * len(requests)
        keys = [self._key(request) or "" for request in requests]
        for i, (key, request) in enumerate(zip(keys, requests, strict=True)):
            kept = known(self.account, key, request) if key else None
            if kept is not None:
                self.account.cache.saved(stage, self.client.model, kept.usage, 0.0)
                answers[i] = kept
        left = [i for i, answer in enumerate(answers) if answer is None]
        together = [i for i in left if isinstance(requests[i], Chat) and self.client.concurrency > 1]
        apart = sorted(set(left) - set(together))
        generated = [asyncio.create_task(self._generated(requests[i], stage)) for i in together]  # type: ignore[arg-type]
        try:
            for i, reply in zip(apart, await self._call([requests[i] for i in apart], stage), strict=True):
                answers[i] = reply
            for i, reply in zip(together, await asyncio.gather(*generated), strict=True):
                answers[i] = reply
        except BaseException:
            # Nobody waits for them any more.
            for task in generated:
                task.cancel()
            await asyncio.gather(*generated, return_exceptions=True)
            raise
        return [answer for answer in answers if answer is not None]

    def _key(self, request: Request) -> str | None:
        """In the reply cache; None for what is not kept there."""
        if not isinstance(request, KEPT):
            return None
        return key_of(self.client.model, identity(self.client), request)

    async def _generated(self, request: Chat, stage: str) -> Reply:
        future: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        self._waiting.append((request, stage, future))
        if self._worker is None or self._worker.done():
            self._worker = asyncio.create_task(self._work())
        return await future

    async def _work(self) -> None:
        while self._waiting:
            await all_have_asked(lambda: len(self._waiting))
            batch, self._waiting = self._waiting, []
            by_stage: dict[str, list[tuple[Chat, asyncio.Future[Reply]]]] = defaultdict(list)
            for request, stage, future in batch:
                if not future.done():
                    by_stage[stage].append((request, future))
            for stage, some in by_stage.items():
                try:
                    replies = await self._call([request for request, _ in some], stage)
                except Exception as error:
                    for _, future in some:
                        if not future.done():
                            future.set_exception(error)
                    continue
                for (_, future), reply in zip(some, replies, strict=True):
                    if not future.done():
                        future.set_result(reply)

    async def _call(self, requests: Sequence[Request], stage: str) -> list[Reply]:
        if not requests:
            return []
        async with self._gate:
            began = time.perf_counter()
            replies = await self.client.answer(requests)
            seconds = (time.perf_counter() - began) / len(requests)
        for request, reply in zip(requests, replies, strict=True):
            key = self._key(request)
            # It costs time and no money; its tokens are no part of a budget, which is for servers.
            cost = Cost(Usage(reply.usage.prompt_tokens, reply.usage.completion_tokens), 0.0, seconds=seconds)
            self.account.cache.record(stage, self.client.model, cost, None, key, reply)
        return replies
