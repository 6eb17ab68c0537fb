"""A real vLLM, as a server and in this process, against transformers on the same weights."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from itertools import islice
from typing import Any

import pytest

from autointerp.clients.hf import HFClient
from autointerp.collect.docstrings import docstrings
from autointerp.engine.ask import answer_all
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
)

pytestmark = pytest.mark.vllm
both = pytest.mark.parametrize("client", ["openai", "vllm"], indirect=True)
in_process = pytest.mark.parametrize("client", ["vllm"], indirect=True)

NATS = 0.02
"""By which the log-probability of a token may differ from that of transformers."""
PROBABILITY = 0.005

PROMPTS = (
    "Here is a piece of documentation.\n\n",
    "A feature of a language model fires on some texts and stays silent on all others. It was described as follows.\n"
    "Explanation: names of parameters, and the types of values that functions take and return.\n"
    "Here is a text on which it fires.\nText:\n",
    "The text begins after this space: ",  # the tokenizer would join it with the text's first word
)
LONG_PROMPT = (
    "\n".join(
        f"{i}. Words of kind {i} tend to stand near words of kind {i + 1}, which is no more than a habit."
        for i in range(1, 16)
    )
    + "\n\n"
)
UNLIKELY = {
    "type": "object",
    "properties": {
        "code": {"type": "integer", "enum": [7319]},
        "answers": {"type": "array", "items": {"type": "integer", "enum": [0, 1]}, "minItems": 5, "maxItems": 5},
    },
    "required": ["code", "answers"],
    "additionalProperties": False,
}
"""A schema that no model obeys by chance."""
QUESTIONS = (
    ("Is the sky blue on a clear day? Answer with one word, Yes or No.", ("Yes", "No")),
    ("Is the sky blue on a clear day? Answer with one word, Yes or No.", ("No", "Yes")),
    ("Which letter comes first in the alphabet, A or B? Answer with that letter only.", ("A", "B")),
)


def said(text: str) -> tuple[Message, ...]:
    return (Message("user", text),)


def texts(n: int) -> list[str]:
    """Beginnings of docstrings."""
    return [text[:240] for text in islice(docstrings(7), n)]


def gap(replies: Sequence[Reply], others: Sequence[Reply]) -> float:
    """The largest difference of a token's log-probability, in nats."""
    largest = 0.0
    for reply, other in zip(replies, others, strict=True):
        assert isinstance(reply, LikelihoodReply), reply
        assert isinstance(other, LikelihoodReply), other
        pairs = zip(reply.token_logprobs, other.token_logprobs, strict=True)
        largest = max(largest, *(abs(a - b) for a, b in pairs))
    return largest


@both
def test_a_chat_is_answered_in_words_and_its_tokens_are_counted(client: Any) -> None:
    (reply,) = answer_all(client, [Chat(said("What is the capital of France?"), max_tokens=64)])
    assert isinstance(reply, ChatReply), reply
    assert "Paris" in reply.text
    assert reply.usage.prompt_tokens > 10
    assert 1 < reply.usage.completion_tokens <= 64


@both
def test_a_chat_obeys_a_schema_that_the_model_alone_would_not(client: Any) -> None:
    asked = said("Greet me with one short friendly sentence.")
    free, held = answer_all(client, [Chat(asked, 128), Chat(asked, 128, schema=UNLIKELY)])
    assert isinstance(free, ChatReply), free
    assert "7319" not in free.text
    assert isinstance(held, ChatReply), held
    value = json.loads(held.text)
    assert set(value) == {"code", "answers"}
    assert value["code"] == 7319
    assert len(value["answers"]) == 5 and set(value["answers"]) <= {0, 1}


@both
def test_the_sample_index_decides_what_is_sampled(client: Any) -> None:
    asked = said("Name an animal, in one short sentence.")
    replies = answer_all(client, [Chat(asked, 128, temperature=1.0, sample_index=i) for i in (1, 2, 3, 4)])
    again = answer_all(client, [Chat(asked, 128, temperature=1.0, sample_index=i) for i in (4, 3, 2, 1)])
    found = [getattr(reply, "text", reply) for reply in replies]
    assert found == [getattr(reply, "text", reply) for reply in reversed(again)]
    assert len(set(map(str, found))) > 1


@both
def test_probabilities_of_choices_are_those_of_transformers(client: Any, reference: HFClient) -> None:
    requests = [Choice(said(question), choices) for question, choices in QUESTIONS]
    replies, expected = answer_all(client, requests), answer_all(reference, requests)
    for reply, other in zip(replies, expected, strict=True):
        assert isinstance(reply, ChoiceReply), reply
        assert isinstance(other, ChoiceReply), other
        assert all(0 <= p <= 1 for p in reply.probabilities)
        assert reply.probabilities == pytest.approx(other.probabilities, abs=PROBABILITY)
    first, turned = replies[:2]
    assert isinstance(first, ChoiceReply) and isinstance(turned, ChoiceReply)
    assert first.probabilities == pytest.approx(turned.probabilities[::-1], abs=1e-4)


@both
@pytest.mark.parametrize("prompt", PROMPTS, ids=["short", "explanation", "ends in a space"])
def test_likelihoods_are_those_of_transformers(
    client: Any, reference: HFClient, prompt: str, record_property: Any
) -> None:
    requests = [Likelihood(prompt, text) for text in texts(50)]
    replies = answer_all(client, requests)
    largest = gap(replies, answer_all(reference, requests))
    record_property("nats_per_token", largest)
    assert largest < NATS


@both
def test_texts_under_one_prefix_are_scored_as_each_alone(client: Any, reference: HFClient) -> None:
    requests = [Likelihood(LONG_PROMPT, text) for text in texts(20)]
    shuffled = random.Random(3).sample(requests, len(requests))
    together = dict(zip(shuffled, answer_all(client, shuffled), strict=True))
    alone = [answer_all(client, [request])[0] for request in requests]
    replies = [together[request] for request in requests]
    assert gap(replies, alone) < 1e-3
    assert gap(replies, answer_all(reference, requests)) < NATS


@both
def test_what_does_not_fit_fails_alone(client: Any) -> None:
    long = "word " * 3000
    requests: list[Request] = [
        Chat(said(long)),
        Chat(said("What is the capital of France?")),
        Likelihood(long, "a text"),
        Likelihood("A prompt.\n", "a text"),
        Choice(said(long), ("A", "B")),
        Choice(said(QUESTIONS[2][0]), QUESTIONS[2][1]),
        Chat(said("Count from one to a hundred, in words."), max_tokens=4),
    ]
    replies = answer_all(client, requests)
    kinds = [reply.kind if isinstance(reply, Failure) else type(reply) for reply in replies]
    assert kinds == [
        "context_overflow", ChatReply, "context_overflow", LikelihoodReply, "context_overflow", ChoiceReply,
        "truncated",
    ]  # fmt: skip


@in_process
def test_answers_of_several_tokens_have_exact_probabilities(client: Any, reference: HFClient) -> None:
    choices = ("Yes", "No", "Yes, the sky is blue", "It depends on the weather", "No")
    requests = [Choice(said(question), choices) for question, _ in QUESTIONS]
    replies, expected = answer_all(client, requests), answer_all(reference, requests)
    for reply, other in zip(replies, expected, strict=True):
        assert isinstance(reply, ChoiceReply) and isinstance(other, ChoiceReply)
        assert reply.probabilities == pytest.approx(other.probabilities, rel=0.02)
        assert reply.usage.prompt_tokens == other.usage.prompt_tokens


@in_process
def test_a_text_that_is_in_the_prefix_cache_itself_is_computed_again(client: Any, reference: HFClient) -> None:
    long = LONG_PROMPT.strip()
    requests = [Likelihood("Rules:", f"\n{long}"), Likelihood("Rules:", f"\n{long}\nThat is all.")]
    expected = answer_all(reference, requests)
    assert all(len(reply.token_logprobs) > 256 for reply in expected if isinstance(reply, LikelihoodReply))
    for _ in range(2):
        assert gap(answer_all(client, requests), expected) < NATS


@in_process
def test_the_prefix_cache_serves_texts_under_one_prompt(client: Any) -> None:
    requests = [Likelihood(f"A second list.\n{LONG_PROMPT}", text) for text in texts(4)]
    cached = sorted(reply.usage.cached_tokens for reply in answer_all(client, requests))
    assert cached[0] == 0
    assert cached[1] >= 256


@in_process
def test_what_vllm_refuses_fails_alone(client: Any) -> None:
    asked = said("What is the capital of France?")
    requests: list[Request] = [
        Chat(asked, 32, schema={"type": "nonsense"}),
        Chat(asked, 32),
        Chat(asked, 0),
        Chat(asked, 32, temperature=-1.0),
        Chat((), 32),
        Choice(asked, ()),
        Likelihood("", "a text"),
        Likelihood("a prompt \ud800", "a text"),
        Likelihood("A prompt.\n", "a text"),
    ]
    replies = answer_all(client, requests)
    kinds = [reply.kind if isinstance(reply, Failure) else type(reply) for reply in replies]
    assert kinds == [
        "rejected", ChatReply, "rejected", "rejected", "rejected", "empty", "empty", "rejected", LikelihoodReply,
    ]  # fmt: skip
