"""Servers found through files: who is picked, when they are looked for, and what announces them."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Coroutine
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from autointerp.clients import _announced
from autointerp.clients._announced import Announcement, Array, announced, folder_in
from autointerp.clients.announce import main, models_at
from autointerp.clients.fake import FakeClient
from autointerp.clients.fake_server import FakeServer
from autointerp.clients.openai import create
from autointerp.engine.account import Account
from autointerp.engine.sending import ServerSender
from autointerp.errors import ServerGone, UserError
from prompts.requests import Chat, ChatReply, Message


class Some:
    """Servers that exist by name only: which are well, and how often they were looked at."""

    def __init__(self, folder: Path, *well: str) -> None:
        self.folder, self.well, self.looks, self.said = folder, set(well), [], []  # type: ignore[var-annotated]

    async def healthy(self, connection: str) -> bool:
        self.looks.append(connection)
        if connection.startswith("breaks"):
            raise RuntimeError("it breaks")
        return connection in self.well

    def array(self, wait: float = 0.5) -> Array[str]:
        return Array(self.folder, "m", wait, lambda url: url, self.healthy)


def run(make: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
    return asyncio.run(make())


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_announced, "LOOK", 0.05)
    monkeypatch.setattr(_announced, "LOOK_AGAIN", 0.02)
    monkeypatch.setattr("autointerp.clients._endpoints.FIRST_PAUSE", 0.02)
    monkeypatch.setattr("autointerp.engine.sending.FIRST_PAUSE", 0.02)
    for name in ("OPENAI_BASE_URL", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)


def test_only_healthy_servers_of_the_model_are_asked(tmp_path: Path) -> None:
    for url, models in {"a": ("m", "n"), "b": ("n",), "sick": ("m",), "breaks": ("m",)}.items():
        Announcement(url, models).write(tmp_path)
    (tmp_path / "server-x.json").write_text('{"url": "half wri')
    (tmp_path / "server-y.json").write_text("[]")
    some = Some(tmp_path, "a", "b")

    async def main() -> list[str]:
        array = some.array()
        await array.ready(some.said.append)
        return [array.pick(str(i)).url for i in range(20)]

    assert set(run(main)) == {"a"} and some.said == []
    assert set(some.looks) == {"a", "sick", "breaks"}


def test_servers_that_come_are_found_and_those_that_go_are_left(tmp_path: Path) -> None:
    first = Announcement("a", ("m",)).write(tmp_path)
    some = Some(tmp_path, "a", "b")

    async def main() -> None:
        array = some.array()
        await array.ready(some.said.append)
        assert [endpoint.url for endpoint in array.alive] == ["a"]
        Announcement("b", ("m",)).write(tmp_path)
        first.unlink()
        for _ in range(100):
            await array.ready(some.said.append)
            await asyncio.sleep(0.01)
        assert [endpoint.url for endpoint in array.alive] == ["b"]
        assert sorted(await array.leave()) == ["a", "b"], "no connection is forgotten"

    run(main)
    assert some.looks.count("a") == 1, "one that does its work is left in peace"


def test_one_that_is_lost_has_to_be_well_again(tmp_path: Path) -> None:
    for url in ("a", "b"):
        Announcement(url, ("m",)).write(tmp_path)
    some = Some(tmp_path, "a", "b")

    async def main() -> None:
        array = some.array()
        await array.ready(some.said.append)
        a = next(endpoint for endpoint in array.all if endpoint.url == "a")
        some.well.discard("a")
        array.lost(a)
        for _ in range(50):
            await array.ready(some.said.append)
            assert array.pick("x").url == "b"
            await asyncio.sleep(0.01)
        looks = some.looks.count("a")
        assert looks >= 3, "it is looked at again"
        some.well.add("a")
        await asyncio.sleep(1)
        await array.ready(some.said.append)
        await asyncio.sleep(0.1)
        assert len(array.alive) == 2
        # Doubted, it is looked at, and found sick.
        some.well.discard("a")
        a.doubted = True
        await array.ready(some.said.append)
        await asyncio.sleep(0.05)
        assert [endpoint.url for endpoint in array.alive] == ["b"]

    run(main)


def test_another_server_at_a_lost_address_is_not_made_to_wait(tmp_path: Path) -> None:
    Announcement("a", ("m",)).write(tmp_path)
    some = Some(tmp_path)

    async def main() -> None:
        array = some.array(wait=30)
        waiting = asyncio.create_task(array.ready(some.said.append))
        await asyncio.sleep(0.2)
        array.all[0].back_at = float("inf")
        some.well.add("a")
        await asyncio.sleep(0.1)
        assert not waiting.done()
        Announcement("a", ("m",)).write(tmp_path)
        await asyncio.wait_for(waiting, 5)

    run(main)
    assert len(announced(tmp_path)) == 1, "what the earlier one said is gone"


def test_with_none_it_is_said_once_and_waited_for(tmp_path: Path) -> None:
    Announcement("b", ("other",)).write(tmp_path)
    some = Some(tmp_path, "a")

    async def main() -> float:
        array, began = some.array(), time.monotonic()
        ends = await asyncio.gather(*(array.ready(some.said.append) for _ in range(5)), return_exceptions=True)
        assert [type(end) for end in ends] == [ServerGone] * 5
        assert f"no server of 'm' is announced in '{tmp_path}' and answers (but of other) for" in str(ends[0])
        took = time.monotonic() - began
        # One that comes is found, whatever was before.
        Announcement("a", ("m",)).write(tmp_path)
        await array.ready(some.said.append)
        return took

    assert run(main) >= 0.5
    assert len(some.said) == 2 and "waiting 0 s" in some.said[0] and some.said[1] == "a server of 'm' answers: going on"


def test_a_request_outlives_more_deaths_than_it_has_tries(tmp_path: Path) -> None:
    """Servers that are found gone take no tries away: a request with one try gets its answer from the last."""
    with ExitStack() as goes, FakeServer(FakeClient()) as second:
        first = goes.enter_context(FakeServer(FakeClient()))
        Announcement(first.base_url, ("keyword",)).write(tmp_path)
        client = create("keyword", base_url=f"servers:{tmp_path}", server_wait=10.0)
        assert client.identity == "keyword"
        account = Account()

        async def main() -> list[Any]:
            sender = ServerSender(client, account, retries=0, say=lambda text: None)
            try:
                found = await sender.ask([Chat((Message("user", "one"),))], "s")
                await asyncio.to_thread(goes.close)
                asking = asyncio.create_task(sender.ask([Chat((Message("user", "two"),))], "s"))
                await asyncio.sleep(0.3)
                assert not asking.done()
                Announcement(second.base_url, ("keyword",)).write(tmp_path)
                return [*found, *await asking]
            finally:
                await client.close()

        assert [type(reply) for reply in run(main)] == [ChatReply, ChatReply]
        (row,) = account.cache.spent()
        assert row["calls"] - row["retries"] == 2 and row["unsure_tokens"] == 0


def test_bad_arguments(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert folder_in("http://127.0.0.1/v1") is None
    with pytest.raises(UserError, match="servers:FOLDER"):
        folder_in("servers: ")
    with pytest.raises(UserError, match="--batch is OpenAI's"):
        create("m", base_url=f"servers:{tmp_path}").batches()
    assert main([str(tmp_path), "--port", "0", "--", "true"]) == 2
    assert "write {port}" in capsys.readouterr().err
    assert main([str(tmp_path), "--port", "0", "--", "/no/such/program", "{port}"]) == 1
    assert "No such file" in capsys.readouterr().err


def announcing(folder: Path, *words: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "autointerp.clients.announce", folder, "--host", "127.0.0.1", *words]
    return subprocess.Popen([*map(str, command)], stderr=subprocess.PIPE, text=True)


def wait_for(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


FAKE = (sys.executable, "-m", "autointerp.clients.fake_server", "--port", "{port}")


def test_what_is_announced_is_well_and_goes_with_its_announcer(tmp_path: Path) -> None:
    process = announcing(tmp_path, "--port", 0, "--job", "17_2", "--", *FAKE)
    wait_for(lambda: announced(tmp_path))
    (one,) = announced(tmp_path)
    assert one.job == "17_2" and one.models == ("keyword",) == models_at(one.url)
    process.send_signal(signal.SIGUSR1)
    _, said = process.communicate(timeout=30)
    assert process.returncode == 0 and f"announced keyword at {one.url}" in said
    assert announced(tmp_path) == [] and models_at(one.url) == (), "the server has ended, too"


def test_a_server_that_ends_or_never_answers_is_not_announced(tmp_path: Path) -> None:
    ends = announcing(tmp_path, "--port", 0, "--", sys.executable, "-c", "'{port}'; raise SystemExit(7)")
    never = announcing(
        tmp_path, "--port", 9, "--within", 0.3, "--", sys.executable, "-c", "import time; time.sleep(60)"
    )
    assert ends.wait(30) == 7 and never.wait(30) == 1
    assert "did not answer within 0 s" in never.communicate()[1] and ends.communicate()[1] == ""
    assert announced(tmp_path) == []


def test_a_server_that_runs_beside_is_announced(tmp_path: Path) -> None:
    with FakeServer(FakeClient()) as server:
        port = server.base_url.rsplit(":", 1)[1].removesuffix("/v1")
        process = announcing(tmp_path, "--port", port)
        wait_for(lambda: announced(tmp_path))
        process.terminate()
        assert process.wait(30) == 0 and process.communicate()[0] is None
        assert announced(tmp_path) == [] and models_at(server.base_url) == ("keyword",), "it is not ours to end"
