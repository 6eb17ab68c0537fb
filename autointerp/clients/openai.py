"""Any server that speaks the OpenAI API, through the official SDK: OpenAI, vLLM, OpenRouter, Ollama and others.

This module knows how a request is written for such a server and how an answer or an error is read. It makes single
attempts; retries, concurrency, the reply cache and money are the engine's. It keeps the API key to itself.
"""

from __future__ import annotations

import asyncio
import os
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from autointerp.clients._announced import Array, folder_in
from autointerp.clients._endpoints import Endpoint, Endpoints
from autointerp.clients._keys import find_key, forget_locals, is_under, redactor, shown, without_likenesses
from autointerp.clients._openai_batches import BatchAPI, error_said
from autointerp.clients._openai_errors import NEVER_CONNECTED, OVERFLOW, Manner, explained
from autointerp.clients._openai_replies import at, read_chat, read_choice, read_echo, read_embedding, response_format
from autointerp.errors import UserError
from autointerp.types import Attempt, Finding
from prompts.requests import Chat, ChatReply, Choice, Embed, Failure, FailureKind, Likelihood, Message, Reply, Request

if TYPE_CHECKING:
    from openai import AsyncOpenAI

DEFAULT_BASE_URL = "https://api.openai.com/v1"
OWN_SERVER = "http://localhost"
"""What keys are looked up for where addresses are not known yet."""

TOP_LOGPROBS = 20
"""The most alternatives that OpenAI and vLLM give."""
KNOWN_PROMPTS = 64
"""Prompts whose token ids are remembered, since many texts are scored after each."""


class OpenAIClient:
    """`Server` with `/chat/completions`, `/completions` and `/embeddings`.

    `base_url` is one address, or several that serve the same model, joined by commas, or `servers:FOLDER`: those that
    announce themselves in a folder, for which `server_wait` seconds are waited while there is none. `timeout` is in
    seconds and holds for one attempt. `identity` names the server in the reply cache where its address changes; by
    default it is the first address, and of announced servers the model. With `schemas=False` JSON schemas are not
    sent, for servers that do not know them. `room` is the tokens that a chat may take beyond its `max_tokens`, for
    models that think before they answer.

    A model that takes no temperature, or knows the limit of an answer by its other name, is asked as it wants it after
    it has said so once.

    Raises:
        UserError: no key where one is needed, or an unusable argument.
    """

    name = "openai"
    supports: frozenset[type] = frozenset({Chat, Choice, Likelihood, Embed})

    def __init__(
        self,
        model: str,
        base_url: str | None = None,
        max_concurrency: int = 16,
        timeout: float = 120,
        identity: str | None = None,
        schemas: bool = True,
        room: int = 0,
        server_wait: float = 600.0,
    ) -> None:
        if max_concurrency < 1 or timeout <= 0:
            raise UserError(
                f"openai client: max_concurrency={max_concurrency}, timeout={timeout}; "
                "they have to be at least 1 and above 0"
            )
        given = base_url or os.environ.get("OPENAI_BASE_URL") or DEFAULT_BASE_URL
        self.folder = folder_in(given)
        """Where its servers announce themselves, if they do."""
        self.patience = None if self.folder is None else server_wait
        urls = list(dict.fromkeys(url.strip() for url in given.split(",") if url.strip() and self.folder is None))
        self.model, self.concurrency, self.timeout, self.schemas = model, max_concurrency, timeout, schemas
        self.urls = [given] if self.folder is not None else [shown(url) for url in urls] or [shown(given)]
        self.price_url = self.urls[0]
        named = identity or (self.urls[0] if self.folder is None else model)
        # Without schemas the same request is answered otherwise.
        self.identity = named + ("" if schemas else " without schemas")
        self.room = room
        if room:
            self.identity += f" with room {room}"
        # Announced servers are a user's own.
        keys = [find_key(url) for url in urls or [OWN_SERVER]]
        self._key_name = keys[0][0]
        self._redact = redactor(key for _, key in keys)
        openai_own = is_under(urlsplit(self.urls[0]).hostname or "", "openai.com")
        self._manner = Manner("max_completion_tokens" if openai_own else "max_tokens")

        # Imported here because it takes 0.7 s, which `autointerp --help` must not pay.
        import openai

        self._openai = openai

        def connect(url: str, key: str = keys[0][1]) -> AsyncOpenAI:
            return _sdk(url, key, timeout, max_concurrency)

        def endpoints() -> Endpoints[AsyncOpenAI]:
            if self.folder is not None:
                return Array(self.folder, model, server_wait, connect, self._healthy)
            return Endpoints((shown(url), connect(url, key)) for url, (_, key) in zip(urls, keys, strict=True))

        # Keys live in a closure, not in an attribute, so that no repr or traceback with locals can show them.
        self._connect = endpoints
        self._loop: asyncio.AbstractEventLoop | None = None
        self._senders: dict[type, Callable[[AsyncOpenAI, Any], Awaitable[Reply]]] = {
            Chat: self._simple,
            Choice: self._simple,
            Embed: self._simple,
            Likelihood: self._likelihood,
        }
        self._prompt_ids: OrderedDict[str, list[int]] = OrderedDict()
        self._tokenising: dict[str, asyncio.Future[list[int]]] = {}
        self._can_tokenise = True

    def __repr__(self) -> str:
        return f"OpenAIClient(model={self.model!r}, base_url={','.join(self.urls)!r})"

    async def ready(self, say: Callable[[str], None] = print) -> None:
        """Return once one of its servers can be asked; where they are no announced ones, at once.

        Raises:
            ServerGone: for `patience` seconds there was none.
        """
        await self.endpoints.ready(say)

    async def attempt(self, request: Request) -> Attempt:
        """One try at one address. Never raises."""
        send = self._senders.get(type(request))
        if send is None:
            message = f"the openai client cannot answer {type(request).__name__} requests"
            return Attempt(Failure("error", message), charged=False)
        if not self.endpoints.all:
            return Attempt(Failure("unreachable", f"no server in '{self.folder}'"), retry=True, charged=False)
        endpoint, learnt = self.endpoints.pick(_beginning(request)), self._manner.learnt
        endpoint.in_flight += 1
        try:
            # The SDK's time-out is one per read: a server that drips white space would hold it off for ever.
            async with asyncio.timeout(self.timeout):
                reply = await send(endpoint.connection, request)
            self.endpoints.reached(endpoint)
            # A body that is no answer at all is a fault of the server or of the way, and may pass.
            attempt = Attempt(reply, retry=isinstance(reply, Failure) and reply.kind == "error")
        except Exception as error:  # the protocol: a failed request is an answer, and the run goes on
            forget_locals(error)
            attempt = self._explain(error, endpoint, learnt)
        except BaseException as error:
            forget_locals(error)
            raise
        finally:
            endpoint.in_flight -= 1
        if isinstance(attempt.reply, Failure):
            return replace(attempt, reply=replace(attempt.reply, message=self.redacted(attempt.reply.message)))
        if isinstance(attempt.reply, ChatReply) and (text := self._redact(attempt.reply.text)) != attempt.reply.text:
            # A gateway that answers with what it was sent.
            return replace(attempt, reply=replace(attempt.reply, text=text))
        return attempt

    def redacted(self, text: str) -> str:
        """`text` on one line, without keys."""
        # Redact before cutting: half a key would no longer be recognised.
        return " ".join(without_likenesses(self._redact(text)).split())[:500]

    async def probe(self, features: frozenset[str]) -> list[Finding]:
        """Which of `schema, choice, likelihood, seed, context` this server really has; see `_openai_probes`."""
        from autointerp.clients._openai_probes import probe

        return await probe(self, features)

    def probes(self, features: frozenset[str]) -> list[Request]:
        """What `probe` may ask, for a budget."""
        from autointerp.clients._openai_probes import at_most

        return at_most(features)

    def batches(self) -> BatchAPI:
        """The batch API of the first address.

        Raises:
            UserError: its servers are announced ones, which have none.
        """
        if self.folder is not None:
            raise UserError(f"--batch is OpenAI's; the servers in '{self.folder}' are asked without it")
        return BatchAPI(self.endpoints.all[0].connection)

    def failed_line(self, status: int, body: object) -> Failure:
        """What a line of a batch came to that was not answered."""
        kind: FailureKind = "context_overflow" if OVERFLOW.search(error_said(body)) else "rejected"
        return Failure(kind if status < 500 else "error", self.redacted(f"HTTP {status}. Server: {error_said(body)}"))

    async def close(self) -> None:
        """Close the connections. The client can be used again afterwards."""
        # Connections of a loop that is gone went with it; closing them from another would raise.
        if self._loop is asyncio.get_running_loop():
            for connection in await self._endpoints.leave():
                await connection.close()
        self._loop = None

    @property
    def endpoints(self) -> Endpoints[AsyncOpenAI]:
        """Connections belong to one event loop; every `asyncio.run` of a notebook brings a new one."""
        loop = asyncio.get_running_loop()
        if loop is not self._loop:
            self._loop = loop
            self._endpoints = self._connect()
        return self._endpoints

    def written(self, request: Chat | Choice | Embed) -> tuple[str, dict[str, Any]]:
        """Path and body of a request that one call answers."""
        if isinstance(request, Embed):
            # The SDK would ask for base64, which few other servers know.
            return "/embeddings", {"model": self.model, "input": request.text, "encoding_format": "float"}
        messages = [{"role": message.role, "content": message.content} for message in request.messages]
        body: dict[str, Any] = {"model": self.model, "messages": messages}
        if self._manner.temperature:
            body["temperature"] = request.temperature if isinstance(request, Chat) else 0.0
        if isinstance(request, Choice):
            return "/chat/completions", {**body, self._manner.limit: 1, "logprobs": True, "top_logprobs": TOP_LOGPROBS}
        body[self._manner.limit] = request.max_tokens + self.room
        if request.schema is not None and self.schemas:
            body["response_format"] = response_format(request.schema)
        if request.temperature > 0:
            # Several samples of one prompt differ, and each can be drawn again where the server honours seeds.
            body["seed"] = request.sample_index
        return "/chat/completions", body

    def read(self, request: Chat | Choice | Embed, payload: object) -> Reply:
        """The answer in the decoded body that a server sent for `request`."""
        if isinstance(request, Embed):
            return read_embedding(payload)
        return read_chat(payload) if isinstance(request, Chat) else read_choice(payload, request.choices)

    async def _healthy(self, sdk: AsyncOpenAI) -> bool:
        """Whether a server is well, and serves this model. vLLM's `/health` also fails when its engine has died."""
        with suppress(self._openai.NotFoundError):
            await sdk.get(_beside_v1(sdk, "health"), cast_to=object)
        listed = at(await sdk.get("/models", cast_to=object), "data")
        return isinstance(listed, list) and any(at(entry, "id") == self.model for entry in listed)

    async def _simple(self, sdk: AsyncOpenAI, request: Chat | Choice | Embed) -> Reply:
        path, body = self.written(request)
        return self.read(request, await _post(sdk, path, body))

    async def _likelihood(self, sdk: AsyncOpenAI, request: Likelihood) -> Reply:
        if not request.prompt or not request.text:
            return Failure("empty", "the prompt or the text to score is empty")
        # Tokenised apart where the server can: joined, the end of the prompt may be cut into other tokens than alone.
        ids = await self._ids(sdk, request.prompt)
        text_ids = await self._tokenise(sdk, request.text, special=False) if ids else []
        if ids and text_ids:
            reply = read_echo(await self.echo(sdk, ids + text_ids), request.text, len(text_ids))
        else:
            reply = read_echo(await self.echo(sdk, request.prompt + request.text), request.text)
        message = "the server joins prompt and text in one token, and has no /tokenize to part them"
        return reply or Failure("rejected", message)

    async def echo(self, sdk: AsyncOpenAI, prompt: str | list[int]) -> Any:
        """The body of a completion of nothing that repeats the prompt with log-probabilities."""
        body = {"model": self.model, "prompt": prompt, "max_tokens": 0, "echo": True, "logprobs": 1, "temperature": 0.0}
        return await _post(sdk, "/completions", body)

    async def _ids(self, sdk: AsyncOpenAI, prompt: str) -> list[int]:
        if prompt not in self._prompt_ids:
            # Many texts after one prompt begin at the same moment; it is tokenised for the first of them.
            waiting = self._tokenising.get(prompt)
            if waiting is None:
                waiting = self._tokenising[prompt] = asyncio.ensure_future(self._tokenise(sdk, prompt, special=True))
            try:
                self._prompt_ids[prompt] = await asyncio.shield(waiting)
            finally:
                self._tokenising.pop(prompt, None)
            if len(self._prompt_ids) > KNOWN_PROMPTS:
                self._prompt_ids.popitem(last=False)
        return self._prompt_ids.get(prompt, [])

    async def _tokenise(self, sdk: AsyncOpenAI, text: str, *, special: bool) -> list[int]:
        """Token ids by vLLM's endpoint, which stands beside `/v1`; none where there is no such endpoint."""
        if not self._can_tokenise:
            return []
        url = _beside_v1(sdk, "tokenize")
        body = {"model": self.model, "prompt": text, "add_special_tokens": special}
        try:
            found = at(await _post(sdk, url, body), "tokens")
        except self._openai.NotFoundError:
            self._can_tokenise = False
            return []
        return found if isinstance(found, list) and all(type(token) is int for token in found) else []

    def _explain(self, error: Exception, endpoint: Endpoint[AsyncOpenAI], learnt: int) -> Attempt:
        """What an exception of the SDK stands for."""
        sdk, url = self._openai, endpoint.url
        if isinstance(error, sdk.APIStatusError):
            self.endpoints.reached(endpoint)
            endpoint.doubted = error.status_code >= 500
            return explained(error, url, self.model, self._key_name, self._manner, learnt)
        cause = error.__cause__ or error
        if isinstance(error, sdk.APIConnectionError) and (
            type(cause).__name__ in NEVER_CONNECTED or not isinstance(error, sdk.APITimeoutError)
        ):
            unseen = type(cause).__name__ in NEVER_CONNECTED
            endpoint.doubted = True
            if unseen:
                self.endpoints.lost(endpoint)
            why = f"{type(cause).__name__}: {cause}. Is the server up, and the base URL right?"
            # Another address can be asked at once.
            elsewhere = 0.0 if unseen and self.endpoints.any_alive else None
            failure = Failure("unreachable", f"no answer from {url}: {why}")
            return Attempt(failure, retry=True, after=elsewhere, charged=False if unseen else None)
        if isinstance(error, (sdk.APITimeoutError, TimeoutError)):
            endpoint.doubted = True
            failure = Failure("timeout", f"{url} did not answer in time; allow more, or lower --max-concurrency")
            return Attempt(failure, retry=True, pressed=True, charged=None)
        # JSON that breaks off is a fault of the way; anything else would go wrong again.
        broken = isinstance(error, ValueError) and not isinstance(error, UnicodeEncodeError)
        about = f"undecodable response from {url}: " if broken else ""
        failure = Failure("error", f"{about}{type(error).__name__}: {error}")
        return Attempt(failure, retry=broken, charged=None if broken else False)


TAKES = ("base_url", "max_concurrency", "timeout", "identity", "schemas", "room", "server_wait")
"""Settings of a run that `create` takes."""


def create(model: str, *, base_url: str | None = None, max_concurrency: int = 16, **options: Any) -> OpenAIClient:
    """The registry's door. `options`: `timeout` (seconds), `identity`, `schemas`, `room`, `server_wait` (seconds)."""
    return OpenAIClient(model, base_url=base_url, max_concurrency=max_concurrency, **options)


def _sdk(url: str, key: str, timeout: float, connections: int) -> AsyncOpenAI:
    import openai

    # The transport on aiohttp takes a third less time than the default one.
    limits = type(openai.DEFAULT_CONNECTION_LIMITS)(max_connections=None, max_keepalive_connections=connections)
    waits = openai.Timeout(timeout, connect=min(10.0, timeout), pool=None)
    http = openai.DefaultAioHttpClient(timeout=waits, limits=limits)
    return openai.AsyncOpenAI(api_key=key, base_url=url, timeout=waits, max_retries=0, http_client=http)


def _beside_v1(sdk: AsyncOpenAI, name: str) -> str:
    """vLLM has some endpoints beside `/v1`."""
    return str(sdk.base_url).rstrip("/").removesuffix("/v1") + f"/{name}"


async def _post(sdk: AsyncOpenAI, path: str, body: Mapping[str, Any]) -> object:
    """The decoded body. The SDK's typed methods take twice the time, for models that do not validate."""
    return await sdk.post(path, cast_to=object, body=body)


def _beginning(request: Request) -> str:
    """What decides which server has this request's beginning in its cache."""
    if isinstance(request, Likelihood):
        return request.prompt
    messages: tuple[Message, ...] = getattr(request, "messages", ())
    return "\n".join(m.content for m in messages[:-1]) + messages[-1].content[:256] if messages else ""
