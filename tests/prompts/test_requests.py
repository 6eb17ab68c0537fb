"""Fingerprints of requests: the same for the same question, different for every field that shapes its answer."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import fields, replace
from typing import Any

import pytest

from prompts.requests import (
    Chat,
    ChatReply,
    Choice,
    Effects,
    Embed,
    Failure,
    Likelihood,
    LikelihoodReply,
    Message,
    Steer,
    Usage,
    fingerprint,
)

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"enum": [0, 1]}}, "required": ["a"]}
TURNED = {"required": ["a"], "properties": {"b": {"enum": [0, 1]}, "a": {"type": "integer"}}, "type": "object"}
CHAT = Chat((Message("system", "s"), Message("user", "u")), schema=SCHEMA)
CHANGES: list[tuple[Any, dict[str, Any]]] = [
    (CHAT, {"messages": (Message("user", "u"),), "max_tokens": 1, "temperature": 0.5, "schema": None, "sample_index": 1}),
    (Choice(CHAT.messages, ("a", "b")), {"messages": (), "choices": ("b", "a")}),
    (Likelihood("p", "t"), {"prompt": "q", "text": "u"}),
    (Embed("t"), {"text": "T"}),
    (
        Steer(1, ((1, 2), (3,)), 1.0, 8, 0),
        {
            "latent": 2, "prompts": ((1,), (2, 3)), "target_kl": 0.5, "max_new_tokens": 9, "seed": 1, "temperature": 0.5,
            "tolerance": 0.2, "edit": "zero", "pole": -1,
        },
    ),
    (
        Effects(1, ((1, 2), (3,)), 1.0, 8),
        {
            "latent": 2, "prompts": ((1,), (2, 3)), "target_kl": 0.5, "n_tokens": 9, "lens_tokens": 3, "pole": -1,
            "tolerance": 0.2,
        },
    ),
]  # fmt: skip


@pytest.mark.parametrize(("request_", "changes"), CHANGES, ids=lambda value: type(value).__name__)
def test_every_field_counts(request_: Any, changes: dict[str, Any]) -> None:
    assert set(changes) == {field.name for field in fields(request_)}, "the test knows every field"
    prints = [fingerprint(request_), *(fingerprint(replace(request_, **{k: v})) for k, v in changes.items())]
    assert len(set(prints)) == len(prints)
    assert fingerprint(replace(request_)) == prints[0] and len(prints[0]) == 16


def test_key_order_and_list_type_do_not_count() -> None:
    assert json.dumps(SCHEMA) != json.dumps(TURNED)
    assert fingerprint(CHAT) == fingerprint(replace(CHAT, schema=TURNED))
    assert fingerprint({"a": 1, "b": [1, 2]}) == fingerprint({"b": (1, 2), "a": 1})
    assert fingerprint(replace(CHAT, messages=CHAT.messages[::-1])) != fingerprint(CHAT), "the order of messages does"


def test_equal_fields_of_other_classes_differ() -> None:
    assert fingerprint(Embed("t")) != fingerprint(ChatReply("t"))
    assert fingerprint(Likelihood("a", "bc")) != fingerprint(Likelihood("ab", "c"))
    assert fingerprint(Message("user", "a")) != fingerprint({"role": "user", "content": "a"})


def test_stable_between_processes_and_for_any_text() -> None:
    code = (
        "from prompts.requests import *\n"
        "print(fingerprint(Likelihood('p\\ud800', 'é')), fingerprint({'b': 1, 'a': None}))"
    )
    seen = {
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True,
            env={**os.environ, "PYTHONHASHSEED": seed},
        ).stdout.split()[i]
        for seed in ("1", "2")
        for i in (0, 1)
    }  # fmt: skip
    assert seen == {fingerprint(Likelihood("p\ud800", "é")), fingerprint({"b": 1, "a": None})}
    # sha256 of '["Embed", {"text": "t"}]'; a change here makes every finished unit of every run be done again.
    assert fingerprint(Embed("t")) == "a1ad851ee7d02f8d"


def test_replies() -> None:
    assert LikelihoodReply((-1.0, -2.5)).logprob == -3.5 and LikelihoodReply(()).logprob == 0.0
    assert fingerprint(ChatReply("a", Usage(1, 2))) != fingerprint(ChatReply("a", Usage(1, 3)))
    assert fingerprint(Failure("timeout", "x")) != fingerprint(Failure("refused", "x"))
