"""The way through a batch API: everything that all units ask at a time is one file, answered within a day.

What was submitted is written down before it is waited for. A run that ends in between finds its batches again by what
the same requests hash to, and submits nothing twice.
"""

from __future__ import annotations

import asyncio
import json
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

from autointerp.engine.account import Account, Reservation
from autointerp.engine.budget import worst_case
from autointerp.engine.local import all_have_asked
from autointerp.engine.replies import key_of
from autointerp.engine.sending import known
from autointerp.errors import AutointerpError, UserError
from autointerp.files import write_json
from autointerp.types import Attempt, Client, Server
from prompts.requests import Chat, Choice, Embed, Failure, Reply, Request, Usage

POLL = 20.0
"""Seconds between looks at a batch."""
LOOKS, FINAL = 30, frozenset({400, 401, 403, 404})
"""Looks at a batch that may fail in a row, and the HTTP statuses after which another look is of no use."""
MOST = 20_000
"""Requests in one batch; OpenAI takes 50,000, and 200 MB."""
UNITS = 5_000
"""Units of work in flight: what they ask at a time is a batch."""


class BatchServer(Server, Protocol):
    """A server with a batch API."""

    def written(self, request: Chat | Choice | Embed) -> tuple[str, dict[str, Any]]: ...

    def read(self, request: Chat | Choice | Embed, payload: object) -> Reply: ...

    def failed_line(self, status: int, body: object) -> Failure: ...

    def redacted(self, text: str) -> str: ...

    def batches(self) -> Any: ...


@dataclass
class _Line:
    request: Chat | Choice | Embed
    stage: str
    answered: asyncio.Future[Reply]


class BatchSender:
    """`folder` keeps what was submitted; `say` tells of progress; `poll` is in seconds."""

    units = UNITS

    def __init__(
        self, client: Client | Server, account: Account, folder: Path, *, say: Callable[[str], None] = print,
        poll: float | None = None,
    ) -> None:  # fmt: skip
        if not hasattr(client, "batches"):
            raise UserError(f"the client '{client.name}' has no batch API: drop --batch, or use --client openai")
        self.server, self.account, self.folder = cast(BatchServer, client), account, folder
        self.say, self.poll = say, POLL if poll is None else poll
        self._waiting: dict[str, _Line] = {}
        self._worker: asyncio.Task[None] | None = None
        if account.budget is not None:
            for path in self._open():
                account.budget.held += sum(line["amount"] for line in json.loads(path.read_text())["lines"].values())

    async def ask(self, requests: Sequence[Request], stage: str) -> list[Reply]:
        """Replies in the order of the requests, when their batch has come back.

        Raises:
            BudgetReached: the rest of the budget holds none of what is left to ask.
        """
        return list(await asyncio.gather(*(self._one(request, stage) for request in requests)))

    async def _one(self, request: Request, stage: str) -> Reply:
        if not isinstance(request, Chat | Choice | Embed):
            return Failure("error", f"the batch API does not answer {type(request).__name__} requests")
        key = key_of(self.server.model, self.server.identity, request)
        kept = known(self.account, key, request)
        if kept is not None:
            self.account.saved(self.server, stage, kept.usage)
            return kept
        line = self._waiting.get(key)
        if line is None:
            line = self._waiting[key] = _Line(request, stage, asyncio.get_running_loop().create_future())
        if self._worker is None or self._worker.done():
            self._worker = asyncio.create_task(self._work())
        return await asyncio.shield(line.answered)

    async def _work(self) -> None:
        try:
            while self._waiting:
                await all_have_asked(lambda: len(self._waiting))
                for path in self._open():
                    await self._collect(path)
                if self._waiting:
                    for path in await self._submit():
                        await self._collect(path)
        except Exception as error:
            # The SDK's errors too: the batch is written down, and the same command finds it again.
            kind = error if isinstance(error, AutointerpError) else AutointerpError(self._said(error))
            for line in self._waiting.values():
                if not line.answered.done():
                    line.answered.set_exception(kind)
                    line.answered.exception()
            self._waiting.clear()

    def _said(self, error: Exception) -> str:
        # Servers quote keys in their errors.
        said = self.server.redacted(f"{type(error).__name__}: {error}")
        return f"the batch API failed ({said}); run the same command again to go on"

    def _open(self) -> list[Path]:
        """Batches that were submitted and not collected, of this server and model."""
        mine = [self.server.model, self.server.identity]
        return [p for p in sorted(self.folder.glob("*.json")) if json.loads(p.read_text())["of"] == mine]

    async def _submit(self) -> list[Path]:
        """Send as much of what is waiting as the budget holds."""
        by_path: dict[str, dict[str, Mapping[str, Any]]] = defaultdict(dict)
        lines: dict[str, dict[str, Any]] = {}
        for key, line in list(self._waiting.items())[:MOST]:
            worst = worst_case(line.request, self.server.room)
            amount = self.account.amount(self.server, worst)
            if not self.account.hold(amount):
                break
            path, body = self.server.written(line.request)
            by_path[path][key] = body
            choices = list(line.request.choices) if isinstance(line.request, Choice) else None
            worst_of = [worst.prompt_tokens, worst.completion_tokens]
            lines[key] = {"stage": line.stage, "amount": amount, "worst": worst_of, "choices": choices}
        if not lines:
            raise self.account.over()
        submitted, unsent = [], dict(lines)
        try:
            for path, bodies in by_path.items():
                submitted.append(await self._submit_to(path, bodies, lines))
                for key in bodies:
                    del unsent[key]
        except BaseException:
            # Nobody will answer these.
            for about in unsent.values():
                self.account.release(about["amount"])
            raise
        return submitted

    async def _submit_to(
        self, path: str, bodies: Mapping[str, Mapping[str, Any]], lines: Mapping[str, Mapping[str, Any]]
    ) -> Path:
        """Send one batch and write down that it was; returns where."""
        batch = await self.server.batches().submit(path, bodies)
        state = self.folder / f"{batch}.json"
        write_json(state, {
            "batch": batch, "path": path, "of": [self.server.model, self.server.identity],
            "lines": {key: lines[key] for key in bodies},
        })  # fmt: skip
        self.say(f"batch {batch}: {len(bodies):,} requests submitted")
        return state

    async def _look(self, api: Any, batch: str) -> Any:
        """The state of a batch. Over a day a few looks may fail."""
        for _ in range(LOOKS):
            try:
                return await api.look(batch)
            except Exception as error:
                if getattr(error, "status_code", 503) in FINAL:
                    raise
                self.say(f"batch {batch}: not reached ({type(error).__name__}), looking again")
            await asyncio.sleep(self.poll)
        return await api.look(batch)

    async def _collect(self, state: Path) -> None:
        """Wait for a batch, and book and keep each of its answers."""
        about = json.loads(state.read_text())
        api, shown = self.server.batches(), ""
        while not (now := await self._look(api, about["batch"])).ended:
            told = f"batch {about['batch']}: {now.status}, {now.done:,} of {now.total:,} answered"
            if told != shown:
                self.say(told)
                shown = told
            await asyncio.sleep(self.poll)
        if now.status == "failed":
            state.rename(state.with_suffix(".failed"))
            for line in about["lines"].values():
                self.account.release(line["amount"])
            problem = self.server.redacted(now.problem)
            raise UserError(f"batch {about['batch']} was refused: {problem or 'no reason given'}")
        answers = await api.answers(now.files)
        # Together, or a kill in between would have them booked a second time when the batch is found again.
        with self.account.cache.transaction():
            replies = {
                key: self._settled(key, line, about["path"], answers.get(key), now.status)
                for key, line in about["lines"].items()
            }
        state.rename(state.with_suffix(".collected"))
        for key, reply in replies.items():
            waiting = self._waiting.pop(key, None)
            if waiting is not None and not waiting.answered.done():
                waiting.answered.set_result(reply)

    def _settled(
        self, key: str, about: Mapping[str, Any], path: str, answer: tuple[int, Any] | None, status: str
    ) -> Reply:
        """The reply to a line, booked."""
        if answer is None:
            attempt = Attempt(Failure("timeout", f"the batch was {status} before this was answered"), charged=False)
        elif answer[0] == 200:
            attempt = Attempt(self.server.read(_stub(path, about["choices"]), answer[1]))
        else:
            attempt = Attempt(self.server.failed_line(*answer), charged=False)
        held = Reservation(Usage(*about["worst"]), about["amount"])
        self.account.settle(
            self.server, about["stage"], held, attempt, retry=False, seconds=0.0, key=key, in_flight=False
        )
        return attempt.reply


def _stub(path: str, choices: Sequence[str] | None) -> Chat | Choice | Embed:
    """A request of the kind that an answer is read for; reading needs no more of it."""
    if path == "/embeddings":
        return Embed("")
    return Chat(()) if choices is None else Choice((), tuple(choices))
