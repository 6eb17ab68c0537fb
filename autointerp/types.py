"""What flows through the program: latent records, explanations, units of work."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from prompts.requests import Reply, Request, Usage
from scoring.types import Window

Rows = dict[str, list[dict[str, Any]]]
"""Rows by table name."""

Asking = Generator[Sequence[Request], Sequence[Reply], Any]
"""A sans-I/O explainer or scorer: yields requests, is sent their replies in order, returns its result."""


@dataclass(frozen=True, slots=True)
class LatentRecord:
    """One latent with the windows to explain it from and the windows to score it on.

    The two sets share no document. `explain` and `score` hold activating and non-activating windows.
    """

    latent: int
    n_fired: int
    n_tokens: int
    max_activation: float
    mean_activation: float
    explain: tuple[Window, ...]
    score: tuple[Window, ...]
    prompts: tuple[Window, ...] = ()
    """Contexts of scoring documents that end at their first activation."""
    explain_prompts: Sequence[Window] = ()
    """Such contexts of explaining documents. They share no run of 16 tokens with `prompts`."""
    pole: int = 1
    """Sign of the activations that these windows are about; -1 only for latents that fire with both signs."""
    window_rate: float | None = None
    """Share of all windows of the corpus in which this pole fires strongest."""
    rare: bool = False
    """There are fewer activating windows on one side than `sampling.min_windows`; these are all it has."""

    @property
    def density(self) -> float:
        return self.n_fired / self.n_tokens if self.n_tokens else 0.0


@dataclass(frozen=True, slots=True)
class Explanation:
    """What an explainer said of a latent. `text` is None exactly when `status` is not `ok`."""

    latent: int
    explanation_id: str
    text: str | None
    status: str
    explainer: str
    explainer_model: str
    prompt_sha: str
    n_windows: int
    seed: int
    draw: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0


class Client(Protocol):
    """A model in this process. `supports` names the request classes; one reply per request, in order.

    A request that cannot be answered becomes a `Failure`, never an exception. `concurrency` is the
    number of units of work the client wants in flight: 1, or more if chats of several units may be
    generated together. The engine calls `answer` once at a time. A client may have an `identity`, which
    tells its weights from others of the same name.
    """

    name: str
    model: str
    concurrency: int

    @property
    def supports(self) -> frozenset[type]: ...

    async def answer(self, requests: Sequence[Request]) -> list[Reply]: ...

    async def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Attempt:
    """What one try at a request came to."""

    reply: Reply
    retry: bool = False
    """Another try may fare better."""
    after: float | None = None
    """Seconds to wait before it, where the server says so."""
    pressed: bool = False
    """The server has more to do than it can take."""
    charged: bool | None = True
    """Whether it costs what its usage says (True), nothing (False), or something that nobody told us (None)."""
    stop: bool = False
    """No further request can succeed: no money, no access, no server."""


@runtime_checkable
class Server(Protocol):
    """A model behind an API. The engine decides when a request is sent, how often, and what is paid for it."""

    name: str
    model: str
    concurrency: int
    """Most requests in flight."""
    identity: str
    """Of the server, for the reply cache: two servers that share it answer alike."""
    price_url: str
    """Address by which a price list knows the provider."""
    room: int
    """Tokens that a chat may take beyond its `max_tokens`."""

    @property
    def supports(self) -> frozenset[type]: ...

    async def attempt(self, request: Request) -> Attempt:
        """One try. Never raises."""
        ...

    async def probe(self, features: frozenset[str]) -> list[Finding]: ...

    def probes(self, features: frozenset[str]) -> list[Request]: ...

    async def close(self) -> None: ...


@runtime_checkable
class Gathering(Protocol):
    """A `Server` that may be several, which come and go."""

    patience: float | None
    """Seconds for which one is waited for when none is there; None where there is nothing to wait for."""

    async def ready(self, say: Callable[[str], None] = print) -> None:
        """Return once one of them can be asked.

        Raises:
            ServerGone: there was none for that long.
        """
        ...


@dataclass(frozen=True, slots=True)
class Finding:
    """Whether a server has a feature, found out by asking it something whose right answer is known."""

    feature: str
    ok: bool
    said: str = ""
    """What it did instead."""
    usage: Usage = field(default=Usage())
    stop: bool = False
    """Nothing will work: the model, the key or the server is missing."""
    value: int | None = None
    """A number found, such as the context length in tokens."""
