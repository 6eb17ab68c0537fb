"""What can go wrong with one response of the fake server, and the shapes of its answers and errors."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from autointerp.errors import UserError
from prompts.requests import Usage

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


Faults = Callable[[int, dict[str, Any]], Fault | None]
"""What goes wrong with the i-th POST, given its body."""

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

NO_SUCH_PATH = Fault(status=404, message="no such path; the base URL ends in /v1")


@dataclass(frozen=True, slots=True)
class Said:
    """One choice of a chat completion; `logprobs` in OpenAI's shape."""

    text: str | None
    finish_reason: str = "stop"
    logprobs: dict[str, Any] | None = None


def completion(
    choices: Sequence[Said], usage: Usage | None = None, model: str = "fake", refusal: str | None = None
) -> dict[str, Any]:
    """A chat completion with these choices."""
    shown = [
        {
            "index": i,
            "message": {"role": "assistant", "content": said.text, "refusal": refusal},
            "logprobs": said.logprobs,
            "finish_reason": said.finish_reason,
        }
        for i, said in enumerate(choices)
    ]
    head = {"id": "chatcmpl-fake", "object": "chat.completion", "created": 0, "model": model}
    return {**head, "choices": shown, "usage": counts(usage or Usage())}


def counts(usage: Usage) -> dict[str, Any]:
    """The usage block."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
    }


def error_of(fault: Fault) -> dict[str, Any]:
    """An error in OpenAI's shape."""
    return {"error": {"message": fault.message, "type": "invalid_request_error", "param": None, "code": fault.code}}


def answered(content: Any) -> tuple[int, bytes, Mapping[str, str]] | None:
    """HTTP status, body and headers of an answer or a `Fault`; None for faults that are no answer at all.

    Answers that are no bytes are sent as JSON.
    """
    if isinstance(content, bytes):
        return 200, content, {"Content-Type": "application/octet-stream"}
    if not isinstance(content, Fault):
        return 200, json.dumps(content).encode(), {}
    if content.kind == "status":
        return content.status, json.dumps(error_of(content)).encode(), content.headers
    if content.kind == "wrong_json":
        return 200, json.dumps(content.content).encode(), {}
    if content.kind == "refusal":
        return 200, json.dumps(completion([Said(None)], refusal=content.message)).encode(), {}
    if content.kind == "finish":
        return 200, json.dumps(completion([Said(content.message, content.code or "stop")])).encode(), {}
    if content.kind == "truncated_json":
        whole = json.dumps(completion([Said("half an answer")])).encode()
        return 200, whole[: len(whole) // 2], {}
    return None


def random_faults(text: str, seed: int) -> Faults:
    """Faults at random, as in `status:429@0.05,reset@0.05`: KIND[:ARGUMENT]@SHARE, each for that share of the POSTs.

    ARGUMENT is the HTTP status of `status` and the finish_reason of `finish`. The same seed gives the i-th POST the
    same fault again.

    Raises:
        UserError: the text cannot be read, or the shares add up to more than 1.
    """
    ends: list[tuple[float, Fault]] = []
    total = 0.0
    for item in filter(None, text.split(",")):
        try:
            share, fault = _read_fault(item.strip())
        except ValueError as error:
            raise UserError(f"cannot read the fault {item!r}: {error}; write, say, status:429@0.05") from error
        total += share
        ends.append((total, fault))
    if total > 1 + 1e-9:
        raise UserError(f"the shares of the faults add up to {total:g}, which is more than 1: {text}")

    def faults(index: int, body: dict[str, Any]) -> Fault | None:
        digest = hashlib.sha256(f"{seed}:{index}".encode()).digest()
        drawn = int.from_bytes(digest[:8], "big") / 2**64
        return next((fault for end, fault in ends if drawn < end), None)

    return faults


def _read_fault(text: str) -> tuple[float, Fault]:
    name, _, share = text.partition("@")
    kind, _, argument = name.partition(":")
    if not 0 <= float(share) <= 1:
        raise ValueError(f"its share has to be between 0 and 1, got {share}")
    if kind == "status":
        return float(share), Fault(status=int(argument or 500))
    if kind == "finish":
        return float(share), Fault("finish", code=argument or "length")
    known = {name: name for name in get_args(FaultKind)}
    if kind not in known or argument:
        raise ValueError(f"{name!r} is none of {', '.join(known)}")
    return float(share), Fault(known[kind])
