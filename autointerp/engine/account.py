"""The books of one process: which answers are there already, what an attempt may cost at worst, what it did cost."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from autointerp.engine import prices
from autointerp.engine.budget import Budget, parse, worst_case
from autointerp.engine.replies import Cost, ReplyCache, spent_in
from autointerp.errors import BudgetReached, UserError
from autointerp.types import Attempt, Finding, Server
from prompts.requests import Request, Usage

BATCH_DISCOUNT = 0.5
"""What a call in OpenAI's batches costs of the listed price."""


@dataclass(frozen=True, slots=True)
class Reservation:
    worst: Usage
    amount: float
    """In the budget's unit; 0 without a budget."""


@dataclass
class Account:
    """`discount` is what a call costs of the listed price."""

    cache: ReplyCache = field(default_factory=ReplyCache)
    budget: Budget | None = None
    own_prices: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    """USD per million prompt and completion tokens, by model."""
    discount: float = 1.0

    def rates(self, server: Server) -> prices.Rates | None:
        return prices.rates(server.model, server.price_url, self.own_prices)

    def price(self, server: Server, usage: Usage) -> float | None:
        rates = self.rates(server)
        return None if rates is None else self.discount * rates.price(usage)

    def check(self, server: Server) -> None:
        """Raises:
        UserError: the budget is in USD, and what this model costs is unknown.
        """
        if self.budget is not None and self.budget.unit == "usd" and self.rates(server) is None:
            raise UserError(
                f"the price of {server.model} at {server.price_url} is unknown, so that no budget in USD can be kept: "
                "give one in tokens (--budget 2Mtok), or the price in USD per million prompt and completion tokens "
                f"(--set 'prices={{{server.model}: [0.15, 0.60]}}')"
            )

    async def reserve(self, server: Server, request: Request) -> Reservation:
        """Wait until the worst case fits into the budget.

        Raises:
            BudgetReached: it never will.
        """
        worst = worst_case(request, server.room)
        amount = self.amount(server, worst)
        if self.budget is not None:
            await self.budget.reserve(amount)
            try:
                # Before it is sent: a kill may come before its answer.
                self.cache.hold(self.budget.unit, self.budget.held)
            except BaseException:
                self.budget.settle(amount, 0.0)
                raise
        return Reservation(worst, amount)

    def settle(
        self, server: Server, stage: str, held: Reservation, attempt: Attempt, *, retry: bool, seconds: float,
        key: str | None, in_flight: bool = True,
    ) -> None:  # fmt: skip
        """Book an attempt, and keep its reply where `key` is given. An answer that never came counts at its worst.

        `in_flight` says that a kill of this process loses what is in flight; a batch outlives it.
        """
        usage, unsure = attempt.reply.usage, 0
        if attempt.charged is False:
            usage = Usage()
        elif attempt.charged is None or not (usage.prompt_tokens or usage.completion_tokens):
            unsure = held.worst.prompt_tokens + held.worst.completion_tokens
        counted = held.worst if unsure else usage
        price = 0.0 if attempt.charged is False else self.price(server, counted)
        if self.budget is not None:
            self.budget.settle(held.amount, 0.0 if attempt.charged is False else self._amount(server, counted))
        cost = Cost(Usage() if unsure else usage, price, unsure, retry, seconds)
        reply = attempt.reply if key is not None else None
        self.cache.record(stage, server.model, cost, self._held() if in_flight else None, key, reply)

    def amount(self, server: Server, usage: Usage) -> float:
        """In the budget's unit; 0 without a budget."""
        return 0.0 if self.budget is None else self._amount(server, usage)

    def hold(self, amount: float) -> bool:
        """Reserve without waiting, if there is room."""
        return self.budget is None or self.budget.hold(amount)

    def release(self, amount: float) -> None:
        """Give a reservation back; what it was spent on is booked elsewhere."""
        if self.budget is not None:
            self.budget.settle(amount, 0.0)

    def over(self) -> BudgetReached:
        """The error that says so."""
        assert self.budget is not None, "without a budget there is always room"
        return self.budget.reached()

    def saved(self, server: Server, stage: str, usage: Usage) -> None:
        """Book an answer that nothing was paid for: it was there already, or an equal request was in flight."""
        self.cache.saved(stage, server.model, usage, self.price(server, usage))

    def charge(self, server: Server, stage: str, finding: Finding) -> None:
        """Book a probe."""
        cost = Cost(finding.usage, self.price(server, finding.usage))
        if self.budget is not None:
            self.budget.charge(self._amount(server, finding.usage))
        self.cache.record(stage, server.model, cost, self._held())

    def begin(self, limit: str | None, *, shares: int = 1) -> None:
        """Set the budget of the run, of which earlier commands have spent their part. One of several `shares` has its
        part of what was left when the books were last united.

        Raises:
            UserError: no amount, or the price of something that was paid is unknown.
        """
        self.cache.book_lost()
        if limit is None:
            self.budget = None
            return
        amount, unit = parse(limit)
        earlier = _total(spent_in(self.cache.earlier), unit) if self.cache.earlier is not None else 0.0
        self.budget = Budget(max(0.0, amount - earlier) / shares, unit, _total(self.cache.spent(), unit))

    def close(self) -> None:
        self.cache.close()

    def _amount(self, server: Server, usage: Usage) -> float:
        assert self.budget is not None
        if self.budget.unit == "tok":
            return usage.prompt_tokens + usage.completion_tokens
        price = self.price(server, usage)
        assert price is not None, "checked before the run"
        return price

    def _held(self) -> tuple[str, float] | None:
        return None if self.budget is None else (self.budget.unit, self.budget.held)


def _total(booked: Iterable[Mapping[str, Any]], unit: str) -> float:
    """In the budget's unit.

    Raises:
        UserError: a price is unknown.
    """
    spent = 0.0
    for row in booked:
        if unit == "usd" and row["price"] is None:
            who = f"{row['model']} has cost in stage {row['stage']}" if row["model"] else "a killed run has cost"
            raise UserError(f"what {who} is unknown in USD: give --budget in tokens")
        tokens = row["prompt_tokens"] + row["completion_tokens"] + row["unsure_tokens"]
        spent += row["price"] if unit == "usd" else tokens
    return spent
