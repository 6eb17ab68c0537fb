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
Edit = Literal["add", "zero"]

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
    """Continue token prompts with and without an edit of one latent, at every position from the last prompt token on.

    `add` adds to the latent's code along its `pole` (1 or -1). Its strength is the one at which the mean over
    prompts of KL(intervened || clean) of the next-token distribution equals `target_kl` nats. `zero` clamps the
    latent to 0; there is nothing to search, and `target_kl` and `pole` are not read. The SAE's error is kept by both.
    One request holds all the prompts of a latent, since they share the strength.
    """

    latent: int
    prompts: tuple[tuple[int, ...], ...]
    target_kl: float
    max_new_tokens: int
    seed: int
    temperature: float = 1.0
    tolerance: float = 0.1
    edit: Edit = "add"
    pole: int = 1


@dataclass(frozen=True, slots=True)
class Effects:
    """What a latent does to the model's output, along its `pole` (1 or -1).

    Two things: the logit lens of its decoder direction, and the next tokens after each of `prompts` that become
    likelier under the edit `add` of `Steer`, at the strength that reaches `target_kl` nats. Without prompts, the lens
    alone. At most `n_tokens` tokens are told for each prompt, and `lens_tokens` for each end of the lens.
    """

    latent: int
    prompts: tuple[tuple[int, ...], ...]
    target_kl: float
    n_tokens: int
    lens_tokens: int = 20
    pole: int = 1
    tolerance: float = 0.1


Request = Chat | Choice | Likelihood | Embed | Steer | Effects


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
    """Texts in the order of `Steer.prompts`; `reached_kl` in nats at `strength`.

    The strength is in residual-stream units, negative along a negative pole; of a removal it is the share removed, 1.
    """

    prompt_texts: tuple[str, ...]
    clean: tuple[str, ...]
    steered: tuple[str, ...]
    strength: float
    reached_kl: float
    converged: bool
    usage: Usage = Usage()


@dataclass(frozen=True, slots=True)
class Shift:
    """A token, and by how much it gains or loses."""

    token: int
    text: str
    change: float


@dataclass(frozen=True, slots=True)
class EffectsReply:
    """Largest changes first. `promoted` and `suppressed` are differences of logits, of the direction scaled to the
    length that the final norm gives it; None where the latent does not write into the residual stream.

    `gains` are differences of probabilities of the next token, steered - clean, one list per prompt in the order of
    `Effects.prompts`. Only gains (losses, for `suppressed`) are listed; special tokens and tokens that are no whole
    characters are left out. `strength` and `reached_kl` as in `SteerReply`, None without prompts; where the target
    was not reached, `gains` are those at the nearest strength that was tried.
    """

    promoted: tuple[Shift, ...] | None
    suppressed: tuple[Shift, ...] | None
    prompt_texts: tuple[str, ...]
    gains: tuple[tuple[Shift, ...], ...]
    strength: float | None
    reached_kl: float | None
    converged: bool
    usage: Usage = Usage()


@dataclass(frozen=True, slots=True)
class Failure:
    """An answer that did not come, or that is no answer. It is recorded, never read as text or as a score."""

    kind: FailureKind
    message: str
    usage: Usage = field(default=Usage())


Reply = ChatReply | ChoiceReply | LikelihoodReply | EmbedReply | SteerReply | EffectsReply | Failure


def reply_sha(reply: Reply) -> str:
    """sha256 (16 hex digits) of what a reply says. What it cost is no part of it: that depends on what a server had
    in its prefix cache."""
    return fingerprint(replace(reply, usage=Usage()))


def fingerprint(value: Any) -> str:
    """sha256 (first 16 hex digits) of a request, a reply or any JSON-like value, independent of key order."""
    plain = asdict(value) if hasattr(value, "__dataclass_fields__") else value
    text = json.dumps([type(value).__name__, plain], sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]
