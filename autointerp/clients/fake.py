"""A client without a model: deterministic and offline, for tests and for trying things.

It reads the prompts as the templates write them (`detection.v1.jinja`, `explain_default.v1.jinja`) and answers
by matching words. It knows no network and no clock. What it says is no evidence about any latent.

Models (the part after `:` is the behaviour's argument):

- `keyword`: explains with the most frequent marked token; finds the explanation's words in the windows.
- `constant`: says the same to everything.
- `lengths[:SEED]`: chats of 1 to max_tokens words, drawn per request and SEED (any text); otherwise as `keyword`. A
  chat with a schema gets the JSON that `keyword` gives, and its usage counts the drawn number.
- `script:PATH`: chat replies read from a JSONL file, in order.
- `oracle[:LABEL]`: from Python only; judges with a function of the caller's.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from functools import lru_cache
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any, get_args

from autointerp.clients._fake_prompts import EXPLANATION, Oracle, by_schema, chat_with, choice_with, mentions
from autointerp.errors import UserError
from autointerp.types import Client
from prompts.requests import (
    Chat,
    ChatReply,
    Choice,
    ChoiceReply,
    Embed,
    EmbedReply,
    Failure,
    FailureKind,
    Likelihood,
    LikelihoodReply,
    Reply,
    Request,
    Usage,
    fingerprint,
)

DIMENSIONS = 256
LIKELY, UNLIKELY = -1.0, -3.0
"""Nats per word."""


@dataclass(frozen=True, slots=True)
class Behaviour:
    """How a fake model answers each kind of request, without the counting of words."""

    chat: Callable[[Chat], str | Failure]
    choice: Callable[[Choice], tuple[float, ...]]
    likelihood: Callable[[Likelihood], tuple[float, ...]]
    embed: Callable[[Embed], tuple[float, ...]]
    length: Callable[[Chat], int] | None = None
    """What the usage of a chat counts as completion tokens; None counts the words of the answer."""
    along: Callable[[Sequence[str]], list[float]] | None = None
    """A faster way to what `likelihood` gives for each of the pieces of a text after those before it."""


class FakeClient(Client):
    """`Client` of a fake model.

    `oracle` judges in place of a model: 1 for a detection window where `oracle(explanation, window)` is true, and
    `LIKELY` for every word of a `Likelihood` text where it is true of any explanation in the prompt, else
    `UNLIKELY`. In both cases an explanation is group 1 of a match of `explanation_pattern` in the prompt, so a
    prompt that states its explanation in other words than `Explanation: ...` needs another pattern. The oracle is
    no part of the model's name: label different ones (`oracle:LABEL`) if they share a reply cache.

    Replies are independent of order and thread, except those of `script`.

    Raises:
        UserError: no such model, or a script that cannot be read.
    """

    name = "fake"
    supports = frozenset({Chat, Choice, Likelihood, Embed})

    def __init__(
        self,
        model: str = "keyword",
        *,
        oracle: Oracle | None = None,
        explanation_pattern: str = EXPLANATION,
        concurrency: int = 1,
    ) -> None:
        self.model = "oracle" if oracle is not None and model == "keyword" else model
        self.concurrency = concurrency
        behaviour, _, argument = self.model.partition(":")
        if behaviour not in BEHAVIOURS:
            close = get_close_matches(behaviour, BEHAVIOURS, n=1)
            hint = f"; did you mean {close[0]}?" if close else ""
            raise UserError(f"the fake client has no model {model!r}; it has {', '.join(sorted(BEHAVIOURS))}{hint}")
        self._behaviour = BEHAVIOURS[behaviour](argument, oracle, explanation_pattern)
        self._answers: dict[type, Callable[[Any], Reply]] = {
            Chat: self._chat,
            Choice: self._choice,
            Likelihood: self._likelihood,
            Embed: self._embed,
        }

    def __repr__(self) -> str:
        return f"FakeClient(model={self.model!r})"

    async def answer(self, requests: Sequence[Request]) -> list[Reply]:
        """One reply or `Failure` per request, in their order."""
        return [self.reply(request) for request in requests]

    async def close(self) -> None:
        """Nothing to close."""

    def reply(self, request: Request) -> Reply:
        """The reply to one request, without an event loop. Thread-safe."""
        answer = self._answers.get(type(request))
        if answer is None:
            return Failure("error", f"the fake client cannot answer {type(request).__name__} requests")
        return answer(request)

    def logprobs(self, pieces: Sequence[str]) -> list[float]:
        """Nats of each piece of a text after those before it: the `Likelihood` of each, in one pass if possible."""
        apart = all(a[-1].isspace() or b[0].isspace() for a, b in pairwise(filter(None, pieces)))
        # Pieces of one word would have to be put together before they are compared.
        if self._behaviour.along is not None and apart:
            return self._behaviour.along(pieces)
        texts = accumulate(pieces, initial="")
        return [sum(self._behaviour.likelihood(Likelihood(*pair))) for pair in zip(texts, pieces, strict=False)]

    def _chat(self, request: Chat) -> Reply:
        said = self._behaviour.chat(request)
        prompt = sum(_count(message.content) for message in request.messages)
        if isinstance(said, Failure):
            return replace(said, usage=Usage(prompt))
        length = self._behaviour.length
        return ChatReply(said, Usage(prompt, _count(said) if length is None else length(request)))

    def _choice(self, request: Choice) -> Reply:
        usage = Usage(sum(_count(message.content) for message in request.messages))
        return ChoiceReply(self._behaviour.choice(request), usage)

    def _likelihood(self, request: Likelihood) -> Reply:
        usage = Usage(_count(request.prompt) + _count(request.text))
        return LikelihoodReply(self._behaviour.likelihood(request), usage)

    def _embed(self, request: Embed) -> Reply:
        return EmbedReply(self._behaviour.embed(request), Usage(_count(request.text)))


DEFAULT_MODEL = "keyword"
"""Asked where none is named."""


def create(
    model: str = "keyword", *, base_url: str | None = None, max_concurrency: int = 1, **options: Any
) -> FakeClient:
    """The registry's door. `options`: `oracle`, `explanation_pattern`.

    Raises:
        UserError: see `FakeClient`; also for a `base_url`, since the fake client would ignore it.
    """
    if base_url is not None:
        raise UserError("the fake client asks no server: drop --base-url, or use --client openai")
    # A script is read in order, and units in flight together have none.
    return FakeClient(model, concurrency=1 if model.startswith("script:") else max_concurrency, **options)


def keyword(argument: str = "", oracle: Oracle | None = None, pattern: str = EXPLANATION) -> Behaviour:
    """Matches words. `oracle` is ignored."""
    chat, choice = chat_with(mentions, EXPLANATION), choice_with(mentions, EXPLANATION, first_in_prompt)
    return Behaviour(chat, choice, words_in_prompt, bag_of_words, along=words_so_far)


def constant(argument: str = "", oracle: Oracle | None = None, pattern: str = EXPLANATION) -> Behaviour:
    """Says 1, `a constant` and the same numbers whatever is asked."""
    answers: dict[str, Callable[[str, int], Any]] = {
        "answers": lambda _, n: {"answers": [1] * n},
        "explanation": lambda *_: {"explanation": "a constant"},
    }
    return Behaviour(
        chat=lambda request: by_schema(request, answers, otherwise="a constant"),
        choice=lambda request: tuple(1 / len(request.choices) for _ in request.choices),
        likelihood=lambda request: tuple((LIKELY + UNLIKELY) / 2 for _ in request.text.split()),
        embed=lambda request: bag_of_words(Embed("")),
    )


def script(argument: str = "", oracle: Oracle | None = None, pattern: str = EXPLANATION) -> Behaviour:
    """Chat replies from the JSONL file `argument`; everything else as `keyword`."""
    replies = deque(_read_script(Path(argument)))

    def chat(request: Chat) -> str | Failure:
        try:
            return replies.popleft()  # atomic, so threads may share the script
        except IndexError:
            return Failure("error", f"the script {argument} is exhausted")

    return replace(keyword(), chat=chat)


def lengths(argument: str = "", oracle: Oracle | None = None, pattern: str = EXPLANATION) -> Behaviour:
    """Chats of as many words as drawn from the request and the seed `argument`; everything else as `keyword`."""

    def length(request: Chat) -> int:
        digest = hashlib.sha256(f"{argument}:{fingerprint(request)}".encode()).digest()
        return 1 + int.from_bytes(digest[:8], "big") % request.max_tokens

    def chat(request: Chat) -> str | Failure:
        if request.schema is not None:
            # JSON that obeys a schema cannot have any number of words.
            return keyword().chat(request)
        return " ".join([fingerprint(request), *(f"word{i}" for i in range(2, length(request) + 1))])

    return replace(keyword(), chat=chat, length=length)


def judged(argument: str = "", oracle: Oracle | None = None, pattern: str = EXPLANATION) -> Behaviour:
    """Detection, simulation and likelihoods by `oracle`; everything else as `keyword`. `argument` is only a label."""
    if oracle is None:
        raise UserError("the fake model oracle works from Python only: FakeClient(oracle=function)")
    judge = oracle

    def likelihood(request: Likelihood) -> tuple[float, ...]:
        explanations = (match.group(1).strip() for match in re.finditer(pattern, request.prompt))
        matches = any(judge(explanation, request.text) for explanation in explanations)
        return tuple(LIKELY if matches else UNLIKELY for _ in request.text.split())

    chat, choice = chat_with(judge, pattern), choice_with(judge, pattern, first_in_prompt)
    return replace(keyword(), chat=chat, choice=choice, likelihood=likelihood, along=None)


BEHAVIOURS: dict[str, Callable[[str, Oracle | None, str], Behaviour]] = {
    "keyword": keyword,
    "constant": constant,
    "lengths": lengths,
    "script": script,
    "oracle": judged,
}
"""By the part of the model's name before `:`. Each is called with the rest, the oracle and the pattern."""


def first_in_prompt(request: Choice) -> tuple[float, ...]:
    """0.9 for the first choice whose text the conversation contains, the rest shared; equal shares if there is none."""
    prompt = "\n".join(message.content for message in request.messages).casefold()
    n = len(request.choices)
    hit = next((i for i, choice in enumerate(request.choices) if choice.strip().casefold() in prompt), None)
    return tuple(1 / n if hit is None else 0.9 if i == hit else 0.1 / (n - 1) for i in range(n))


def words_in_prompt(request: Likelihood) -> tuple[float, ...]:
    """Log-probability of each white-space separated word of the text: `LIKELY` if the prompt contains the word."""
    known = {_bare(word) for word in request.prompt.split()}
    return tuple(LIKELY if _bare(word) in known else UNLIKELY for word in request.text.split())


def words_so_far(pieces: Sequence[str]) -> list[float]:
    """Log-probability of each piece: `words_in_prompt` with the pieces before it as the prompt."""
    known: set[str] = set()
    values = []
    for piece in pieces:
        words = [_bare(word) for word in piece.split()]
        values.append(sum((LIKELY if word in known else UNLIKELY for word in words), start=0.0))
        known.update(words)
    return values


def bag_of_words(request: Embed) -> tuple[float, ...]:
    """Counts of the lower-case words, hashed into `DIMENSIONS` places and of unit length."""
    counts = [0.0] * DIMENSIONS
    for word in request.text.lower().split():
        digest = hashlib.sha256(word.encode("utf-8", "surrogatepass")).digest()
        counts[int.from_bytes(digest[:4], "big") % DIMENSIONS] += 1
    if not any(counts):
        counts[0] = 1.0
    length = math.hypot(*counts)
    return tuple(count / length for count in counts)


def _read_script(path: Path) -> list[str | Failure]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read the script {path}: {error}; use --llm script:FILE.jsonl") from error
    return [_read_line(line, f"{path}:{number}") for number, line in enumerate(lines, start=1) if line.strip()]


def _read_line(line: str, where: str) -> str | Failure:
    try:
        entry = json.loads(line)
    except ValueError as error:
        raise UserError(f"{where}: not JSON: {error}") from error
    if isinstance(entry, dict) and isinstance(entry.get("text"), str):
        return str(entry["text"])
    if isinstance(entry, dict) and entry.get("failure") in get_args(FailureKind):
        return Failure(entry["failure"], str(entry.get("message", "scripted failure")))
    kinds = ", ".join(get_args(FailureKind))
    raise UserError(
        f'{where}: has to be {{"text": ...}} or {{"failure": KIND, "message": ...}} with KIND one of {kinds}'
    )


@lru_cache(maxsize=65_536)
def _bare(word: str) -> str:
    return re.sub(r"^\W+|\W+$", "", word).lower() or word


def _count(text: str) -> int:
    return len(text.split())
