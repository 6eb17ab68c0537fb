"""Several addresses of one model: which one is asked, and what happens when one of them is gone."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from contextlib import ExitStack

import pytest

from autointerp.clients._endpoints import LONGEST_PAUSE, SLACK, Endpoint, Endpoints
from autointerp.clients.fake import FakeClient
from autointerp.clients.fake_server import FakeServer
from autointerp.clients.openai import create
from autointerp.engine.account import Account
from autointerp.engine.sending import ServerSender
from prompts.requests import Chat, ChatReply, Message, Reply


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def endpoints(n: int, clock: Clock | None = None) -> Endpoints[str]:
    return Endpoints([(f"http://host{i}/v1", f"connection {i}") for i in range(n)], clock or Clock())


def picks(of: Endpoints[str], n: int = 600) -> list[str]:
    """The addresses that take so many beginnings, one after the other."""
    return [of.pick(f"beginning {i}").url for i in range(n)]


def test_one_address_takes_all() -> None:
    clock = Clock()
    one = endpoints(1, clock)
    for _ in range(3):
        one.lost(one.all[0])
        assert one.pick("x") is one.all[0], "there is no other"
    assert not one.any_alive
    clock.now += LONGEST_PAUSE
    assert one.any_alive


def test_what_begins_alike_goes_to_one_address_and_different_ones_are_spread() -> None:
    four = endpoints(4)
    assert picks(four) == picks(four) == picks(endpoints(4)), "in the next process too"
    shares = Counter(picks(four))
    assert len(shares) == 4 and all(100 <= n <= 200 for n in shares.values())
    assert four.pick("\ud800") is four.pick("\ud800")


def test_the_order_of_addresses_does_not_matter() -> None:
    four = endpoints(4)
    assert picks(Endpoints([(e.url, e.connection) for e in reversed(four.all)], Clock())) == picks(four)


def test_when_an_address_goes_only_its_own_requests_move_and_they_come_back() -> None:
    clock = Clock()
    four = endpoints(4, clock)
    before = picks(four)
    gone = four.all[2]
    four.lost(gone)
    during = picks(four)
    assert gone.url not in during
    assert all(a == b for a, b in zip(before, during, strict=True) if a != gone.url)
    assert len({b for a, b in zip(before, during, strict=True) if a == gone.url}) == 3, "not all to one other"
    clock.now += LONGEST_PAUSE
    assert picks(four) == before


def test_an_address_without_the_others_keeps_its_requests() -> None:
    four, three = picks(endpoints(4)), picks(endpoints(3))
    assert all(a == b for a, b in zip(four, three, strict=True) if a != "http://host3/v1")


@pytest.mark.parametrize("seed", range(10))
def test_no_address_has_clearly_more_to_do_than_the_others(seed: int) -> None:
    draw = random.Random(seed)
    some = endpoints(draw.randrange(2, 6))
    flying: list[Endpoint[str]] = []
    for _ in range(2000):
        if flying and draw.random() < 0.5:
            flying.pop(draw.randrange(len(flying))).in_flight -= 1
            continue
        # Nearly all begin alike, and would all go to one.
        taken = some.pick("popular" if draw.random() < 0.9 else str(draw.random()))
        assert taken.in_flight < SLACK * (1 + len(flying)) / len(some.all) or taken.in_flight == min(
            endpoint.in_flight for endpoint in some.all
        )
        taken.in_flight += 1
        flying.append(taken)
    assert sum(endpoint.in_flight for endpoint in some.all) == len(flying)


def test_the_load_of_a_dead_address_does_not_count() -> None:
    """Requests that hang there must not make the others look idle."""
    three = endpoints(3)
    three.all[0].in_flight = 300
    three.lost(three.all[0])
    taken: Counter[str] = Counter()
    for _ in range(20):
        endpoint = three.pick("popular")
        endpoint.in_flight += 1
        taken[endpoint.url] += 1
    assert len(taken) == 2 and max(taken.values()) <= 14


def test_pauses_grow_with_failures_and_are_forgotten_when_it_answers() -> None:
    clock = Clock()
    two = endpoints(2, clock)
    pauses = []
    for _ in range(8):
        two.lost(two.all[0])
        pauses.append(two.all[0].back_at - clock.now)
        clock.now = two.all[0].back_at
    assert pauses == [1, 2, 4, 8, 16, 32, 60, 60]
    two.reached(two.all[0])
    two.lost(two.all[0])
    assert two.all[0].back_at - clock.now == 1


def test_requests_that_were_in_flight_together_count_as_one_failure() -> None:
    """Sixteen connections that break at one moment say once that it is gone; a second later it may be back."""
    clock = Clock()
    two = endpoints(2, clock)
    for _ in range(16):
        two.lost(two.all[0])
        clock.now += 0.01
    assert two.all[0].back_at <= 1001.0 and two.all[0].failures == 1


def test_an_address_may_be_gone_for_days() -> None:
    clock = Clock()
    two = endpoints(2, clock)
    for _ in range(5000):
        two.lost(two.all[0])
        assert two.all[0].back_at - clock.now <= LONGEST_PAUSE
        clock.now += LONGEST_PAUSE
    assert two.all[0].failures == 5000


def test_when_all_are_gone_the_one_that_is_back_first_is_tried() -> None:
    clock = Clock()
    three = endpoints(3, clock)
    for endpoint in three.all:
        three.lost(endpoint)
        clock.now += 0.1
    assert not three.any_alive and {three.pick(str(i)).url for i in range(20)} == {"http://host0/v1"}
    clock.now = 1001.0
    assert three.any_alive


# With real servers


def chats(n: int) -> list[Chat]:
    return [Chat((Message("user", f"item {i}"),)) for i in range(n)]


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("autointerp.engine.sending.FIRST_PAUSE", 0.05)
    for name in ("OPENAI_BASE_URL", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)


def test_two_servers_share_the_work_and_one_of_them_is_stopped() -> None:
    with ExitStack() as stays:
        goes = ExitStack()
        first = goes.enter_context(FakeServer(FakeClient(), latency=0.01))
        second = stays.enter_context(FakeServer(FakeClient(), latency=0.01))
        client = create("keyword", base_url=f"{first.base_url}, {second.base_url}", max_concurrency=8, timeout=10)
        account = Account()

        async def run() -> list[Reply]:
            sender = ServerSender(client, account)
            try:
                asking = asyncio.create_task(sender.ask(chats(300), "s"))
                while first.served < 30 or second.served < 30:
                    await asyncio.sleep(0.005)
                await asyncio.to_thread(goes.close)
                replies = await asking
                assert [e.url for e in client.endpoints.all if e.failures] == [first.base_url]
                assert all(endpoint.in_flight == 0 for endpoint in client.endpoints.all)
                return replies
            finally:
                await client.close()

        replies = asyncio.run(run())
        expected = [FakeClient().reply(request) for request in chats(300)]
        assert [getattr(reply, "text", reply) for reply in replies] == [
            getattr(reply, "text", "") for reply in expected
        ]
        assert first.served >= 30 and second.served > 150
        (row,) = account.cache.spent()
        # What broke in flight at the first may have been charged; what never reached it was not.
        assert row["calls"] == 300 + row["retries"] and row["retries"] <= 40
    assert len(account.cache) == 300


def test_what_begins_alike_stays_at_one_server() -> None:
    with FakeServer(FakeClient()) as first, FakeServer(FakeClient()) as second:
        client = create("keyword", base_url=f"{first.base_url},{second.base_url}", max_concurrency=1)
        requests = [
            Chat((Message("system", f"book {i % 10} " * 50), Message("user", f"about {i % 10}" + "?" * 300 + str(i))))
            for i in range(60)
        ]

        async def run() -> list[Reply]:
            try:
                return await ServerSender(client, Account()).ask(requests, "s")
            finally:
                await client.close()

        replies = asyncio.run(run())
        assert all(isinstance(reply, ChatReply) for reply in replies)
        books = [{logged.body["messages"][0]["content"] for logged in server.log} for server in (first, second)]
    assert books[0] and books[1] and not books[0] & books[1]
