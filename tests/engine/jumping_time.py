"""An event loop whose clock jumps to whatever is due next: pauses of minutes take no time, and no test of them flakes.

Where nothing is due and nobody can go on, it says so instead of hanging.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

Result = TypeVar("Result")


class Stuck(Exception):
    """Everybody waits, and nothing will ever happen."""


class JumpingLoop(asyncio.SelectorEventLoop):
    now = 0.0

    def __init__(self) -> None:
        super().__init__()
        look = self._selector.select

        def jump(timeout: float | None = None) -> Any:
            events = look(0)
            if not events and timeout is None:
                raise Stuck
            self.now += timeout or 0.0
            return events

        self._selector.select = jump

    def time(self) -> float:
        return self.now


def run(main: Coroutine[Any, Any, Result]) -> Result:
    """As `asyncio.run`, on that loop.

    Raises:
        Stuck: everybody waits for ever.
    """
    with asyncio.Runner(loop_factory=JumpingLoop) as runner:
        return runner.run(main)


def clock() -> float:
    """Seconds, of the loop that runs."""
    return asyncio.get_running_loop().time()
