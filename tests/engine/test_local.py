"""Models in this process: chats of several units make one batch, and what must not depend on its company has none."""

from __future__ import annotations

import asyncio
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

import jumping_time
import pytest
from scripted_server import chat, text_of

from autointerp.engine.account import Account
from autointerp.engine.budget import Budget
from autointerp.engine.drive import Router, drive_all
from autointerp.engine.local import LocalSender
from autointerp.engine.replies import ReplyCache, open_cache
from autointerp.errors import DiskFull
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
    Reply,
    Request,
    Usage,
)


class Model:
    """Takes a second for each call; `calls` are the batches that it was given."""

    name, model = "local", "m"
    supports = frozenset({Chat, Choice, Likelihood, Embed})

    def __init__(self, concurrency: int = 8, bad: str = "") -> None:
        self.concurrency, self.bad = concurrency, bad
        self.calls: list[list[Request]] = []
        self.now = self.most = 0

    async def answer(self, requests: Sequence[Request]) -> list[Reply]:
        assert requests, "nothing to do is no call"
        self.calls.append(list(requests))
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            await asyncio.sleep(1)
            return [self.reply(request) for request in requests]
        finally:
            self.now -= 1

    def reply(self, request: Request) -> Reply:
        if isinstance(request, Chat):
            if self.bad and text_of(request) == self.bad:
                raise RuntimeError("out of memory")
            return ChatReply(f"re: {text_of(request)}", Usage(3, 2))
        if isinstance(request, Choice):
            return ChoiceReply((0.5,) * len(request.choices), Usage(2, 1))
        if isinstance(request, Likelihood):
            return LikelihoodReply((float(request.text),), Usage(5))
        assert isinstance(request, Embed)
        return EmbedReply((float(request.text),), Usage(1))

    def chats(self) -> list[list[str]]:
        return [[text_of(r) for r in call if isinstance(r, Chat)] for call in self.calls]

    async def close(self) -> None: ...


def unit(*rounds: list[Request]) -> Generator[Sequence[Request], Sequence[Reply], list[list[Reply]]]:
    got = []
    for requests in rounds:
        got.append(list((yield requests)))  # noqa: PERF401
    return got


def drive(model: Model, units: dict[str, list[list[Request]]], account: Account | None = None) -> dict[str, Any]:
    done: dict[str, Any] = {}
    router = Router([model], account, stage="s")
    jumping_time.run(
        drive_all(
            ((key, lambda rounds=rounds: unit(*rounds)) for key, rounds in units.items()), router,
            lambda key, finished: done.__setitem__(key, finished.result),
        )
    )  # fmt: skip
    return done


def test_chats_of_all_units_make_one_batch() -> None:
    model = Model(8)
    units = {str(i): [[chat(f"{i} {j}") for j in range(3)], [chat(f"{i} again")]] for i in range(8)}
    done = drive(model, units)
    assert [len(call) for call in model.calls] == [24, 8]
    for i in range(8):
        first, second = done[str(i)]
        assert [r.text for r in first] == [f"re: {i} {j}" for j in range(3)]
        assert [r.text for r in second] == [f"re: {i} again"]


def test_no_more_units_than_the_model_wants() -> None:
    model = Model(3)
    drive(model, {str(i): [[chat(str(i))]] for i in range(8)})
    assert model.most == 1 and max(map(len, model.calls)) <= 3 and sum(map(len, model.calls)) == 8


def test_a_model_that_wants_one_unit_gets_its_requests_together() -> None:
    model = Model(1)
    drive(model, {str(i): [[chat(f"{i} {j}") for j in range(3)]] for i in range(4)})
    assert model.chats() == [[f"{i} {j}" for j in range(3)] for i in range(4)]


def test_a_model_that_makes_no_batches_gets_none_of_several_units() -> None:
    """Several are in flight where another client wants them."""

    async def run() -> None:
        model = Model(1)
        sender = LocalSender(model, Account())
        await asyncio.gather(*(sender.ask([chat(f"{i} a"), chat(f"{i} b")], "s") for i in range(3)))
        assert model.chats() == [[f"{i} a", f"{i} b"] for i in range(3)] and model.most == 1

    jumping_time.run(run())


def test_likelihoods_and_embeddings_stay_within_their_unit() -> None:
    """In other company their last bits would be others, and a resumed run would get other ones."""
    model = Model(8)
    units: dict[str, list[list[Request]]] = {
        str(i): [[Likelihood(str(i), str(j)) for j in range(3)], [Embed(str(i))], [chat(str(i))]] for i in range(5)
    }
    done = drive(model, units)
    apart = [call for call in model.calls if not isinstance(call[0], Chat)]
    assert sorted(len(call) for call in apart) == [1] * 5 + [3] * 5
    for call in apart:
        assert len({r.prompt if isinstance(r, Likelihood) else r for r in call}) == 1
    assert all([r.logprob for r in done[str(i)][0]] == [0, 1, 2] for i in range(5)) and model.most == 1


def test_mixed_requests_keep_their_order() -> None:
    model = Model(8)
    question = (Message("user", "?"),)
    mixed: list[Request] = [
        chat("a"), Likelihood("", "1"), Choice(question, ("x", "y")), chat("b"), Embed("2"), Likelihood("", "3"), chat("c"),
    ]  # fmt: skip
    (replies,) = drive(model, {"u": [mixed]})["u"]
    assert [type(r) for r in replies] == [
        ChatReply, LikelihoodReply, ChoiceReply, ChatReply, EmbedReply, LikelihoodReply, ChatReply,
    ]  # fmt: skip
    assert [replies[i].text for i in (0, 3, 6)] == ["re: a", "re: b", "re: c"]
    assert (replies[1].logprob, replies[5].logprob, replies[4].vector) == (1, 3, (2,))
    assert sorted(len(call) for call in model.calls) == [3, 4]


def test_nothing_to_ask() -> None:
    model = Model()
    assert drive(model, {"u": [[], [chat("x")], []]})["u"] == [[], [ChatReply("re: x", Usage(3, 2))], []]


@pytest.mark.parametrize("concurrency", [1, 8])
def test_chats_that_are_kept_are_not_asked_again(tmp_path: Path, concurrency: int) -> None:
    question = (Message("user", "?"),)
    units: dict[str, list[list[Request]]] = {
        str(i): [[chat(str(i)), Choice(question, (str(i), "y")), Likelihood("", str(i)), Embed(str(i))]]
        for i in range(4)
    }
    account = Account(open_cache(tmp_path))
    first = drive(Model(concurrency), units, account)
    assert len(account.cache) == 8, "likelihoods and embeddings are large, and cheap to compute again"
    account.close()
    account = Account(open_cache(tmp_path))
    model = Model(concurrency)
    assert drive(model, units, account) == first
    assert not [r for call in model.calls for r in call if isinstance(r, Chat | Choice)]
    (row,) = account.cache.spent()
    assert (row["calls"], row["cached_calls"], row["price"], row["saved_price"]) == (16 + 8, 8, 0.0, 0.0)
    account.close()


def test_other_models_get_other_answers() -> None:
    account = Account()
    drive(Model(), {"u": [[chat("x")]]}, account)
    other = Model()
    other.model = "other"
    drive(other, {"u": [[chat("x")]]}, account)
    assert len(other.calls) == 1 and len(account.cache) == 2


def test_costs_are_tokens_and_time_and_no_part_of_a_budget() -> None:
    account = Account(budget=Budget(1.0, "tok"))
    drive(Model(), {str(i): [[chat(str(i)), Likelihood("", "1")]] for i in range(3)}, account)
    (row,) = account.cache.spent()
    assert (row["calls"], row["prompt_tokens"], row["completion_tokens"], row["price"]) == (6, 24, 6, 0.0)
    assert account.budget is not None and account.budget.spent == 0


@pytest.mark.parametrize("concurrency", [1, 8])
def test_an_error_of_the_model_ends_the_run(concurrency: int) -> None:
    model = Model(concurrency, bad="3")
    done: list[str] = []

    async def run() -> None:
        units = ((str(i), lambda i=i: unit([chat(str(i))])) for i in range(20))
        with pytest.raises(RuntimeError, match="out of memory"):
            await drive_all(units, Router([model], stage="s"), lambda key, finished: done.append(key))
        calls = len(model.calls)
        await asyncio.sleep(100)
        assert len(model.calls) <= calls + 1 and model.now == 0
        assert asyncio.all_tasks() == {asyncio.current_task()}, "nothing runs on"

    jumping_time.run(run())
    assert "3" not in done


def test_an_error_reaches_all_who_wait_for_the_batch_and_nobody_else() -> None:
    async def run() -> None:
        sender = LocalSender(Model(8, bad="b"), Account())
        asked = [asyncio.create_task(sender.ask([chat(name)], "s")) for name in "abc"]
        ended = await asyncio.gather(*asked, return_exceptions=True)
        assert [str(end) for end in ended] == ["out of memory"] * 3
        assert await sender.ask([chat("d")], "s") == [ChatReply("re: d", Usage(3, 2))], "it can go on"

    jumping_time.run(run())


def test_an_error_of_a_likelihood_leaves_no_chat_behind() -> None:
    async def run() -> None:
        model = Model(8)
        sender = LocalSender(model, Account())
        with pytest.raises(ValueError, match="no number"):
            await sender.ask([chat("a"), Likelihood("", "no number"), chat("b")], "s")
        await asyncio.sleep(10)
        assert asyncio.all_tasks() == {asyncio.current_task()} and not sender._waiting

    jumping_time.run(run())


def test_who_is_cancelled_is_not_generated_for() -> None:
    async def run() -> None:
        model = Model(8)
        sender = LocalSender(model, Account())
        first = asyncio.create_task(sender.ask([chat("first")], "s"))
        await asyncio.sleep(0.5)
        waiting = [
            asyncio.create_task(sender.ask([chat(name), Likelihood("", "1")], "s")) for name in ("gone", "stays")
        ]
        await asyncio.sleep(0.1)
        waiting[0].cancel()
        (replies,) = await asyncio.gather(waiting[1])
        assert [type(reply) for reply in replies] == [ChatReply, LikelihoodReply]
        assert await first == [ChatReply("re: first", Usage(3, 2))]
        assert [text for call in model.chats() for text in call] == ["first", "stays"]

    jumping_time.run(run())


def test_a_wrong_number_of_answers_is_an_error() -> None:
    class Short(Model):
        async def answer(self, requests: Sequence[Request]) -> list[Reply]:
            return (await super().answer(requests))[:-1]

    for concurrency in (1, 8):
        with pytest.raises(ValueError, match="zip"):
            drive(Short(concurrency), {"u": [[chat("a"), chat("b")]]})


def test_a_full_disk_ends_the_run(tmp_path: Path) -> None:
    account = Account(ReplyCache(tmp_path / "r.sqlite"))
    account.cache._db.execute("PRAGMA max_page_count = 12")
    with pytest.raises(DiskFull):
        drive(Model(8), {str(i): [[chat(str(i) + "x" * 3000)]] for i in range(200)}, account)
    account.close()


def test_failures_are_kept_as_those_of_servers_are() -> None:
    class Refusing(Model):
        def reply(self, request: Request) -> Reply:
            return Failure("refused" if text_of(request) == "a" else "error", "no")

    account = Account()
    assert [r.kind for r in drive(Refusing(), {"u": [[chat("a"), chat("b")]]}, account)["u"][0]] == ["refused", "error"]
    assert len(account.cache) == 1
