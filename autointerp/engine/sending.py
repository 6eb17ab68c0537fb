"""From requests to replies: what every way of sending shares, and the way into a server.

A request's life at a server: looked up in the reply cache; joined to an equal one in flight; given a place; its worst
cost reserved; tried, and tried again after a pause if another try may help; booked and kept in one transaction.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Protocol

from tenacity import AsyncRetrying, RetryCallState, retry_if_result, stop_after_attempt
from tenacity.wait import wait_base

from autointerp.engine.account import Account, Reservation
from autointerp.engine.limit import AdaptiveLimit
from autointerp.engine.order import grouped
from autointerp.engine.replies import key_of
from autointerp.errors import AutointerpError, DiskFull, ServerGone
from autointerp.types import Attempt, Gathering, Server
from prompts.requests import Chat, ChatReply, Failure, Reply, Request
from prompts.schemas import obeying

FIRST_PAUSE, LONGEST_PAUSE = 0.5, 60.0
"""Seconds before the second try, doubled from try to try; the pause is drawn between half of it and all of it."""
LONGEST_WAIT = 300.0
"""A server that asks for more seconds than this is not waited for."""


class Sender(Protocol):
    """One way to a model: straight, in batches, or in this process."""

    units: int
    """Units of work that it wants in flight."""

    async def ask(self, requests: Sequence[Request], stage: str) -> list[Reply]: ...


class ServerSender:
    """`retries` further tries follow one that may fare better. `account` may be shared between servers. `say` is told
    when a server is waited for."""

    def __init__(
        self, server: Server, account: Account, *, retries: int = 5, timeout: float = 120.0,
        say: Callable[[str], None] = print,
    ) -> None:  # fmt: skip
        self.server, self.account, self.retries, self._say = server, account, retries, say
        self._gathering = server if isinstance(server, Gathering) and server.patience is not None else None
        self.limit = AdaptiveLimit(server.concurrency, timeout)
        self.units = server.concurrency
        self._flying: dict[str, asyncio.Future[Reply]] = {}
        self._lost_at: float | None = None
        """Since when it could not be reached, with no answer between."""
        self._over: AutointerpError | None = None
        """Why nothing more is sent."""

    async def ask(self, requests: Sequence[Request], stage: str) -> list[Reply]:
        """Answers in the order of the requests.

        Raises:
            BudgetReached: after all that was in flight has come back.
            ServerGone: nothing can be asked any more.
            DiskFull: answers cannot be kept any more.
        """
        if len(requests) == 1:
            return [await self._one(requests[0], stage)]
        answers: list[Reply | None] = [None] * len(requests)
        problems: list[BaseException] = []

        async def one(i: int) -> None:
            try:
                answers[i] = await self._one(requests[i], stage)
            except Exception as error:
                # The others are paid for already, or will be refused in their turn. Nobody would wait for them.
                problems.append(error)

        async def group(members: list[int]) -> None:
            await one(members[0])
            if members[1:]:
                await asyncio.gather(*map(one, members[1:]))

        await asyncio.gather(*map(group, grouped(requests)))
        if problems:
            raise problems[0]
        return [answer for answer in answers if answer is not None]

    async def _one(self, request: Request, stage: str) -> Reply:
        key = key_of(self.server.model, self.server.identity, request)
        kept = known(self.account, key, request)
        while kept is None and (flying := self._flying.get(key)) is not None:
            try:
                kept = await asyncio.shield(flying)
            except asyncio.CancelledError:
                me = asyncio.current_task()
                if not flying.cancelled() or (me is not None and me.cancelling()):
                    raise
                # It was the other one who was cancelled.
        if kept is not None:
            self.account.saved(self.server, stage, kept.usage)
            return kept
        flying = self._flying[key] = asyncio.get_running_loop().create_future()
        try:
            reply = await self._send(request, stage, key)
            flying.set_result(reply)
            return reply
        except BaseException as error:
            if isinstance(error, asyncio.CancelledError):
                flying.cancel()
            else:
                flying.set_exception(error)
                flying.exception()  # whether anybody else waits for it or not
            raise
        finally:
            del self._flying[key]

    async def _send(self, request: Request, stage: str, key: str) -> Reply:
        attempt = await self._try_somewhere(request, stage, key, 0)
        if attempt.retry and self.retries:
            attempt = await self._try_again(request, stage, key, attempt)
        return attempt.reply

    async def _try_somewhere(self, request: Request, stage: str, key: str, earlier: int) -> Attempt:
        """One try that a server has seen. Of servers that come and go, one that is gone takes no try away; one that
        goes with the request in hand does, or a request that kills servers would kill all of them."""
        attempt = await self._try(request, stage, key, earlier)
        while self._gathering is not None and unreachable(attempt.reply) and attempt.charged is False:
            attempt = await self._try(request, stage, key, earlier, again=True)
        return attempt

    async def _try_again(self, request: Request, stage: str, key: str, first: Attempt) -> Attempt:
        await asyncio.sleep(_pause(1, first))
        retrying = AsyncRetrying(
            stop=stop_after_attempt(self.retries), wait=_Pause(), retry=retry_if_result(lambda tried: tried.retry),
            retry_error_callback=lambda state: state.outcome.result() if state.outcome else first,
        )  # fmt: skip
        made = 0

        async def again() -> Attempt:
            nonlocal made
            made += 1
            return await self._try_somewhere(request, stage, key, made)

        attempt: Attempt = await retrying(again)
        return attempt

    async def _try(self, request: Request, stage: str, key: str, earlier: int, *, again: bool = False) -> Attempt:
        """One try, after so many earlier ones; `again` says that this one was made before and found nobody."""
        last, retry = earlier == self.retries, earlier > 0 or again
        entered = await self.limit.enter()
        pressed, began = False, time.perf_counter()
        try:
            self._check()
            await self._ready()
            held = await self.account.reserve(self.server, request)
            try:
                self._check()
            except AutointerpError:
                self.account.release(held.amount)
                raise
            # Waiting for the budget is no slowness of the server.
            entered, began = self.limit.now(), time.perf_counter()
            try:
                attempt = await self.server.attempt(request)
            except BaseException:
                # Cut off by Ctrl-C or an error elsewhere: the server may finish it, and charge for it.
                lost = Attempt(Failure("error", "interrupted"), charged=None)
                seconds = time.perf_counter() - began
                self._settle(stage, held, lost, retry, seconds, None)
                raise
            pressed = attempt.pressed
            if (attempt.after or 0.0) > LONGEST_WAIT:
                attempt = replace(attempt, retry=False)
            # What another try may mend is not kept.
            final = key if last or not attempt.retry else None
            seconds = time.perf_counter() - began
            self._settle(stage, held, attempt, retry, seconds, final)
            self._watch(attempt)
            if unreachable(attempt.reply) and attempt.after is None and not last:
                # Keeps its place while it waits, or all that is left would be sent to a server that is not there.
                await asyncio.sleep(_pause(earlier + 1, attempt))
                return replace(attempt, after=0.0)
            return attempt
        finally:
            self.limit.leave(entered, pressed=pressed)

    async def _ready(self) -> None:
        """Wait for a server, where they come and go; before anything is reserved for the request."""
        if self._gathering is None:
            return
        try:
            await self._gathering.ready(self._say)
        except ServerGone as gone:
            self._over = gone
            raise

    def _check(self) -> None:
        if self._over is not None:
            raise self._over

    def _settle(
        self, stage: str, held: Reservation, attempt: Attempt, retry: bool, seconds: float, key: str | None
    ) -> None:
        try:
            self.account.settle(self.server, stage, held, attempt, retry=retry, seconds=seconds, key=key)
        except DiskFull as full:
            # What cannot be kept must not be paid for.
            self._over = full
            raise

    def _watch(self, attempt: Attempt) -> None:
        """Stop everything when no request can succeed: the server says so, or was not there for as long as one is
        tried."""
        reply, now = attempt.reply, time.monotonic()
        if not unreachable(reply):
            self._lost_at = None
        elif self._lost_at is None:
            self._lost_at = now
        patience = sum(_longest(n) for n in range(1, self.retries + 1)) / 2
        if self._gathering is not None:
            patience += self._gathering.patience or 0.0
        if attempt.stop or (self._lost_at is not None and now - self._lost_at > patience):
            said = reply.message if isinstance(reply, Failure) else "the server is gone"
            self._over = ServerGone(f"{said}. What was finished is kept: mend it, and run the same command again")
            raise self._over


def unreachable(reply: Reply) -> bool:
    return isinstance(reply, Failure) and reply.kind == "unreachable"


def known(account: Account, key: str, request: Request) -> Reply | None:
    """The reply that is kept for a request. Who asks again what has failed gets no answer that breaks its schema."""
    reply = account.cache.get(key)
    if account.cache.again and reply is not None and obedient(request, reply) is None:
        return None
    return reply


def obedient(request: Request, reply: Reply) -> Reply | None:
    """The reply, without the fence that some models put around JSON; None where it breaks the schema of its request."""
    if not (isinstance(request, Chat) and isinstance(reply, ChatReply) and request.schema is not None):
        return reply
    text = obeying(reply.text, request.schema)
    return None if text is None else replace(reply, text=text)


def _pause(tries: int, attempt: Attempt) -> float:
    """Seconds before the next try: what the server asks for, or an exponential pause."""
    if attempt.after is not None:
        # All who were told the same must not come back at the same moment.
        return attempt.after * random.uniform(1.0, 1.1)
    return _longest(tries) * random.uniform(0.5, 1.0)


def _longest(tries: int) -> float:
    return float(min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** (tries - 1)))


class _Pause(wait_base):
    def __call__(self, retry_state: RetryCallState) -> float:
        assert retry_state.outcome is not None
        # The first try of all was made before.
        attempt: Attempt = retry_state.outcome.result()
        return _pause(retry_state.attempt_number + 1, attempt)
