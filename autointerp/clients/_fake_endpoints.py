"""What the fake server's paths answer: OpenAI's chat, completions and embeddings, and vLLM's tokenize."""

from __future__ import annotations

import base64
import itertools
import json
import math
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from autointerp.clients._fake_faults import NO_SUCH_PATH, SCRIPTED, Fault, Said, completion, counts
from autointerp.clients._fake_tokens import PrefixCache, Vocabulary, pieces
from autointerp.clients.fake import FakeClient
from prompts.requests import (
    Chat,
    ChatReply,
    Choice,
    ChoiceReply,
    Embed,
    EmbedReply,
    Failure,
    Likelihood,
    LikelihoodReply,
    Message,
    Usage,
)
from prompts.schemas import instance

CANDIDATES = ("0", "1", "yes", "no", "true", "false", "A", "B", "C", "D")
"""What a chat of one token with log-probs chooses from."""

DEFAULT_TOKENS = 256
MOST_TOP_LOGPROBS = 20
IMPOSSIBLE = -9999.0
"""OpenAI's log-prob of what cannot come."""

IMITATIONS = {
    "shifted_logprobs": "echoed log-probs are of the token as if it came once more, one position late (llama_cpp)",
    "schema_ignored": "response_format is accepted, and the answer is prose",
    "schema_refused": "HTTP 500 on response_format",
    "no_logprobs": "log-probs are silently absent",
    "seed_ignored": "the seed has no effect; answers at a temperature above 0 never come twice",
    "n_ignored": "one choice, whatever n",
    "no_completions": "404 on /v1/completions",
    "no_tokenize": "404 on /tokenize",
}
"""Habits of real servers by name."""

Body = Mapping[str, Any]


class Endpoints:
    """The answers of one server. `context_length` is in tokens, which are words here."""

    def __init__(self, client: FakeClient, imitate: frozenset[str], context_length: int) -> None:
        self.client = client
        self.imitate = imitate
        self.context_length = context_length
        self._cache = PrefixCache()
        self._vocabulary = Vocabulary()
        self._fresh = itertools.count(1_000_000)
        self._posts: dict[str, Callable[[Body], dict[str, Any] | Fault]] = {
            "/v1/chat/completions": self.chat,
            "/v1/embeddings": self.embed,
        }
        if "no_completions" not in imitate:
            self._posts["/v1/completions"] = self.complete
        if "no_tokenize" not in imitate:
            self._posts["/tokenize"] = self._posts["/v1/tokenize"] = self.tokenize

    def post(self, path: str, body: Body) -> dict[str, Any] | Fault:
        """The answer to a POST; a body that makes no sense is a 400."""
        answer = self._posts.get(path)
        if answer is None:
            return NO_SUCH_PATH
        try:
            return answer(body)
        except (AttributeError, LookupError, TypeError, ValueError) as error:
            return Fault(status=400, message=f"bad request: {type(error).__name__}: {error}")

    def models(self) -> dict[str, Any]:
        """GET /v1/models."""
        name = self.client.model
        model = {"id": name, "object": "model", "created": 0, "owned_by": "autointerp", "root": name, "parent": None}
        return {"object": "list", "data": [{**model, "max_model_len": self.context_length}]}

    def chat(self, body: Body) -> dict[str, Any] | Fault:
        """POST /v1/chat/completions."""
        if body.get("stream"):
            raise ValueError("the fake server does not stream")
        messages = tuple(Message(message["role"], _plain(message["content"])) for message in body["messages"])
        words = [word for message in messages for word in message.content.split()]
        limit = body.get("max_completion_tokens") or body.get("max_tokens")
        too_long = self._too_long(len(words), limit or 0)
        if too_long:
            return too_long
        wanted = body.get("response_format") or {}
        if wanted and "schema_refused" in self.imitate:
            return Fault(message="response_format is not supported by this model")
        schema = wanted["json_schema"]["schema"] if wanted.get("type") == "json_schema" else None
        ignored = schema is not None and "schema_ignored" in self.imitate
        temperature, top = _temperature(body), _top_logprobs(body)
        request = Chat(messages, limit or DEFAULT_TOKENS, temperature, None if ignored else schema)
        one_token = limit == 1 and top is not None
        choices, completion_tokens = [], 0
        for index in self._sample_indices(body, temperature):
            if one_token:
                choices.append(self._choose(messages, top or 0))
                completion_tokens += 1
                continue
            reply = self.client.reply(replace(request, sample_index=index))
            if not isinstance(reply, ChatReply):
                return _as_fault(reply)
            text = f"Sure! I have thought about it. {reply.text}" if ignored else self._obeying(reply.text, request)
            choices.append(Said(text, logprobs=self._chat_logprobs(words, text) if top is not None else None))
            completion_tokens += reply.usage.completion_tokens
        return completion(choices, self._usage(words, completion_tokens), str(body["model"]))

    def complete(self, body: Body) -> dict[str, Any] | Fault:
        """POST /v1/completions, for one prompt: a string or a list of token ids.

        Log-probs are those of a model that reads from left to right: the `Likelihood` of each token after all text
        before it, be it of the prompt or generated. The first token of an echoed prompt has none, and offsets are
        those in the text of the choice, both as in vLLM.
        """
        if body.get("stream"):
            raise ValueError("the fake server does not stream")
        prompt, limit = self._read_prompt(body["prompt"]), int(_given(body, "max_tokens", 16))
        if limit < 0:
            raise ValueError(f"max_tokens has to be at least 0, got {limit}")
        too_long = self._too_long(len(prompt), limit)
        if too_long:
            return too_long
        text, temperature, echo = "".join(prompt), _temperature(body), bool(body.get("echo"))
        choices, completion_tokens = [], 0
        for i, index in enumerate(self._sample_indices(body, temperature)):
            words: list[str] = []
            if limit:
                # The limit is no part of the request, so that a longer completion begins with a shorter one.
                said = self.client.reply(Chat((Message("user", text),), DEFAULT_TOKENS, temperature, None, index))
                if not isinstance(said, ChatReply):
                    return _as_fault(said)
                # Without a space the prompt's last word and the first new one would be one token when echoed.
                words = pieces(said.text if text[-1].isspace() else f" {said.text.lstrip()}")
            new = words[:limit]
            shown, before = (prompt + new, "") if echo else (new, text)
            logprobs = self._completion_logprobs(shown, before) if body.get("logprobs") is not None else None
            reason = "length" if len(words) > limit or not limit else "stop"
            choices.append({"index": i, "text": "".join(shown), "logprobs": logprobs, "finish_reason": reason})
            completion_tokens += len(new)
        head = {"id": "cmpl-fake", "object": "text_completion", "created": 0, "model": str(body["model"])}
        return {**head, "choices": choices, "usage": counts(self._usage(prompt, completion_tokens))}

    def embed(self, body: Body) -> dict[str, Any]:
        """POST /v1/embeddings."""
        texts = [body["input"]] if isinstance(body["input"], str) else list(body["input"])
        if not texts or not all(isinstance(text, str) for text in texts):
            raise ValueError("input has to be a string or a list of strings")
        replies = [reply for reply in map(self.client.reply, map(Embed, texts)) if isinstance(reply, EmbedReply)]
        data = []
        for i, reply in enumerate(replies):
            packed = base64.b64encode(struct.pack(f"<{len(reply.vector)}f", *reply.vector)).decode()
            vector = packed if body.get("encoding_format") == "base64" else reply.vector
            data.append({"object": "embedding", "index": i, "embedding": vector})
        usage = counts(Usage(sum(reply.usage.prompt_tokens for reply in replies)))
        return {"object": "list", "model": str(body["model"]), "data": data, "usage": usage}

    def tokenize(self, body: Body) -> dict[str, Any]:
        """POST /tokenize. There are no special tokens to add."""
        if not isinstance(body["prompt"], str):
            raise ValueError("prompt has to be a string")
        ids = self._vocabulary.encode(body["prompt"])
        return {"count": len(ids), "max_model_len": self.context_length, "tokens": ids, "token_strs": None}

    def _read_prompt(self, prompt: Any) -> list[str]:
        """Tokens of the prompt of a completion."""
        if isinstance(prompt, str):
            tokens = pieces(prompt)
        elif isinstance(prompt, list) and all(type(i) is int for i in prompt):
            tokens = self._vocabulary.decode(prompt)
        else:
            raise ValueError("prompt has to be one string or one list of token ids")
        if not tokens:
            raise ValueError("prompt is empty")
        return tokens

    def _too_long(self, prompt_tokens: int, max_tokens: int) -> Fault | None:
        asked = prompt_tokens + max_tokens
        if asked <= self.context_length:
            return None
        message = (
            f"This model's maximum context length is {self.context_length} tokens. However, you requested {asked} "
            f"tokens ({prompt_tokens} in the prompt, {max_tokens} in the completion)."
        )
        return Fault(status=400, message=message, code="context_length_exceeded")

    def _sample_indices(self, body: Body, temperature: float) -> list[int]:
        """`Chat.sample_index` of each choice. Greedy choices are all the same."""
        n = 1 if "n_ignored" in self.imitate else int(_given(body, "n", 1))
        if n < 1:
            raise ValueError(f"n has to be at least 1, got {n}")
        if temperature == 0:
            return [0] * n
        if "seed_ignored" in self.imitate:
            return list(itertools.islice(self._fresh, n))
        seed = int(_given(body, "seed", 0))
        return list(range(seed, seed + n))

    def _usage(self, prompt: Sequence[str], completion_tokens: int) -> Usage:
        return Usage(len(prompt), completion_tokens, self._cache.read(prompt))

    def _obeying(self, text: str, request: Chat) -> str:
        """`text`, or JSON in its place where the fake model has nothing to say to the schema."""
        if request.schema is None or text.startswith("{") or self.client.model.startswith("script:"):
            return text
        return json.dumps(instance(request.schema))

    def _choose(self, messages: tuple[Message, ...], top: int) -> Said:
        """The likeliest candidate as a text of one token, with the distribution over all of them."""
        reply = self.client.reply(Choice(messages, CANDIDATES))
        if not isinstance(reply, ChoiceReply):
            raise ValueError(f"no choice but {reply}")
        pairs = zip(CANDIDATES, reply.probabilities, strict=True)
        ranked = sorted(((token, math.log(p) if p > 0 else IMPOSSIBLE) for token, p in pairs), key=lambda x: -x[1])
        if "no_logprobs" in self.imitate:
            return Said(ranked[0][0], "length")
        return Said(ranked[0][0], "length", {"content": [_token_logprob(ranked[0], ranked[:top])], "refusal": None})

    def _chat_logprobs(self, words: Sequence[str], text: str) -> dict[str, Any] | None:
        """Of each token after the conversation and what comes before it."""
        if "no_logprobs" in self.imitate:
            return None
        tokens = pieces(text)
        values = self.client.logprobs([" ".join(words) + " ", *tokens])[1:]
        content = [_token_logprob(pair, [pair]) for pair in zip(tokens, values, strict=True)]
        return {"content": content, "refusal": None}

    def _completion_logprobs(self, tokens: Sequence[str], before: str) -> dict[str, Any] | None:
        if "no_logprobs" in self.imitate:
            return None
        offsets = list(itertools.accumulate(map(len, tokens), initial=0))[: len(tokens)]
        values: list[float | None] = [*self.client.logprobs([before, *tokens])[1:]]
        if not before:
            if "shifted_logprobs" in self.imitate:
                upto = itertools.accumulate(tokens)
                values = [self._logprob(*pair) for pair in zip(upto, tokens, strict=True)]
            values[0] = None
        tops = [None if value is None else {token: value} for token, value in zip(tokens, values, strict=True)]
        return {"tokens": list(tokens), "token_logprobs": values, "text_offset": offsets, "top_logprobs": tops}

    def _logprob(self, before: str, token: str) -> float:
        reply = self.client.reply(Likelihood(before, token))
        if not isinstance(reply, LikelihoodReply):
            raise ValueError(f"no log-prob but {reply}")
        return reply.logprob


def _token_logprob(pair: tuple[str, float], top: Sequence[tuple[str, float]]) -> dict[str, Any]:
    """One entry of a chat's log-probs."""

    def entry(token: str, logprob: float) -> dict[str, Any]:
        return {"token": token, "logprob": logprob, "bytes": list(token.encode("utf-8", "replace"))}

    return {**entry(*pair), "top_logprobs": [entry(*other) for other in top]}


def _as_fault(reply: object) -> Fault:
    """A `Failure` of the fake model over HTTP."""
    if not isinstance(reply, Failure):
        return Fault(message=f"no text but {reply}")
    fault = SCRIPTED[reply.kind]
    return replace(fault, message=fault.message and reply.message)


def _given(body: Body, name: str, otherwise: Any) -> Any:
    value = body.get(name)
    return otherwise if value is None else value


def _temperature(body: Body) -> float:
    return float(_given(body, "temperature", 1.0))


def _top_logprobs(body: Body) -> int | None:
    """How many alternatives a chat wants to see per token; None if it wants no log-probs."""
    top = int(_given(body, "top_logprobs", 0))
    if not 0 <= top <= MOST_TOP_LOGPROBS:
        raise ValueError(f"top_logprobs has to be between 0 and {MOST_TOP_LOGPROBS}, got {top}")
    if top and not body.get("logprobs"):
        raise ValueError("top_logprobs needs logprobs")
    return top if body.get("logprobs") else None


def _plain(content: str | list[dict[str, Any]]) -> str:
    """The text of a message, which may come in parts."""
    return content if isinstance(content, str) else "".join(part["text"] for part in content)
