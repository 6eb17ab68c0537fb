"""Servers that come and go: each announces itself by a file in a folder, and whoever asks looks there.

A file says where a server is and which models it serves. It appears by a rename, once the server answers, and goes when
the server does; one whose server was killed stays, so that every address has to pass a health check before it is asked.
No clock of another machine is read, and nothing is locked.
"""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TypeVar

from autointerp.clients._endpoints import Endpoint, Endpoints
from autointerp.errors import ServerGone, UserError
from autointerp.files import write_json

SCHEME = "servers:"
"""What a `base_url` begins with that names a folder."""
LOOK, LOOK_AGAIN = 10.0, 1.0
"""Seconds between two looks into the folder: while there is a server, and while there is none."""
HEALTH_TIMEOUT = 10.0
"""Seconds for a health check."""

Connection = TypeVar("Connection")


@dataclass(frozen=True)
class Announcement:
    """`url` is the base URL as other machines reach it, with `/v1`. `job` and `host` are for people."""

    url: str
    models: tuple[str, ...]
    host: str = ""
    job: str = ""
    id: str = field(default_factory=lambda: uuid.uuid4().hex[:12])
    """Another one at the same address is another server."""

    def write(self, folder: Path) -> Path:
        """Into a file of its own; what an earlier server left behind that had this address is removed."""
        for path, other in _files(folder):
            if other.url == self.url:
                path.unlink(missing_ok=True)
        path = folder / f"server-{self.id}.json"
        write_json(path, asdict(self))
        return path


def announced(folder: Path) -> list[Announcement]:
    """Those in a folder; none where it does not exist yet. What is no announcement is passed over."""
    return [one for _, one in _files(folder)]


def _files(folder: Path) -> list[tuple[Path, Announcement]]:
    found = []
    for path in sorted(folder.glob("server-*.json")):
        # It may have been withdrawn since the folder was listed.
        with suppress(OSError, ValueError, TypeError, KeyError):
            told = json.loads(path.read_text(encoding="utf-8"))
            models = tuple(str(name) for name in told.pop("models"))
            found.append((path, Announcement(models=models, **{name: str(value) for name, value in told.items()})))
    return found


def folder_in(base_url: str) -> Path | None:
    """The folder that a `base_url` names, if it names one.

    Raises:
        UserError: it names none after `servers:`.
    """
    if not base_url.startswith(SCHEME):
        return None
    if not (name := base_url.removeprefix(SCHEME).strip()):
        raise UserError(f"base_url '{base_url}' names no folder: servers:FOLDER")
    return Path(name).expanduser()


class Array(Endpoints[Connection]):
    """The servers of one model in a folder, for one event loop. `connect` makes a connection to an address, `healthy`
    says whether a server there answers; `wait` is how many seconds may pass with none."""

    def __init__(
        self, folder: Path, model: str, wait: float, connect: Callable[[str], Connection],
        healthy: Callable[[Connection], Awaitable[bool]], clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        super().__init__([], clock)
        self.folder, self.model, self.wait = folder, model, wait
        self.withdrawn: list[Endpoint[Connection]] = []
        """They may still have requests in flight."""
        self._connect, self._healthy = connect, healthy
        self._ids: dict[str, set[str]] = {}
        self._looked_at = -float("inf")
        self._look: asyncio.Task[None] | None = None
        self._none_since: float | None = None
        self._said = False
        """That it waits."""
        self._others: set[str] = set()
        """Models that are served in this folder, none of them this one."""

    async def ready(self, say: Callable[[str], None]) -> None:
        """Return once a server can be asked; with one there, at once.

        Raises:
            ServerGone: there was none for too long.
        """
        due = LOOK if self.any_alive else LOOK_AGAIN
        if self._clock() - self._looked_at >= due or any(endpoint.doubted for endpoint in self.all):
            self._begin_to_look()
        while not self.any_alive:
            await self._wait_for_one(say)
        if self._said:
            say(f"a server of '{self.model}' answers: going on")
        self._none_since, self._said = None, False

    async def _wait_for_one(self, say: Callable[[str], None]) -> None:
        if self._none_since is None:
            self._none_since = self._clock()
        # Whoever else waits looks at the same time, and one look is enough for all.
        await asyncio.shield(self._begin_to_look())
        if self.any_alive:
            return
        away = self._clock() - (self._none_since or self._clock())
        if away >= self.wait:
            raise ServerGone(
                f"{self._missing()} for {away:,.0f} s. What was finished is kept: start a server that announces "
                "itself there, and run the same command again"
            )
        if not self._said:
            self._said = True
            say(f"{self._missing()}: waiting {self.wait:,.0f} s at most for one")
        await asyncio.sleep(min(LOOK_AGAIN, self.wait - away))

    def _missing(self) -> str:
        others = f" (but of {', '.join(sorted(self._others))})" if self._others else ""
        return f"no server of '{self.model}' is announced in '{self.folder}' and answers{others}"

    def _begin_to_look(self) -> asyncio.Task[None]:
        if self._look is None or self._look.done():
            self._looked_at = self._clock()
            self._look = asyncio.create_task(self._look_once())
        return self._look

    async def _look_once(self) -> None:
        try:
            found = await asyncio.to_thread(announced, self.folder)
        except OSError:  # of a network file system, in passing
            return
        ids: dict[str, set[str]] = {}
        for one in found:
            if self.model in one.models:
                ids.setdefault(one.url, set()).add(one.id)
        self._others = {name for one in found for name in one.models} if not ids else set()
        known = {endpoint.url: endpoint for endpoint in self.all}
        for url in known.keys() - ids.keys():
            self.all.remove(known[url])
            self.withdrawn.append(known[url])
        for url in ids.keys() - known.keys():
            self.all.append(Endpoint(url, self._connect(url), unproven=True))
        for endpoint in self.all:
            if ids[endpoint.url] - self._ids.get(endpoint.url, set()) and endpoint.unproven:
                # Another server at the address of one that was lost.
                endpoint.failures, endpoint.back_at = 0, 0.0
        self._ids = ids
        now = self._clock()
        suspects = [e for e in self.all if (e.unproven or e.doubted) and e.back_at <= now]
        await asyncio.gather(*map(self._examine, suspects))

    async def _examine(self, endpoint: Endpoint[Connection]) -> None:
        endpoint.doubted = False
        try:
            async with asyncio.timeout(HEALTH_TIMEOUT):
                healthy = await self._healthy(endpoint.connection)
        except Exception:  # whatever it is that it does, it is not healthy
            healthy = False
        if healthy:
            endpoint.unproven = False
        else:
            self.lost(endpoint)

    def lost(self, endpoint: Endpoint[Connection]) -> None:
        """It could not be reached, and has to pass a health check before it is asked again."""
        endpoint.unproven = True
        super().lost(endpoint)

    async def leave(self) -> list[Connection]:
        if self._look is not None:
            self._look.cancel()
            await asyncio.gather(self._look, return_exceptions=True)
        return [*await super().leave(), *(endpoint.connection for endpoint in self.withdrawn)]
