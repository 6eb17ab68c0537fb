"""A thousand requests to a server that does everything wrong now and then: none is lost, doubled or misnamed."""

from __future__ import annotations

import asyncio
import json
import threading
from collections import Counter, defaultdict
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

import pytest

from autointerp.clients.fake import FakeClient
from autointerp.clients.fake_server import FakeServer, Fault
from autointerp.clients.openai import OpenAIClient
from autointerp.engine.account import Account
from autointerp.engine.drive import Finished, Router, drive_all
from autointerp.engine.ledger import Ledger
from autointerp.engine.replies import open_cache
from autointerp.engine.sending import ServerSender
from autointerp.seeds import generator
from prompts.requests import Chat, ChatReply, Failure, Message, Reply

SCHEMA = {
    "type": "object",
    "properties": {"answers": {"type": "array", "items": {"type": "integer"}, "minItems": 1, "maxItems": 1}},
    "required": ["answers"],
}
UNITS, PER_UNIT, RETRIES = 100, 10, 3

FAULTS: dict[str, tuple[Fault, str | None]] = {
    "429": (Fault(status=429, headers={"Retry-After": "0.01"}), None),
    "500": (Fault(status=500), None),
    "reset": (Fault("reset"), None),
    "timeout": (Fault("hang"), None),
    "truncated JSON": (Fault("truncated_json"), None),
    "refusal": (Fault("refusal", message="I will not"), "refused"),
    "wrong JSON": (Fault("finish", message='{"answers": "one"}', code="stop"), "wrong"),
}
"""5% of each; with what a request ends that meets it (None: it is tried again)."""
AFTER_ALL_TRIES = {
    "429": "rejected", "500": "error", "reset": "unreachable", "timeout": "timeout", "truncated JSON": "error",
}  # fmt: skip


class Chaos:
    """Draws a fault for every POST, and remembers for each conversation what it met."""

    def __init__(self) -> None:
        self.draw = generator(7, "faults")
        self.met: dict[str, list[str]] = defaultdict(list)
        self._lock = threading.Lock()

    def __call__(self, index: int, body: dict[str, Any]) -> Fault | None:
        number = int(self.draw.integers(0, 20))
        name = list(FAULTS)[number] if number < len(FAULTS) else "fine"
        with self._lock:
            self.met[json.dumps(body["messages"])].append(name)
        return FAULTS[name][0] if name in FAULTS else None


def unit(first: int) -> Generator[list[Chat], Sequence[Reply], list[Reply]]:
    windows = [f'Explanation: cat\n<window id="1">\nwindow {i}\n</window>' for i in range(first, first + PER_UNIT)]
    replies = yield [Chat((Message("user", window),), schema=SCHEMA) for window in windows]
    return list(replies)


def expected(first: list[str], second: list[str]) -> str:
    """How a request ends whose tries met these: at first, and when it was asked for once more."""
    for met in (first, second):
        last = met[-1]
        if len(met) == 1 + RETRIES and last in AFTER_ALL_TRIES:
            return AFTER_ALL_TRIES[last]
        if last == "refusal":
            return "refused"
        if last == "fine":
            return "ok"
    return "unparsable"


def test_every_request_ends_as_a_reply_or_as_a_failure_of_the_right_kind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("autointerp.engine.sending.FIRST_PAUSE", 0.005)
    # A server that is not reached for a moment must not end this test; how long a moment is, is tested elsewhere.
    monkeypatch.setattr(ServerSender, "_watch", lambda self, attempt: None)
    chaos = Chaos()
    finished: dict[str, Finished] = {}
    with FakeServer(FakeClient(), faults=chaos, latency=0.002) as server:
        account = Account(open_cache(tmp_path))
        client = OpenAIClient("keyword", server.base_url, max_concurrency=48, timeout=1.5)
        router = Router(
            [client], account, stage="test", sender=lambda c, a: ServerSender(c, a, retries=RETRIES, timeout=60)
        )  # type: ignore[arg-type]
        ledger = Ledger(tmp_path, "test")

        def on_done(key: str, result: Finished) -> None:
            assert key not in finished
            finished[key] = result
            failures = [{"run_id": "r", "stage": "test", "latent": int(key), "kind": f.kind, "message": f.message,
                         "reply_sha": sha} for sha, f in result.failures]  # fmt: skip
            ledger.record(key, {"failures": failures})

        async def run() -> None:
            try:
                await drive_all(
                    ((str(i), lambda i=i: unit(i)) for i in range(0, UNITS * PER_UNIT, PER_UNIT)), router, on_done
                )
            finally:
                await router.close()

        asyncio.run(run())
        ledger.flush()
        served = server.served
    assert len(finished) == UNITS
    ends: Counter[str] = Counter()
    by_conversation = {json.loads(key)[0]["content"]: [] for key in chaos.met}  # type: ignore[var-annotated]
    for key, met in sorted(chaos.met.items(), key=lambda item: len(item[0])):
        by_conversation[json.loads(key)[0]["content"]].append(met)
    for key, result in finished.items():
        for i, reply in enumerate(result.result):
            text = f'Explanation: cat\n<window id="1">\nwindow {int(key) + i}\n</window>'
            tries = by_conversation[text]
            wanted = expected(tries[0], tries[1] if len(tries) > 1 else [])
            found = reply.kind if isinstance(reply, Failure) else "ok"
            assert found == wanted, (text, tries)
            assert isinstance(reply, Failure) or (isinstance(reply, ChatReply) and reply.text == '{"answers": [0]}')
            ends[found] += 1
    # Nothing lost, nothing doubled: requests, failure rows, attempts.
    assert ends.total() == UNITS * PER_UNIT
    table = ledger.rows("failures", set(finished))
    assert Counter(table["kind"]) == Counter({kind: n for kind, n in ends.items() if kind != "ok"})
    assert {"refused", "unparsable"} <= set(ends) and ends["ok"] > 0.9 * ends.total() - 10
    (spent,) = account.cache.spent()
    attempts = sum(map(len, chaos.met.values()))
    assert spent["calls"] == served == attempts
    assert spent["retries"] == attempts - len(chaos.met)
    account.close()
