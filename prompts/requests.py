"""What can be asked of a model, and what can come back.

A request says everything that shapes its answer and nothing about how it is sent: no client, no
time-out, no concurrency. This module knows neither templates nor models.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

Role = Literal["system", "user", "assistant"]

FailureKind = Literal[
    "refused", "empty", "truncated", "unparsable", "context_overflow", "timeout", "unreachable", "rejected", "error"
]


@dataclass(frozen=True, slots=True)
class Message:
    role: Role
    content: str


@dataclass(frozen=True, slots=True)
class Chat:
    """Continue a conversation. `schema` is a JSON schema that the answer has to obey."""

    messages: tuple[Message, ...]
    max_tokens: int = 256
    temperature: float = 0.0
    schema: Mapping[str, Any] | None = None
    sample_index: int = 0


@dataclass(frozen=True, slots=True)
class Choice:
    """Probabilities of the given answers as the next text after a conversation."""

    messages: tuple[Message, ...]
    choices: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Likelihood:
    """log p(text | prompt) in nats, teacher-forced. Requests that share a prompt may share its prefill."""

    prompt: str
    text: str


@dataclass(frozen=True, slots=True)
class Embed:
    """A sentence embedding of unit length."""

    text: str


@dataclass(frozen=True, slots=True)
class Steer:
    """Continue token prompts with and without an additive edit along one latent's decoder direction.

    The edit acts at every position from the last prompt token on. Its strength is the one at which the
    mean over prompts of KL(intervened || clean) of the next-token distribution equals `target_kl` nats.
    One request holds all the prompts of a latent, since they share that strength.
    """

    latent: int
    prompts: tuple[tuple[int, ...], ...]
    target_kl: float
    max_new_tokens: int
    seed: int
    temperature: float = 1.0
    tolerance: float = 0.1


Request = Chat | Choice | Likelihood | Embed | Steer


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one answer. `cached_tokens` are those of the prompt that the server had in its prefix cache."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0


@dataclass(frozen=True, slots=True)
class ChatReply:
    text: str
    usage: Usage = Usage()


@dataclass(frozen=True, slots=True)
class ChoiceReply:
    """Probabilities in the order of `Choice.choices`; they need not sum to one."""

    probabilities: tuple[float, ...]
    usage: Usage = Usage()


@dataclass(frozen=True, slots=True)
class LikelihoodReply:
    """Natural log-probability of each token of the text."""

    token_logprobs: tuple[float, ...]
    usage: Usage = Usage()

    @property
    def logprob(self) -> float:
        return float(sum(self.token_logprobs))


@dataclass(frozen=True, slots=True)
class EmbedReply:
    vector: tuple[float, ...]
    usage: Usage = Usage()


@dataclass(frozen=True, slots=True)
class SteerReply:
    """Texts in the order of `Steer.prompts`; `reached_kl` in nats at `strength` (residual-stream units)."""

    prompt_texts: tuple[str, ...]
    clean: tuple[str, ...]
    steered: tuple[str, ...]
    strength: float
    reached_kl: float
    converged: bool
    usage: Usage = Usage()


@dataclass(frozen=True, slots=True)
class Failure:
    """An answer that did not come, or that is no answer. It is recorded, never read as text or as a score."""

    kind: FailureKind
    message: str
    usage: Usage = field(default=Usage())


Reply = ChatReply | ChoiceReply | LikelihoodReply | EmbedReply | SteerReply | Failure


def reply_sha(reply: Reply) -> str:
    """sha256 (16 hex digits) of what a reply says. What it cost is no part of it: that depends on what a server had
    in its prefix cache."""
    return fingerprint(replace(reply, usage=Usage()))


def fingerprint(value: Any) -> str:
    """sha256 (first 16 hex digits) of a request, a reply or any JSON-like value, independent of key order."""
    plain = asdict(value) if hasattr(value, "__dataclass_fields__") else value
    text = json.dumps([type(value).__name__, plain], sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]
