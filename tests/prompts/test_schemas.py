"""Which answers obey a schema: JSON, bare or in one fence, and nothing that would have to be guessed."""

from __future__ import annotations

import json
from typing import Any

import pytest

from autointerp.engine.pretend import pretended
from prompts.requests import Chat, ChatReply
from prompts.schemas import obeying

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"a": {"type": "integer", "minimum": 0}, "b": {"type": "string"}},
    "required": ["a"],
}


@pytest.mark.parametrize(
    "text",
    [
        '{"a": 1}', ' \n{"a": 1}\n ', '```json\n{"a": 1}\n```', '```\n{"a": 1}\n```', '\n ```JSON  \n{"a": 1}\n```\n\n',
        '```json\n\n\n{"a": 1}\n\n```', '```json\n{"a": 1}```', '```json\r\n{"a": 1}\r\n```',
    ],
)  # fmt: skip
def test_the_json_of_an_answer(text: str) -> None:
    assert obeying(text, SCHEMA) == '{"a": 1}'


@pytest.mark.parametrize(
    "text",
    [
        "", "a", "{", '{"a": 1', "null", "[]", "1", '{"a": "1"}', '{"a": 1.5}', '{"a": -1}', '{"a": true}', '{"b": "x"}',
        '{"a": 1, "b": null}', 'Sure: {"a": 1}', '{"a": 1} Hope it helps', '{"a": 1}{"a": 2}', "{'a': 1}", '{"a": 1,}',
        '```json\n{"a": 1}', '{"a": 1}\n```', '```python\n{"a": 1}\n```', 'Here:\n```json\n{"a": 1}\n```',
        '```json\n{"a": 1}\n```\n```json\n{"a": 1}\n```', "```", "```json```", "```\n```", "`" * 5, '\ufeff{"a": 1}',
        '{"a": NaN}', '{"a": Infinity}', '{"a": 1' + "0" * 5000 + "}", "[" * 100_000, '{"a":' * 5000, "\ud800",
    ],
)  # fmt: skip
def test_what_is_no_answer(text: str) -> None:
    assert obeying(text, SCHEMA) is None


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999", "-1e999"])
def test_numbers_that_no_score_may_be(number: str) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "number"}}}
    assert obeying(f'{{"a": {number}}}', schema) is None
    assert obeying('{"a": -1.5e3}', schema) == '{"a": -1.5e3}'


@pytest.mark.parametrize("text", ["```json\n" + "\n" * 300_000, "\n" * 300_000 + "```", "```" + " \n" * 150_000 + "x"])
def test_a_model_that_loses_itself_in_empty_lines_keeps_nobody_busy(text: str) -> None:
    """A test of this being slow is one that never ends: a regular expression would take days."""
    assert obeying(text, SCHEMA) is None


def test_text_inside_is_left_as_it_is() -> None:
    value = {"a": 1, "b": '```json\n{"a": 2}\n``` {{ 7*7 }} {% raw %} \u2028 👩‍👩‍👧‍👦'}
    for text in (json.dumps(value), json.dumps(value, ensure_ascii=False), f"```json\n{json.dumps(value)}\n```"):
        found = obeying(text, SCHEMA)
        assert found is not None and json.loads(found) == value


def test_order_of_keys_does_not_matter_and_schemas_do() -> None:
    backwards = dict(reversed(list(SCHEMA.items())))
    assert obeying('{"a": 1}', backwards) and obeying('{"a": 1}', SCHEMA)
    assert obeying('{"a": 1}', {**SCHEMA, "required": ["a", "b"]}) is None
    deep = "[" * 400 + "]" * 400
    assert obeying(deep, {"type": "array"}) == deep and obeying(deep, {"enum": [1]}) is None


@pytest.mark.parametrize(
    "schema",
    [
        SCHEMA, {"type": "string"}, {"type": "integer", "minimum": 3}, {"type": "boolean"}, {"enum": ["x", "y"]},
        {"type": "array", "items": {"type": "integer", "enum": [0, 1]}, "minItems": 4, "maxItems": 4},
        {"type": "object", "properties": {"list": {"type": "array", "items": SCHEMA, "minItems": 2}}, "required": ["list"]},
    ],
)  # fmt: skip
def test_pretended_answers_obey(schema: dict[str, Any]) -> None:
    reply = pretended(Chat((), schema=schema))
    assert isinstance(reply, ChatReply) and obeying(reply.text, schema) is not None
