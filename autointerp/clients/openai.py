"""Chat and embeddings from any server that speaks the OpenAI API, through the official SDK.

This module does not know what is asked or how an answer is graded. It does not cache, count money or
resume; it turns every request into one reply or one `Failure`, and it keeps the API key to itself.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from autointerp.errors import UserError
from autointerp.types import Client
from prompts.requests import Chat, ChatReply, Embed, EmbedReply, Failure, FailureKind, Reply, Request, Usage

if TYPE_CHECKING:
    from openai import AsyncOpenAI

DEFAULT_BASE_URL = "https://api.openai.com/v1"
PLACEHOLDER_KEY = "no-key"
"""Sent to servers that ask for none: the SDK refuses to start without one. It is no secret."""

LONGEST_RETRY_AFTER = 120.0
"""Seconds: the SDK gives up on a server that asks for more."""

OVERFLOW = re.compile(r"context[ _](length|window|size)|max_model_len|too many tokens|(prompt|input) is too long", re.I)
REFUSAL_CODES = frozenset({"content_filter", "content_policy_violation"})
KEY_LIKE = re.compile(r"\b(sk-|Bearer\s+)[\w*.\-]{6,}", re.I)


class OpenAIClient(Client):
    """`Client` for a server with `/chat/completions` and `/embeddings`.

    `max_concurrency` bounds the requests in flight over all calls of `answer`. `timeout` is in seconds and holds
    for one attempt; `max_retries` further attempts follow a 408, 409, 429, 5xx, a time-out or a broken
    connection, after the server's Retry-After or an exponential pause (both by the SDK).

    The key is OPENROUTER_API_KEY for openrouter.ai and OPENAI_API_KEY for every other address, be it of OpenAI, of
    a gateway or of an own server. Servers other than OpenAI's and OpenRouter's need none.

    Raises:
        UserError: no key where one is needed, or an unusable argument.
    """

    name = "openai"
    supports = frozenset({Chat, Embed})

    def __init__(
        self,
        model: str,
        base_url: str | None = None,
        max_concurrency: int = 16,
        timeout: float = 120,
        max_retries: int = 5,
    ) -> None:
        if max_concurrency < 1 or timeout <= 0 or max_retries < 0:
            raise UserError(
                f"openai client: max_concurrency={max_concurrency}, timeout={timeout}, max_retries={max_retries}; "
                "they have to be at least 1, above 0 and at least 0"
            )
        url = base_url or os.environ.get("OPENAI_BASE_URL") or DEFAULT_BASE_URL
        self.model = model
        self.concurrency = max_concurrency
        self.base_url = _shown(url)
        host = urlsplit(url).hostname or ""
        self._key_name, key = _find_key(host)
        self._redact = _redactor(key)
        # OpenAI's newer models refuse `max_tokens`; some other servers know nothing else.
        self._limit_name = "max_completion_tokens" if _is_under(host, "openai.com") else "max_tokens"

        # Imported here because it takes 0.7 s, which `autointerp --help` must not pay.
        import openai

        self._openai = openai
        # The key lives in a closure, not in an attribute, so that no repr or traceback with locals can show it.
        self._connect: Callable[[], AsyncOpenAI] = lambda: openai.AsyncOpenAI(
            api_key=key,
            base_url=url,
            timeout=openai.Timeout(timeout, connect=min(10.0, timeout)),
            max_retries=max_retries,
        )
        self._deadline = (max_retries + 1) * timeout + max_retries * LONGEST_RETRY_AFTER
        self._loop: asyncio.AbstractEventLoop | None = None
        self._reached = False
        self._missed = False
        self._senders: dict[type, Callable[[Any], Awaitable[ChatReply | EmbedReply | Failure]]] = {
            Chat: self._chat,
            Embed: self._embed,
        }

    def __repr__(self) -> str:
        return f"OpenAIClient(model={self.model!r}, base_url={self.base_url!r})"

    async def answer(self, requests: Sequence[Request]) -> list[Reply]:
        """One reply or `Failure` per request, in their order. Never raises."""
        self._enter_loop()
        return list(await asyncio.gather(*(self._answer_one(request) for request in requests)))

    async def close(self) -> None:
        """Close the connections. The client can be used again afterwards."""
        # Connections of a loop that is gone went with it; closing them from another would raise.
        if self._loop is asyncio.get_running_loop():
            await self._sdk.close()
        self._loop = None

    def _enter_loop(self) -> None:
        """Connections and semaphores belong to one event loop; every `asyncio.run` of a notebook brings a new one."""
        loop = asyncio.get_running_loop()
        if loop is not self._loop:
            self._loop = loop
            self._sdk = self._connect()
            self._slots = asyncio.Semaphore(self.concurrency)

    async def _answer_one(self, request: Request) -> Reply:
        send = self._senders.get(type(request))
        if send is None:
            return Failure("error", f"the openai client cannot answer {type(request).__name__} requests")
        async with self._slots:
            reply: Reply
            try:
                # The SDK's time-out is one per read: a server that drips white space would hold it off for ever.
                reply = await asyncio.wait_for(send(request), self._deadline)
                self._reached = True
            except Exception as error:  # the protocol: a failed request is an answer, and the run goes on
                reply = self._explain(error)
        if isinstance(reply, Failure):
            # Redact before cutting: half a key would no longer be recognised.
            return replace(reply, message=" ".join(self._redact(reply.message).split())[:500])
        return reply

    def _patient(self) -> AsyncOpenAI:
        """The SDK, without retries if a whole round of them has failed to find any server at the address.

        A wrong port costs one round of pauses per slot, not one per request.
        """
        return self._sdk.with_options(max_retries=0) if self._missed and not self._reached else self._sdk

    async def _chat(self, request: Chat) -> ChatReply | Failure:
        body: dict[str, Any] = {
            "model": self.model,
            "messages": [{"role": message.role, "content": message.content} for message in request.messages],
            "temperature": request.temperature,
            self._limit_name: request.max_tokens,
        }
        if request.schema is not None:
            body["response_format"] = response_format(request.schema)
        if request.temperature > 0:
            # Several samples of one prompt differ, and each can be drawn again where the server honours seeds.
            body["seed"] = request.sample_index
        # The raw response, because the SDK's models do not validate: a wrong body would pass as a completion.
        raw = await self._patient().chat.completions.with_raw_response.create(**body)
        return read_chat(json.loads(raw.http_response.content))

    async def _embed(self, request: Embed) -> EmbedReply | Failure:
        # The SDK would ask for base64, which few other servers know.
        raw = await self._patient().embeddings.with_raw_response.create(
            model=self.model, input=request.text, encoding_format="float"
        )
        return read_embedding(json.loads(raw.http_response.content))

    def _explain(self, error: Exception) -> Failure:
        """The failure that an exception of the SDK stands for."""
        sdk = self._openai
        if isinstance(error, sdk.APIStatusError):
            self._reached = True
            return self._explain_status(error.status_code, str(error.code or ""), _said(error.body) or str(error))
        # A host that does not even take the connection is not there, rather than slow.
        never_connected = type(error.__cause__).__name__ == "ConnectTimeout"
        if isinstance(error, sdk.APIConnectionError) and (
            never_connected or not isinstance(error, sdk.APITimeoutError)
        ):
            self._missed = True
            cause = error.__cause__ or error
            why = f"{type(cause).__name__}: {cause}. Is the server up, and the base URL right?"
            return Failure("unreachable", f"no answer from {self.base_url}: {why}")
        if isinstance(error, (sdk.APITimeoutError, TimeoutError)):
            return Failure("timeout", f"{self.base_url} did not answer in time; allow more, or lower --max-concurrency")
        about = f"undecodable response from {self.base_url}: " if isinstance(error, ValueError) else ""
        return Failure("error", f"{about}{type(error).__name__}: {error}")

    def _explain_status(self, status: int, code: str, said: str) -> Failure:
        kind: FailureKind = "rejected" if status < 500 else "error"
        remedies = {
            401: f"set {self._key_name} to a key that is valid for {self.base_url}",
            403: f"check that the key in {self._key_name} may use {self.model} at {self.base_url}",
            404: f"check the model name {self.model}, and that the base URL ends as the server wants it (often in /v1)",
            429: "lower --max-concurrency, or check the account's quota",
        }
        remedy = f". Remedy: {remedies[status]}" if status in remedies else ""
        if status in (400, 413, 422) and (code == "context_length_exceeded" or OVERFLOW.search(said)):
            kind = "context_overflow"
        elif status == 400 and code in REFUSAL_CODES:
            kind = "refused"
        elif status == 408:
            kind = "timeout"
        # The remedy goes first: a long message of the server must not push it out.
        return Failure(kind, f"HTTP {status}{remedy}. Server: {said}")


def create(model: str, *, base_url: str | None = None, max_concurrency: int = 16, **options: Any) -> OpenAIClient:
    """The registry's door. `options`: `timeout` (seconds), `max_retries`."""
    return OpenAIClient(model, base_url=base_url, max_concurrency=max_concurrency, **options)


def response_format(schema: Mapping[str, Any]) -> dict[str, Any]:
    """The `response_format` that holds a chat to `schema`.

    Strict decoding needs closed objects, so they are closed here. It also needs every property to be required;
    a schema with optional ones is sent without `strict`.
    """
    optional = False

    def close(node: Any) -> Any:
        nonlocal optional
        if isinstance(node, (list, tuple)):
            return [close(item) for item in node]
        if not isinstance(node, Mapping):
            return node
        closed = {key: close(value) for key, value in node.items()}
        if node.get("type") == "object":
            closed.setdefault("additionalProperties", False)
            optional |= set(node.get("properties", ())) != set(node.get("required", ()))
        return closed

    closed = close(schema)
    return {"type": "json_schema", "json_schema": {"name": "answer", "strict": not optional, "schema": closed}}


def read_chat(payload: object) -> ChatReply | Failure:
    """The reply in a decoded `/chat/completions` response, whatever the server made of it."""
    usage, finish = _usage(payload), _at(payload, "choices", 0, "finish_reason")
    message, refusal = _at(payload, "choices", 0, "message"), _at(payload, "choices", 0, "message", "refusal")
    content = _at(payload, "choices", 0, "message", "content")
    if not isinstance(message, Mapping):
        # OpenRouter reports a provider's error with status 200.
        return Failure("error", f"not a chat completion: {_said(_at(payload, 'error') or payload)}", usage)
    if refusal or finish == "content_filter":
        return Failure("refused", str(refusal or content or "stopped by the content filter"), usage)
    if finish == "length":
        return Failure("truncated", "stopped at max_tokens before the answer was complete", usage)
    if content is None or (isinstance(content, str) and not content.strip()):
        return Failure("empty", f"no text in the answer (finish_reason {finish})", usage)
    if not isinstance(content, str):
        return Failure("error", f"not a chat completion: content is {type(content).__name__}", usage)
    return ChatReply(content, usage)


def read_embedding(payload: object) -> EmbedReply | Failure:
    """The unit-length vector in a decoded `/embeddings` response."""
    usage, values = _usage(payload), _at(payload, "data", 0, "embedding")
    if not isinstance(values, list) or not all(type(value) in (int, float) for value in values):
        return Failure("error", f"not an embedding: {_said(_at(payload, 'error') or payload)}", usage)
    length = math.hypot(*values)
    if not (math.isfinite(length) and length > 0):
        return Failure("error", f"an embedding of {len(values)} numbers and length {length}", usage)
    return EmbedReply(tuple(value / length for value in values), usage)


def _usage(payload: object) -> Usage:
    counts = [_at(payload, "usage", name) for name in ("prompt_tokens", "completion_tokens")]
    return Usage(*(count if isinstance(count, int) else 0 for count in counts))


def _at(value: Any, *path: str | int) -> Any:
    """What stands at `path` in JSON from outside, or None if nothing does."""
    for step in path:
        try:
            value = value[step]
        except (LookupError, TypeError):
            return None
    return value


def _said(body: object) -> str:
    """The readable part of an error body."""
    found = _at(body, "message") or _at(body, "detail") or body
    return found if isinstance(found, str) else json.dumps(found, ensure_ascii=False, default=str) if found else ""


def _is_under(host: str, domain: str) -> bool:
    # Not a substring test: it would hand the key to http://openrouter.ai.example.com.
    return host == domain or host.endswith("." + domain)


def _find_key(host: str) -> tuple[str, str]:
    """Name of the environment variable that holds the key for `host`, and the key."""
    name = "OPENROUTER_API_KEY" if _is_under(host, "openrouter.ai") else "OPENAI_API_KEY"
    key = os.environ.get(name, "").strip()
    if not key and (name == "OPENROUTER_API_KEY" or _is_under(host, "openai.com")):
        raise UserError(
            f"no API key for {host}: set {name}, or give --base-url of a server that needs none "
            "(vLLM, Ollama, llama.cpp), or use --client fake"
        )
    return name, key or PLACEHOLDER_KEY


def _redactor(key: str) -> Callable[[str], str]:
    def redact(text: str) -> str:
        if key != PLACEHOLDER_KEY:
            text = text.replace(key, "[key]")
        # Servers quote keys in shortened form too.
        return KEY_LIKE.sub("[key]", text)

    return redact


def _shown(url: str) -> str:
    """`url` without user, password and query.

    Raises:
        UserError: it is no http(s) URL.
    """
    try:
        parts = urlsplit(url)
        port = f":{parts.port}" if parts.port else ""
    except ValueError:
        parts, port = urlsplit(""), ""
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UserError("--base-url has to look like http://127.0.0.1:8000/v1")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return f"{parts.scheme}://{host}{port}{parts.path}"
