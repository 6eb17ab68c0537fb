"""An HTTP server that speaks the OpenAI API on top of a fake model, for tests and for trying `--base-url`.

    with FakeServer(FakeClient()) as server:
        client = OpenAIClient("keyword", base_url=server.base_url)

It serves chat completions (json_schema, n, log-probs), completions (echo and log-probs as vLLM gives them),
embeddings, the list of models, vLLM's `/tokenize` and batches, on 127.0.0.1 only. It does not stream, does not check
keys and never keeps one. From a shell:

    python -m autointerp.clients.fake_server --port 8099 --model keyword
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import socket
import sys
import threading
import traceback
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO, get_args

from autointerp.clients._fake_batches import Batches, read_form
from autointerp.clients._fake_endpoints import IMITATIONS, Endpoints
from autointerp.clients._fake_faults import Fault, FaultKind, Faults, answered, random_faults
from autointerp.clients._fake_http import Connection, Incoming, Pool
from autointerp.clients.fake import FakeClient
from autointerp.errors import UserError

__all__ = ["FakeServer", "Fault", "FaultKind", "Logged", "main"]

BACKLOG = 1024


@dataclass(frozen=True, slots=True)
class Logged:
    """A request that came in: no headers, only whether it carried an Authorization."""

    path: str
    body: dict[str, Any]
    authorized: bool


class FakeServer:
    """Serves `client` between `__enter__` and `__exit__` in one thread of its own; `port` 0 takes a free one.

    `latency` is in seconds, before every response to a POST: one number, or a function of the POST's number and its
    body. `faults(i, body)` is called for the i-th POST (from 0, in order of arrival, retries counted) and says what
    goes wrong with it, if anything. Both are called in the server's thread, which does nothing else meanwhile.

    `keep_log` bounds `log` to the most recent so many POSTs; None keeps all. `log_file` is appended to, one JSON
    line per POST as it arrives (`index`, `path`, `body`) and one when its answer has been handed to the kernel
    (`done`: its index, `status`). `imitate` names habits of real servers (`IMITATIONS`). `context_length` is in
    tokens, which are words here.

    A batch is in progress for `batch_seconds`; then its lines are answered, without latency. Each counts as a POST of
    its own, with a number, a fault and a place in the log.

    Raises:
        UserError: the port is taken, an unknown imitation, or a log file that cannot be opened (on entering).
    """

    def __init__(
        self,
        client: FakeClient,
        *,
        port: int = 0,
        latency: float | Callable[[int, dict[str, Any]], float] = 0.0,
        faults: Faults = lambda index, body: None,
        keep_log: int | None = None,
        log_file: Path | None = None,
        imitate: frozenset[str] = frozenset(),
        context_length: int = 8192,
        batch_seconds: float = 0.2,
    ) -> None:
        unknown = sorted(set(imitate) - set(IMITATIONS))
        if unknown:
            raise UserError(f"the fake server cannot imitate {', '.join(unknown)}; it can {', '.join(IMITATIONS)}")
        self.client = client
        self.latency = latency
        self.faults = faults
        self.stopping = threading.Event()
        self.served = 0
        """POST requests so far, the lines of batches included."""
        self.most_in_flight = 0
        """Most requests that waited for their answers at one time."""
        self._endpoints = Endpoints(client, frozenset(imitate), context_length)
        self._batches = Batches(self._line, batch_seconds)
        self._log: deque[Logged] = deque(maxlen=keep_log)
        self._lock = threading.Lock()
        self._log_path = log_file
        self._log_file: TextIO | None = None
        self._pool = Pool()
        self._started = threading.Event()
        self._thread = threading.Thread(target=self._run, name="fake-server")
        self._socket = socket.socket()
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self._socket.bind(("127.0.0.1", port))
            self._socket.listen(BACKLOG)
        except (OSError, OverflowError) as error:
            self._socket.close()
            raise UserError(f"cannot listen on 127.0.0.1:{port}: {error}; choose another --port") from error
        self._port = self._socket.getsockname()[1]

    @property
    def base_url(self) -> str:
        """To be given as `--base-url`."""
        return f"http://127.0.0.1:{self._port}/v1"

    @property
    def log(self) -> list[Logged]:
        """The POST requests so far (the last `keep_log` of them), in order of arrival."""
        with self._lock:
            return list(self._log)

    def __enter__(self) -> FakeServer:
        if self._log_path is not None:
            try:
                self._log_file = self._log_path.open("a", encoding="utf-8")
            except OSError as error:
                self._socket.close()
                raise UserError(f"cannot write the log {self._log_path}: {error}; choose another --log") from error
        self._thread.start()
        self._started.wait()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop, end all connections, and wait for the thread."""
        self.stopping.set()
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()
        if self._log_file is not None:
            self._log_file.close()

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        finally:
            self._started.set()  # whoever enters shall not wait for a thread that has failed

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        server = await self._loop.create_server(
            lambda: Connection(self._handle, self._pool), sock=self._socket, backlog=BACKLOG
        )
        self._started.set()
        await self._stop.wait()
        server.close()
        while self._pool.alive:
            for connection in list(self._pool.alive):
                connection.abort()
            await asyncio.sleep(0)  # the loop closes an aborted connection in its next round

    def _handle(self, connection: Connection, incoming: Incoming) -> None:
        """Answer one request, now or after the latency."""
        if incoming.method != "POST":
            self._send(connection, self._look_up(incoming.method, incoming.path))
            return
        path = incoming.path
        form: dict[str, tuple[str, bytes]] = {}
        try:
            if path == "/v1/files":
                form = read_form(incoming.headers.get("content-type", ""), incoming.body)
                body = {name: {"filename": part[0], "bytes": len(part[1])} for name, part in form.items()}
            else:
                body = json.loads(incoming.body or b"{}")
            if not isinstance(body, dict):
                raise ValueError("the body has to be a JSON object")
        except (ValueError, RecursionError) as error:
            self._send(connection, Fault(status=400, message=f"bad request: {error}"))
            return
        logged = Logged(path, body, "authorization" in incoming.headers)
        index = self._record(logged)
        self.most_in_flight = max(self.most_in_flight, self._pool.busy)
        try:
            seconds = self.latency(index, body) if callable(self.latency) else self.latency
        except Exception as error:
            self._send(connection, _own_error(error), index)
            return
        connection.after(seconds, lambda: self._send(connection, self._content(index, logged, form), index))

    def _look_up(self, method: str, path: str) -> Any:
        """What a GET or a DELETE is answered with."""
        if method == "DELETE":
            return self._batches.delete(path)
        if method != "GET":
            return Fault(status=405, message=f"no {method} here")
        model = f"/v1/models/{self.client.model}"
        if path in ("/v1/models", model):
            models = self._endpoints.models()
            return models["data"][0] if path == model else models
        return self._batches.get(path)

    def _content(self, index: int, logged: Logged, form: dict[str, tuple[str, bytes]]) -> Any:
        """What a POST is answered with."""
        try:
            fault = self.faults(index, logged.body)
            if fault:
                return fault
            if logged.path == "/v1/files":
                return self._batches.upload(form)
            if logged.path.startswith("/v1/batches"):
                return self._batches.post(logged.path, logged.body, logged.authorized)
            return self._endpoints.post(logged.path, logged.body)
        except Exception as error:  # of the caller's functions; the client shall not wait for ever
            return _own_error(error)

    def _line(self, path: str, body: dict[str, Any], authorized: bool) -> Any:
        """What a line of a batch is answered with."""
        logged = Logged(path, body, authorized)
        index = self._record(logged)
        content = self._content(index, logged, {})
        answer = answered(content)
        if answer is not None:
            self._write({"done": index, "status": answer[0]})
        return content

    def _record(self, logged: Logged) -> int:
        """Log a POST and return its index."""
        with self._lock:
            index, self.served = self.served, self.served + 1
            self._log.append(logged)
        self._write({"index": index, "path": logged.path, "body": logged.body})
        return index

    def _write(self, line: dict[str, Any]) -> None:
        if self._log_file is not None:
            self._log_file.write(json.dumps(line) + "\n")
            self._log_file.flush()

    def _send(self, connection: Connection, content: Any, index: int | None = None) -> None:
        """Answer with `content` as JSON, or let the `Fault` happen."""
        answer = answered(content)
        if answer is None:
            {"reset": connection.reset, "hang": connection.hang, "drip": connection.drip}[content.kind]()
            return
        written = None
        if index is not None and self._log_file is not None:
            done = {"done": index, "status": answer[0]}
            written = lambda: self._write(done)  # noqa: E731
        connection.respond(*answer, written=written)


def _own_error(error: Exception) -> Fault:
    """For an error of the caller's functions or of the fake model: shown here too, since it is a mistake in a test."""
    traceback.print_exception(error)
    return Fault(message=f"{type(error).__name__}: {error}", headers={"x-should-retry": "false"})


def main(arguments: list[str] | None = None) -> int:
    """Serve until interrupted; prints the base URL."""
    parser = argparse.ArgumentParser(
        prog="python -m autointerp.clients.fake_server",
        description="A fake OpenAI server.",
        epilog="Imitations: " + "; ".join(f"{name}: {what}" for name, what in IMITATIONS.items()) + ".",
    )
    parser.add_argument("--port", type=int, default=8099, help="0 takes a free one (default: %(default)s)")
    parser.add_argument("--model", default="keyword", help="of the fake client (default: %(default)s)")
    parser.add_argument("--latency", type=float, default=0.0, help="seconds before every response")
    parser.add_argument("--context-length", type=int, default=8192, help="in words (default: %(default)s)")
    parser.add_argument("--batch-seconds", type=float, default=0.2, help="a batch takes (default: %(default)s)")
    parser.add_argument("--imitate", default="", metavar="A,B", help="habits of real servers, see below")
    parser.add_argument(
        "--faults",
        default="",
        metavar="KIND[:ARG]@SHARE,...",
        help="faults at random, each for its share of the POSTs, say status:429@0.05,reset@0.05; KIND is one of "
        f"{', '.join(get_args(FaultKind))}; ARG is the HTTP status of status and the finish_reason of finish",
    )
    parser.add_argument("--seed", type=int, default=0, help="of --faults (default: %(default)s)")
    log = parser.add_mutually_exclusive_group()
    log.add_argument("--log", type=Path, metavar="FILE", help="append a JSON line per POST and one per answer")
    log.add_argument("--no-log", action="store_true", help="keep nothing of the requests (so without --log, too)")
    options = parser.parse_args(arguments)
    try:
        server = FakeServer(
            FakeClient(options.model),
            port=options.port,
            latency=options.latency,
            faults=random_faults(options.faults, options.seed),
            keep_log=0,
            log_file=options.log,
            imitate=frozenset(filter(None, options.imitate.split(","))),
            context_length=options.context_length,
            batch_seconds=options.batch_seconds,
        )
        # Both, since a shell's background job ignores SIGINT unless it sets a handler.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: server.stopping.set())
        with server:
            print(server.base_url, flush=True)
            server.stopping.wait()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
