"""The fake server as seen from outside: by raw HTTP, and by the official SDK."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import math
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import openai
import pytest

from autointerp.clients._fake_endpoints import CANDIDATES, IMITATIONS
from autointerp.clients._fake_faults import random_faults
from autointerp.clients._fake_tokens import BLOCK, PrefixCache, pieces
from autointerp.clients.fake import FakeClient
from autointerp.clients.fake_server import FakeServer, Fault, main
from autointerp.errors import UserError
from autointerp.registries import CLIENTS
from prompts.requests import Chat, ChatReply, Choice, ChoiceReply, Likelihood, Message, Usage
from prompts.schemas import instance

ROOT = Path(__file__).parents[2]
SCHEMA = {"type": "object", "properties": {"code": {"type": "integer", "enum": [7319]}}, "required": ["code"]}
FORMAT = {"type": "json_schema", "json_schema": {"name": "answer", "schema": SCHEMA}}


def post(server: FakeServer, path: str, body: Any) -> Any:
    """The decoded answer to a POST below /v1, or to one at the root."""
    url = server.base_url.removesuffix("/v1") + path if path == "/tokenize" else server.base_url + path
    with urllib.request.urlopen(url, data=json.dumps(body).encode(), timeout=10) as response:
        return json.load(response)


def refused(server: FakeServer, path: str, body: Any) -> tuple[int, dict[str, Any]]:
    """Status and error of a POST that is refused."""
    with pytest.raises(urllib.error.HTTPError) as caught:
        post(server, path, body)
    with caught.value:
        return caught.value.code, json.load(caught.value)["error"]


def chat(server: FakeServer, text: str = "hello", **fields: Any) -> Any:
    """A chat of one user message, greedy unless told."""
    messages = [{"role": "user", "content": text}]
    return post(server, "/chat/completions", {"model": "m", "messages": messages, "temperature": 0, **fields})


def texts(completion: Any) -> list[str]:
    return [choice["message"]["content"] for choice in completion["choices"]]


def complete(server: FakeServer, prompt: str | list[int], **fields: Any) -> Any:
    """One choice of a completion and its usage."""
    done = post(server, "/completions", {"model": "m", "prompt": prompt, "temperature": 0, **fields})
    return done["choices"][0], done["usage"]


def connect(server: FakeServer) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port_of(server)), timeout=10)


def port_of(server: FakeServer) -> int:
    return int(server.base_url.split(":")[2].split("/")[0])


def raw(body: bytes, *, path: str = "/v1/chat/completions", headers: str = "") -> bytes:
    return f"POST {path} HTTP/1.1\r\nContent-Length: {len(body)}\r\n{headers}\r\n".encode() + body


def read_response(stream: Any) -> tuple[int, bytes]:
    """Status and body of one response with a Content-Length."""
    status, length = int(stream.readline().split()[1]), 0
    while line := stream.readline().strip():
        name, _, value = line.partition(b":")
        length = int(value) if name.lower() == b"content-length" else length
    return status, stream.read(length)


BODY = json.dumps({"model": "m", "messages": [{"role": "user", "content": "hi"}], "temperature": 0}).encode()


# Connections


def test_64_connections_at_once_wait_together() -> None:
    n, rounds, latency = 64, 3, 0.05

    async def worker(port: int, name: int) -> list[str]:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        said = []
        for i in range(rounds):
            messages = [{"role": "user", "content": f"{name} {i}"}]
            writer.write(raw(json.dumps({"model": "m", "messages": messages, "temperature": 0}).encode()))
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200 OK\r\n")
            length = int(head.split(b"Content-Length: ")[1].split(b"\r\n")[0])
            said.append(texts(json.loads(await reader.readexactly(length)))[0])
        writer.close()
        await writer.wait_closed()
        return said

    async def run(port: int) -> list[list[str]]:
        return await asyncio.gather(*(worker(port, name) for name in range(n)))

    with FakeServer(FakeClient(), latency=latency) as server:
        said = asyncio.run(run(port_of(server)))
        assert server.served == len(server.log) == n * rounds
    assert len({text for one in said for text in one}) == n * rounds
    # One after another they would never have been two.
    assert 32 <= server.most_in_flight <= n


def test_a_slow_request_does_not_hold_up_another() -> None:
    def latency(index: int, body: dict[str, Any]) -> float:
        return 60.0 if body["messages"][0]["content"] == "slow" else 0.0

    with FakeServer(FakeClient(), latency=latency) as server, connect(server) as slow:
        slow.sendall(raw(BODY.replace(b"hi", b"slow")))
        assert texts(chat(server, "fast"))
    assert server.most_in_flight >= 1


def test_requests_sent_ahead_are_answered_in_order() -> None:
    with FakeServer(FakeClient(), latency=0.005) as server, connect(server) as plug, plug.makefile("rb") as stream:
        bodies = [BODY.replace(b"hi", f"item {i}".encode()) for i in range(4)]
        sent = b"\r\n" + b"".join(map(raw, bodies)) + b"GET /v1/models HTTP/1.1\r\n\r\n"
        for i in range(0, len(sent), 7):  # in bits that end anywhere
            plug.sendall(sent[i : i + 7])
        answers = [read_response(stream) for _ in range(5)]
        direct = [
            FakeClient().reply(Chat((Message("user", f"item {i}"),), 256, 0.0))  # as the server asks
            for i in range(4)
        ]
    assert [status for status, _ in answers] == [200] * 5
    assert [texts(json.loads(body))[0] for _, body in answers[:4]] == [getattr(reply, "text", None) for reply in direct]
    assert [logged.body["messages"][0]["content"] for logged in server.log] == [f"item {i}" for i in range(4)]


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"POST /v1/chat/completions HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n", 411),
        (b"POST /v1/chat/completions HTTP/1.1\r\n\r\n", 411),
        (b"POST /v1/chat/completions HTTP/1.1\r\nContent-Length: x\r\n\r\n", 400),
        (b"POST /v1/chat/completions HTTP/1.1\r\nContent-Length: -1\r\n\r\n", 400),
        (b"hello\r\n\r\n", 400),
        (b"GET /v1/models SPDY/3\r\n\r\n", 400),
        (b"x" * 70_000, 431),
        (b"PUT /v1/models HTTP/1.1\r\nConnection: close\r\n\r\n", 405),
        (b"GET /v1/nothing HTTP/1.0\r\n\r\n", 404),
        (b"GET /v1/models?key=secret HTTP/1.0\r\n\r\n", 200),
        (raw(b'{"a": 1', headers="Connection: close\r\n"), 400),
        (raw(b"[" * 100_000, headers="Connection: close\r\n"), 400),
        (raw(b"\xff\xfe\xfd", headers="Connection: close\r\n"), 400),
    ],
)
def test_odd_requests_are_answered_and_the_connection_ends(sent: bytes, status: int) -> None:
    with FakeServer(FakeClient()) as server, connect(server) as plug, plug.makefile("rb") as stream:
        plug.sendall(sent)
        assert read_response(stream)[0] == status
        assert stream.read() == b""
        assert server.served == 0 and "secret" not in repr(vars(server))
        assert texts(chat(server))


def test_expect_continue_and_a_half_closed_connection() -> None:
    with FakeServer(FakeClient(), latency=0.02) as server, connect(server) as plug, plug.makefile("rb") as stream:
        head, _, body = raw(BODY, headers="Expect: 100-continue\r\n").partition(b"\r\n\r\n")
        plug.sendall(head + b"\r\n\r\n")
        assert stream.readline() == b"HTTP/1.1 100 Continue\r\n" and stream.readline() == b"\r\n"
        plug.sendall(body)
        plug.shutdown(socket.SHUT_WR)
        assert read_response(stream)[0] == 200 and stream.read() == b""


def test_leaving_ends_every_connection_and_leaves_no_thread() -> None:
    before = set(threading.enumerate())
    hang = Fault("hang")
    with FakeServer(FakeClient(), faults=lambda index, body: hang if "hang" in str(body) else None) as server:
        idle, waiting, late = connect(server), connect(server), connect(server)
        waiting.sendall(raw(BODY.replace(b"hi", b"hang")))
        late.sendall(raw(BODY)[:-5])  # its end never comes
        chat(server)
        assert set(threading.enumerate()) - before
    assert set(threading.enumerate()) == before and server.stopping.is_set()
    for plug in (idle, waiting, late):
        with plug, contextlib.suppress(ConnectionResetError):  # where bytes had come that nobody read
            assert plug.recv(1) == b""
    with pytest.raises(OSError):
        connect(server)


def test_a_key_is_noted_and_not_kept(tmp_path: Path) -> None:
    with FakeServer(FakeClient(), log_file=tmp_path / "log") as server:
        sdk = openai.OpenAI(api_key="sk-very-secret", base_url=server.base_url)
        sdk.chat.completions.create(model="m", messages=[{"role": "user", "content": "hi"}])
        assert server.log[0].authorized
        sdk.close()
        chat(server)
        assert not server.log[1].authorized
    assert "secret" not in (tmp_path / "log").read_text() + repr(server.log)


# The log


def test_the_log_can_be_bounded() -> None:
    for keep, kept in ((None, ["a", "b", "c"]), (2, ["b", "c"]), (0, [])):
        with FakeServer(FakeClient(), keep_log=keep) as server:
            for text in "abc":
                chat(server, text)
            assert [logged.body["messages"][0]["content"] for logged in server.log] == kept
            assert server.served == 3


def test_the_log_file_tells_which_requests_were_answered(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text('{"of": "an earlier server"}\n')
    faults = [None, Fault(status=429), Fault("reset"), Fault("hang")]
    with FakeServer(FakeClient(), log_file=path, faults=lambda index, body: faults[index]) as server:
        chat(server, "answered")
        assert refused(server, "/chat/completions", json.loads(BODY))[0] == 429
        with pytest.raises((urllib.error.URLError, ConnectionError, http.client.HTTPException)):
            chat(server)
        with connect(server) as plug:
            plug.sendall(raw(BODY))
            while server.served < 4:
                plug.settimeout(0.01)
                with pytest.raises(TimeoutError):
                    plug.recv(1)
            lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["index"] for line in lines if "index" in line] == [0, 1, 2, 3]
    assert lines[1]["path"] == "/v1/chat/completions" and lines[1]["body"]["messages"][0]["content"] == "answered"
    assert [line for line in lines if "done" in line] == [{"done": 0, "status": 200}, {"done": 1, "status": 429}]
    with pytest.raises(UserError, match="--log"), FakeServer(FakeClient(), log_file=tmp_path):
        pass


def test_an_answer_that_nobody_reads_is_not_done(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    huge = Fault("wrong_json", content="x" * 15_000_000)
    with FakeServer(FakeClient(), log_file=path, faults=lambda index, body: huge if index == 0 else None) as server:
        with connect(server) as plug:
            plug.sendall(raw(BODY))
            assert plug.recv(1)
            chat(server)  # in the meantime
        chat(server)
    done = [json.loads(line)["done"] for line in path.read_text().splitlines() if "done" in line]
    assert done == [1, 2]


def test_the_shell(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    options = ["--port", "0", "--log", str(log), "--faults", "status:418@1", "--imitate", "no_tokenize"]
    command = [sys.executable, "-m", "autointerp.clients.fake_server", *options, "--context-length", "99"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        try:
            with urllib.request.urlopen(f"{url}/models", timeout=10) as response:
                assert json.load(response)["data"][0]["max_model_len"] == 99
            with pytest.raises(urllib.error.HTTPError) as caught:
                urllib.request.urlopen(f"{url}/chat/completions", data=BODY, timeout=10)
            with caught.value:
                assert caught.value.code == 418
        finally:
            process.terminate()
        assert process.wait(10) == 0
    assert [json.loads(line).get("done", "") for line in log.read_text().splitlines()] == ["", 0]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--faults", "rest@0.1"], "none of status, reset"),
        (["--faults", "reset"], "write, say"),
        (["--faults", "reset@2"], "between 0 and 1"),
        (["--faults", "reset@nan"], "between 0 and 1"),
        (["--faults", "status:x@0.1"], "write, say"),
        (["--faults", "hang:3@0.1"], "none of"),
        (["--faults", "reset@0.6,hang@0.6"], "more than 1"),
        (["--imitate", "seeds_ignored"], "seed_ignored"),
        (["--log", "/no/such/folder/log"], "choose another --log"),
        (["--port", "99999"], "choose another --port"),
    ],
)
def test_the_shell_explains_what_is_wrong(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--port", "0", *arguments]) == 2
    assert said in capsys.readouterr().err


def test_random_faults_have_their_shares() -> None:
    faults = random_faults("status:429@0.1, reset@0.05,finish:content_filter@0.05", seed=3)
    drawn = [faults(index, {}) for index in range(4000)]
    assert drawn == [faults(index, {}) for index in range(4000)]
    for fault, share in ((Fault(status=429), 0.1), (Fault("reset"), 0.05), (None, 0.8)):
        assert abs(drawn.count(fault) / 4000 - share) < 0.03
    assert Fault("finish", code="content_filter") in drawn
    assert drawn != [random_faults("status:429@0.1,reset@0.1", seed=4)(index, {}) for index in range(4000)]
    assert random_faults("", seed=0)(0, {}) is None and random_faults("drip@1", seed=0)(0, {}) == Fault("drip")


# Faults


def test_faults_that_answer() -> None:
    answers: dict[int, Fault] = {
        0: Fault(status=503, message="busy", code="busy", headers={"Retry-After": "7"}),
        1: Fault("truncated_json"),
        2: Fault("wrong_json", content=[1]),
        3: Fault("refusal", message="no"),
        4: Fault("finish", message="half", code="length"),
    }
    with FakeServer(FakeClient(), faults=lambda index, body: answers.get(index)) as server:
        connection = http.client.HTTPConnection("127.0.0.1", port_of(server), timeout=10)
        found = []
        for _ in range(6):  # on one connection: none of them ends it
            connection.request("POST", "/v1/chat/completions", BODY)
            response = connection.getresponse()
            found.append((response.status, response.headers, response.read()))
        connection.close()
    (status, headers, error), (_, _, half), (_, _, wrong), (_, _, no), (_, _, cut), (_, _, good) = found
    assert status == 503 and headers["Retry-After"] == "7" and json.loads(error)["error"]["code"] == "busy"
    with pytest.raises(ValueError):
        json.loads(half)
    assert json.loads(wrong) == [1] and json.loads(no)["choices"][0]["message"]["refusal"] == "no"
    assert json.loads(cut)["choices"][0]["finish_reason"] == "length" and texts(json.loads(cut)) == ["half"]
    assert texts(json.loads(good))


def test_faults_that_do_not() -> None:
    kinds = [Fault("reset"), Fault("hang"), Fault("drip")]
    with FakeServer(FakeClient(), faults=lambda index, body: kinds[index] if index < 3 else None) as server:
        with connect(server) as plug:
            plug.sendall(raw(BODY))
            with pytest.raises(ConnectionResetError):
                plug.recv(1)
        with connect(server) as plug:
            plug.sendall(raw(BODY))
            plug.settimeout(0.1)
            with pytest.raises(TimeoutError):
                plug.recv(1)
        with connect(server) as plug, plug.makefile("rb") as stream:
            plug.sendall(raw(BODY))
            while stream.readline().strip():
                pass
            assert stream.read(3) == b"   "
        assert texts(chat(server))


def test_a_mistake_in_the_caller_s_functions_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    def broken(index: int, body: dict[str, Any]) -> Any:
        raise ZeroDivisionError("of the test")

    for server in (FakeServer(FakeClient(), faults=broken), FakeServer(FakeClient(), latency=broken)):
        with server:
            assert refused(server, "/chat/completions", json.loads(BODY))[0] == 500
        assert "ZeroDivisionError: of the test" in capsys.readouterr().err


# Chat


def test_log_probs_of_a_chat_of_one_token() -> None:
    question = "Is it true? yes"
    direct = FakeClient().reply(Choice((Message("user", question),), CANDIDATES))
    assert isinstance(direct, ChoiceReply)
    with FakeServer(FakeClient()) as server:
        one = chat(server, question, max_tokens=1, logprobs=True, top_logprobs=20)
        few = chat(server, question, max_tokens=1, logprobs=True, top_logprobs=3)
        none = chat(server, question, max_tokens=1, logprobs=True)
        long = chat(server, question, logprobs=True, top_logprobs=2)
        assert refused(server, "/chat/completions", {**json.loads(BODY), "top_logprobs": 2})[0] == 400
        assert (
            refused(server, "/chat/completions", {**json.loads(BODY), "logprobs": True, "top_logprobs": 21})[0] == 400
        )
    (choice,) = one["choices"]
    (entry,) = choice["logprobs"]["content"]
    assert choice["message"]["content"] == entry["token"] == "yes" and choice["finish_reason"] == "length"
    assert {top["token"]: math.exp(top["logprob"]) for top in entry["top_logprobs"]} == pytest.approx(
        dict(zip(CANDIDATES, direct.probabilities, strict=True))
    )
    values = [top["logprob"] for top in entry["top_logprobs"]]
    assert values == sorted(values, reverse=True) and entry["logprob"] == values[0]
    assert bytes(entry["bytes"]).decode() == "yes" and one["usage"]["completion_tokens"] == 1
    assert [len(x["choices"][0]["logprobs"]["content"][0]["top_logprobs"]) for x in (few, none)] == [3, 0]
    content = long["choices"][0]["logprobs"]["content"]
    assert "".join(entry["token"] for entry in content) == texts(long)[0]
    assert all(top["logprob"] == e["logprob"] for e in content for top in e["top_logprobs"])


def test_seeds_and_several_choices() -> None:
    with FakeServer(FakeClient()) as server:
        drawn = texts(chat(server, n=3, temperature=0.8, seed=5))
        assert len(set(drawn)) == 3 and drawn == texts(chat(server, n=3, temperature=0.8, seed=5))
        assert drawn[1] == texts(chat(server, temperature=0.8, seed=6))[0]
        assert len(set(texts(chat(server, n=3)) + texts(chat(server, seed=9)))) == 1  # greedy
        assert chat(server, n=3)["usage"]["completion_tokens"] == 3 * chat(server)["usage"]["completion_tokens"]


def test_a_prompt_that_does_not_fit() -> None:
    with FakeServer(FakeClient(), context_length=30) as server:
        assert texts(chat(server, "w " * 20, max_tokens=10))
        status, error = refused(
            server,
            "/chat/completions",
            {"model": "m", "messages": [{"role": "user", "content": "w " * 21}], "max_tokens": 10},
        )
        assert status == 400 and error["code"] == "context_length_exceeded" and "31" in error["message"]
        over = {"model": "m", "prompt": "w " * 31, "max_tokens": 0}
        assert refused(server, "/completions", over)[1]["code"] == "context_length_exceeded"
        with urllib.request.urlopen(f"{server.base_url}/models/keyword", timeout=10) as response:
            model = json.load(response)
        assert (model["id"], model["max_model_len"], model["root"]) == ("keyword", 30, "keyword")


def test_answers_obey_schemas_that_the_fake_does_not_know() -> None:
    with FakeServer(FakeClient()) as server:
        assert json.loads(texts(chat(server, response_format=FORMAT))[0]) == {"code": 7319}
    inner = {"type": "object", "properties": {"a": {"type": "boolean"}, "b": {"const": 3}, "c": {"type": "null"}}}
    schema = {"type": "array", "minItems": 2, "items": {"anyOf": [inner]}}
    assert instance(schema) == [{"a": False, "b": 3, "c": None}] * 2
    assert instance({"type": ["string", "null"], "minLength": 4}) == "xxxx"
    assert instance({"type": "number", "minimum": 2}) == 2


def test_prefix_cache() -> None:
    def cached(done: Any) -> int:
        return int(done["usage"]["prompt_tokens_details"]["cached_tokens"])

    words = [f"w{i}" for i in range(70)]
    with FakeServer(FakeClient()) as server:
        assert cached(chat(server, " ".join(words))) == 0
        assert cached(chat(server, " ".join(words))) == 64
        assert cached(chat(server, " ".join(words[:64]))) == 48  # the last token has to be read
        assert cached(chat(server, " ".join([*words[:40], "other", *words[40:]]))) == 32
        assert cached(chat(server, " ".join(["other", *words]))) == 0
        assert complete(server, " ".join(words))[1]["prompt_tokens_details"] == {"cached_tokens": 0}
        assert complete(server, " ".join(words))[1]["prompt_tokens_details"] == {"cached_tokens": 64}
    small = PrefixCache(size=3)
    assert small.read(words) == 0 and small.read(["x"] * 3 * BLOCK) == 0
    assert small.read(words) == 0 and len(small._blocks) == 3


# Completions and tokens


@pytest.mark.parametrize("text", ["the cat sees the cat", "  two\n\nlines \n", "one", " ", "naïve 猫 \U0001f600\x1c x"])
def test_tokens_give_the_text_back(text: str) -> None:
    assert "".join(pieces(text)) == text
    with FakeServer(FakeClient()) as server:
        found = post(server, "/tokenize", {"model": "m", "prompt": text, "add_special_tokens": True})
        assert found["count"] == len(found["tokens"]) == len(pieces(text)) and found["max_model_len"] == 8192
        url = f"{server.base_url}/tokenize"
        with urllib.request.urlopen(url, data=json.dumps({"prompt": text}).encode(), timeout=10) as response:
            assert json.load(response) == found
        choice, usage = complete(server, found["tokens"], echo=True, max_tokens=0, logprobs=1)
        assert choice["text"] == text and choice["logprobs"]["tokens"] == pieces(text)
        assert choice == complete(server, text, echo=True, max_tokens=0, logprobs=1)[0]
        assert usage["prompt_tokens"] == found["count"] and usage["completion_tokens"] == 0


def test_token_ids_keep_their_boundaries() -> None:
    with FakeServer(FakeClient()) as server:
        assert refused(server, "/tokenize", {"prompt": ["a"]})[0] == 400
        for prompt in ([1, 2], [], [True], ["a"], ""):
            assert refused(server, "/completions", {"model": "m", "prompt": prompt})[0] == 400
        parts = [post(server, "/tokenize", {"prompt": text})["tokens"] for text in ("the catx", "cat", "s catxcats")]
        choice, _ = complete(server, [i for part in parts for i in part], echo=True, max_tokens=0, logprobs=1)
    assert choice["logprobs"]["tokens"] == ["the", " catx", "cat", "s", " catxcats"]
    # What stands before the last word is that word, in three tokens.
    assert choice["logprobs"]["token_logprobs"] == [None, -3.0, -3.0, -3.0, -1.0]


@pytest.mark.parametrize("prompt", ["a prompt of words", "it ends in space ", "one"])
@pytest.mark.parametrize("n", [1, 2])
def test_log_probs_are_the_same_generated_and_echoed(prompt: str, n: int) -> None:
    with FakeServer(FakeClient()) as server:
        made, usage = complete(server, prompt, max_tokens=n, logprobs=1)
        both, _ = complete(server, prompt, max_tokens=n, logprobs=1, echo=True)
        echoed, _ = complete(server, prompt + made["text"], max_tokens=0, logprobs=1, echo=True)
        longer, _ = complete(server, prompt, max_tokens=50, logprobs=1)
        sampled = [complete(server, prompt, max_tokens=9, temperature=1, seed=i)[0]["text"] for i in range(3)]
    assert len(set(sampled)) == 3
    assert usage["completion_tokens"] == len(made["logprobs"]["tokens"]) == n
    assert both["text"] == echoed["text"] == prompt + made["text"] and longer["text"].startswith(made["text"])
    assert made["logprobs"]["token_logprobs"] == both["logprobs"]["token_logprobs"][-n:]
    assert made["logprobs"]["token_logprobs"] == echoed["logprobs"]["token_logprobs"][-n:]
    assert sum(made["logprobs"]["token_logprobs"]) < 0
    for choice in (made, both, echoed):
        logprobs = choice["logprobs"]
        for token, start in zip(logprobs["tokens"], logprobs["text_offset"], strict=True):
            assert choice["text"][start : start + len(token)] == token
        for token, value, top in zip(
            logprobs["tokens"], logprobs["token_logprobs"], logprobs["top_logprobs"], strict=True
        ):
            assert top == (None if value is None else {token: value})
    assert made["logprobs"]["text_offset"][0] == 0 and both["logprobs"]["token_logprobs"][0] is None
    assert (made["finish_reason"], longer["finish_reason"]) == ("length" if n == 1 else "stop", "stop")


def test_log_probs_in_one_pass_are_those_of_single_requests() -> None:
    whole: list[list[str]] = [["a b ", "a", " c.", " C", " x a"], ["a", "b", " ab"], ["", "a", " a"], []]
    oracle = FakeClient(oracle=lambda explanation, window: "cat" in window)
    for client in (FakeClient(), FakeClient("constant"), FakeClient("lengths"), oracle):
        for parts in (*whole, ["Explanation: cats\n", "a ", "cat ", "dog"]):
            single = [
                client.reply(Likelihood("".join(parts[:i]), part)).logprob  # type: ignore[union-attr]
                for i, part in enumerate(parts)
            ]
            assert client.logprobs(parts) == single


# Imitations


def test_unknown_imitations() -> None:
    with pytest.raises(UserError, match="no_tokenize"):
        FakeServer(FakeClient(), imitate=frozenset({"no_such_habit"}))


def imitating(*names: str) -> FakeServer:
    assert set(names) <= set(IMITATIONS)
    return FakeServer(FakeClient(), imitate=frozenset(names))


def test_imitation_shifted_logprobs() -> None:
    with imitating("shifted_logprobs") as server:
        made, _ = complete(server, "some words", max_tokens=2, logprobs=1)
        echoed, _ = complete(server, "some words" + made["text"], max_tokens=0, logprobs=1, echo=True)
    assert made["logprobs"]["token_logprobs"] == [-3.0, -3.0]
    # As llama_cpp.server: the row after the token instead of the row before it.
    assert echoed["logprobs"]["token_logprobs"] == [None, -1.0, -1.0, -1.0]


def test_imitation_of_schemas() -> None:
    with imitating("schema_ignored") as server:
        (said,) = texts(chat(server, response_format=FORMAT))
        assert said.startswith("Sure!")
        assert not texts(chat(server))[0].startswith("Sure!")
    with imitating("schema_refused") as server:
        assert refused(server, "/chat/completions", {**json.loads(BODY), "response_format": FORMAT})[0] == 500
        assert texts(chat(server))


def test_imitation_no_logprobs() -> None:
    with imitating("no_logprobs") as server:
        assert complete(server, "a b", logprobs=1, echo=True)[0]["logprobs"] is None
        for limit in (1, 100):
            done = chat(server, "yes?", max_tokens=limit, logprobs=True, top_logprobs=5)
            assert done["choices"][0]["logprobs"] is None and texts(done)[0]


def test_imitation_of_samples() -> None:
    with imitating("seed_ignored") as server:
        drawn = [texts(chat(server, temperature=1, seed=1))[0] for _ in range(3)]
        assert len(set(drawn)) == 3 and texts(chat(server)) == texts(chat(server))
    with imitating("n_ignored") as server:
        assert len(texts(chat(server, temperature=1, n=5))) == 1


def test_imitation_of_missing_paths() -> None:
    with imitating("no_completions", "no_tokenize") as server:
        assert refused(server, "/completions", {"model": "m", "prompt": "a"})[0] == 404
        assert refused(server, "/tokenize", {"prompt": "a"})[0] == 404
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(f"{server.base_url}/tokenize", data=b'{"prompt": "a"}', timeout=10)
        caught.value.close()


# Batches


def batch_of(bodies: list[Any], **fields: Any) -> bytes:
    lines = [
        {"custom_id": f"id-{i}", "method": "POST", "url": "/v1/chat/completions", "body": body, **fields}
        for i, body in enumerate(bodies)
    ]
    return "".join(json.dumps(line) + "\n" for line in lines).encode()


def asking(text: str) -> dict[str, Any]:
    return {"model": "m", "messages": [{"role": "user", "content": text}], "temperature": 0}


def with_sdk(server: FakeServer, use: Callable[[openai.AsyncOpenAI], Any]) -> Any:
    async def run() -> Any:
        async with openai.AsyncOpenAI(api_key="k", base_url=server.base_url, max_retries=0) as sdk:
            return await use(sdk)

    return asyncio.run(run())


async def finished(sdk: openai.AsyncOpenAI, batch: Any) -> Any:
    while batch.status in ("in_progress", "cancelling"):
        await asyncio.sleep(0.01)
        batch = await sdk.batches.retrieve(batch.id)
    return batch


def test_a_batch_by_the_official_sdk() -> None:
    def faults(index: int, body: dict[str, Any]) -> Fault | None:
        said = str(body.get("messages"))
        return next((Fault(kind) for kind in ("reset", "truncated_json", "refusal", "status") if kind in said), None)

    asked = [asking(f"item {i}") for i in range(60)]
    bad = [asking("reset"), asking("truncated_json"), asking("status"), {"model": "m"}]

    async def use(sdk: openai.AsyncOpenAI) -> Any:
        data = batch_of([*asked, *bad, asking("refusal")])
        source = await sdk.files.create(file=("in put.jsonl", data), purpose="batch")
        assert source.bytes == len(data) and source.filename == "in put.jsonl"
        assert (await sdk.files.content(source.id)).content == data
        made = await sdk.batches.create(
            input_file_id=source.id,
            endpoint="/v1/chat/completions",
            completion_window="24h",
            metadata={"run": "mine"},
        )
        assert made.status == "in_progress" and made.request_counts and made.request_counts.completed == 0
        assert made.output_file_id is None
        done = await finished(sdk, made)
        assert done.status == "completed" and done.metadata == {"run": "mine"} and done.completed_at
        assert [batch.id async for batch in sdk.batches.list()] == [made.id]
        output, error = [await sdk.files.content(name) for name in (done.output_file_id, done.error_file_id)]
        with pytest.raises(openai.ConflictError):
            await sdk.batches.cancel(made.id)
        await sdk.files.delete(source.id)
        with pytest.raises(openai.NotFoundError):
            await sdk.files.content(source.id)
        return done, output.text, error.text

    with FakeServer(FakeClient(), faults=faults, batch_seconds=0.05) as server:
        done, output, error = with_sdk(server, use)
        direct = [texts(chat(server, f"item {i}"))[0] for i in range(60)]
        assert [logged.path for logged in server.log].count("/v1/chat/completions") == 65 + 60
    counted = done.request_counts
    assert (counted.total, counted.completed, counted.failed) == (65, 61, 4)
    answers = [json.loads(line) for line in output.splitlines()]
    names = [answer["custom_id"] for answer in answers]
    assert names != sorted(names, key=lambda name: int(name[3:])) and len(set(names)) == 61
    found = {answer["custom_id"]: answer["response"]["body"] for answer in answers}
    assert [texts(found[f"id-{i}"])[0] for i in range(60)] == direct
    assert found["id-64"]["choices"][0]["message"]["refusal"]
    failures = {line["custom_id"]: line for line in map(json.loads, error.splitlines())}
    assert failures["id-60"]["error"]["code"] == failures["id-61"]["error"]["code"] == "server_error"
    assert failures["id-60"]["response"] is None
    statuses = [failures[name]["response"]["status_code"] for name in ("id-62", "id-63")]
    assert statuses == [500, 400] and "error" in failures["id-63"]["response"]["body"]


def test_batches_that_end_otherwise(tmp_path: Path) -> None:
    path = tmp_path / "input.jsonl"

    async def create(sdk: openai.AsyncOpenAI, data: bytes) -> Any:
        path.write_bytes(data)
        source = await sdk.files.create(file=path, purpose="batch")
        return await sdk.batches.create(
            input_file_id=source.id, endpoint="/v1/chat/completions", completion_window="24h"
        )

    async def use(sdk: openai.AsyncOpenAI) -> None:
        batch = await create(sdk, batch_of([asking("hi")]))
        assert (await sdk.batches.cancel(batch.id)).status == "cancelling"
        ended = await finished(sdk, batch)
        assert ended.status == "cancelled" and ended.cancelled_at and ended.output_file_id is None
        wrong = [b"", b"no JSON\n", batch_of([asking("a")], url="/v1/embeddings"), batch_of([[]])]
        for data in (*wrong, batch_of([asking("a")]) * 2):
            failed = await create(sdk, data)
            assert failed.status == "failed" and failed.errors and failed.errors.data and failed.errors.data[0].message
        other = await sdk.files.create(file=b"x", purpose="evals")
        for source, endpoint in (("file-99", "chat/completions"), (other.id, "chat/completions"), (batch.id, "x")):
            with pytest.raises(openai.BadRequestError):
                await sdk.batches.create(
                    input_file_id=source,
                    endpoint=f"/v1/{endpoint}",  # type: ignore[arg-type]
                    completion_window="24h",
                )
        for missing in (sdk.batches.retrieve("batch_99"), sdk.batches.cancel("batch_99"), sdk.files.content("file-99")):
            with pytest.raises(openai.NotFoundError):
                await missing

    # Leaving does not wait for what is still in progress.
    with FakeServer(FakeClient(), batch_seconds=60) as server:
        with_sdk(server, use)
        with_sdk(server, lambda sdk: create(sdk, batch_of([asking("hi")])))
        assert refused(server, "/files", {"purpose": "batch"})[0] == 400
    assert not [logged for logged in server.log if logged.path == "/v1/chat/completions"]


# The fake model `lengths`, and the registry


def test_lengths() -> None:
    requests = [Chat((Message("user", f"item {i}"),), max_tokens=40) for i in range(400)]
    client = FakeClient("lengths:3")
    replies = [client.reply(request) for request in requests]
    assert replies == [FakeClient("lengths:3").reply(request) for request in reversed(requests)][::-1]
    assert replies != [FakeClient("lengths:4").reply(request) for request in requests]
    counted = []
    for reply in replies:
        assert isinstance(reply, ChatReply)
        assert reply.usage == Usage(2, len(reply.text.split()))
        counted.append(reply.usage.completion_tokens)
    assert set(counted) == set(range(1, 41)) and 17 < sum(counted) / len(counted) < 24
    shaped = Chat((Message("user", "x"),), max_tokens=500, schema={"properties": {"explanation": {"type": "string"}}})
    reply = FakeClient("lengths").reply(shaped)
    assert isinstance(reply, ChatReply) and "explanation" in json.loads(reply.text)
    assert reply.usage.completion_tokens > 4
    with FakeServer(client) as server:
        done = chat(server, "item 0", max_tokens=40)
    assert texts(done)[0].split() == getattr(replies[0], "text", "").split()
    assert done["usage"]["completion_tokens"] == counted[0]


def test_the_server_s_modules_are_no_clients() -> None:
    assert not [name for name in CLIENTS.names if "fake_" in name]
