"""Work through a stage: ask each unit, record what comes back, show progress; what is finished is kept."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator

from autointerp.engine.drive import Finished, Router, drive_all
from autointerp.engine.ledger import Ledger
from autointerp.progress import Reporter
from autointerp.types import Asking, Rows
from prompts.requests import Request

Unit = tuple[str, Callable[[], Asking], Callable[[Finished], Rows]]
"""Work key, how to begin, and the rows that its result makes."""


def first_requests(asking: Asking) -> list[Request]:
    """What a unit asks first; none if it asks nothing."""
    requests = list(next(asking, ()))
    asking.close()
    return requests


def work_through(
    name: str, units: Iterator[Unit], router: Router, ledger: Ledger, reporter: Reporter, *, done: int, total: int
) -> None:
    """Drive the units that are left; `done` of `total` were finished before."""
    rows_of: dict[str, Callable[[Finished], Rows]] = {}

    def asking() -> Iterator[tuple[str, Callable[[], Asking]]]:
        for key, make, rows in units:
            rows_of[key] = rows
            yield key, make

    with reporter.stage(name, total, "latents") as stage:
        stage.update(done)

        def on_done(key: str, finished: Finished) -> None:
            nonlocal done
            ledger.record(key, rows_of.pop(key)(finished))
            done += 1
            stage.update(done)

        async def work() -> None:
            try:
                await drive_all(asking(), router, on_done)
            finally:
                await router.close()

        try:
            asyncio.run(work())
        finally:
            ledger.flush()
