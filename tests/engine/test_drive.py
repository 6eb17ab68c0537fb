"""Requests to clients and back: order, concurrency, failures, and what happens when a unit raises."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Generator, Sequence
from typing import Any

import pytest

from autointerp.clients.fake import FakeClient
from autointerp.engine.drive import Finished, Router, drive, drive_all
from autointerp.errors import UserError
from prompts.requests import (
    Chat,
    ChatReply,
    Embed,
    EmbedReply,
    Failure,
    Likelihood,
    LikelihoodReply,
    Reply,
    Request,
    Steer,
    Usage,
    reply_sha,
)


class Recorder:
    """Answers with the request's own text, after a while, and keeps how many calls were in flight."""

    def __init__(self, model: str, supports: set[type], concurrency: int = 1, wait: float = 0.0) -> None:
        self.name, self.model, self.supports, self.concurrency = "recorder", model, frozenset(supports), concurrency
        self.wait, self.now, self.most, self.calls, self.closed = wait, 0, 0, 0, False

    async def answer(self, requests: Sequence[Request]) -> list[Reply]:
        self.now += 1
        self.calls += 1
        self.most = max(self.most, self.now)
        try:
            await asyncio.sleep(self.wait)
            return [self.reply(request) for request in requests]
        finally:
            self.now -= 1

    def reply(self, request: Request) -> Reply:
        if isinstance(request, Embed):
            return Failure("error", "bad") if request.text == "bad" else EmbedReply((float(request.text),), Usage(1, 0))
        assert isinstance(request, Likelihood)
        return LikelihoodReply((float(request.text),), Usage(10, 2))

    async def close(self) -> None:
        self.closed = True


def asks(*rounds: list[Request]) -> Generator[Sequence[Request], Sequence[Reply], list[list[Reply]]]:
    got = []
    for requests in rounds:
        got.append(list((yield requests)))  # noqa: PERF401
    return got


def test_require_names_what_is_missing_and_what_to_do() -> None:
    router = Router([FakeClient()])
    router.require({Chat, Embed, Likelihood}, "scorer 'x'")
    with pytest.raises(UserError) as raised:
        router.require({Chat, Steer}, "scorer 'intervention'")
    said = str(raised.value)
    assert said == (
        "scorer 'intervention' needs answers of kind Steer, which no client here gives (clients: fake:keyword); "
        "the subject model has to be loaded: give --model"
    )
    with pytest.raises(UserError, match=r"kind Chat, Embed.*\(clients: none\); name a judge with --client openai"):
        Router([]).require({Embed, Chat}, "x")


def test_replies_keep_their_order_across_clients() -> None:
    embedder, reader = Recorder("e", {Embed}), Recorder("r", {Likelihood})
    first: list[Request] = [
        Embed("1"),
        Likelihood("", "2"),
        Likelihood("", "3"),
        Embed("4"),
        Embed("5"),
        Likelihood("", "6"),
    ]
    router = Router([embedder, reader])
    finished = asyncio.run(drive(asks(first, [], [Likelihood("", "7")]), router))
    found = [[r.vector[0] if isinstance(r, EmbedReply) else r.logprob for r in replies] for replies in finished.result]
    assert found == [[1, 2, 3, 4, 5, 6], [], [7]]
    assert [type(r) for r in finished.result[0][:3]] == [EmbedReply, LikelihoodReply, LikelihoodReply]
    assert embedder.calls == 1 and reader.calls == 2, "one call a round for each client, however mixed"
    spent = {
        row["model"]: (row["calls"], row["prompt_tokens"], row["completion_tokens"])
        for row in router.account.cache.spent()
    }
    assert spent == {"e": (3, 3, 0), "r": (4, 40, 8)}
    assert finished.usage == Usage(43, 8)


def test_the_first_client_that_supports_a_class_answers() -> None:
    first, second = Recorder("first", {Embed}), Recorder("second", {Embed, Likelihood})
    router = Router([first, second])
    asyncio.run(drive(asks([Embed("1"), Likelihood("", "2")]), router))
    assert (first.calls, second.calls) == (1, 1)
    assert router.model_for({Embed, Likelihood}) == "first+second" and router.model_for({Likelihood}) == "second"
    asyncio.run(router.close())
    assert not first.closed and not second.closed, "models in this process stay loaded for the next stage"


def test_failures_are_replies_and_are_listed() -> None:
    finished = asyncio.run(drive(asks([Embed("1"), Embed("bad"), Embed("3")]), Router([Recorder("e", {Embed})])))
    assert [type(r).__name__ for r in finished.result[0]] == ["EmbedReply", "Failure", "EmbedReply"]
    assert finished.failures == [(reply_sha(Failure("error", "bad")), Failure("error", "bad"))]


def test_a_unit_that_asks_nothing() -> None:
    def silent() -> Generator[Any, Any, str]:
        return "nothing to do"
        yield

    assert asyncio.run(drive(silent(), Router([]))).result == "nothing to do"


@pytest.mark.parametrize("concurrency", [1, 4])
def test_drive_all_keeps_to_the_concurrency(concurrency: int) -> None:
    client = Recorder("e", {Embed}, concurrency, wait=0.004)
    done: dict[str, Finished] = {}
    started: list[int] = []

    def make(i: int) -> Any:
        started.append(len(done))
        return asks([Embed(str(i))], [Embed(str(i))])

    units = ((f"u{i}", lambda i=i: make(i)) for i in range(20))
    asyncio.run(drive_all(units, Router([client]), done.__setitem__))
    assert client.most == 1 and client.calls == 40, "a model in this process answers one call at a time"
    assert {key: f.result[1][0].vector for key, f in done.items()} == {f"u{i}": (float(i),) for i in range(20)}
    assert all(i - finished <= concurrency for i, finished in enumerate(started)), "units are made when there is room"


def test_a_narrow_client_beside_a_wide_one_gets_no_more_than_it_wants() -> None:
    narrow, wide = Recorder("n", {Embed}, 1, wait=0.002), Recorder("w", {Likelihood}, 8, wait=0.002)
    units = ((str(i), lambda: asks([Embed("1")], [Likelihood("", "2")])) for i in range(16))
    asyncio.run(drive_all(units, Router([narrow, wide]), lambda *_: None))
    assert wide.calls == 16 and narrow.most == 1


@pytest.mark.parametrize("where", ["generator", "client", "on_done", "make"])
def test_an_exception_propagates_and_stops_the_rest(where: str) -> None:
    """With forty units, four in flight: the sixth raises, and nothing is finished afterwards."""
    client = Recorder("e", {Embed}, 4, wait=0.005)
    done: list[str] = []

    def unit(i: int) -> Generator[Any, Any, int]:
        yield [Embed("1" if (where, i) != ("client", 5) else "no number")]
        if (where, i) == ("generator", 5):
            raise RuntimeError("broken unit")
        yield [Embed("1")] * i
        return i

    def make(i: int) -> Any:
        if (where, i) == ("make", 5):
            raise RuntimeError("broken unit")
        return unit(i)

    def on_done(key: str, finished: Finished) -> None:
        if (where, key) == ("on_done", "5"):
            raise RuntimeError("broken unit")
        done.append(key)

    async def run() -> int:
        with pytest.raises((RuntimeError, ValueError), match=r"broken unit|no number"):
            await drive_all(((str(i), lambda i=i: make(i)) for i in range(40)), Router([client]), on_done)
        finished = len(done)
        await asyncio.sleep(0.05)
        assert len(done) == finished and client.now == 0, "the others were cancelled"
        return finished

    assert asyncio.run(run()) <= 12
    assert "5" not in done and len(set(done)) == len(done)


def test_an_early_failure_among_the_last_units_is_not_lost() -> None:
    def broken() -> Generator[Any, Any, None]:
        yield [Embed("1")]
        raise RuntimeError("broken unit")

    units = [("a", lambda: asks([Embed("1")])), ("b", broken)]
    with pytest.raises(RuntimeError, match=re.escape("broken unit")):
        asyncio.run(drive_all(units, Router([Recorder("e", {Embed}, 8)]), lambda *_: None))


def test_chat_goes_to_the_fake() -> None:
    finished = asyncio.run(drive(asks([Chat(())]), Router([FakeClient()])))
    assert isinstance(finished.result[0][0], ChatReply)
