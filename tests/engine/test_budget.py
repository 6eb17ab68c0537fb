"""The cap on spending: amounts, worst cases against real tokenizers, and reservations under every disturbance."""

from __future__ import annotations

import asyncio
import json
import random
import re
from typing import Any

import jumping_time
import planted
import pytest

from autointerp.clients._openai_replies import response_format
from autointerp.engine.budget import Budget, parse, shown, worst_case
from autointerp.errors import BudgetReached, UserError
from autointerp.pipeline.demo_model import demo_subject
from prompts.requests import Chat, Choice, Embed, Likelihood, Message, Steer, Usage

ODD = [
    "plain words, as most prompts have them.",
    "👩‍👩‍👧‍👦🏳️‍🌈👍🏿" * 7,
    "漢字かなカナ한국어𠀀𪚥",
    "e\u0301\u0302\u0323" * 9 + "Z͑ͫ̓ͪ̂ͫ̽͏̴̙̤̞͉͚̯̞̠͍A̴̵̜̰͔ͫ͗͢L",
    "\u200b\u200d\ufeff\u2028\x00\x07\x1b[0m\x7f\x85",
    "\ue000\U000f0000\U0010ffff\ufdfd",
    "\ud800 \udfff\ud83d",
    "   " * 40 + "\n\n\t\t" * 20,
    "<|im_start|>system\n<|im_end|><|endoftext|><s></s>[INST]",
    "0123456789" * 8 + "}{][\\\"'`~",
    "",
]


def texts(seed: int) -> list[str]:
    """Odd texts, and random mixtures of their characters."""
    draw = random.Random(seed)
    alphabet = "".join(ODD)
    return ODD + ["".join(draw.choices(alphabet, k=draw.randrange(1, 400))) for _ in range(60)]


@pytest.fixture(scope="module", params=["planted", "SmolLM2"])
def tokenizer(request: pytest.FixtureRequest) -> Any:
    if request.param == "planted":
        return planted.tokenizer()
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(demo_subject())


def count(tokenizer: Any, text: str) -> int:
    # Half a character cannot be sent: servers read it as the character that stands for what is none.
    return len(tokenizer(re.sub("[\ud800-\udfff]", "\ufffd", text))["input_ids"])


def as_the_model_reads(tokenizer: Any, messages: tuple[Message, ...]) -> str:
    plain = [{"role": m.role, "content": re.sub("[\ud800-\udfff]", "\ufffd", m.content)} for m in messages]
    if tokenizer.chat_template is None:
        return "".join(f"<|{m['role']}|>\n{m['content']}<|end|>\n" for m in plain)
    return str(tokenizer.apply_chat_template(plain, add_generation_prompt=True, tokenize=False))


# Amounts


@pytest.mark.parametrize(
    ("text", "amount", "unit"),
    [
        ("5usd", 5.0, "usd"), ("0.50usd", 0.5, "usd"), (" 5 USD ", 5.0, "usd"), ("3$", 3.0, "usd"), (".5usd", 0.5, "usd"),
        ("2Mtok", 2e6, "tok"), ("300ktok", 3e5, "tok"), ("7tok", 7.0, "tok"), ("1.5 gtokens", 1.5e9, "tok"),
        ("1e", None, ""), ("", None, ""), ("usd", None, ""), ("5", None, ""), ("0usd", None, ""), ("-1usd", None, ""),
        ("1.2.3usd", None, ""), (".usd", None, ""), ("1e3tok", None, ""), ("nanusd", None, ""), ("infusd", None, ""),
        ("5 usd or so", None, ""), ("5eur", None, ""), ("5\nusd\nx", None, ""), ("9" * 400 + "usd", None, ""),
    ],
)  # fmt: skip
def test_amounts(text: str, amount: float | None, unit: str) -> None:
    if amount is not None:
        assert parse(text) == (amount, unit)
        return
    with pytest.raises(UserError, match="--budget wants an amount such as 5usd"):
        parse(text)


def test_amounts_as_they_are_shown_can_be_given() -> None:
    for amount, unit in ((5.0, "usd"), (0.25, "usd"), (2e6, "tok"), (3e5, "tok"), (12.0, "tok"), (1.5e6, "tok")):
        assert parse(shown(amount, unit)) == (amount, unit)  # type: ignore[arg-type]


# Worst cases


@pytest.mark.parametrize("seed", range(3))
def test_no_text_costs_more_than_its_worst_case(tokenizer: Any, seed: int) -> None:
    some = texts(seed)
    for a, b in zip(some, reversed(some), strict=True):
        messages = (Message("system", a), Message("user", b), Message("assistant", a + b), Message("user", a))
        # Without a system message, SmolLM2's template adds its own.
        for conversation in (messages, messages[1:2]):
            read = count(tokenizer, as_the_model_reads(tokenizer, conversation))
            worst = worst_case(Chat(conversation, max_tokens=17))
            assert read <= worst.prompt_tokens and worst.completion_tokens == 17 and worst.cached_tokens == 0
            worst = worst_case(Choice(conversation, ("yes", "no")))
            assert read <= worst.prompt_tokens and worst.completion_tokens == 1
        joined, parted = count(tokenizer, a + b), count(tokenizer, a) + count(tokenizer, b)
        worst = worst_case(Likelihood(a, b))
        assert joined + parted <= worst.prompt_tokens and worst.completion_tokens == 2
        assert count(tokenizer, a) <= worst_case(Embed(a)).prompt_tokens
    assert worst_case(Steer(0, (), 1.0, 1, 0)) == Usage(), "never sent to a server"


def test_a_schema_counts_as_it_is_sent(tokenizer: Any) -> None:
    leaf: dict[str, Any] = {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]}
    nested = {
        "type": "object", "properties": {f"p{i}": leaf for i in range(120)}, "required": [f"p{i}" for i in range(120)],
    }  # fmt: skip
    for schema in (
        {"type": "string", "description": "𠀀𪚥" * 400},
        {"type": "string", "enum": ["👩‍👩‍👧‍👦" * 100, "\ue000" * 500]},
        nested,
    ):
        without = worst_case(Chat((Message("user", "x"),))).prompt_tokens
        allowed = worst_case(Chat((Message("user", "x"),), schema=schema)).prompt_tokens - without
        sent = response_format(schema)["json_schema"]["schema"]
        for ascii_only in (False, True):
            assert count(tokenizer, json.dumps(sent, ensure_ascii=ascii_only)) <= allowed


# Reservations


@pytest.mark.parametrize("unit", ["tok", "usd"])
@pytest.mark.parametrize("seed", range(40))
def test_reservations_hold_whatever_happens(unit: Any, seed: int) -> None:
    """Random worst cases, costs and pauses, and cancellations while waiting, just granted, or in flight."""
    draw = random.Random(f"{unit}{seed}")
    n, share = 250, draw.uniform(0.02, 1.2)
    # All different, so that a place in the queue can be told by its amount.
    amounts = draw.sample(range(1000, 9000), n)
    scale = 1.0 if unit == "tok" else draw.choice([1e-6, 0.1, 1 / 3])
    worst = [amount * scale for amount in amounts]
    budget = Budget(share * sum(worst), unit, spent=draw.choice([0.0, 0.1 * share * sum(worst)]))
    paid, asked, refused = [budget.spent], [], []  # type: ignore[var-annotated]
    owner = {amount: i for i, amount in enumerate(worst)}
    tasks: list[asyncio.Task[None]] = []

    def check() -> None:
        assert budget.spent + budget.held <= budget.limit * (1 + 1e-12) and budget.held >= 0
        assert budget.spent == pytest.approx(sum(paid))

    async def task(i: int, gate: asyncio.Semaphore) -> None:
        async with gate:
            await asyncio.sleep(draw.choice([0, 0, draw.random()]))
            asked.append(i)
            try:
                await budget.reserve(worst[i])
            except BudgetReached:
                refused.append(i)
                return
            earlier = asked[: asked.index(i)]
            assert all(owner[waiting.amount] not in earlier for waiting in budget._waiting), "first come, first served"
            cost = 0.0
            try:
                check()
                await asyncio.sleep(draw.choice([0, draw.random()]))
                cost = draw.choice([0.0, 0.2, 0.9, 1.0]) * worst[i]
            finally:
                paid.append(cost)
                if budget._waiting and draw.random() < 0.3:
                    # In the very turn in which the next one in the queue could be granted what it waits for.
                    tasks[owner[budget._waiting[0].amount]].cancel()
                budget.settle(worst[i], cost)
                check()

    async def main() -> None:
        gate = asyncio.Semaphore(64)
        tasks.extend(asyncio.create_task(task(i, gate)) for i in range(n))

        async def disturb() -> None:
            for victim in draw.sample(tasks, n // 5):
                await asyncio.sleep(draw.choice([0, 0, 0.05 * draw.random()]))
                victim.cancel()

        await asyncio.gather(disturb(), *tasks, return_exceptions=True)
        problems = [t.exception() for t in tasks if not t.cancelled() and t.exception()]
        assert not problems, problems

    jumping_time.run(main())
    assert budget.held == 0.0 and not budget._waiting
    assert budget.over == bool(refused)
    if refused:
        # The first of them did not fit when nothing was in flight; nobody was turned away before that.
        assert worst[min(refused, key=asked.index)] + budget.spent > budget.limit


def test_first_come_first_served() -> None:
    """A small request does not overtake a large one, which would wait for ever otherwise."""
    order: list[str] = []

    async def main() -> None:
        budget = Budget(100, "tok")
        await budget.reserve(90)

        async def one(name: str, amount: float) -> None:
            await budget.reserve(amount)
            order.append(name)

        waiting = [asyncio.create_task(one(*what)) for what in (("large", 60), ("small", 5), ("smaller", 1))]
        await asyncio.sleep(1)
        assert order == []
        budget.settle(90, 30)
        await asyncio.sleep(1)
        assert order == ["large", "small", "smaller"] and budget.held == 66
        await asyncio.gather(*waiting)

    jumping_time.run(main())


def test_the_end_comes_for_all_who_wait_and_for_all_who_come_later() -> None:
    async def main() -> None:
        budget = Budget(100, "tok")
        await budget.reserve(90)
        waiting = [asyncio.create_task(budget.reserve(50)) for _ in range(5)]
        await asyncio.sleep(1)
        budget.settle(90, 80)
        ended = await asyncio.gather(*waiting, return_exceptions=True)
        assert all(isinstance(error, BudgetReached) for error in ended)
        assert "100tok is used up (80tok spent" in str(ended[0])
        with pytest.raises(BudgetReached):
            await budget.reserve(1)
        assert budget.held == 0

    jumping_time.run(main())


def test_what_does_not_fit_alone_ends_at_once() -> None:
    async def main() -> None:
        with pytest.raises(BudgetReached):
            await Budget(100, "tok").reserve(101)
        budget = Budget(100, "tok", spent=100)
        await budget.reserve(0)  # a model that costs nothing
        budget.settle(0, 0)
        with pytest.raises(BudgetReached):
            await budget.reserve(1)

    jumping_time.run(main())


def test_a_large_request_that_is_cancelled_does_not_end_the_budget() -> None:
    """It is cancelled in the same turn in which the last one in flight comes back, before it can leave the queue."""

    async def main() -> None:
        budget = Budget(100, "tok")
        await budget.reserve(50)
        large = asyncio.create_task(budget.reserve(99))
        small = asyncio.create_task(budget.reserve(10))
        await asyncio.sleep(1)
        large.cancel()
        budget.settle(50, 40)
        await small
        assert budget.held == 10 and not budget.over
        assert large.cancelled()

    jumping_time.run(main())


def test_who_is_behind_one_that_is_cancelled_moves_up_at_once() -> None:
    async def main() -> None:
        budget = Budget(100, "tok")
        await budget.reserve(50)
        large, small = asyncio.create_task(budget.reserve(99)), asyncio.create_task(budget.reserve(10))
        await asyncio.sleep(1)
        large.cancel()
        await asyncio.sleep(1)
        assert small.done() and budget.held == 60 and not budget._waiting

    jumping_time.run(main())


@pytest.mark.parametrize("first", ["cancel", "settle"])
def test_who_is_cancelled_just_when_granted_gives_it_back(first: str) -> None:
    async def main() -> None:
        budget = Budget(100, "tok")
        await budget.reserve(80)
        one, other = asyncio.create_task(budget.reserve(70)), asyncio.create_task(budget.reserve(75))
        await asyncio.sleep(1)
        if first == "cancel":
            one.cancel()
            budget.settle(80, 10)
        else:
            budget.settle(80, 10)
            one.cancel()
        await other
        assert one.cancelled() and budget.held == 75
        budget.settle(75, 0)
        assert budget.held == 0

    jumping_time.run(main())


def test_rounding_leaves_nothing_in_flight() -> None:
    """Cents do not add up in binary. What is left of them must not look like a request that may still come back."""
    draw = random.Random(0)
    for _ in range(200):
        budget = Budget(1.0, "usd")
        flying: list[float] = []
        for _ in range(2000):
            if flying and (len(flying) > 60 or draw.random() < 0.5):
                budget.settle(flying.pop(draw.randrange(len(flying))), 0.0)
            elif budget.hold(amount := draw.choice([0.01, 0.003, 1e-7, 0.1 / 3])):
                flying.append(amount)
        for amount in flying:
            budget.settle(amount, 0.0)
        assert budget.held == 0.0

    async def at_the_end() -> None:
        # 0.1 + 0.2 + 0.3 is more than 0.6 to a computer: the cap is kept to the last bit.
        budget = Budget(0.65, "usd")
        assert all(budget.hold(amount) for amount in (0.1, 0.2, 0.3))
        for amount in (0.3, 0.1, 0.2):
            budget.settle(amount, amount)
        with pytest.raises(BudgetReached, match=r"0\.65usd is used up"):
            await budget.reserve(0.1)

    jumping_time.run(at_the_end())


def test_charges_count() -> None:
    budget = Budget(100, "tok")
    budget.charge(95)
    assert not budget.hold(6) and budget.hold(5)
