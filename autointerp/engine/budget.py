"""A cap on what a run may spend. The worst case of each attempt is reserved before it is sent, and settled after.

So the cap holds whatever the concurrency. An attempt that does not fit waits while others hold reservations, because
they mostly cost less than their worst case; when nothing is in flight and it still does not fit, the budget is over.
"""

from __future__ import annotations

import asyncio
import json
import math
import re
from collections import deque
from dataclasses import dataclass
from typing import Literal

from autointerp.errors import BudgetReached, UserError
from prompts.requests import Chat, Choice, Embed, Likelihood, Request, Usage

Unit = Literal["usd", "tok"]

AMOUNT = re.compile(r"\s*([\d.]+)\s*(usd|\$|[kmg]?tok(?:ens)?)\s*", re.I)
SCALES = {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9}

PER_MESSAGE, PER_REQUEST = 64, 256
"""Tokens that a chat template may add around each message, and around all of them (a default system message)."""
CLOSED = len(', "additionalProperties": false')
"""Strict decoding wants objects of a schema to be closed."""


def parse(text: str) -> tuple[float, Unit]:
    """`5usd`, `0.5usd`, `2Mtok`, `300ktok`.

    Raises:
        UserError: it is none of these.
    """
    match = AMOUNT.fullmatch(text)
    try:
        number = float(match.group(1)) if match else 0.0
    except ValueError:
        number = 0.0
    if match is None or number <= 0 or math.isinf(number):
        raise UserError(f"--budget wants an amount such as 5usd, 0.50usd, 2Mtok or 300ktok, not '{text}'")
    unit = match.group(2).lower()
    if unit in ("usd", "$"):
        return number, "usd"
    return number * SCALES[unit.partition("tok")[0]], "tok"


def worst_case(request: Request, room: int = 0) -> Usage:
    """The most tokens that an attempt at `request` can cost, whatever the tokenizer: no token is less than a byte.

    `room` is what the server lets a chat take beyond its `max_tokens`.
    """
    if isinstance(request, Chat):
        # Where decoding is not held to it, the schema is shown to the model. As JSON in ASCII it is longest.
        schema = json.dumps(request.schema) if request.schema is not None else ""
        schema_bytes = len(schema) + CLOSED * schema.count('"object"')
        prompt = sum(PER_MESSAGE + _bytes(message.content) for message in request.messages)
        return Usage(PER_REQUEST + prompt + schema_bytes, request.max_tokens + room)
    if isinstance(request, Choice):
        return Usage(PER_REQUEST + sum(PER_MESSAGE + _bytes(message.content) for message in request.messages), 1)
    if isinstance(request, Likelihood):
        # Sent a second time, as token ids, where the server's tokenizer joins prompt and text.
        return Usage(2 * (PER_REQUEST + _bytes(request.prompt) + _bytes(request.text)), 2)
    return Usage(PER_REQUEST + _bytes(request.text)) if isinstance(request, Embed) else Usage()


def _bytes(text: str) -> int:
    return len(text.encode("utf-8", "surrogatepass"))


@dataclass
class _Waiting:
    amount: float
    granted: asyncio.Future[None]


class Budget:
    """`limit` in `unit` for the whole run, of which `spent` is gone already, by this process or earlier ones."""

    def __init__(self, limit: float, unit: Unit, spent: float = 0.0) -> None:
        self.limit, self.unit, self.spent = limit, unit, spent
        self.held = 0.0
        self.over = False
        self._waiting: deque[_Waiting] = deque()

    def __str__(self) -> str:
        return shown(self.limit, self.unit)

    async def reserve(self, amount: float) -> None:
        """Hold `amount` until `settle`; waits for room where others may still give some back.

        Raises:
            BudgetReached: there is no room, and nothing in flight that could make some.
        """
        if self.over:
            raise self.reached()
        if not self._waiting and self.hold(amount):
            return
        waiting = _Waiting(amount, asyncio.get_running_loop().create_future())
        self._waiting.append(waiting)
        self._serve()
        try:
            await waiting.granted
        except asyncio.CancelledError:
            if waiting in self._waiting:
                self._waiting.remove(waiting)
                self._serve()
            elif waiting.granted.done() and not waiting.granted.cancelled() and not waiting.granted.exception():
                self.settle(amount, 0.0)
            raise

    def hold(self, amount: float) -> bool:
        """Reserve without waiting; False where there is no room now."""
        if self.spent + self.held + amount > self.limit:
            return False
        self.held += amount
        return True

    def settle(self, amount: float, spent: float) -> None:
        """Give a reservation of `amount` back, of which `spent` was used up."""
        self.held = max(0.0, self.held - amount)
        self.spent += spent
        if self.held < 1e-12 * self.limit:
            self.held = 0.0  # rounding must not look like something in flight
        self._serve()

    def charge(self, spent: float) -> None:
        """Book what was spent without a reservation."""
        self.spent += spent

    def _serve(self) -> None:
        while self._waiting:
            first = self._waiting[0]
            if first.granted.cancelled():
                # It has not come round to leaving the queue; that it does not fit says nothing about the others.
                self._waiting.popleft()
            elif self.hold(first.amount):
                self._waiting.popleft()
                first.granted.set_result(None)
            elif self.held == 0.0:
                self.over = True
                for waiting in self._waiting:
                    if not waiting.granted.done():
                        waiting.granted.set_exception(self.reached())
                self._waiting.clear()
            else:
                return

    def reached(self) -> BudgetReached:
        """The error that ends the run."""
        return BudgetReached(
            f"the budget of {self} is used up ({shown(self.spent, self.unit)} spent, and the next request might cost "
            "more than the rest): everything paid for is kept; run the same command with a larger --budget to go on"
        )


def shown(amount: float, unit: Unit) -> str:
    if unit == "usd":
        return f"{amount:.4f}".rstrip("0").rstrip(".") + "usd"
    for scale, letter in ((1e6, "M"), (1e3, "k")):
        if amount >= scale:
            return f"{amount / scale:.3f}".rstrip("0").rstrip(".") + f"{letter}tok"
    return f"{amount:.0f}tok"
