"""What the errors of OpenAI-compatible servers mean: of which kind they are, and what another try can mend."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from time import time
from typing import Any

from autointerp.clients._openai_replies import at, said
from autointerp.types import Attempt
from prompts.requests import Failure, FailureKind

OVERFLOW = re.compile(r"context[ _](length|window|size)|max_model_len|too many tokens|(prompt|input) is too long", re.I)
UNSUPPORTED = re.compile(r"unsupported|not supported|unrecognized|unexpected|does not support", re.I)
REFUSAL_CODES = frozenset({"content_filter", "content_policy_violation"})
NO_MONEY = frozenset({"insufficient_quota", "billing_hard_limit_reached"})
NEVER_CONNECTED = frozenset({"ConnectError", "ConnectTimeout", "UnsupportedProtocol"})
"""Causes of a connection error after which the server has not seen the request."""
OTHER_LIMIT = {"max_tokens": "max_completion_tokens", "max_completion_tokens": "max_tokens"}
"""OpenAI's newer models refuse `max_tokens`; some other servers know nothing else."""


@dataclass
class Manner:
    """How a model wants to be asked, learnt from its refusals: without a temperature, or with the limit of an answer
    under its other name."""

    limit: str
    temperature: bool = True
    learnt: int = 0
    """Things learnt so far; a request that was sent when there were fewer is worth another try."""
    _other_limit: bool = False

    def learns(self, parameter: str, text: str, learnt_then: int) -> bool:
        """Whether asking otherwise may help, after a refusal of a request that was sent at `learnt_then`."""
        if not UNSUPPORTED.search(text):
            return False
        if learnt_then < self.learnt:
            return True
        if self.temperature and "temperature" in (parameter or text):
            self.temperature = False
        elif not self._other_limit and self.limit in (parameter or text):
            self.limit, self._other_limit = OTHER_LIMIT[self.limit], True
        else:
            return False
        self.learnt += 1
        return True


def explained(error: Any, url: str, model: str, key_name: str, manner: Manner, learnt_then: int) -> Attempt:
    """What an answer with an HTTP error stands for (`error` is the SDK's `APIStatusError`)."""
    status, code, text = error.status_code, str(error.code or ""), said(error.body) or str(error)
    headers: Mapping[str, str] = error.response.headers
    if status == 400 and manner.learns(str(at(error.body, "param") or ""), text, learnt_then):
        return Attempt(Failure("rejected", f"HTTP 400. Server: {text}"), retry=True, after=0.0, charged=False)
    kind: FailureKind = "rejected" if status < 500 else "error"
    remedies = {
        401: f"set {key_name} to a key that is valid for {url}",
        403: f"check that the key in {key_name} may use {model} at {url}",
        404: f"check the model name {model}, and that the base URL ends as the server wants it (often in /v1)",
        429: "lower --max-concurrency, or check the account's quota",
    }
    if status in (400, 413, 422) and (code == "context_length_exceeded" or OVERFLOW.search(text)):
        kind = "context_overflow"
    elif status == 400 and code in REFUSAL_CODES:
        kind = "refused"
    elif status == 408:
        kind = "timeout"
    remedy = f". Remedy: {remedies[status]}" if status in remedies else ""
    stop = status in (401, 403) or code in NO_MONEY
    wanted = headers.get("x-should-retry")
    passing = wanted == "true" if wanted in ("true", "false") else status in (408, 409, 425, 429) or status >= 500
    return Attempt(
        # The remedy goes first: a long message of the server must not push it out.
        Failure(kind, f"HTTP {status}{remedy}. Server: {text}"),
        retry=passing and not stop, after=retry_after(headers), pressed=status in (408, 429, 503, 529),
        charged=False, stop=stop,
    )  # fmt: skip


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds to wait: from `retry-after-ms`, or from `Retry-After` as a number or a date."""
    given = headers.get("retry-after-ms"), headers.get("retry-after")
    for value, scale in zip(given, (1000.0, 1.0), strict=True):
        try:
            return max(0.0, float(value or "") / scale)
        except ValueError:
            continue
    try:
        return max(0.0, parsedate_to_datetime(given[1] or "").timestamp() - time())
    except ValueError:
        return None
