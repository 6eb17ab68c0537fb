"""Answers as JSON: whether a text obeys the schema that was asked for, what it says, and what would obey."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jsonschema.protocols import Validator

FENCE = "```"


def obeying(text: str, schema: Mapping[str, Any]) -> str | None:
    """The JSON text of an answer that obeys `schema`, None where it does not. Nothing is guessed or repaired.

    The text has to be one JSON value, by itself or in one fenced block.
    """
    inner = _unfenced(text)
    try:
        # Python reads more than JSON has: what is no number would end up in a score.
        value = json.loads(inner, parse_constant=_finite, parse_float=_finite)
        valid = _validator(json.dumps(schema, sort_keys=True)).is_valid(value)
    except (ValueError, RecursionError):
        return None
    return inner.strip() if valid else None


def _unfenced(text: str) -> str:
    """What stands in a Markdown block that is the whole answer, as models write it that were not held to a schema."""
    # No regular expression: models that lose themselves in empty lines would keep one busy for minutes.
    block = text.strip()
    first, _, rest = block.partition("\n")
    fenced = first.startswith(FENCE) and first[len(FENCE) :].strip().lower() in ("", "json") and rest.endswith(FENCE)
    return rest.removesuffix(FENCE) if fenced else text


def _finite(number: str) -> float:
    value = float(number)
    if not math.isfinite(value):
        raise ValueError(f"{number} is no number")
    return value


@lru_cache(maxsize=256)
def _validator(schema: str) -> Validator:
    # Takes 0.1 s to import, which only those who ask for JSON have to pay.
    from jsonschema import Draft202012Validator

    return Draft202012Validator(json.loads(schema))


def member(text: str, name: str) -> Any:
    """What a JSON object says under a name; None where the text is no such object, or says nothing there."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value.get(name) if isinstance(value, dict) else None


def instance(schema: Mapping[str, Any], text: str | None = None) -> Any:
    """The smallest value for the keywords that strict decoding knows: enum, const, type, properties, items, bounds of
    length. Strings are `text`, or as short as may be."""
    if "const" in schema:
        return schema["const"]
    if schema.get("enum"):
        return schema["enum"][0]
    for several in ("anyOf", "oneOf"):
        if schema.get(several):
            return instance(schema[several][0], text)
    kind = schema.get("type", "object" if "properties" in schema else "string")
    kind = kind[0] if isinstance(kind, list) else kind
    if kind == "object":
        return {name: instance(inner, text) for name, inner in schema.get("properties", {}).items()}
    if kind == "array":
        return [instance(schema.get("items", {}), text) for _ in range(int(schema.get("minItems", 0)))]
    if kind == "string":
        return "x" * int(schema.get("minLength", 1)) if text is None else text
    if kind in ("integer", "number"):
        return schema.get("minimum", 0)
    return {"boolean": False}.get(kind)
