"""Several addresses that serve one model: which of them takes the next request.

Requests that begin alike go to the same address, whose prefix cache then holds their beginning, unless it has
clearly more to do than the others. An address that cannot be reached is left out for a while.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Generic, TypeVar

FIRST_PAUSE, LONGEST_PAUSE = 1.0, 60.0
"""Seconds for which an unreachable address is left out: at first, and after failing again and again."""
SLACK = 1.25
"""An address may have this much more in flight than the average before a request goes elsewhere."""

Connection = TypeVar("Connection")


@dataclass
class Endpoint(Generic[Connection]):
    url: str
    connection: Connection
    in_flight: int = 0
    failures: int = 0
    """Times in a row that it could not be reached."""
    back_at: float = 0.0
    unproven: bool = False
    """It takes no request before it has passed a health check."""
    doubted: bool = False
    """It did something that a dying server does: it is looked at, and goes on meanwhile."""


class Endpoints(Generic[Connection]):
    """`clock` gives seconds."""

    def __init__(
        self, connections: Iterable[tuple[str, Connection]], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.all = [Endpoint(url, connection) for url, connection in connections]
        self._clock = clock

    def pick(self, beginning: str) -> Endpoint[Connection]:
        """For a request that begins like this; the caller counts `in_flight`."""
        if len(self.all) == 1:
            return self.all[0]
        alive = self.alive
        if not alive:
            return min(self.all, key=lambda endpoint: endpoint.back_at)
        most = SLACK * (1 + sum(endpoint.in_flight for endpoint in alive)) / len(alive)
        # Rendezvous hashing: when an address goes, only its own requests move.
        ranked = sorted(alive, key=lambda endpoint: _weight(endpoint.url, beginning))
        return next((e for e in ranked if e.in_flight < most), min(alive, key=lambda e: e.in_flight))

    def lost(self, endpoint: Endpoint[Connection]) -> None:
        """It could not be reached."""
        now = self._clock()
        if endpoint.back_at > now:
            # Known already: all that was in flight together says it.
            return
        endpoint.failures += 1
        # The exponent is bounded, or an address that stays away would be too much for a float one day.
        endpoint.back_at = now + min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** min(endpoint.failures - 1, 32))

    def reached(self, endpoint: Endpoint[Connection]) -> None:
        endpoint.failures, endpoint.back_at = 0, 0.0

    async def ready(self, say: Callable[[str], None]) -> None:
        """Return once an address can be asked; fixed ones are not waited for here."""

    async def leave(self) -> list[Connection]:
        """All connections, to be closed."""
        return [endpoint.connection for endpoint in self.all]

    @property
    def alive(self) -> list[Endpoint[Connection]]:
        return [endpoint for endpoint in self.all if not endpoint.unproven and endpoint.back_at <= self._clock()]

    @property
    def any_alive(self) -> bool:
        return bool(self.alive)


def _weight(url: str, beginning: str) -> bytes:
    return hashlib.blake2b(f"{url}\n{beginning}".encode("utf-8", "surrogatepass"), digest_size=8).digest()
