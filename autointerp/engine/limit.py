"""How many requests are in flight at a server: as many as allowed, fewer while it shows that they are too many.

Additive increase, multiplicative decrease, as in TCP: a refusal for load (429, 503), a time-out, or answers that take
a large part of the time-out lower the limit, at most once for all requests that were in flight together.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable

SLOW = 0.5
"""Share of the time-out that answers may take on average before the server counts as pressed."""
MEMORY = 0.2
"""Weight of the newest answer in the average."""
CUT = 0.7
"""What is left of the limit after a cut. A full round of answers without another one raises it by 1."""


class AdaptiveLimit:
    """`most` requests at most; `timeout` in seconds; `clock` gives seconds. First come, first served."""

    def __init__(self, most: int, timeout: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.most, self.timeout, self._clock = most, timeout, clock
        self.limit = float(most)
        self.in_flight = 0
        self._cut_at = -float("inf")
        self._average = 0.0
        self._waiting: deque[asyncio.Future[None]] = deque()

    def now(self) -> float:
        """Seconds of the clock, for who enters a while before its request is sent."""
        return self._clock()

    async def enter(self) -> float:
        """Wait for a place; returns the time of entry, which `leave` wants back."""
        if self._waiting or self.in_flight >= int(self.limit):
            place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.append(place)
            try:
                await place
            except asyncio.CancelledError:
                if place.done() and not place.cancelled():
                    self.in_flight -= 1
                    self._admit()
                raise
        else:
            self.in_flight += 1
        return self._clock()

    def leave(self, entered: float, *, pressed: bool = False) -> None:
        """Give the place back."""
        now = self._clock()
        self._average += MEMORY * ((now - entered) - self._average)
        self.in_flight -= 1
        if pressed or self._average > SLOW * self.timeout:
            if entered >= self._cut_at:
                self.limit = max(1.0, CUT * self.limit)
                self._cut_at, self._average = now, 0.0
        elif self.limit < self.most:
            self.limit = min(float(self.most), self.limit + 1 / self.limit)
        self._admit()

    def _admit(self) -> None:
        while self._waiting and self.in_flight < int(self.limit):
            place = self._waiting.popleft()
            if not place.done():
                self.in_flight += 1
                place.set_result(None)
