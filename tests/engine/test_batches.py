"""Batches against the fake server's batch API: everything that is asked at a time is one file, and nothing is lost."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from scripted_server import chat

from autointerp.clients._openai_batches import BatchAPI
from autointerp.clients.fake import FakeClient
from autointerp.clients.fake_server import FakeServer, Fault
from autointerp.clients.openai import OpenAIClient
from autointerp.engine.account import BATCH_DISCOUNT, Account
from autointerp.engine.batches import BatchSender
from autointerp.engine.budget import worst_case
from autointerp.engine.replies import open_cache
from autointerp.errors import AutointerpError, BudgetReached, DiskFull, UserError
from prompts.requests import (
    Chat,
    ChatReply,
    Choice,
    ChoiceReply,
    Embed,
    EmbedReply,
    Failure,
    Likelihood,
    Message,
    Reply,
    Request,
    Usage,
)

KEY = "my-Secret_key.0123456789abcdef"
PRICES = {"keyword": (1.0, 2.0), "lengths:1": (1.0, 2.0)}


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_BASE_URL", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)


class Run:
    """One command: its own books and client; what it says is kept."""

    def __init__(self, folder: Path, server: FakeServer, budget: str | None = None, model: str = "keyword") -> None:
        self.folder, self.said = folder, list[str]()
        self.account = Account(open_cache(folder), own_prices=PRICES, discount=BATCH_DISCOUNT)
        self.account.begin(budget)
        # The fake server listens elsewhere each time; its answers are the same.
        self.client = OpenAIClient(model, server.base_url, identity="here")

    def sender(self) -> BatchSender:
        return BatchSender(self.client, self.account, self.folder / "batches", say=self.said.append, poll=0.01)

    def __call__(self, main: Callable[[BatchSender], Awaitable[Any]]) -> Any:
        async def run() -> Any:
            try:
                return await main(self.sender())
            finally:
                await self.client.close()

        try:
            return asyncio.run(run())
        finally:
            self.account.close()

    def ask(self, *units: list[Request]) -> list[list[Reply]]:
        """What each of several units gets that ask at the same time."""
        together: list[list[Reply]] = self(lambda sender: asyncio.gather(*(sender.ask(unit, "s") for unit in units)))
        return together


def posts(server: FakeServer, path: str) -> int:
    return sum(logged.path == f"/v1/{path}" for logged in server.log)


def states(folder: Path) -> list[str]:
    return sorted(path.suffix for path in (folder / "batches").iterdir())


def books(folder: Path) -> dict[str, Any]:
    cache = open_cache(folder)
    (row,) = cache.spent()
    cache.close()
    return row


def open_batches(folder: Path) -> int:
    return len(list((folder / "batches").glob("*.json")))


def test_everything_that_is_asked_at_a_time_is_one_batch_for_each_path(tmp_path: Path) -> None:
    units: list[list[Request]] = [[chat(f"item {i} {j}", max_tokens=20) for j in range(3)] for i in range(30)]
    units.append([Embed("a cat"), chat("item 0 0", max_tokens=20), Likelihood("a", "b"), Embed("a dog")])
    with FakeServer(FakeClient(), batch_seconds=0.05) as server:
        run = Run(tmp_path, server)
        replies = run.ask(*units)
        direct = [[FakeClient().reply(request) for request in unit] for unit in units]
        assert posts(server, "batches") == posts(server, "files") == 2
        assert posts(server, "chat/completions") == 90 and posts(server, "embeddings") == 2
    assert replies[:30] == direct[:30]
    cat, equal, likelihood, dog = replies[30]
    assert isinstance(cat, EmbedReply) and isinstance(dog, EmbedReply) and cat != dog and equal == direct[0][0]
    assert isinstance(likelihood, Failure) and "Likelihood" in likelihood.message
    assert states(tmp_path) == [".collected", ".collected"]
    row = books(tmp_path)
    tokens = [Usage(r.usage.prompt_tokens, r.usage.completion_tokens) for unit in replies[:30] for r in unit]
    prompt, completion = sum(u.prompt_tokens for u in tokens) + 4, sum(u.completion_tokens for u in tokens)
    assert (row["calls"], row["prompt_tokens"], row["completion_tokens"]) == (92, prompt, completion)
    assert row["price"] == pytest.approx(0.5 * (prompt + 2 * completion) / 1e6), "half the price"
    assert any("90 requests submitted" in line for line in run.said)


def test_what_is_asked_after_the_answers_is_another_batch(tmp_path: Path) -> None:
    async def unit(sender: BatchSender, i: int) -> list[Reply]:
        first = await sender.ask([chat(f"first {i}")], "s")
        return [*first, *(await sender.ask([chat(f"second {i}")], "s"))]

    with FakeServer(FakeClient(), batch_seconds=0.02) as server:
        replies = Run(tmp_path, server)(lambda sender: asyncio.gather(*(unit(sender, i) for i in range(10))))
        assert posts(server, "batches") == 2
        assert all(isinstance(reply, ChatReply) for unit in replies for reply in unit)
        again = Run(tmp_path, server)(lambda sender: asyncio.gather(*(unit(sender, i) for i in range(10))))
        assert again == replies and posts(server, "batches") == 2, "from the cache"


def test_choices_come_back_as_probabilities(tmp_path: Path) -> None:
    question = Choice((Message("user", "yes or no?"),), ("yes", "no"))
    with FakeServer(FakeClient(), batch_seconds=0.02) as server:
        ((reply,),) = Run(tmp_path, server).ask([question])
    assert isinstance(reply, ChoiceReply) and len(reply.probabilities) == 2 and sum(reply.probabilities) > 0


def test_lines_that_fail(tmp_path: Path) -> None:
    faults: dict[str, tuple[Fault, str, bool, bool]] = {
        # What goes wrong, the kind of failure, whether it is charged, whether it is kept.
        "overflow": (
            Fault(status=400, message="maximum context length is 4096 tokens"),
            "context_overflow",
            False,
            True,
        ),
        "bad": (Fault(status=400, message="no such parameter"), "rejected", False, False),
        "down": (Fault(status=500), "error", False, False),
        "reset": (Fault("reset"), "error", False, False),
        "refusal": (Fault("refusal", message="I will not"), "refused", True, True),
        "length": (Fault("finish", code="length"), "truncated", True, True),
        "odd": (Fault("wrong_json", content={"hello": 1}), "error", True, False),
    }

    def fault(index: int, body: dict[str, Any]) -> Fault | None:
        said = body.get("messages", [{"content": ""}])[0]["content"]
        return faults[said][0] if said in faults else None

    requests = [chat(name) for name in [*faults, "fine"]]
    with FakeServer(FakeClient(), faults=fault, batch_seconds=0.02) as server:
        run = Run(tmp_path, server, "1Mtok")
        budget = run.account.budget
        (replies,) = run.ask(list(requests))
        assert [getattr(reply, "kind", "ok") for reply in replies] == [kind for _, kind, *_ in faults.values()] + ["ok"]
        assert budget is not None and budget.held == 0
        row = books(tmp_path)
        # Answers that are charged for without saying how much count at their worst, others that failed not at all.
        worst = [worst_case(chat(name)) for name, (*_, charged, _) in faults.items() if charged]
        unsure = sum(usage.prompt_tokens + usage.completion_tokens for usage in worst)
        assert (row["calls"], row["unsure_tokens"]) == (8, unsure)
        assert budget.spent == row["prompt_tokens"] + row["completion_tokens"] + unsure
        asked = posts(server, "chat/completions")
        Run(tmp_path, server).ask(list(requests))
        again = posts(server, "chat/completions") - asked
    assert again == sum(not kept for *_, kept in faults.values()), "the next run asks what may have passed"


def interrupted(folder: Path, server: FakeServer, requests: list[Request], budget: str | None = None) -> Run:
    """A run that is cancelled when its batch is submitted."""
    run = Run(folder, server, budget)

    async def main(sender: BatchSender) -> None:
        asking = asyncio.create_task(sender.ask(requests, "s"))
        while not any("submitted" in line for line in run.said):
            await asyncio.sleep(0.005)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)

    run(main)
    return run


def test_a_run_that_was_cancelled_finds_its_batch_again(tmp_path: Path) -> None:
    requests: list[Request] = [chat(f"item {i}") for i in range(20)]
    with FakeServer(FakeClient(), batch_seconds=0.2) as server:
        interrupted(tmp_path, server, requests)
        assert open_batches(tmp_path) == 1
        # It asks less than before, and something new; what was paid for is kept all the same.
        (replies,) = Run(tmp_path, server).ask([*requests[:5], chat("new")])
        assert all(isinstance(reply, ChatReply) for reply in replies)
        assert posts(server, "batches") == 2 and posts(server, "chat/completions") == 21, "nothing twice"
        assert Run(tmp_path, server).ask(requests)[0][:5] == replies[:5]
        assert posts(server, "batches") == 2
    assert states(tmp_path) == [".collected", ".collected"] and books(tmp_path)["calls"] == 21


def test_an_open_batch_holds_its_part_of_the_budget(tmp_path: Path) -> None:
    requests: list[Request] = [chat(f"item {i:02}") for i in range(10)]
    worst = worst_case(requests[0])
    one = worst.prompt_tokens + worst.completion_tokens
    with FakeServer(FakeClient(), batch_seconds=0.2) as server:
        interrupted(tmp_path, server, requests, f"{10 * one + 50}tok")
        run = Run(tmp_path, server, f"{10 * one + 50}tok")
        budget = run.account.budget
        assert budget is not None and budget.spent == 0, "the batch outlives the process; nothing was lost"

        async def main(sender: BatchSender) -> None:
            assert budget.held == 10 * one and not budget.hold(51)
            (reply,) = await sender.ask([chat("item 99")], "s")
            assert isinstance(reply, ChatReply), "what the batch did not use is there for it"

        run(main)
        assert budget.held == 0 and 0 < budget.spent < 10 * one


def test_batches_of_other_models_are_left_alone(tmp_path: Path) -> None:
    with FakeServer(FakeClient(), batch_seconds=0.05) as server:
        interrupted(tmp_path, server, [chat("x")])
        Run(tmp_path, server, model="lengths:1").ask([chat("x")])
        assert states(tmp_path) == [".collected", ".json"] and posts(server, "batches") == 2


@pytest.mark.parametrize("unit", ["tok", "usd"])
def test_a_budget_is_kept_over_several_batches(tmp_path: Path, unit: str) -> None:
    requests: list[Request] = [chat(f"item {i:03}", max_tokens=50) for i in range(60)]
    worst = worst_case(requests[0])
    amount = {
        "tok": 10.5 * (worst.prompt_tokens + worst.completion_tokens),
        "usd": 10.5 * 0.5 * (worst.prompt_tokens + 2 * worst.completion_tokens) / 1e6,
    }[unit]
    with FakeServer(FakeClient("lengths:1"), batch_seconds=0.01) as server:
        run = Run(tmp_path, server, f"{amount:.9f}{unit}", model="lengths:1")
        budget = run.account.budget
        assert budget is not None

        async def main(sender: BatchSender) -> list[Any]:
            asked = (sender.ask([request], "s") for request in requests)
            return await asyncio.gather(*asked, return_exceptions=True)

        ended = run(main)
        assert budget.spent <= budget.limit and budget.held == 0
        answered = [end for end in ended if isinstance(end, list)]
        assert 10 < len(answered) <= 60 and posts(server, "batches") > 1
        assert all(isinstance(end, list | BudgetReached) for end in ended)
        assert posts(server, "chat/completions") == len(answered) == books(tmp_path)["calls"]
        if len(answered) < 60:
            assert budget.limit - budget.spent < amount / 10


def test_a_budget_that_holds_nothing(tmp_path: Path) -> None:
    with FakeServer(FakeClient()) as server:
        with pytest.raises(BudgetReached):
            Run(tmp_path, server, "100tok").ask([chat("x")])
        assert server.served == 0


def test_a_refused_batch_gives_its_part_of_the_budget_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    submit = BatchAPI.submit

    async def spoilt(self: BatchAPI, path: str, bodies: Any) -> str:
        return await submit(self, path, {key: [body] for key, body in bodies.items()})  # type: ignore[misc]

    with FakeServer(FakeClient(), batch_seconds=0.01) as server:
        run = Run(tmp_path, server, "1Mtok")
        monkeypatch.setattr(BatchAPI, "submit", spoilt)
        with pytest.raises(UserError, match=r"batch batch_1 was refused: .*body an object"):
            run.ask([chat("x"), chat("y")])
        assert run.account.budget is not None and run.account.budget.held == 0
        assert states(tmp_path) == [".failed"]
        monkeypatch.setattr(BatchAPI, "submit", submit)
        assert isinstance(Run(tmp_path, server).ask([chat("x")])[0][0], ChatReply)


@pytest.mark.parametrize("path", ["/v1/files", "/v1/batches"])
def test_what_could_not_be_submitted_is_free_and_shows_no_key(tmp_path: Path, path: str) -> None:
    def fault(index: int, body: dict[str, Any]) -> Fault | None:
        refused = "filename" in str(body) if path == "/v1/files" else "completion_window" in body
        return Fault(status=401, message=f"Incorrect API key provided: {KEY}\nor {KEY[:6]}***") if refused else None

    with FakeServer(FakeClient(), faults=fault) as server:
        run = Run(tmp_path, server, "1Mtok")
        with pytest.raises(AutointerpError, match="run the same command again to go on") as raised:
            run.ask([chat("x")], [chat("y")])
        said = str(raised.value)
        assert KEY not in said and "\n" not in said and "Incorrect API key" in said
        assert raised.value.__cause__ is None and raised.value.__context__ is None
        assert run.account.budget is not None and run.account.budget.held == 0 and open_batches(tmp_path) == 0


def test_a_refusal_of_the_whole_batch_shows_no_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    look = BatchAPI.look

    async def refused(self: BatchAPI, batch: str) -> Any:
        found = await look(self, batch)
        return type(found)("failed", found.done, found.total, found.files, f"the key {KEY} has no access")

    monkeypatch.setattr(BatchAPI, "look", refused)
    with FakeServer(FakeClient()) as server, pytest.raises(UserError, match="was refused") as raised:
        Run(tmp_path, server).ask([chat("x")])
    assert KEY not in str(raised.value)


def test_a_full_disk_while_collecting_books_nothing_twice(tmp_path: Path) -> None:
    requests: list[Request] = [chat(f"item {i} " + "x" * 400) for i in range(60)]
    with FakeServer(FakeClient(), batch_seconds=0.01) as server:
        run = Run(tmp_path, server)
        run.account.cache._db.execute("PRAGMA max_page_count = 1")  # as many as there are
        with pytest.raises(DiskFull):
            run.ask(requests)
        assert open_batches(tmp_path) == 1
        (replies,) = Run(tmp_path, server).ask(requests)
        assert all(isinstance(reply, ChatReply) for reply in replies)
        assert posts(server, "batches") == 1 and books(tmp_path)["calls"] == 60


def test_nobody_reads_an_answer_that_is_not_kept(tmp_path: Path) -> None:
    requests: list[Request] = [chat(f"item {i} " + "x" * 400) for i in range(60)]
    with FakeServer(FakeClient(), batch_seconds=0.01) as server:
        run = Run(tmp_path, server)
        run.account.cache._db.execute("PRAGMA max_page_count = 1")  # as many as there are

        async def main(sender: BatchSender) -> list[Any]:
            return await asyncio.gather(*(sender.ask([r], "s") for r in requests), return_exceptions=True)

        assert {type(end) for end in run(main)} == {DiskFull}


def test_a_batch_that_is_cancelled_at_the_server(tmp_path: Path) -> None:
    with FakeServer(FakeClient(), batch_seconds=30) as server:
        run = Run(tmp_path, server, "1Mtok")

        async def main(sender: BatchSender) -> list[Reply]:
            asking = asyncio.create_task(sender.ask([chat("x")], "s"))
            while not run.said:
                await asyncio.sleep(0.01)
            await run.client.endpoints.all[0].connection.batches.cancel("batch_1")
            return await asking

        (reply,) = run(main)
        assert isinstance(reply, Failure) and reply.kind == "timeout" and "cancelled" in reply.message
        assert run.account.budget is not None and (run.account.budget.held, run.account.budget.spent) == (0, 0)
        assert books(tmp_path)["price"] == 0


def test_answers_with_every_kind_of_line_end_in_them() -> None:
    """JSON holds line separators as they are; a file of lines may only be cut where a line ends."""
    text = "one\u2028two\u2029three\x85four\x1efive\x0csix"
    line = {"custom_id": "id", "response": {"status_code": 200, "body": {"text": text}}}
    data = json.dumps(line, ensure_ascii=False) + "\r\n\n" + "no JSON\n[]\nnull\n" + json.dumps({"custom_id": 1})

    class Files:
        async def content(self, name: str) -> Any:
            return SimpleNamespace(text=data)

    found = asyncio.run(BatchAPI(SimpleNamespace(files=Files())).answers(["file"]))  # type: ignore[arg-type]
    assert found["id"] == (200, {"text": text})
    assert found["1"][0] == 500


def test_a_client_without_batches(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no batch API: drop --batch, or use --client openai"):
        BatchSender(FakeClient(), Account(), tmp_path)


def test_equal_requests_are_one_line(tmp_path: Path) -> None:
    with FakeServer(FakeClient(), batch_seconds=0.01) as server:
        replies = Run(tmp_path, server).ask([chat("x"), chat("x")], [chat("x")])
        assert posts(server, "chat/completions") == 1
    assert {reply for unit in replies for reply in unit} == {replies[0][0]} and isinstance(replies[0][0], ChatReply)
    assert isinstance(chat("x"), Chat)
