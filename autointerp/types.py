"""What flows through the program: latent records, explanations, units of work."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from prompts.requests import Reply, Request
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
    pole: int = 1
    """Sign of the activations that these windows are about; -1 only for latents that fire with both signs."""
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
    """Answers requests. `supports` names the request classes; one reply per request, in order.

    A request that cannot be answered becomes a `Failure`, never an exception. `concurrency` is the
    number of units of work the client wants in flight: 1 for an in-process model, which batches
    within a unit, many for a server.
    """

    name: str
    model: str
    concurrency: int

    @property
    def supports(self) -> frozenset[type]: ...

    async def answer(self, requests: Sequence[Request]) -> list[Reply]: ...

    async def close(self) -> None: ...
