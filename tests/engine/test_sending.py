"""From requests to a server and back, on a clock that jumps: what is sent, when, how often, and how it is booked."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import jumping_time
import pytest
from jumping_time import clock
from scripted_server import ScriptedServer, chat, fine, text_of

from autointerp.engine.account import Account
from autointerp.engine.budget import Budget, worst_case
from autointerp.engine.limit import AdaptiveLimit
from autointerp.engine.order import AT_LEAST, WORTH, grouped, written
from autointerp.engine.replies import KEPT_FAILURES, ReplyCache, key_of
from autointerp.engine.sending import LONGEST_WAIT, ServerSender
from autointerp.errors import BudgetReached, DiskFull, ServerGone
from autointerp.types import Attempt, Server
from prompts.requests import (
    Chat,
    ChatReply,
    Choice,
    Embed,
    Failure,
    FailureKind,
    Likelihood,
    Message,
    Reply,
    Request,
    Steer,
    Usage,
)

PRICES = {"m": (1.0, 2.0)}
"""USD per million tokens."""


@pytest.fixture(autouse=True)
def timeless(monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine's clocks are the jumping one."""
    monkeypatch.setattr("autointerp.engine.sending.time", SimpleNamespace(monotonic=clock, perf_counter=clock))
    monkeypatch.setattr(
        "autointerp.engine.sending.AdaptiveLimit", lambda most, timeout: AdaptiveLimit(most, timeout, clock)
    )


def send(
    server: ScriptedServer, main: Callable[[ServerSender], Coroutine[Any, Any, Any]], account: Account | None = None,
    **options: Any,
) -> Any:  # fmt: skip
    """What `main` returns; afterwards nothing may be left of anything."""

    async def run() -> Any:
        sender = ServerSender(server, account or Account(), **options)
        try:
            return await main(sender)
        finally:
            for task in asyncio.all_tasks() - {asyncio.current_task()}:  # type: ignore[arg-type]
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
            assert sender._flying == {} and sender.limit.in_flight == 0 and server.in_flight == 0
            assert not [place for place in sender.limit._waiting if not place.done()]
            budget = sender.account.budget
            assert budget is None or (budget.held == 0 and not budget._waiting)

    return jumping_time.run(run())


def ask(server: ScriptedServer, *requests: Request, account: Account | None = None, **options: Any) -> list[Reply]:
    replies: list[Reply] = send(server, lambda sender: sender.ask(requests, "s"), account, **options)
    return replies


def spent(account: Account) -> dict[str, Any]:
    (row,) = account.cache.spent()
    return row


def test_the_double_is_a_server() -> None:
    assert isinstance(ScriptedServer(), Server)


def test_no_requests() -> None:
    assert ask(ScriptedServer()) == []


def test_answers_keep_the_order_of_requests() -> None:
    draw = random.Random(0)
    server = ScriptedServer(seconds=lambda request: draw.random())
    replies = ask(server, *(chat(f"item {i}") for i in range(300)))
    assert [reply.text for reply in replies if isinstance(reply, ChatReply)] == [f"re: item {i}" for i in range(300)]
    assert server.most == 16


# Equal requests


def test_equal_requests_in_flight_are_sent_once() -> None:
    server, account = ScriptedServer(), Account(own_prices=PRICES)

    async def main(sender: ServerSender) -> None:
        same = [chat("same"), chat("same"), chat("same"), chat("other"), chat("same", sample_index=1)]
        first = asyncio.create_task(sender.ask(same, "s"))
        await asyncio.sleep(0.5)
        (late,) = await sender.ask([chat("same")], "s")
        assert {late, *(await first)} == {ChatReply("re: same", Usage(10, 2)), ChatReply("re: other", Usage(10, 2))}

    send(server, main, account)
    assert sorted(text for _, text in server.asked) == ["other", "same", "same"]
    row = spent(account)
    assert (row["calls"], row["cached_calls"], row["saved_tokens"]) == (3, 3, 36)
    assert row["price"] == pytest.approx(3 * 14e-6) and row["saved_price"] == pytest.approx(3 * 14e-6)


def test_a_reply_that_is_kept_is_not_asked_for_again() -> None:
    server, account = ScriptedServer(), Account()
    assert ask(server, chat("x"), account=account) == ask(server, chat("x"), account=account)
    assert len(server.asked) == 1 and spent(account)["cached_calls"] == 1
    other = ScriptedServer(identity="elsewhere")
    ask(other, chat("x"), account=account)
    assert len(other.asked) == 1


def test_who_waits_for_an_equal_request_of_somebody_who_is_cancelled_asks_itself() -> None:
    server, account = ScriptedServer(), Account()

    async def main(sender: ServerSender) -> None:
        first, *others = [asyncio.create_task(sender.ask([chat("same")], "s")) for _ in range(5)]
        await asyncio.sleep(0.5)
        first.cancel()
        others[1].cancel()
        ended = await asyncio.gather(first, *others, return_exceptions=True)
        kinds = ["cancelled" if isinstance(end, asyncio.CancelledError) else end[0].text for end in ended]
        assert kinds == ["cancelled", "re: same", "cancelled", "re: same", "re: same"]

    send(server, main, account)
    assert [moment for moment, _ in server.asked] == [0.0, 0.5], "once more, for all who are left"
    assert spent(account)["calls"] == 2 and spent(account)["cached_calls"] == 2


def test_who_waits_for_an_equal_request_shares_its_end() -> None:
    gone = ScriptedServer(lambda request, tried: Attempt(Failure("rejected", "no key"), stop=True, charged=False))

    async def main(sender: ServerSender) -> list[Any]:
        asked = [sender.ask([chat("same")], "s") for _ in range(3)]
        return await asyncio.gather(*asked, return_exceptions=True)

    assert [type(end) for end in send(gone, main)] == [ServerGone] * 3 and len(gone.asked) == 1
    failing = ScriptedServer(lambda request, tried: Attempt(Failure("rejected", "no"), charged=False))
    assert {end[0].message for end in send(failing, main)} == {"no"} and len(failing.asked) == 1


# Tries


def busy(seconds: float | None, times: int, kind: FailureKind = "rejected") -> Callable[[Request, int], Attempt]:
    def answer(request: Request, tried: int) -> Attempt:
        refused = Attempt(Failure(kind, f"try {tried}"), retry=True, after=seconds, charged=False)
        return refused if tried < times else fine(request, tried)

    return answer


def test_what_the_server_asks_for_is_waited() -> None:
    server = ScriptedServer(busy(40.0, 3))
    (reply,) = ask(server, chat("x"))
    assert isinstance(reply, ChatReply)
    gaps = [b - a - 1 for a, b in pairwise(server.times("x"))]
    assert len(gaps) == 3 and all(40 <= gap <= 44 + 1e-6 for gap in gaps)


def test_all_who_were_told_the_same_do_not_come_back_together() -> None:
    server = ScriptedServer(busy(10.0, 1))
    ask(server, *(chat(str(i)) for i in range(16)))
    assert len({round(server.times(str(i))[1], 6) for i in range(16)}) > 12


def test_pauses_grow() -> None:
    server = ScriptedServer(busy(None, 99), seconds=0.0)
    (reply,) = ask(server, chat("x"), retries=10)
    assert reply == Failure("rejected", "try 10")
    gaps = [b - a for a, b in pairwise(server.times("x"))]
    longest = [0.5, 1, 2, 4, 8, 16, 32, 60, 60, 60]
    assert all(most / 2 <= gap <= most + 1e-9 for gap, most in zip(gaps, longest, strict=True))


@pytest.mark.parametrize("retries", [0, 1, 5])
def test_so_many_tries_and_no_more(retries: int) -> None:
    server, account = ScriptedServer(busy(0.0, 99)), Account()
    (reply,) = ask(server, chat("x"), account=account, retries=retries)
    assert reply == Failure("rejected", f"try {retries}") and len(server.asked) == 1 + retries
    assert (spent(account)["calls"], spent(account)["retries"]) == (1 + retries, retries)


def test_a_server_that_wants_hours_is_not_waited_for() -> None:
    for after in (LONGEST_WAIT + 1, float("inf")):
        server = ScriptedServer(busy(after, 99))
        (reply,) = ask(server, chat("x"))
        assert reply == Failure("rejected", "try 0") and len(server.asked) == 1


def test_what_no_try_can_mend_is_tried_once() -> None:
    server = ScriptedServer(lambda request, tried: Attempt(Failure("context_overflow", "long"), charged=False))
    assert ask(server, chat("x")) == [Failure("context_overflow", "long")] and len(server.asked) == 1


def test_a_pause_leaves_the_place_to_others() -> None:
    def answer(request: Request, tried: int) -> Attempt:
        return busy(100.0, 1)(request, tried) if text_of(request) == "slow" else fine(request, tried)

    server = ScriptedServer(answer, concurrency=1)
    ask(server, chat("slow"), *(chat(str(i)) for i in range(20)))
    assert all(max(server.times(str(i))) < 25 for i in range(20))


def test_pressure_lowers_the_limit() -> None:
    server = ScriptedServer(
        lambda request, tried: (
            Attempt(Failure("rejected", "429"), retry=True, after=1.0, pressed=True, charged=False)
            if tried == 0
            else fine(request, tried)
        )
    )

    async def main(sender: ServerSender) -> float:
        await sender.ask([chat(str(i)) for i in range(16)], "s")
        return sender.limit.limit

    assert send(server, main) < 16


# The books


@pytest.mark.parametrize("unit", ["tok", "usd", None])
@pytest.mark.parametrize("priced", [True, False])
def test_bookings_are_exact(unit: Any, priced: bool) -> None:
    if unit == "usd" and not priced:
        return  # refused before the run
    usages = Usage(100, 20, 60)
    attempts = {
        "paid": Attempt(ChatReply("x", usages)),
        "free": Attempt(Failure("rejected", "x", usages), charged=False),
        "nobody knows": Attempt(Failure("timeout", "x", Usage(1, 1)), charged=None),
        "no usage": Attempt(ChatReply("x")),
        "failed and paid": Attempt(Failure("truncated", "x", usages)),
    }
    worst = worst_case(chat("?"))
    counted = {"paid": usages, "failed and paid": usages, "free": Usage(), "nobody knows": worst, "no usage": worst}
    for name, attempt in attempts.items():
        account = Account(own_prices=PRICES if priced else {}, budget=Budget(1e6, unit) if unit else None)
        ask(ScriptedServer(lambda request, tried, attempt=attempt: attempt), chat("?"), account=account)
        row, cost = spent(account), counted[name]
        unsure = name in ("nobody knows", "no usage")
        seen = Usage() if unsure else cost
        assert (row["prompt_tokens"], row["completion_tokens"], row["prefix_cached_tokens"]) == (
            seen.prompt_tokens, seen.completion_tokens, seen.cached_tokens,
        ), name  # fmt: skip
        assert row["unsure_tokens"] == (worst.prompt_tokens + worst.completion_tokens if unsure else 0), name
        price = (cost.prompt_tokens + 2 * cost.completion_tokens) / 1e6
        # What costs nothing costs nothing whatever the price.
        known = 0.0 if name == "free" else price if priced else None
        assert row["price"] == (None if known is None else pytest.approx(known)), name
        assert (row["calls"], row["retries"], row["seconds"]) == (1, 0, 1.0)
        if account.budget is not None:
            tokens = cost.prompt_tokens + cost.completion_tokens
            assert account.budget.spent == pytest.approx(price if unit == "usd" else tokens), name


def test_a_discount_is_one_everywhere() -> None:
    account = Account(own_prices=PRICES, budget=Budget(1.0, "usd"), discount=0.5)
    ask(ScriptedServer(), chat("x"), account=account)
    assert spent(account)["price"] == pytest.approx(7e-6) and account.budget is not None
    assert account.budget.spent == pytest.approx(7e-6)


@pytest.mark.parametrize("kind", get_args(FailureKind))
@pytest.mark.parametrize("retry", [True, False])
def test_which_failures_are_kept(kind: FailureKind, retry: bool) -> None:
    if kind == "unreachable":
        return
    account = Account()
    server = ScriptedServer(lambda request, tried: Attempt(Failure(kind, f"try {tried}"), retry=retry, after=0.0))
    ask(server, chat("x"), account=account, retries=2)
    kept = account.cache.get(key_of("m", "here", chat("x")))
    assert kept == (Failure(kind, f"try {2 * retry}") if kind in KEPT_FAILURES else None)


def test_a_failure_that_passes_is_not_kept() -> None:
    """Cut off after the first of two tries, nothing of it may be found by the next run."""
    account = Account()
    server = ScriptedServer(busy(100.0, 1, "empty"))

    async def main(sender: ServerSender) -> None:
        asking = asyncio.create_task(sender.ask([chat("x")], "s"))
        await asyncio.sleep(50)
        assert len(server.asked) == 1 and len(account.cache) == 0
        asking.cancel()

    send(server, main, account)
    assert ask(server, chat("x"), account=account) == [ChatReply("re: x", Usage(10, 2))]


# The order


def long(beginning: str, end: object) -> Chat:
    return Chat((Message("system", beginning * WORTH), Message("user", f"{end}")))


def test_the_first_of_a_long_common_beginning_goes_ahead() -> None:
    server = ScriptedServer()
    requests = [long("ab"[i % 2], f"{'ab'[i % 2]} {i}") for i in range(10)] + [chat("alone"), chat("short")]
    ask(server, *requests)
    assert sorted(text for moment, text in server.asked if moment == 0) == ["a 0", "alone", "b 1", "short"]
    assert {moment for moment, _ in server.asked} == {0.0, 1.0}, "then all others at once"


def test_the_others_go_on_when_the_first_fails() -> None:
    server = ScriptedServer(
        lambda request, tried: Attempt(Failure("refused", "no")) if text_of(request) == "0" else fine(request, tried)
    )
    replies = ask(server, *(long("a", i) for i in range(5)))
    assert [type(reply) for reply in replies] == [Failure, *[ChatReply] * 4]


def test_two_do_not_wait_for_each_other() -> None:
    server = ScriptedServer()
    ask(server, *(long("a", i) for i in range(AT_LEAST - 1)), chat("x"), chat("y"))
    assert {moment for moment, _ in server.asked} == {0.0}


@pytest.mark.parametrize("seed", range(20))
def test_groups_hold_each_request_once_and_begin_alike(seed: int) -> None:
    draw = random.Random(seed)
    requests: list[Request] = []
    for i in range(draw.randrange(0, 40)):
        start = draw.choice(["", "x", "a" * (WORTH - 1), "a" * WORTH, "b" * WORTH, "ab" * WORTH, "\ud800" * WORTH])
        kind = draw.randrange(5)
        messages = (Message("user", start), Message("user", str(draw.randrange(5))))
        requests.append(
            [Chat(messages), Choice(messages, ("a", "b")), Likelihood(start, str(i)), Embed(start),
             Steer(i, (), 1.0, 1, 0)][kind]
        )  # fmt: skip
    groups = grouped(requests)
    assert sorted(i for group in groups for i in group) == list(range(len(requests)))
    for group in groups:
        beginnings = {written(requests[i])[:WORTH] for i in group}
        assert len(group) == 1 or (len(group) >= AT_LEAST and len(beginnings) == 1 and len(beginnings.pop()) == WORTH)
    alone = [written(requests[group[0]])[:WORTH] for group in groups if len(group) == 1]
    assert all(alone.count(text) < AT_LEAST for text in alone if len(text) == WORTH) or len(requests) < AT_LEAST


# The end of the budget


def test_what_is_in_flight_comes_back_when_the_budget_ends() -> None:
    worst = worst_case(chat("0"))
    account = Account(budget=Budget(10.5 * (worst.prompt_tokens + worst.completion_tokens), "tok"))
    every = Attempt(ChatReply("all of it", Usage(worst.prompt_tokens, worst.completion_tokens)))
    server = ScriptedServer(lambda request, tried: every, seconds=lambda request: 1 + int(text_of(request)))
    with pytest.raises(BudgetReached):
        ask(server, *(chat(str(i)) for i in range(30)), account=account)
    assert len(server.answered) == len(server.asked) == len(account.cache) == 10
    assert account.budget is not None and account.budget.spent <= account.budget.limit
    (reply,) = ask(server, chat(server.asked[3][1]), account=account)
    assert reply == every.reply, "what is kept can still be read"
    with pytest.raises(BudgetReached):
        ask(server, chat("77"), account=account)
    assert len(server.asked) == 10


@pytest.mark.parametrize("seed", range(15))
def test_a_budget_holds_through_tries_refusals_and_cancellations(seed: int) -> None:
    draw = random.Random(seed)
    charged = 0

    def answer(request: Request, tried: int) -> Attempt:
        nonlocal charged
        worst, dice = worst_case(request), draw.random()
        if dice < 0.2:
            return Attempt(Failure("rejected", "429"), retry=True, after=draw.random(), pressed=True, charged=False)
        if dice < 0.3:
            charged += worst.prompt_tokens + worst.completion_tokens
            return Attempt(Failure("timeout", "late"), retry=True, charged=None)
        usage = Usage(draw.randrange(1, worst.prompt_tokens), draw.randrange(worst.completion_tokens + 1))
        charged += usage.prompt_tokens + usage.completion_tokens
        return Attempt(ChatReply("x", usage))

    server = ScriptedServer(answer, seconds=lambda request: draw.random(), concurrency=64)
    account = Account(budget=Budget(draw.uniform(2e3, 1e5), "tok"))
    requests = [chat("x" * draw.randrange(200) + str(i), max_tokens=draw.randrange(1, 300)) for i in range(300)]

    async def main(sender: ServerSender) -> None:
        units = [asyncio.create_task(sender.ask(requests[i : i + 5], "s")) for i in range(0, 300, 5)]
        for victim in draw.sample(units, 10):
            await asyncio.sleep(draw.random() * 0.2)
            victim.cancel()
        ended = await asyncio.gather(*units, return_exceptions=True)
        assert all(isinstance(end, list | BudgetReached | asyncio.CancelledError) for end in ended)

    send(server, main, account)
    assert account.budget is not None
    assert charged <= account.budget.spent <= account.budget.limit, "cut-off requests count at their worst"
    row = spent(account)
    assert row["calls"] == len(server.asked)
    assert row["prompt_tokens"] + row["completion_tokens"] + row["unsure_tokens"] == account.budget.spent


def test_room_to_think_is_part_of_the_worst_case() -> None:
    """The server lets answers take 500 tokens beyond their limit, and each does."""
    worst = worst_case(chat("00", max_tokens=10))
    every = Attempt(ChatReply("x", Usage(worst.prompt_tokens, 510)))
    account = Account(budget=Budget(3.5 * (worst.prompt_tokens + 510), "tok"))
    server = ScriptedServer(lambda request, tried: every, room=500)
    with pytest.raises(BudgetReached):
        ask(server, *(chat(f"{i:02}", max_tokens=10) for i in range(20)), account=account)
    assert len(server.asked) == 3
    assert account.budget is not None and account.budget.spent <= account.budget.limit


def test_waiting_for_the_budget_is_no_slow_answer() -> None:
    """The server is quick. That requests queue for what is left of the budget must not throttle it."""
    worst = worst_case(chat("00"))
    account = Account(budget=Budget(1.5 * (worst.prompt_tokens + worst.completion_tokens), "tok"))
    server = ScriptedServer(lambda request, tried: Attempt(ChatReply("x", Usage(1, 1))))

    async def main(sender: ServerSender) -> float:
        await sender.ask([chat(f"{i:02}") for i in range(60)], "s")
        return sender.limit.limit

    assert send(server, main, account, timeout=10) == 16 and server.most == 1


# The end of the server


def test_nothing_is_sent_after_the_server_said_stop() -> None:
    server = ScriptedServer(
        lambda request, tried: (
            Attempt(Failure("rejected", "no money"), stop=True, charged=False)
            if text_of(request) == "05"
            else fine(request, tried)
        ),
        concurrency=4,
        seconds=lambda request: 1 if text_of(request) == "05" else 3,
    )
    account = Account()

    async def main(sender: ServerSender) -> None:
        with pytest.raises(ServerGone, match=r"no money\. What was finished is kept"):
            await sender.ask([chat(f"{i:02}") for i in range(100)], "s")
        with pytest.raises(ServerGone):
            await sender.ask([chat("new")], "s")
        (kept,) = await sender.ask([chat("03")], "s")
        assert isinstance(kept, ChatReply)

    send(server, main, account)
    assert len(server.asked) == len(server.answered) <= 12 and len(account.cache) == len(server.asked) - 1


def lost(charged: bool | None = False) -> Attempt:
    return Attempt(Failure("unreachable", "nobody there"), retry=True, charged=charged)


def test_a_server_that_is_not_there_stops_the_run_after_as_long_as_one_request_is_tried() -> None:
    server, account = ScriptedServer(lambda request, tried: lost(), seconds=0.0, concurrency=8), Account()

    async def main(sender: ServerSender) -> float:
        with pytest.raises(ServerGone, match="nobody there"):
            await sender.ask([chat(str(i)) for i in range(500)], "s")
        return clock()

    took = send(server, main, account, retries=5)
    assert 0.5 * (0.5 + 1 + 2 + 4 + 8) <= took <= 2 * (0.5 + 1 + 2 + 4 + 8)
    assert len(server.asked) < 250, "and not all requests were wasted on it"
    assert len(account.cache) == 0


def test_a_server_that_comes_back_is_used_again() -> None:
    server = ScriptedServer(lambda request, tried: lost() if 5 < clock() < 10 else fine(request, tried), concurrency=4)
    replies = ask(server, *(chat(str(i)) for i in range(60)), retries=5)
    assert all(isinstance(reply, ChatReply) for reply in replies)


def test_one_answer_in_between_begins_the_patience_anew() -> None:
    def answer(request: Request, tried: int) -> Attempt:
        return fine(request, tried) if text_of(request).startswith("good") else lost()

    server = ScriptedServer(answer, concurrency=4, seconds=2.0)

    async def main(sender: ServerSender) -> list[Reply]:
        bad = asyncio.create_task(sender.ask([chat("bad 1"), chat("bad 2")], "s"))
        good = [(await sender.ask([chat(f"good {i}")], "s"))[0] for i in range(30)]
        return [*await bad, *good]

    replies = send(server, main, retries=4)
    assert [type(reply) for reply in replies] == [Failure, Failure, *[ChatReply] * 30]


def test_what_cannot_be_kept_is_not_paid_for(tmp_path: Path) -> None:
    """A full disk: what is in flight cannot be kept any more, but nothing new may be sent."""
    account = Account(ReplyCache(tmp_path / "r.sqlite"))
    account.cache._db.execute("PRAGMA max_page_count = 12")
    server = ScriptedServer(lambda request, tried: Attempt(ChatReply("x" * 2000, Usage(1, 1))), concurrency=4)
    with pytest.raises(DiskFull):
        ask(server, *(chat(str(i)) for i in range(500)), account=account)
    assert len(server.asked) <= len(account.cache) + 2 * 4
    account.close()


# Cancellation, and errors that are nobody's


def test_a_cancelled_request_may_have_been_charged() -> None:
    account = Account(own_prices=PRICES, budget=Budget(1e6, "tok"))
    server = ScriptedServer(seconds=100.0)

    async def main(sender: ServerSender) -> None:
        asking = asyncio.create_task(sender.ask([chat("a"), chat("b")], "s"))
        await asyncio.sleep(1)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking

    send(server, main, account)
    worst = worst_case(chat("a"))
    total = 2 * (worst.prompt_tokens + worst.completion_tokens)
    row = spent(account)
    assert account.budget is not None and account.budget.spent == row["unsure_tokens"] == total
    assert row["calls"] == 2 and len(account.cache) == 0


@pytest.mark.parametrize("where", ["place", "budget", "pause"])
def test_who_is_cancelled_while_waiting_costs_nothing(where: str) -> None:
    worst = worst_case(chat("a"))
    one = worst.prompt_tokens + worst.completion_tokens
    account = Account(budget=Budget(one * (1.5 if where == "budget" else 99), "tok"))
    server = ScriptedServer(busy(100.0, 1) if where == "pause" else fine, 10.0, 1 if where == "place" else 4)

    async def main(sender: ServerSender) -> None:
        first = asyncio.create_task(sender.ask([chat("a")], "s"))
        await asyncio.sleep(1)
        second = asyncio.create_task(sender.ask([chat("b")], "s"))
        await asyncio.sleep(20 if where == "pause" else 1)
        second.cancel()
        await asyncio.gather(first, second, return_exceptions=True)
        assert second.cancelled()

    send(server, main, account)
    row = spent(account)
    assert row["unsure_tokens"] == 0 and row["prompt_tokens"] == 10
    assert len(server.times("b")) == (where == "pause")


def test_an_error_in_the_server_s_code_leaves_nothing_running() -> None:
    """It breaks the protocol, so it ends the run; but not before what was sent with it has come back and is kept."""

    def answer(request: Request, tried: int) -> Attempt:
        if text_of(request) == "3":
            raise RuntimeError("a bug")
        return fine(request, tried)

    account = Account(budget=Budget(1e6, "tok"))
    server = ScriptedServer(answer, seconds=lambda request: 1 if text_of(request) == "3" else 5)

    async def main(sender: ServerSender) -> None:
        with pytest.raises(RuntimeError, match="a bug"):
            await sender.ask([chat(str(i)) for i in range(8)], "s")
        assert server.in_flight == 0

    send(server, main, account)
    assert len(account.cache) == 7


def test_nothing_is_remembered_of_what_is_done() -> None:
    """`send` looks into the sender after each run; here after thousands of answers, failures and equal requests."""
    draw = random.Random(0)

    def answer(request: Request, tried: int) -> Attempt:
        dice = draw.random()
        if dice < 0.1:
            return Attempt(Failure("error", "x"), retry=True, charged=None)
        return Attempt(Failure("refused", "x")) if dice < 0.2 else fine(request, tried)

    async def main(sender: ServerSender) -> dict[str, int]:
        sizes = []
        for _ in range(3):
            for _ in range(10):
                await sender.ask([chat(str(draw.randrange(10**6))) for _ in range(200)], "s")
            sizes.append({name: len(value) for name, value in vars(sender).items() if hasattr(value, "__len__")})
        assert sizes[0] == sizes[1] == sizes[2]
        return sizes[0]

    assert send(ScriptedServer(answer, concurrency=64), main) == {"_flying": 0}
