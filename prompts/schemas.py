"""Answers as JSON: whether a text obeys the schema that was asked for."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jsonschema.protocols import Validator

FENCED = re.compile(r"\A\s*```(?:json)?\s*\n(.*?)\n?\s*```\s*\Z", re.S | re.I)
"""A whole answer inside a Markdown block, as models write it that were not held to a schema."""


def obeying(text: str, schema: Mapping[str, Any]) -> str | None:
    """The JSON text of an answer that obeys `schema`, None where it does not. Nothing is guessed or repaired.

    The text has to be one JSON value, by itself or in one fenced block.
    """
    fenced = FENCED.match(text)
    inner = fenced.group(1) if fenced else text
    try:
        value = json.loads(inner)
    except (ValueError, RecursionError):
        return None
    return inner.strip() if _validator(json.dumps(schema, sort_keys=True)).is_valid(value) else None


@lru_cache(maxsize=256)
def _validator(schema: str) -> Validator:
    # Takes 0.1 s to import, which only those who ask for JSON have to pay.
    from jsonschema import Draft202012Validator

    return Draft202012Validator(json.loads(schema))
