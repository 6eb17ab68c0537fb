"""An HTTP server that speaks the OpenAI API on top of a fake model, for tests and for trying `--base-url`.

    with FakeServer(FakeClient()) as server:
        client = OpenAIClient("keyword", base_url=server.base_url)

It serves chat completions (json_schema, n), completions (echo and log-probs as vLLM gives them), embeddings and
the list of models, on 127.0.0.1 only. It does not stream, does not check keys and never keeps one. From a shell:

    python -m autointerp.clients.fake_server --port 8099 --model keyword
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import json
import re
import signal
import socket
import struct
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Literal

from autointerp.clients.fake import FakeClient
from autointerp.errors import UserError
from prompts.requests import Chat, ChatReply, Embed, EmbedReply, Failure, Likelihood, LikelihoodReply, Message, Usage

FaultKind = Literal["status", "reset", "hang", "drip", "truncated_json", "wrong_json", "refusal", "finish"]


@dataclass(frozen=True, slots=True)
class Fault:
    """What goes wrong with one response.

    `status`: an error with `status`, `message`, `code` and `headers` (say, Retry-After). `reset`: the connection is
    reset. `hang`: no response until the server stops. `drip`: white space for ever. `truncated_json`: half of a chat
    completion. `wrong_json`: the JSON of `content`. `refusal`: the model refuses with `message`. `finish`: a chat
    completion with the text `message` and the finish_reason `code`.
    """

    kind: FaultKind = "status"
    status: int = 500
    message: str = "injected fault"
    code: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    content: Any = None


SCRIPTED = {
    "refused": Fault("refusal"),
    "empty": Fault("finish", message="", code="stop"),
    "truncated": Fault("finish", code="length"),
    "unparsable": Fault("finish", message="no JSON", code="stop"),
    "context_overflow": Fault(status=400, code="context_length_exceeded"),
    "timeout": Fault("hang"),
    "unreachable": Fault("reset"),
    "rejected": Fault(status=422),
    "error": Fault(status=500, headers={"x-should-retry": "false"}),
}
"""How a `Failure` of the fake model shows over HTTP. A retried error would take the next line of a script."""


@dataclass(frozen=True, slots=True)
class Logged:
    """A request that came in: no headers, only whether it carried an Authorization."""

    path: str
    body: dict[str, Any]
    authorized: bool


class FakeServer:
    """Serves `client` between `__enter__` and `__exit__`; `port` 0 takes a free one.

    `latency` is in seconds, before every response. `faults(i, body)` is called for the i-th POST (from 0, in order
    of arrival, retries counted) and says what goes wrong with it, if anything.

    Raises:
        UserError: the port is taken.
    """

    def __init__(
        self,
        client: FakeClient,
        *,
        port: int = 0,
        latency: float = 0.0,
        faults: Callable[[int, dict[str, Any]], Fault | None] = lambda index, body: None,
    ) -> None:
        self.client = client
        self.latency = latency
        self.faults = faults
        self.stopping = threading.Event()
        self._log: list[Logged] = []
        self._lock = threading.Lock()
        try:
            self._http = _Http(("127.0.0.1", port), _Handler)
        except OSError as error:
            raise UserError(f"cannot listen on 127.0.0.1:{port}: {error}; choose another --port") from error
        self._http.fake = self
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.05,), name="fake-server")

    @property
    def base_url(self) -> str:
        """To be given as `--base-url`."""
        return f"http://127.0.0.1:{self._http.server_address[1]}/v1"

    @property
    def log(self) -> list[Logged]:
        """The POST requests so far, in order of arrival."""
        with self._lock:
            return list(self._log)

    def record(self, logged: Logged) -> int:
        """Append to the log and return the index."""
        with self._lock:
            self._log.append(logged)
            return len(self._log) - 1

    def __enter__(self) -> FakeServer:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop, end all connections, and wait for every thread."""
        self.stopping.set()
        self._http.shutdown()
        self._thread.join()
        self._http.hang_up()
        self._http.server_close()


class _Http(ThreadingHTTPServer):
    fake: FakeServer
    daemon_threads = False  # so that server_close() joins them
    request_queue_size = 128

    def __init__(self, *args: Any) -> None:
        self._open: set[socket.socket] = set()
        self._open_lock = threading.Lock()
        super().__init__(*args)

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._open_lock:
            self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        with self._open_lock:
            self._open.discard(request)
        super().shutdown_request(request)

    def hang_up(self) -> None:
        """Wake the threads that wait for the next request on a kept-alive connection."""
        with self._open_lock:
            for connection in self._open:
                with contextlib.suppress(OSError):  # the other side may have been faster
                    connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exc_info()[1], OSError):  # clients that give up are a normal thing here
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    server: _Http
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # headers and body are two writes: 40 ms each with Nagle

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Nothing: the test's own output is what matters."""

    def do_GET(self) -> None:
        if self.path != "/v1/models":
            self.fail(Fault(status=404, message="no such path; the base URL ends in /v1"))
            return
        model = {"id": self.server.fake.client.model, "object": "model", "created": 0, "owned_by": "autointerp"}
        self.send(200, {"object": "list", "data": [model]})

    def do_POST(self) -> None:
        fake = self.server.fake
        try:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if not isinstance(body, dict):
                raise ValueError("the body has to be a JSON object")
        except (TypeError, ValueError) as error:
            self.close_connection = True  # whatever is left of the body is not the next request
            self.fail(Fault(status=400, message=f"bad request: {error}"))
            return
        index = fake.record(Logged(self.path, body, "Authorization" in self.headers))
        fake.stopping.wait(fake.latency)
        fault = fake.faults(index, body)
        try:
            content = fault or ENDPOINTS.get(self.path, no_such_path)(fake.client, body)
        except (AttributeError, LookupError, TypeError, ValueError) as error:
            content = Fault(status=400, message=f"bad request: {type(error).__name__}: {error}")
        if isinstance(content, Fault):
            FAULTS[content.kind](self, content)
            return
        self.send(200, content)

    def send(self, status: int, content: Any, headers: Mapping[str, str] | None = None, *, cut: bool = False) -> None:
        """Send `content` as JSON, or its first half."""
        data = json.dumps(content).encode()
        data = data[: len(data) // 2] if cut else data
        self.send_response(status)
        for name, value in {
            "Content-Type": "application/json",
            "Content-Length": str(len(data)),
            **(headers or {}),
        }.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def fail(self, fault: Fault) -> None:
        """Send an error in OpenAI's shape."""
        error = {"message": fault.message, "type": "invalid_request_error", "param": None, "code": fault.code}
        self.send(fault.status, {"error": error}, fault.headers)

    def reset(self, fault: Fault) -> None:
        """End the connection with RST instead of FIN."""
        self.close_connection = True
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        socket.close(self.connection.detach())  # a plain close() would wait for rfile and wfile

    def hang(self, fault: Fault) -> None:
        """Leave the client waiting."""
        self.close_connection = True
        self.server.fake.stopping.wait()

    def drip(self, fault: Fault) -> None:
        """Begin a response and never end it: no single read times out."""
        self.close_connection = True
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        while not self.server.fake.stopping.wait(0.02):
            self.wfile.write(b" ")


FAULTS: dict[FaultKind, Callable[[_Handler, Fault], None]] = {
    "status": _Handler.fail,
    "reset": _Handler.reset,
    "hang": _Handler.hang,
    "drip": _Handler.drip,
    "truncated_json": lambda handler, fault: handler.send(200, completion([("half an answer", "stop")]), cut=True),
    "wrong_json": lambda handler, fault: handler.send(200, fault.content),
    "refusal": lambda handler, fault: handler.send(200, completion([(None, "stop")], refusal=fault.message)),
    "finish": lambda handler, fault: handler.send(200, completion([(fault.message, fault.code or "stop")])),
}


def completion(
    choices: list[tuple[str | None, str]], usage: Usage | None = None, model: str = "fake", refusal: str | None = None
) -> dict[str, Any]:
    """A chat completion with these pairs of text and finish_reason."""
    shown = [
        {"index": i, "message": {"role": "assistant", "content": text, "refusal": refusal}, "finish_reason": reason}
        for i, (text, reason) in enumerate(choices)
    ]
    head = {"id": "chatcmpl-fake", "object": "chat.completion", "created": 0, "model": model}
    return {**head, "choices": shown, "usage": counts(usage or Usage())}


def chat(client: FakeClient, body: dict[str, Any]) -> dict[str, Any] | Fault:
    """POST /v1/chat/completions."""
    if body.get("stream"):
        raise ValueError("the fake server does not stream")
    wanted = body.get("response_format") or {}
    requests = [
        Chat(
            messages=tuple(Message(message["role"], plain(message["content"])) for message in body["messages"]),
            max_tokens=body.get("max_completion_tokens") or body.get("max_tokens") or 256,
            temperature=float(body.get("temperature") or 0.0),
            schema=wanted["json_schema"]["schema"] if wanted.get("type") == "json_schema" else None,
            sample_index=int(body.get("seed") or 0) + i,
        )
        for i in range(int(body.get("n") or 1))
    ]
    replies = [client.reply(request) for request in requests]
    for reply in replies:
        if isinstance(reply, Failure):
            return replace(SCRIPTED[reply.kind], message=SCRIPTED[reply.kind].message and reply.message)
    usage = Usage(replies[0].usage.prompt_tokens, sum(reply.usage.completion_tokens for reply in replies))
    return completion([(reply.text, "stop") for reply in replies if isinstance(reply, ChatReply)], usage, body["model"])


def complete(client: FakeClient, body: dict[str, Any]) -> dict[str, Any] | Fault:
    """POST /v1/completions, for one prompt.

    Log-probs are those of a model that reads from left to right: the `Likelihood` of each white-space separated
    token after all text before it. The first token of an echoed prompt has none, as in vLLM.
    """
    prompt, echo, limit = body["prompt"], bool(body.get("echo")), int(body.get("max_tokens", 16))
    if not isinstance(prompt, str) or body.get("n", 1) != 1 or body.get("stream"):
        raise ValueError("the fake server completes one text, once, without streaming")
    said = client.reply(Chat((Message("user", prompt),))) if limit else ChatReply("")
    if not isinstance(said, ChatReply):
        return SCRIPTED[said.kind] if isinstance(said, Failure) else Fault()
    new = re.findall(r"\s*\S+", said.text)
    text = (prompt if echo else "") + "".join(new[:limit])
    choice: dict[str, Any] = {"index": 0, "text": text, "logprobs": None}
    choice["finish_reason"] = "length" if len(new) > limit or not limit else "stop"
    if body.get("logprobs") is not None:
        before = "" if echo else prompt
        tokens = list(re.finditer(r"\s*\S+|\s+$", text))
        values = [logprob(client, before + text[: token.start()], token.group()) for token in tokens]
        choice["logprobs"] = {
            "tokens": [token.group() for token in tokens],
            "token_logprobs": values,
            "text_offset": [token.start() for token in tokens],
            "top_logprobs": [None if v is None else {t.group(): v} for t, v in zip(tokens, values, strict=True)],
        }
    head = {"id": "cmpl-fake", "object": "text_completion", "created": 0, "model": body["model"]}
    return {**head, "choices": [choice], "usage": counts(Usage(len(prompt.split()), len(new[:limit])))}


def logprob(client: FakeClient, before: str, token: str) -> float | None:
    """Of one token after `before`; None at the start of a text."""
    reply = client.reply(Likelihood(before, token))
    return reply.logprob if before and isinstance(reply, LikelihoodReply) else None


def embed(client: FakeClient, body: dict[str, Any]) -> dict[str, Any]:
    """POST /v1/embeddings."""
    texts = [body["input"]] if isinstance(body["input"], str) else list(body["input"])
    if not texts or not all(isinstance(text, str) for text in texts):
        raise ValueError("input has to be a string or a list of strings")
    replies = [reply for reply in map(client.reply, map(Embed, texts)) if isinstance(reply, EmbedReply)]
    data = []
    for i, reply in enumerate(replies):
        packed = base64.b64encode(struct.pack(f"<{len(reply.vector)}f", *reply.vector)).decode()
        vector = packed if body.get("encoding_format") == "base64" else reply.vector
        data.append({"object": "embedding", "index": i, "embedding": vector})
    usage = counts(Usage(sum(reply.usage.prompt_tokens for reply in replies)))
    return {"object": "list", "model": body["model"], "data": data, "usage": usage}


def no_such_path(client: FakeClient, body: dict[str, Any]) -> Fault:
    """Any other path."""
    return Fault(status=404, message="no such path; the base URL ends in /v1")


ENDPOINTS: dict[str, Callable[[FakeClient, dict[str, Any]], dict[str, Any] | Fault]] = {
    "/v1/chat/completions": chat,
    "/v1/completions": complete,
    "/v1/embeddings": embed,
}


def counts(usage: Usage) -> dict[str, int]:
    """The usage block."""
    total = usage.prompt_tokens + usage.completion_tokens
    return {"prompt_tokens": usage.prompt_tokens, "completion_tokens": usage.completion_tokens, "total_tokens": total}


def plain(content: str | list[dict[str, Any]]) -> str:
    """The text of a message, which may come in parts."""
    return content if isinstance(content, str) else "".join(part["text"] for part in content)


def main(arguments: list[str] | None = None) -> int:
    """Serve until interrupted; prints the base URL."""
    parser = argparse.ArgumentParser(
        prog="python -m autointerp.clients.fake_server", description="A fake OpenAI server."
    )
    parser.add_argument("--port", type=int, default=8099, help="0 takes a free one (default: %(default)s)")
    parser.add_argument("--model", default="keyword", help="of the fake client (default: %(default)s)")
    parser.add_argument("--latency", type=float, default=0.0, help="seconds before every response")
    options = parser.parse_args(arguments)
    try:
        server = FakeServer(FakeClient(options.model), port=options.port, latency=options.latency)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    # Both, since a shell's background job ignores SIGINT unless it sets a handler.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: server.stopping.set())
    with server:
        print(server.base_url, flush=True)
        server.stopping.wait()
    return 0


if __name__ == "__main__":
    sys.exit(main())
