"""The transformers client: chat, answers to choose from, likelihoods, on tiny models and on the real one.

`chain` is a model whose every continuation is known: each word is followed by the next one of the vocabulary, and
the last by the end token. `attentive` is one whose next token hangs on all tokens before it.
"""

from __future__ import annotations

import asyncio
import copy
import itertools
import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import planted
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from autointerp.clients import _teacher_forced, hf
from autointerp.clients.hf import HFClient, create
from autointerp.errors import UserError
from autointerp.subject.generate import Prompt, generate, stop_ids
from autointerp.subject.load import SubjectModel, load_subject
from prompts.requests import (
    Chat,
    ChatReply,
    Choice,
    ChoiceReply,
    Embed,
    Failure,
    Likelihood,
    LikelihoodReply,
    Message,
    Reply,
    Request,
    Usage,
)

WORDS = [*planted.CONCEPTS, *planted.FILLER]
TEMPLATE = (
    "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    "{{ m['content'] }} of {% endfor %}{% if add_generation_prompt %}it is{% endif %}"
)


class Watched:
    """A model that notes the rows of every pass, and runs out of memory when `limit` says so."""

    def __init__(self, model: Any, limit: int = 10**9, times: int = 10**9, cached: bool | None = None) -> None:
        self.inner, self.limit, self.times, self.cached = model, limit, times, cached
        self.rows: list[int] = []
        self.raised = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def __call__(self, **inputs: Any) -> Any:
        rows = len(inputs["input_ids"])
        of_this_kind = self.cached is None or self.cached == ("past_key_values" in inputs)
        if rows > self.limit and self.raised < self.times and of_this_kind:
            self.raised += 1
            raise torch.OutOfMemoryError("no memory")
        self.rows.append(rows)
        return self.inner(**inputs)


def end_at(subject: SubjectModel, *tokens: str) -> SubjectModel:
    """The subject, whose generation config names these end tokens (an untold Llama config says 2, be that a word)."""
    config = subject.model.generation_config = copy.copy(subject.model.generation_config)
    config.eos_token_id = [planted.vocabulary()[token] for token in tokens]
    return subject


@pytest.fixture
def chain(world: Any) -> SubjectModel:
    subject = load_subject(str(world.model))
    following = subject.model.lm_head.weight
    following.zero_()
    words = planted.vocabulary()
    for word, after in itertools.pairwise([*(words["▁" + word] for word in WORDS), words["<sep>"]]):
        following[after, word] = 1.0
    return end_at(subject, "<sep>")


@pytest.fixture(scope="module")
def attentive(world: Any) -> SubjectModel:
    subject = load_subject(str(world.model))
    for block in subject.model.model.layers:
        block.self_attn.o_proj.weight.mul_(3e4)
    return end_at(subject, "<sep>", "▁river", "▁on")


@pytest.fixture(scope="module")
def real() -> SubjectModel:
    from autointerp.pipeline.demo_model import demo_subject

    return load_subject(str(demo_subject()))


@pytest.fixture(scope="module")
def texts() -> list[str]:
    from autointerp.collect.docstrings import docstrings

    return list(itertools.islice(docstrings(0), 100))


def ask(subject: SubjectModel, *requests: Request) -> list[Reply]:
    return asyncio.run(HFClient(subject).answer(requests))


def watched(subject: SubjectModel, **how: Any) -> tuple[SubjectModel, Watched]:
    model = Watched(subject.model, **how)
    return replace(subject, model=model), model


def user(text: str) -> tuple[Message, ...]:
    return (Message("user", text),)


def after(word: str) -> str:
    return " ".join(WORDS[WORDS.index(word) + 1 :])


def random_prompts(n: int, **options: Any) -> list[Prompt]:
    draw = torch.Generator().manual_seed(5)
    sizes = torch.randint(1, 40, (n, 2), generator=draw).tolist()
    return [
        Prompt(tuple(torch.randint(2, 42, (size,), generator=draw).tolist()), limit, **options) for size, limit in sizes
    ]


# Chat


def test_chats_say_what_the_model_says_whatever_their_company(chain: SubjectModel) -> None:
    words = ["she", "apple", "to", "with", "music", "are", "he", "a"]
    requests = [Chat(user("the river " * i + word), max_tokens=60) for i, word in enumerate(words)]
    replies = ask(chain, *requests)
    for i, (word, reply) in enumerate(zip(words, replies, strict=True)):
        assert isinstance(reply, ChatReply)
        assert reply.text.strip() == after(word)
        assert reply.usage == Usage(2 * i + 1, len(after(word).split()) + 1)
    assert ask(chain, *reversed(requests)) == replies[::-1]
    assert [ask(chain, request)[0] for request in requests] == replies


def test_each_answer_has_its_own_length_limit(chain: SubjectModel) -> None:
    requests = [Chat(user("be"), max_tokens=limit) for limit in (60, len(after("be").split()) + 1)]
    requests += [Chat(user("be"), max_tokens=limit) for limit in (len(after("be").split()), 1)]
    *ended, short, shortest = ask(chain, *requests)
    assert ended[0] == ended[1] and isinstance(ended[0], ChatReply)
    assert (
        isinstance(short, Failure) and short.kind == "truncated" and short.usage == Usage(1, len(after("be").split()))
    )
    assert isinstance(shortest, Failure) and shortest.kind == "truncated" and shortest.usage == Usage(1, 1)


def test_rows_that_have_ended_cost_no_more_passes(chain: SubjectModel) -> None:
    subject, model = watched(chain)
    ask(subject, *[Chat(user(word), max_tokens=60) for word in WORDS])
    steps = model.rows[1:]
    assert model.rows[0] == len(WORDS) and steps == sorted(steps, reverse=True) and steps[-1] <= 2
    # Answers of 1 to 40 tokens: half of the rows would be waste if all stayed to the end.
    needed = sum(range(len(WORDS)))
    assert len(steps) == len(WORDS) - 1 and needed <= sum(steps) <= 1.35 * needed


def test_batches_keep_to_the_budget(chain: SubjectModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hf, "CACHE_TOKENS", 5 * 61)
    subject, model = watched(chain)
    assert ask(subject, *[Chat(user(word), max_tokens=60) for word in WORDS]) == ask(
        chain, *[Chat(user(word), max_tokens=60) for word in WORDS]
    )
    assert max(model.rows) == 5


def test_batched_tokens_equal_those_of_single_rows(attentive: SubjectModel) -> None:
    prompts = random_prompts(40)
    stop = stop_ids(attentive)
    together = generate(attentive, prompts, stop)
    assert together == [generate(attentive, [prompt], stop)[0] for prompt in prompts]
    assert len({found.ended for found in together}) == 2
    # The test sees a cache of the wrong row only if a token hangs on the whole context.
    changed = [replace(prompt, tokens=(prompt.tokens[0] ^ 1, *prompt.tokens[1:])) for prompt in prompts]
    others = generate(attentive, [p for p in changed if len(p.tokens) > 3], stop)
    same = [found for found, prompt in zip(together, prompts, strict=True) if len(prompt.tokens) > 3]
    assert sum(a.tokens != b.tokens for a, b in zip(others, same, strict=True)) > 0.7 * len(same)


def test_greedy_tokens_equal_plain_passes_without_cache(attentive: SubjectModel) -> None:
    stop = stop_ids(attentive)
    prompts = random_prompts(12)
    for prompt, found in zip(prompts, generate(attentive, prompts, stop), strict=True):
        tokens, ended = list(prompt.tokens), False
        while not ended and len(tokens) < len(prompt.tokens) + prompt.max_tokens:
            with torch.no_grad():
                tokens.append(int(attentive.model(torch.tensor([tokens])).logits[0, -1].argmax()))
            ended = tokens[-1] in stop
        assert (list(found.tokens), found.ended) == (tokens[len(prompt.tokens) : len(tokens) - ended], ended)


def test_rows_that_wait_do_not_run_beyond_learned_positions(chain: SubjectModel) -> None:
    torch.manual_seed(0)
    sizes = {"vocab_size": 42, "n_positions": 32, "n_embd": 16, "n_layer": 1, "n_head": 2}
    ids = {"bos_token_id": 1, "eos_token_id": 1}
    subject = replace(chain, model=GPT2LMHeadModel(GPT2Config(**sizes, **ids)).eval())
    prompts = [Prompt((3,) * 31, 1), *(Prompt((i, 5), 30) for i in range(2, 12))]
    together = generate(subject, prompts, frozenset())
    assert [len(found.tokens) for found in together] == [1, *[30] * 10]
    assert together == [generate(subject, [prompt], frozenset())[0] for prompt in prompts]


def test_samples_depend_on_their_request_only(attentive: SubjectModel) -> None:
    requests = [
        Chat(user(" ".join(WORDS[i : i + 5])), max_tokens=200, temperature=1.5, sample_index=j)
        for i, j in itertools.product(range(6), range(4))
    ]
    together = ask(attentive, *requests)
    assert sum(isinstance(reply, ChatReply) for reply in together) > 12
    assert ask(attentive, *reversed(requests)) == together[::-1]
    assert [ask(attentive, request)[0] for request in requests] == together
    greedy = [replace(request, temperature=0.0) for request in requests]
    assert ask(attentive, *itertools.chain(*zip(requests, greedy, strict=True)))[::2] == together
    for i in range(0, len(together), 4):
        answers = [reply for reply in together[i : i + 4] if isinstance(reply, ChatReply)]
        assert len({answer.text for answer in answers}) == len(answers)
    assert ask(attentive, greedy[0]) == ask(attentive, replace(greedy[0], sample_index=9)), (
        "greedy answers have no seed"
    )


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_samples_have_the_softmax_s_distribution(attentive: SubjectModel, temperature: float) -> None:
    tokens, n = (3, 9, 17), 4000
    found = generate(attentive, [Prompt(tokens, 1, temperature, seed) for seed in range(n)], frozenset())
    seen = Counter(continuation.tokens[0] for continuation in found)
    with torch.no_grad():
        logits = attentive.model(torch.tensor([tokens])).logits[0, -1]
    for token, p in enumerate((logits / temperature).softmax(-1).tolist()):
        assert abs(seen[token] - n * p) < 4.5 * math.sqrt(n * p * (1 - p)) + 1


def test_equal_prompts_are_run_once(attentive: SubjectModel) -> None:
    subject, model = watched(attentive)
    requests = [Chat(user("the river is"), 5, 1.0, sample_index=i) for i in range(6)] + [Chat(user("a"), 5)]
    ask(subject, *requests)
    assert model.rows[:2] == [2, 7]


def test_any_end_token_ends(chain: SubjectModel) -> None:
    words = planted.vocabulary()
    stop = {words["<sep>"], words["▁doctor"], words["▁with"]}
    assert stop_ids(end_at(chain, "▁doctor", "▁with")) == stop, "the tokenizer's own end token is the third"
    chain.model.generation_config.eos_token_id = words["▁with"]
    assert stop_ids(chain) == {words["<sep>"], words["▁with"]}
    chain.model.generation_config.eos_token_id = None
    assert stop_ids(chain) == {words["<sep>"]}
    end_at(chain, "▁doctor", "▁with")
    first, second, third = ask(chain, *[Chat(user(word), max_tokens=60) for word in ("music", "in", "they")])
    assert isinstance(first, ChatReply) and first.text.strip() == "winter"
    assert isinstance(second, ChatReply) and second.text.strip() == "is was for on"
    assert isinstance(third, ChatReply) and third.text.strip() == after("they")


# Conversations, choices, likelihoods


@pytest.mark.parametrize("template", [None, TEMPLATE])
def test_choices_are_likelihoods_after_the_conversation(attentive: SubjectModel, template: str | None) -> None:
    tokenizer = copy.deepcopy(attentive.tokenizer)
    tokenizer.chat_template = template
    subject = replace(attentive, tokenizer=tokenizer)
    messages = (Message("user", "the apple"), Message("assistant", "was in"))
    prompt = "the apple of was in of it is" if template else "the apple\n\nwas in"
    answers = ("river", "to", "the python is in winter")
    choice, *apart = ask(subject, Choice(messages, answers), *[Likelihood(prompt, answer) for answer in answers])
    assert isinstance(choice, ChoiceReply)
    assert choice.probabilities == pytest.approx([math.exp(reply.logprob) for reply in apart], rel=1e-4)  # type: ignore[union-attr]
    assert choice.usage.prompt_tokens == len(tokenizer(prompt)["input_ids"]) + 7
    every = Choice(messages, tuple(WORDS))
    (reply,) = ask(subject, every)
    assert isinstance(reply, ChoiceReply) and 0.9 < sum(reply.probabilities) < 1 and len(set(reply.probabilities)) > 30


def test_a_template_s_prompt_is_what_a_chat_continues(chain: SubjectModel) -> None:
    chain.tokenizer.chat_template = TEMPLATE
    (reply,) = ask(chain, Chat(user("he"), 60))
    assert isinstance(reply, ChatReply) and reply.text.strip() == after("is") and reply.usage.prompt_tokens == 4


def test_choices_share_their_conversation_s_prefill(attentive: SubjectModel, monkeypatch: pytest.MonkeyPatch) -> None:
    subject, model = watched(attentive)
    requests = [Choice(user("the apple"), ("a", "of")), Choice(user("he"), ("a",)), Choice(user("the apple"), ("to",))]
    replies = ask(subject, *requests)
    assert model.rows == [2, 4]
    # One prompt of 100 tokens and answers of one: copies of the prompt are what has to be bounded.
    monkeypatch.setattr(_teacher_forced, "CACHE_TOKENS", 1030)
    many = Choice(user(" ".join(["river"] * 100)), tuple(WORDS))
    replies += ask(subject, many)
    assert max(model.rows) == 10
    assert_alike(replies, [ask(attentive, request)[0] for request in (*requests, many)])


def assert_alike(replies: Sequence[Reply], others: Sequence[Reply]) -> None:
    """Equal, but for the rounding of numbers that were computed in other company."""
    for reply, other in zip(replies, others, strict=True):
        if isinstance(reply, LikelihoodReply) and isinstance(other, LikelihoodReply):
            assert reply.token_logprobs == pytest.approx(other.token_logprobs, abs=1e-4, rel=0)
        elif isinstance(reply, ChoiceReply) and isinstance(other, ChoiceReply):
            assert reply.probabilities == pytest.approx(other.probabilities, rel=1e-3)
        else:
            assert reply == other
        assert reply.usage == other.usage


def unshared(subject: SubjectModel, prompt: str, text: str) -> list[float]:
    """Log-probabilities from one pass over the whole of prompt and text."""
    head = subject.tokenizer(prompt)["input_ids"]
    tail = subject.tokenizer(text, add_special_tokens=False)["input_ids"]
    with torch.inference_mode():
        logits = subject.model(torch.tensor([[*head, *tail]]), use_cache=False).logits[0, len(head) - 1 : -1]
    found: list[float] = logits.log_softmax(-1).gather(1, torch.tensor(tail)[:, None])[:, 0].tolist()
    return found


def assert_shared_equals_unshared(subject: SubjectModel, requests: Sequence[Likelihood]) -> None:
    for request, reply in zip(requests, ask(subject, *requests), strict=True):
        assert isinstance(reply, LikelihoodReply)
        assert reply.token_logprobs == pytest.approx(unshared(subject, request.prompt, request.text), abs=1e-4, rel=0)


def test_shared_likelihoods_equal_unshared_ones(attentive: SubjectModel) -> None:
    draw = torch.Generator().manual_seed(1)
    windows = [" ".join(WORDS[i] for i in torch.randint(0, 40, (n,), generator=draw)) for n in [*range(1, 33)] * 3]
    assert_shared_equals_unshared(attentive, [Likelihood("the python and the river " * 12, text) for text in windows])


# Failures


def test_bad_requests_fail_alone(chain: SubjectModel) -> None:
    chain.tokenizer.chat_template = TEMPLATE
    good = Chat(user("he"), 60)
    bad: list[tuple[Request, str, str]] = [
        (Chat(user("he"), 3), "truncated", "within 3 tokens"),
        (Chat(user("he"), 300), "context_overflow", "304 tokens .* 256"),
        (Chat(user("he"), 0), "rejected", "max_tokens is 0"),
        (Chat(user("he"), temperature=-1.0), "rejected", "temperature"),
        (Chat(user("he"), temperature=math.nan), "rejected", "temperature"),
        (Chat((Message("system", "he"),)), "rejected", "no system role"),
        (Chat(user("\ud800"), 60), "rejected", "tokenizer"),
        (Choice(user("he"), ("a", "")), "empty", "no tokens"),
        (Choice(user("he"), ()), "empty", "no answers"),
        (Choice(user("he"), ("a", "of " * 300)), "context_overflow", "256"),
        (Choice((Message("system", "he"),), ("a",)), "rejected", "no system role"),
        (Choice(user("he"), ("a", "\ud800")), "rejected", "tokenizer"),
        (Likelihood("", "a"), "empty", "no tokens"),
        (Likelihood("a", ""), "empty", "no tokens"),
        (Likelihood("a", " ".join(["of"] * 300)), "context_overflow", "301 tokens"),
        (Likelihood("\ud800", "a"), "rejected", "tokenizer"),
        (Embed("a"), "error", "Embed"),
    ]
    asked = list(itertools.chain(*((good, request) for request, _, _ in bad)))
    replies = ask(chain, *asked)
    assert set(replies[::2]) == {ask(chain, good)[0]} and isinstance(replies[0], ChatReply)
    for (_, kind, said), reply in zip(bad, replies[1::2], strict=True):
        assert isinstance(reply, Failure) and reply.kind == kind and re.search(said, reply.message), reply
    assert ask(chain) == []


def test_the_context_may_be_filled_to_its_end(chain: SubjectModel) -> None:
    def of(n: int) -> str:
        return " ".join(["of"] * n)

    fits = ask(chain, Chat(user("he"), 255), Choice(user("he"), (of(255),)), Likelihood("he", of(255)))
    assert [type(reply) for reply in fits] == [ChatReply, ChoiceReply, LikelihoodReply]
    for reply in ask(chain, Chat(user("he"), 256), Choice(user("he"), (of(256),)), Likelihood("he", of(256))):
        assert isinstance(reply, Failure) and reply.kind == "context_overflow"


def test_an_answer_without_text_is_empty(chain: SubjectModel) -> None:
    empty, prompt = ask(chain, Chat(user("his"), 5), Chat((), 5))
    assert isinstance(empty, Failure) and empty.kind == "empty" and empty.usage == Usage(1, 1)
    assert isinstance(prompt, Failure) and prompt.kind == "empty" and prompt.usage == Usage()
    (space,) = ask(replace(chain, tokenizer=Blank(chain.tokenizer)), Chat(user("they"), 60))
    assert isinstance(space, Failure) and space.kind == "empty" and space.usage.completion_tokens > 1


class Blank:
    """A tokenizer whose every token is white space."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def __call__(self, *args: Any, **options: Any) -> Any:
        return self.inner(*args, **options)

    def decode(self, ids: list[int], **_: Any) -> str:
        return " \n" * len(ids)


def test_a_batch_without_memory_is_halved(attentive: SubjectModel) -> None:
    requests: list[Request] = [Chat(user(" ".join(WORDS[i : i + 6])), 8, 1.0) for i in range(8)]
    requests += [Choice(user(word), ("a", "of", "river to")) for word in WORDS[:8]]
    requests += [Likelihood(word, text) for word in WORDS[:8] for text in ("a", "of the", "to")]
    expected = ask(attentive, *requests)
    for how in ({"limit": 7, "times": 1}, {"limit": 3}, {"limit": 7, "times": 1, "cached": True}, {"limit": 1}):
        subject, model = watched(attentive, **how)
        assert_alike(ask(subject, *requests), expected)
        assert model.raised == how.get("times", model.raised) and model.raised >= 1
        assert "times" in how or max(model.rows) == how["limit"]


@pytest.mark.parametrize("cached", [None, True])
def test_what_fails_alone_is_an_error(attentive: SubjectModel, cached: bool | None) -> None:
    requests: list[Request] = [Chat(user("he is"), 9), Choice(user("he"), ("a", "of")), Likelihood("he", "was")]
    requests.append(Chat(user("to"), 9))
    subject, _ = watched(attentive, limit=0, cached=cached)
    for reply in ask(subject, *requests):
        assert isinstance(reply, Failure) and reply.kind == "error" and reply.message == "OutOfMemoryError: no memory"


def test_the_registry_s_door(world: Any) -> None:
    client = create(str(world.model), device="cpu", dtype="float32", base_url="ignored")
    assert client.supports == {Chat, Choice, Likelihood} and client.model == "model"
    with pytest.raises(UserError, match="no model"):
        create("/no/such/model")
    asyncio.run(client.close())


# The real model


@pytest.mark.slow
def test_real_batches_equal_single_rows(real: SubjectModel, texts: list[str]) -> None:
    client = HFClient(real)
    sizes = [40, 400, 90, 200, 120, 60, 300, 150] * 2
    asked = [user(f"What does this do?\n\n{text[:size]}") for text, size in zip(texts, sizes, strict=False)]
    encoded = [client._conversation(messages) for messages in asked]
    prompts = [Prompt(tuple(ids), 24 - i % 8) for i, ids in enumerate(encoded) if isinstance(ids, list)]
    assert len(prompts) == 16 and len({len(prompt.tokens) for prompt in prompts}) > 10
    stop = stop_ids(real)
    together = generate(real, prompts, stop)
    assert together == [generate(real, [prompt], stop)[0] for prompt in prompts]
    assert len({found.tokens for found in together}) == 16


@pytest.mark.slow
def test_real_choices_are_likelihoods_after_the_template(real: SubjectModel) -> None:
    messages = (Message("system", "Answer yes or no."), Message("user", "Is snow cold?"))
    prompt = (
        "<|im_start|>system\nAnswer yes or no.<|im_end|>\n<|im_start|>user\nIs snow cold?<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    answers = ("Yes", "No", "Yes, snow is cold.")
    (reply,) = ask(real, Choice(messages, answers))
    assert isinstance(reply, ChoiceReply)
    assert reply.probabilities == pytest.approx([math.exp(sum(unshared(real, prompt, a))) for a in answers], rel=1e-3)
    assert 0.3 < reply.probabilities[0] + reply.probabilities[1] < 1


@pytest.mark.slow
def test_real_shared_likelihoods_equal_unshared_ones(real: SubjectModel, texts: list[str]) -> None:
    prompt = "The text below is from the documentation of a library. It is about: numbers, arrays and files.\n\n"
    assert_shared_equals_unshared(real, [Likelihood(prompt, text[: 20 + i]) for i, text in enumerate(texts)])
