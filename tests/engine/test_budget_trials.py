"""A budget is never exceeded: a hundred runs at concurrency 64, with answers of random lengths."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Generator, Sequence
from typing import Any

import pytest

from autointerp.clients.fake import FakeClient
from autointerp.clients.fake_server import FakeServer
from autointerp.clients.openai import OpenAIClient
from autointerp.engine.account import Account
from autointerp.engine.drive import Finished, Router, drive_all
from autointerp.errors import BudgetReached
from autointerp.seeds import generator
from prompts.requests import Chat, ChatReply, Message, Reply, Request

TRIALS, UNITS, PER_UNIT = 100, 25, 3
PRICES = {"lengths:5": (1.0, 4.0)}


class Counting(FakeClient):
    """Knows what it has charged, whatever the other side believes."""

    def __init__(self) -> None:
        super().__init__("lengths:5")
        self.tokens, self.usd, self._lock = 0, 0.0, threading.Lock()

    def reply(self, request: Request) -> Reply:
        reply = super().reply(request)
        with self._lock:
            self.tokens += reply.usage.prompt_tokens + reply.usage.completion_tokens
            self.usd += (reply.usage.prompt_tokens * 1.0 + reply.usage.completion_tokens * 4.0) / 1e6
        return reply


def unit(trial: int, i: int) -> Generator[list[Chat], Sequence[Reply], int]:
    texts = [f"trial {trial} unit {i} request {j}" for j in range(PER_UNIT)]
    replies = yield [Chat((Message("user", text),), max_tokens=40) for text in texts]
    assert all(isinstance(reply, ChatReply) for reply in replies)
    return len(replies)


@pytest.mark.parametrize("unit_of_budget", ["tok", "usd"])
def test_spent_stays_within_the_budget_in_a_hundred_trials(unit_of_budget: str) -> None:
    draw = generator(0, "budgets")
    fake = Counting()
    stopped = 0
    with FakeServer(fake, latency=lambda i, body: 0.001 * (i % 4)) as server:
        for trial in range(TRIALS // 2):
            fake.tokens, fake.usd = 0, 0.0
            limit = float(draw.uniform(500, 8000))
            account = Account(own_prices=PRICES)
            account.begin(f"{limit:.0f}tok" if unit_of_budget == "tok" else f"{limit * 3e-6:.6f}usd")
            assert account.budget is not None
            done: list[Finished] = []

            async def run(account: Account = account, done: list[Any] = done, trial: int = trial) -> None:
                client = OpenAIClient("lengths:5", server.base_url, max_concurrency=64)
                router = Router([client], account, stage="test")
                units = ((str(i), lambda i=i: unit(trial, i)) for i in range(UNITS))
                try:
                    await drive_all(units, router, lambda key, finished: done.append(finished))
                finally:
                    await router.close()

            try:
                asyncio.run(run())
                assert len(done) == UNITS
            except BudgetReached:
                stopped += 1
                assert len(done) < UNITS
            charged = fake.tokens if unit_of_budget == "tok" else fake.usd
            assert charged <= account.budget.limit
            assert account.budget.spent == pytest.approx(charged) and account.budget.held == 0
            (row,) = account.cache.spent()
            assert row["prompt_tokens"] + row["completion_tokens"] == fake.tokens
            # All that was paid for is kept, finished units or not.
            assert len(account.cache) == row["calls"] >= PER_UNIT * len(done)
            account.close()
    assert TRIALS // 10 < stopped < TRIALS // 2, "some budgets suffice, some do not"
