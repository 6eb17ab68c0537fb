"""In-process transformers: chat, probabilities of given answers, and exact teacher-forced likelihoods.

This module turns requests into tokens and results into replies. Requests that share a prompt share its prefill.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from autointerp.clients._batches import by_length
from autointerp.clients._conversations import written_out
from autointerp.clients._teacher_forced import CACHE_TOKENS, halving, teacher_forced
from autointerp.seeds import derive
from autointerp.subject.generate import Continuation, Prompt, generate, stop_ids
from autointerp.subject.load import SubjectModel, load_subject
from prompts.requests import (
    Chat,
    ChatReply,
    Choice,
    ChoiceReply,
    Failure,
    Likelihood,
    LikelihoodReply,
    Message,
    Reply,
    Request,
    Usage,
    fingerprint,
)

Encoded = list[int] | Failure


class HFClient:
    """A causal LM in this process. A loaded subject model can be shared.

    Conversations go through the tokenizer's chat template; without one, the messages' contents are joined by blank
    lines. A chat's JSON schema cannot be enforced here and is ignored: whoever asks has to parse, and ask again.
    A batch that fails, as for want of memory, is halved and tried again; a request that fails alone is a
    `Failure("error")`.
    """

    name = "hf"
    supports: frozenset[type] = frozenset({Chat, Choice, Likelihood})
    concurrency = 16
    """Units of work whose chats are generated together."""

    def __init__(self, subject: SubjectModel) -> None:
        self.subject = subject
        self.model = subject.label
        self.identity = f"hf {subject.fingerprint} {subject.model.dtype}"
        self.context = getattr(subject.model.config, "max_position_embeddings", None) or 10**9

    async def answer(self, requests: Sequence[Request]) -> list[Reply]:
        """One reply or `Failure` per request, in their order. Never raises."""
        replies: list[Reply] = [Failure("error", f"the hf client cannot answer {type(r).__name__}") for r in requests]
        kinds: tuple[tuple[type, Callable[[Any], list[Reply]]], ...] = (
            (Chat, self.chats), (Choice, self.choices), (Likelihood, self.likelihoods)
        )  # fmt: skip
        for kind, method in kinds:
            mine = [i for i, request in enumerate(requests) if isinstance(request, kind)]
            for i, reply in zip(mine, method([requests[i] for i in mine]), strict=True):
                replies[i] = reply
        return replies

    async def close(self) -> None:
        return None

    def chats(self, requests: Sequence[Chat]) -> list[Reply]:
        """Answers, each drawn under a seed of its own request: order and company change nothing.

        An answer ends with a token that ends texts for this model; one that `max_tokens` cuts off is a
        `Failure("truncated")`, one of white space only a `Failure("empty")`. Completion tokens count the end token.
        """
        conversations = self._conversations(request.messages for request in requests)
        replies: dict[int, Reply] = {}
        prompts: list[Prompt] = []
        asked: list[int] = []
        for i, request in enumerate(requests):
            ids = conversations[request.messages]
            failure = _senseless(request) or self._unusable(ids, request.max_tokens)
            if failure:
                replies[i] = failure
                continue
            assert not isinstance(ids, Failure)
            seed = derive(0, "chat", fingerprint(request))
            prompts.append(Prompt(tuple(ids), request.max_tokens, request.temperature, seed))
            asked.append(i)
        stop = stop_ids(self.subject)

        def run(batch: list[int]) -> list[Reply]:
            wanted = [prompts[b] for b in batch]
            return list(map(self._chat_reply, wanted, generate(self.subject, wanted, stop)))

        for batch in by_length([len(prompt.tokens) + prompt.max_tokens for prompt in prompts], CACHE_TOKENS):
            replies.update(zip([asked[b] for b in batch], halving(run, batch), strict=True))
        return [replies[i] for i in range(len(requests))]

    def _chat_reply(self, prompt: Prompt, found: Continuation) -> Reply:
        usage = Usage(len(prompt.tokens), len(found.tokens) + found.ended)
        if not found.ended:
            return Failure("truncated", f"the answer did not end within {prompt.max_tokens} tokens", usage)
        text: str = self.subject.tokenizer.decode(
            list(found.tokens), skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return ChatReply(text, usage) if text.strip() else Failure("empty", "the answer has no text", usage)

    def choices(self, requests: Sequence[Choice]) -> list[Reply]:
        """Exact probabilities of the answers' own tokens after the conversation; what may follow them is open.

        Prompt tokens are those of the conversation, once, and of all its answers.
        """
        conversations = self._conversations(request.messages for request in requests)
        pairs = [(request.messages, self._encode(c, special=False)) for request in requests for c in request.choices]
        scored = iter(self._scored(conversations, pairs, bound_cache=True))
        replies: list[Reply] = []
        for request in requests:
            answers = [next(scored) for _ in request.choices]
            failure = next((answer for answer in answers if isinstance(answer, Failure)), None)
            found = [answer for answer in answers if isinstance(answer, LikelihoodReply)]
            if failure or not found:
                replies.append(failure or Failure("empty", "there are no answers to choose from"))
                continue
            sizes = [len(answer.token_logprobs) for answer in found]
            usage = Usage(prompt_tokens=found[0].usage.prompt_tokens - sizes[0] + sum(sizes))
            replies.append(ChoiceReply(tuple(math.exp(answer.logprob) for answer in found), usage))
        return replies

    def likelihoods(self, requests: Sequence[Likelihood]) -> list[Reply]:
        """Log-probabilities of each text's tokens, in nats. Prompt tokens are those of prompt and text."""
        prompts = {p: self._encode(p, special=True) for p in dict.fromkeys(request.prompt for request in requests)}
        pairs = [(request.prompt, self._encode(request.text, special=False)) for request in requests]
        return list(self._scored(prompts, pairs, bound_cache=False))

    def _scored(
        self, prompts: dict[Any, Encoded], pairs: Sequence[tuple[Any, Encoded]], *, bound_cache: bool
    ) -> list[LikelihoodReply | Failure]:
        """Replies for pairs of (key of the prompt, text)."""
        number = {key: i for i, key in enumerate(prompts)}
        results: dict[int, list[float] | Failure] = {}
        texts: dict[int, tuple[int, list[int]]] = {}
        for i, (key, ids) in enumerate(pairs):
            failure = self._unusable(prompts[key], ids)
            if failure:
                results[i] = failure
            else:
                assert not isinstance(ids, Failure)
                texts[i] = (number[key], ids)
        heads = [[] if isinstance(ids, Failure) else ids for ids in prompts.values()]
        results.update(teacher_forced(self.subject, heads, texts, bound_cache=bound_cache))
        replies: list[LikelihoodReply | Failure] = []
        for i in range(len(pairs)):
            result = results[i]
            if not isinstance(result, Failure):
                usage = Usage(prompt_tokens=len(heads[texts[i][0]]) + len(result))
                replies.append(LikelihoodReply(tuple(result), usage))
            else:
                replies.append(result)
        return replies

    def _conversations(self, asked: Iterable[tuple[Message, ...]]) -> dict[tuple[Message, ...], Encoded]:
        return {messages: self._conversation(messages) for messages in dict.fromkeys(asked)}

    def _conversation(self, messages: Sequence[Message]) -> Encoded:
        """Tokens up to where the assistant speaks."""
        try:
            text, special = written_out(self.subject.tokenizer, messages)
        except Exception as error:  # templates raise what they like, e.g. for a role that they do not know
            return Failure("rejected", f"the chat template refuses these messages: {error}")
        return self._encode(text, special=special)

    def _encode(self, text: str, *, special: bool) -> Encoded:
        try:
            ids: list[int] = self.subject.tokenizer(text, add_special_tokens=special, verbose=False)["input_ids"]
        except (TypeError, ValueError) as error:  # e.g. half of a surrogate pair, which is no text
            return Failure("rejected", f"the tokenizer refuses this text: {error}")
        return ids

    def _unusable(self, prompt: Encoded, text: Encoded | int) -> Failure | None:
        """`text` is what follows the prompt, or how many tokens may."""
        if isinstance(prompt, Failure):
            return prompt
        if isinstance(text, Failure):
            return text
        length = text if isinstance(text, int) else len(text)
        if not prompt or not length:
            what = "prompt" if isinstance(text, int) else "prompt or the text to score"
            return Failure("empty", f"the {what} has no tokens")
        if len(prompt) + length > self.context:
            return Failure(
                "context_overflow", f"{len(prompt) + length} tokens do not fit the model's context of {self.context}"
            )
        return None


def _senseless(request: Chat) -> Failure | None:
    if request.max_tokens < 1:
        return Failure("rejected", f"max_tokens is {request.max_tokens}; an answer needs at least 1")
    if not (math.isfinite(request.temperature) and request.temperature >= 0):
        return Failure("rejected", f"temperature is {request.temperature}; it has to be a number of at least 0")
    return None


TAKES = ("device", "dtype")
"""Settings of a run that `create` takes."""


def create(model: str, *, device: str = "cpu", dtype: str = "float32", **_: Any) -> HFClient:
    """A client for a model folder or hub id.

    Raises:
        UserError: the model cannot be loaded.
    """
    return HFClient(load_subject(model, device=device, dtype=dtype))
