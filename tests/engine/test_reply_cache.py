"""Replies on disk: what comes back, under which keys, and what is left after a kill, a full disk or damage."""

from __future__ import annotations

import asyncio
import json
import math
import random
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import pytest

from autointerp.engine import replies
from autointerp.engine.account import Account
from autointerp.engine.budget import worst_case
from autointerp.engine.replies import COUNTED, LOST, Cost, ReplyCache, decoded, encoded, key_of, merge, open_cache
from autointerp.errors import Damaged, DiskFull, UserError
from autointerp.types import Attempt
from prompts.requests import (
    Chat,
    ChatReply,
    Choice,
    ChoiceReply,
    Effects,
    Embed,
    EmbedReply,
    Failure,
    FailureKind,
    Likelihood,
    LikelihoodReply,
    Message,
    Reply,
    Steer,
    SteerReply,
    Usage,
)

ODD = "\ud800 lone, 漢字 👩‍👩‍👧‍👦, nul \x00, {{ 7*7 }} {% raw %}, \u2028\r\n\"'\\"
KINDS: list[Reply] = [
    ChatReply(ODD, Usage(1, 2, 3)),
    ChatReply(""),
    ChoiceReply((0.25, 0.0, 1.0)),
    ChoiceReply(()),
    LikelihoodReply((-math.inf, -1e-300, -0.1, 0.1 + 0.2), Usage(5)),
    LikelihoodReply(()),
    EmbedReply((math.inf, 1 / 3)),
    SteerReply((ODD, ""), ("", "a"), ("b", ODD), 1.5, math.inf, True, Usage(0, 7)),
    SteerReply((), (), (), 0.0, 0.0, False),
    *(Failure(kind, ODD, Usage(1)) for kind in get_args(FailureKind)),
]
KEPT = {"refused", "empty", "truncated", "context_overflow"}


def record(cache: ReplyCache, key: str, reply: Reply, cost: Cost | None = None, **more: Any) -> None:
    cache.record("stage", "model", cost or Cost(reply.usage, 0.5), key=key, reply=reply, **more)


@pytest.fixture
def cache(tmp_path: Path) -> Any:
    made = ReplyCache(tmp_path / "replies.sqlite")
    yield made
    made.close()


# What comes back


@pytest.mark.parametrize("reply", KINDS, ids=lambda reply: type(reply).__name__)
def test_every_reply_comes_back_as_it_was(reply: Reply, tmp_path: Path) -> None:
    cache = ReplyCache(tmp_path / "r.sqlite")
    record(cache, "key", reply)
    cache.close()
    again = ReplyCache(tmp_path / "r.sqlite")
    found = again.get("key")
    again.close()
    if isinstance(reply, Failure) and reply.kind not in KEPT:
        assert found is None, "it may pass: the next run asks anew"
        found = decoded(encoded(reply))
    assert found == reply and hash(found) == hash(reply)
    assert [type(getattr(found, f.name)) for f in fields(reply)] == [
        type(getattr(reply, f.name)) for f in fields(reply)
    ]


def test_what_is_no_number_comes_back(cache: ReplyCache) -> None:
    record(cache, "key", LikelihoodReply((math.nan, -1.0)))
    found = cache.get("key")
    assert isinstance(found, LikelihoodReply) and math.isnan(found.token_logprobs[0])


def test_who_asks_again_gets_no_failure(tmp_path: Path) -> None:
    path = tmp_path / "r.sqlite"
    cache = ReplyCache(path)
    record(cache, "failed", Failure("refused", "no"))
    record(cache, "answered", ChatReply("yes"))
    assert isinstance(cache.get("failed"), Failure) and cache.get("other") is None
    cache.close()
    again = ReplyCache(path, again=True)
    assert again.get("failed") is None and again.get("answered") == ChatReply("yes")
    record(again, "failed", ChatReply("now"))
    assert again.get("failed") == ChatReply("now") and len(again) == 2
    again.close()


def test_forgotten_replies_leave_their_costs(cache: ReplyCache) -> None:
    for stage in ("a", "b"):
        cache.record(stage, "m", Cost(Usage(1), 1.0), key=stage, reply=ChatReply(""))
    before = cache.spent()
    cache.forget_replies("a")
    assert cache.get("a") is None and cache.get("b") is not None
    cache.forget_replies()
    assert len(cache) == 0 and cache.spent() == before


# Keys

MESSAGE = Message("user", "hello")
CHANGES: list[tuple[Any, dict[str, list[Any]]]] = [
    (
        Chat((MESSAGE,), 256, 0.0, {"type": "object"}, 0),
        {
            "messages": [(), (MESSAGE, MESSAGE), (Message("system", "hello"),), (Message("user", "hello "),),
                         (Message("user", "\ud800"),), (Message("user", "\udfff"),)],
            "max_tokens": [255], "temperature": [0.7], "schema": [None, {}, {"type": "array"}], "sample_index": [1],
        },
    ),
    (Choice((MESSAGE,), ("a", "b")), {"messages": [()], "choices": [("b", "a"), ("a",), ("ab",)]}),
    (Likelihood("p", "t"), {"prompt": ["", "pt"], "text": ["", "pt"]}),
    (Embed("t"), {"text": ["", "T"]}),
    (
        Steer(1, ((1, 2), (3,)), 0.5, 8, 0),
        {"latent": [2], "prompts": [((1,), (2, 3)), ((3,), (1, 2))], "target_kl": [0.6], "max_new_tokens": [9],
         "seed": [1], "temperature": [0.9], "tolerance": [0.2], "edit": ["zero"], "pole": [-1]},
    ),
    (
        Effects(1, ((1, 2), (3,)), 0.5, 8),
        {"latent": [2], "prompts": [((1,), (2, 3)), ((3,), (1, 2))], "target_kl": [0.6], "n_tokens": [9],
         "lens_tokens": [3], "pole": [-1], "tolerance": [0.2]},
    ),
]  # fmt: skip


def test_keys_hold_everything_that_shapes_an_answer() -> None:
    seen = {}
    for request, changes in CHANGES:
        assert set(changes) == {f.name for f in fields(request)}, "a new field needs a line here"
        others = [replace(request, **{name: value}) for name, values in changes.items() for value in values]
        for model in ("m", "other model"):
            for identity in ("server", "other server"):
                for one in [request, *others]:
                    seen[key_of(model, identity, one)] = (model, identity, one)
    assert len(seen) == 4 * sum(1 + sum(map(len, changes.values())) for _, changes in CHANGES)


def test_keys_hold_nothing_else() -> None:
    one = Chat((MESSAGE,), schema={"type": "object", "required": ["a"]})
    same = Chat((Message("user", "hello"),), schema={"required": ["a"], "type": "object"})
    assert key_of("m", "s", one) == key_of("m", "s", same)
    # Neither process nor version of Python shapes them: a cache outlives both.
    assert key_of("m", "s", Embed("x")) == "85d9eb0d65602c94"


def test_parts_of_a_key_cannot_be_mistaken_for_each_other() -> None:
    assert key_of("a", "bc", Embed("x")) != key_of("ab", "c", Embed("x"))
    assert key_of("m", "s", Likelihood("a", "bc")) != key_of("m", "s", Likelihood("ab", "c"))


# The books


def test_costs_add_up_and_an_unknown_price_stays_unknown(cache: ReplyCache) -> None:
    cache.record("s", "m", Cost(Usage(10, 5, 2), 0.25, seconds=1.0))
    cache.record("s", "m", Cost(Usage(), 0.5, unsure=100, retry=True, seconds=2.0))
    cache.saved("s", "m", Usage(7, 1), 0.125)
    (row,) = cache.spent()
    assert row == {
        "stage": "s", "model": "m", "calls": 2, "retries": 1, "prompt_tokens": 10, "completion_tokens": 5,
        "prefix_cached_tokens": 2, "unsure_tokens": 100, "price": 0.75, "seconds": 3.0, "cached_calls": 1,
        "saved_tokens": 8, "saved_price": 0.125,
    }  # fmt: skip
    assert set(row) == {"stage", "model", *COUNTED}
    cache.record("s", "m", Cost(Usage(1), None))
    cache.record("s", "m", Cost(Usage(1), 1.0))
    cache.record("s", "other", Cost(Usage(1), 1.0))
    cache.saved("t", "m", Usage(1), None)
    cache.saved("t", "m", Usage(1), 1.0)
    prices = {(row["stage"], row["model"]): (row["price"], row["saved_price"]) for row in cache.spent()}
    assert prices == {("s", "m"): (None, 0.125), ("s", "other"): (1.0, 0.0), ("t", "m"): (0.0, None)}


def test_what_was_in_flight_at_a_kill_counts_once(tmp_path: Path) -> None:
    path = tmp_path / "r.sqlite"
    for unit, amount in (("tok", 300.0), ("usd", 0.25)):
        cache = ReplyCache(path)
        cache.hold(unit, amount)
        cache.close()
    for _ in range(2):
        cache = ReplyCache(path)
        cache.book_lost()
        (row,) = cache.spent()
        assert (row["stage"], row["unsure_tokens"], row["price"], row["calls"]) == (LOST, 300, 0.25, 0)
        cache.close()


def test_nothing_in_flight_books_nothing(cache: ReplyCache) -> None:
    cache.hold("usd", 0.0)
    cache.book_lost()
    assert cache.spent() == []


# Several processes


def in_another_process(folder: Path, code: str) -> str:
    """What it prints."""
    lines = f"import sys\nfrom pathlib import Path\nfrom autointerp.engine.replies import *\nfolder = Path({str(folder)!r})\n"
    done = subprocess.run([sys.executable, "-W", "error", "-c", lines + code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_processes_do_not_share_a_file_and_the_next_one_takes_it_over(tmp_path: Path) -> None:
    first = open_cache(tmp_path)
    assert first.path == tmp_path / "replies.sqlite"
    record(first, "mine", ChatReply("mine"), Cost(Usage(1, 1), 0.5))
    code = (
        "from prompts.requests import ChatReply, Usage\n"
        "cache = open_cache(folder)\n"
        "print(cache.path.name)\n"
        "try: ReplyCache(folder / 'replies.sqlite')\n"
        "except BlockingIOError as error: print(error)\n"
        "cache.record('stage', 'model', Cost(Usage(2, 3), 0.25), ('usd', 2.0), 'theirs', ChatReply('theirs'))\n"
        "cache.record('stage', 'model', Cost(Usage(2, 3), 0.25), ('usd', 2.0), 'mine', ChatReply('asked twice'))\n"
    )
    name, blocked = in_another_process(tmp_path, code).splitlines()
    assert name == "replies-2.sqlite" and "another process uses" in blocked
    assert first.get("theirs") is None
    first.hold("usd", 1.0)
    first.close()
    for _ in range(2):
        cache = open_cache(tmp_path)
        assert cache.get("theirs") == ChatReply("theirs") and cache.get("mine") == ChatReply("mine")
        (row,) = cache.spent()
        assert (row["calls"], row["prompt_tokens"], row["completion_tokens"], row["price"]) == (3, 5, 7, 1.0)
        assert [path.name for path in sorted(tmp_path.iterdir()) if "-2" in path.name] == []
        cache.close()
    cache = open_cache(tmp_path)
    cache.book_lost()
    assert [row["price"] for row in cache.spent()] == [3.0, 1.0], "what both had in flight"
    cache.close()


def test_a_file_that_a_process_is_writing_is_not_taken_over(tmp_path: Path) -> None:
    first = open_cache(tmp_path)
    second = subprocess.Popen(
        [sys.executable, Path(__file__).with_name("writing_process.py"), tmp_path], stdout=subprocess.PIPE, text=True
    )
    try:
        assert second.stdout is not None and second.stdout.readline() == "0\n"
        first.close()
        again = open_cache(tmp_path)
        assert again.path == tmp_path / "replies.sqlite" and (tmp_path / "replies-2.sqlite").exists()
        assert len(again) == 0
        assert not again.absorb(tmp_path / "replies-2.sqlite")
        again.close()
    finally:
        second.kill()
        second.communicate()
    last = open_cache(tmp_path)
    assert last.get("key 0") is not None and not (tmp_path / "replies-2.sqlite").exists()
    last.close()


@pytest.mark.parametrize("seed", range(6))
def test_a_kill_loses_no_reply_that_was_recorded(tmp_path: Path, seed: int) -> None:
    draw = random.Random(seed)
    command = [sys.executable, Path(__file__).with_name("writing_process.py"), tmp_path]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        printed = [int(process.stdout.readline()) for _ in range(draw.randrange(1, 400))]
        time.sleep(draw.random() * 0.01)
        process.kill()
        printed += [int(line) for line in process.stdout.read().splitlines()]
    cache = open_cache(tmp_path)
    found = [cache.get(f"key {i}") for i in printed]
    assert found == [ChatReply(f"reply {i} " + "x" * i) for i in printed]
    # The reply and its cost are there together, or neither is.
    (row,) = cache.spent()
    assert len(cache) == row["calls"] in (len(printed), len(printed) + 1)
    assert row["prompt_tokens"] == 3 * row["calls"] and row["price"] == 0.25 * row["calls"]
    cache.close()


def test_merging_leaves_the_sources(tmp_path: Path) -> None:
    sources = []
    for i in range(3):
        folder = tmp_path / str(i)
        source = open_cache(folder)
        record(source, f"key {i}", ChatReply(str(i)), Cost(Usage(1), None if i == 2 else 1.0))
        record(source, "shared", ChatReply(str(i)))
        source.close()
        sources.append(folder / "replies.sqlite")
    before = [source.read_bytes() for source in sources]
    merged = merge(sources, tmp_path / "all" / "replies.sqlite")
    assert [merged.get(f"key {i}") for i in range(3)] == [ChatReply(str(i)) for i in range(3)]
    assert merged.get("shared") == ChatReply("0") and len(merged) == 4
    (row,) = merged.spent()
    assert row["calls"] == 6 and row["prompt_tokens"] == 3 and row["price"] is None
    merged.close()
    assert [source.read_bytes() for source in sources] == before
    assert sorted(path.name for path in (tmp_path / "all").iterdir()) == ["replies.sqlite"]


def test_merging_says_what_is_in_use_missing_or_damaged(tmp_path: Path) -> None:
    used = open_cache(tmp_path / "used")
    with pytest.raises(BlockingIOError, match="another process uses"):
        merge([tmp_path / "used" / "replies.sqlite"], tmp_path / "all.sqlite")
    used.close()
    with pytest.raises(UserError, match=r"no .*missing\.sqlite"):
        merge([tmp_path / "missing.sqlite"], tmp_path / "all.sqlite")
    assert not (tmp_path / "missing.sqlite").exists()
    (tmp_path / "bad.sqlite").write_bytes(b"no database " * 1000)
    with pytest.raises(Damaged, match=r"bad\.sqlite"):
        merge([tmp_path / "bad.sqlite"], tmp_path / "all.sqlite")
    assert sorted(path.name for path in tmp_path.glob("*.sqlite*")) == ["all.sqlite", "bad.sqlite"]
    assert not list(tmp_path.glob(".*"))


# Damage


def filled(path: Path) -> Path:
    cache = ReplyCache(path)
    for i in range(400):
        record(cache, f"key {i:03}", ChatReply(f"reply {i} " * 40))
    cache.close()
    return path


def garbage(data: bytes) -> bytes:
    return b"This is no database. " * 400


def cut(data: bytes) -> bytes:
    return data[: len(data) // 2]


def scribbled(data: bytes) -> bytes:
    draw = random.Random(0)
    return data[:8192] + bytes(draw.randrange(256) for _ in range(len(data) - 8192))


@pytest.mark.parametrize("how", [garbage, cut, scribbled])
def test_a_damaged_file_is_named_with_a_remedy(tmp_path: Path, how: Callable[[bytes], bytes]) -> None:
    path = filled(tmp_path / "replies.sqlite")
    path.write_bytes(how(path.read_bytes()))
    with pytest.raises(Damaged) as raised:  # noqa: PT012
        cache = open_cache(tmp_path)
        try:
            for i in range(400):
                cache.get(f"key {i:03}")
            len(cache)
        finally:
            cache.close()
    said = str(raised.value)
    assert str(path) in said and "remove it" in said and "\n" not in said


@pytest.mark.parametrize(
    "text", ["no JSON", '["NoReply", {}]', '["ChatReply", {}]', "[1]", '{"a": 1}', '["ChatReply", 1]']
)
def test_a_reply_that_cannot_be_read_is_damage(cache: ReplyCache, text: str) -> None:
    record(cache, "key", ChatReply("x"))
    cache._db.execute("UPDATE replies SET reply = ?", (text,))
    with pytest.raises(Damaged, match=r"replies\.sqlite.*remove it"):
        cache.get("key")


def test_a_damaged_file_of_another_process_is_the_one_that_is_named(tmp_path: Path) -> None:
    """Whoever follows the advice must not remove the good one."""
    good = filled(tmp_path / "replies.sqlite")
    bad = filled(tmp_path / "replies-2.sqlite")
    bad.write_bytes(scribbled(bad.read_bytes()))
    before = good.read_bytes()
    with pytest.raises(Damaged) as raised:
        open_cache(tmp_path)
    assert str(bad) in str(raised.value) and str(good) not in str(raised.value)
    assert bad.exists()
    bad.unlink()
    cache = open_cache(tmp_path)
    assert len(cache) == 400 and cache.spent()[0]["calls"] == 400, "nothing of it was taken over in part"
    cache.close()
    assert len(good.read_bytes()) == len(before)


def test_no_locks_are_left_by_what_could_not_be_opened(tmp_path: Path) -> None:
    in_another_process(
        tmp_path,
        "(folder / 'x.sqlite').write_bytes(b'garbage' * 999)\n"
        "from autointerp.errors import Damaged\n"
        "for _ in range(3):\n"
        "    try: ReplyCache(folder / 'x.sqlite')\n"
        "    except Damaged: (folder / 'x.sqlite').unlink()\n"
        "    else: break\n"
        "else: raise SystemExit('never')\n",
    )


def test_a_folder_that_cannot_be_written_is_a_user_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises((UserError, OSError)):
        open_cache(tmp_path / "file")


# A full disk


def test_a_full_disk_says_so_and_keeps_what_was_finished(tmp_path: Path) -> None:
    path = tmp_path / "replies.sqlite"
    cache = ReplyCache(path)
    cache._db.execute("PRAGMA max_page_count = 40")
    kept = 0
    with pytest.raises(DiskFull, match="free some space and run the same command again"):  # noqa: PT012
        for i in range(10_000):
            record(cache, f"key {i}", ChatReply("x" * 500))
            kept += 1
    assert kept > 50
    # Whatever else is in flight comes back to a full disk too, and is told the same.
    for i in range(kept, kept + 5):
        with pytest.raises(DiskFull):
            record(cache, f"key {i}", ChatReply("x" * 50_000))
    cache._db.execute("PRAGMA max_page_count = 100000")
    record(cache, "after", ChatReply("fine"))
    cache.close()
    again = ReplyCache(path)
    assert all(again.get(f"key {i}") is not None for i in range(kept)) and again.get("after") == ChatReply("fine")
    assert again.spent()[0]["calls"] == len(again) == kept + 1
    again.close()


def test_what_cannot_be_written_leaves_no_half_of_it(cache: ReplyCache) -> None:
    with pytest.raises(TypeError):
        record(cache, "bad", ChatReply(object()))  # type: ignore[arg-type]
    record(cache, "good", ChatReply("fine"))
    assert cache.get("bad") is None and cache.spent()[0]["calls"] == 1


def test_a_full_disk_while_taking_over_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    filled(tmp_path / "replies-2.sqlite")
    first = ReplyCache(tmp_path / "replies.sqlite")
    first._db.execute("PRAGMA max_page_count = 12")
    with pytest.raises(DiskFull):
        first.absorb(tmp_path / "replies-2.sqlite")
    assert len(first) == 0 and first.spent() == []
    first.close()
    cache = open_cache(tmp_path)
    assert len(cache) == 400 and cache.spent()[0]["calls"] == 400
    cache.close()


# Budgets over several commands


def test_the_next_command_goes_on_with_what_is_left(tmp_path: Path) -> None:
    cache = open_cache(tmp_path)
    cache.record("explain", "m", Cost(Usage(10, 5), 0.5, unsure=20), ("usd", 0.25))
    cache.close()
    for limit, spent in (("1usd", 0.75), ("100tok", 35)):
        account = Account(open_cache(tmp_path))
        account.begin(limit)
        assert account.budget is not None and account.budget.spent == spent
        account.close()
    account = Account(open_cache(tmp_path))
    account.cache.record("explain", "own", Cost(Usage(10, 5), None))
    with pytest.raises(
        UserError, match="what own has cost in stage explain is unknown in USD: give --budget in tokens"
    ):
        account.begin("1usd")
    account.close()


def test_the_file_is_plain(tmp_path: Path) -> None:
    """Others may read it with what they have: JSON in SQLite, nothing that is evaluated."""
    path = filled(tmp_path / "replies.sqlite")
    copy = shutil.copy(path, tmp_path / "copy.sqlite")
    db = sqlite3.connect(copy)
    key, stage, model, reply, at = db.execute("SELECT * FROM replies ORDER BY key").fetchone()
    db.close()
    assert (key, stage, model) == ("key 000", "stage", "model") and abs(at - time.time()) < 3600
    assert json.loads(reply)[0] == "ChatReply"
    assert replies.KINDS.keys() == {type(kind).__name__ for kind in KINDS}


def killed(folder: Path, copy: Path) -> Path:
    """What a kill at this moment leaves on disk."""
    shutil.copytree(folder, copy)
    return copy


def test_a_kill_with_everything_in_flight_is_booked_at_worst(tmp_path: Path) -> None:
    """Not one answer has come back yet, and still the next command knows what may have been charged."""
    account = Account(open_cache(tmp_path / "run"), own_prices={"m": (1.0, 1.0)})
    server = SimpleNamespace(model="m", price_url="http://127.0.0.1/v1", room=0)
    for limit, column, scale in (("100ktok", "unsure_tokens", 1), ("1usd", "price", 1e-6)):
        account.begin(limit)
        assert account.budget is not None
        before, requests = account.budget.spent, [Embed("x" * i) for i in range(3)]
        held = [asyncio.run(account.reserve(server, request)) for request in requests]  # type: ignore[arg-type]
        after = Account(open_cache(killed(tmp_path / "run", tmp_path / limit)))
        after.begin(limit)
        assert after.budget is not None
        worst = scale * sum(worst_case(request).prompt_tokens for request in requests)
        assert after.budget.spent == pytest.approx(before + worst)
        (row,) = after.cache.spent()
        assert (row["stage"], row[column]) == (LOST, pytest.approx(worst))
        after.close()
        for one in held:
            account.settle(
                server, "s", one, Attempt(ChatReply("")), retry=False, seconds=0, key=None  # type: ignore[arg-type]
            )  # fmt: skip
        account.cache.forget_replies()
        account.cache._db.execute("DELETE FROM spent")
    assert account.cache._db.execute("SELECT DISTINCT amount FROM held").fetchall() == [(0.0,)]
    account.close()


def test_a_disk_that_is_full_before_sending_gives_the_reservation_back(tmp_path: Path) -> None:
    account = Account(open_cache(tmp_path))
    account.begin("100ktok")
    assert account.budget is not None
    account.cache._db.execute("PRAGMA query_only = 1")
    with pytest.raises(UserError, match="cannot write"):
        asyncio.run(account.reserve(SimpleNamespace(model="m", price_url="", room=0), Embed("x")))  # type: ignore[arg-type]
    assert account.budget.held == 0
    account.close()


def test_tokens_that_were_lost_have_no_price(tmp_path: Path) -> None:
    cache = open_cache(tmp_path)
    cache.hold("tok", 5000.0)
    cache.close()
    account = Account(open_cache(tmp_path))
    with pytest.raises(UserError, match="what a killed run has cost is unknown in USD: give --budget in tokens"):
        account.begin("1usd")
    account.begin("10ktok")
    assert account.budget is not None and account.budget.spent == 5000
    account.close()
