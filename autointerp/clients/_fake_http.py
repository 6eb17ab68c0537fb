"""The fake server's HTTP/1.1: one connection as an `asyncio.Protocol`.

Connections are kept alive; requests on one of them are answered in their order, also when they are sent ahead of
the answers. Bodies need a Content-Length (411 without).
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import cast

LONGEST_HEAD = 65_536
"""Bytes of a request's line and headers."""

DRIP_SECONDS = 0.02
REASONS = {status.value: status.phrase for status in HTTPStatus}


@dataclass(frozen=True, slots=True)
class Incoming:
    """A request. `path` has no query; `headers` have lower-case names and include whatever key was sent."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes


class Pool:
    """The open connections, and how many of them wait for an answer."""

    def __init__(self) -> None:
        self.alive: set[Connection] = set()
        self.busy = 0


class Connection(asyncio.Protocol):
    """Reads requests one at a time and hands each to `handle`, which has to end in one of the methods for answers.

    `pool` is kept up to date here.
    """

    def __init__(self, handle: Callable[[Connection, Incoming], None], pool: Pool) -> None:
        self._handle = handle
        self._pool = pool
        self._buffer = bytearray()
        self._head: tuple[str, str, dict[str, str], int] | None = None
        self._busy = False
        self._last = False
        self._timer: asyncio.TimerHandle | None = None
        self._written: Callable[[], None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        # So that `resume_writing` tells when the last byte has gone to the kernel.
        self._transport.set_write_buffer_limits(0)
        self._loop = asyncio.get_running_loop()
        self._pool.alive.add(self)

    def connection_lost(self, error: Exception | None) -> None:
        self._pool.alive.discard(self)
        self._last = True
        self._set_busy(False)
        if self._timer is not None:
            self._timer.cancel()
        # Callbacks refer to the request: break the circle, so that its body goes at once.
        self._timer = self._written = None

    def eof_received(self) -> bool:
        # A client may shut down its side and still wait for the answer.
        self._last = True
        return self._busy

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if not self._busy:
            self._read()

    def resume_writing(self) -> None:
        written, self._written = self._written, None
        if written is not None:
            written()

    def after(self, seconds: float, do: Callable[[], None]) -> None:
        """Call `do` in so many seconds, unless the connection has gone by then."""
        if seconds > 0:
            self._timer = self._loop.call_later(seconds, do)
        else:
            do()

    def respond(
        self, status: int, body: bytes, headers: Mapping[str, str], written: Callable[[], None] | None = None
    ) -> None:
        """Send a response; `written` is called when the kernel has all of it."""
        if self._transport.is_closing():
            return
        fields = {"Content-Type": "application/json", **headers, "Content-Length": str(len(body))}
        if self._last:
            fields["Connection"] = "close"
        lines = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
        head = f"HTTP/1.1 {status} {REASONS.get(status, 'Unknown')}\r\n{lines}\r\n"
        self._transport.write(head.encode("latin-1") + body)
        if written is not None:
            if self._transport.get_write_buffer_size():
                self._written = written
            else:
                written()
        self._set_busy(False)
        if self._last:
            self._transport.close()
            return
        if self._buffer:
            self._loop.call_soon(self._read)

    def reset(self) -> None:
        """End the connection with RST instead of FIN."""
        with contextlib.suppress(OSError):  # the other side may have been faster
            plug: socket.socket = self._transport.get_extra_info("socket")
            plug.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._transport.abort()

    def hang(self) -> None:
        """Leave the client waiting."""

    def drip(self) -> None:
        """Begin a response and never end it: no single read times out."""
        self._last = True
        self._transport.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\n\r\n")
        self._drop()

    def abort(self) -> None:
        """End the connection now, whatever is under way."""
        self._transport.abort()

    def _set_busy(self, busy: bool) -> None:
        self._pool.busy += busy - self._busy
        self._busy = busy

    def _drop(self) -> None:
        self._transport.write(b" ")
        self._timer = self._loop.call_later(DRIP_SECONDS, self._drop)

    def _read(self) -> None:
        """Take the next request off the buffer if it is all there."""
        if self._busy or self._transport.is_closing():
            return
        if self._head is None:
            end = self._buffer.find(b"\r\n\r\n")
            if end < 0:
                if len(self._buffer) > LONGEST_HEAD:
                    self._refuse(431)
                return
            # Blank lines before a request are to be ignored (RFC 9112, 2.2).
            head = self._buffer[:end].decode("latin-1").lstrip("\r\n")
            del self._buffer[: end + 4]
            refused = self._read_head(head)
            if refused:
                self._refuse(refused)
                return
        assert self._head is not None
        method, path, headers, length = self._head
        if len(self._buffer) < length:
            return
        body = bytes(self._buffer[:length])
        del self._buffer[:length]
        self._head = None
        self._set_busy(True)
        self._handle(self, Incoming(method, path, headers, body))

    def _read_head(self, text: str) -> int:
        """Set `_head`; returns the HTTP status to refuse the request with, or 0."""
        first, *lines = text.split("\r\n")
        try:
            method, target, version = first.split(" ")
            headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
            length = int(headers.get("content-length", "0"))
        except ValueError:
            return 400
        if not version.startswith("HTTP/1.") or length < 0:
            return 400
        if "transfer-encoding" in headers or (method == "POST" and "content-length" not in headers):
            return 411
        wish = headers.get("connection", "").lower()
        self._last = "close" in wish or (version == "HTTP/1.0" and "keep-alive" not in wish)
        if headers.get("expect", "").lower() == "100-continue":
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        self._head = (method, target.partition("?")[0], headers, length)
        return 0

    def _refuse(self, status: int) -> None:
        """Answer what is no request; whatever follows it is not one either."""
        self._last = True
        self._set_busy(True)
        self._buffer.clear()
        self.respond(status, b'{"error": {"message": "bad request: no HTTP that this server reads"}}', {})
