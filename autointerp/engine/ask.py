"""Ask a client from a notebook or a test, with the engine's retries, reply cache and re-asking."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from autointerp.engine.account import Account
from autointerp.engine.drive import Finished, Router
from autointerp.types import Client, Server
from prompts.requests import Reply, Request


def answer_all(
    client: Client | Server, requests: Sequence[Request], account: Account | None = None, *, stage: str = "ask"
) -> list[Reply]:
    """One reply or `Failure` per request, in their order. Connections are closed afterwards."""

    async def run() -> list[Reply]:
        router = Router(dict.fromkeys({type(request) for request in requests}, client), account, stage=stage)
        try:
            return await router.ask(requests, Finished(None))
        finally:
            await router.close()

    return asyncio.run(run())
