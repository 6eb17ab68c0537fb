"""The shortest value that obeys a JSON schema: what the fake server says where the fake model knows no answer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def instance(schema: Mapping[str, Any]) -> Any:
    """A value for the keywords that strict decoding knows: enum, const, type, properties, items, bounds of length."""
    if "const" in schema:
        return schema["const"]
    if schema.get("enum"):
        return schema["enum"][0]
    for several in ("anyOf", "oneOf"):
        if schema.get(several):
            return instance(schema[several][0])
    kind = schema.get("type", "object" if "properties" in schema else "string")
    kind = kind[0] if isinstance(kind, list) else kind
    if kind == "object":
        return {name: instance(inner) for name, inner in schema.get("properties", {}).items()}
    if kind == "array":
        return [instance(schema.get("items", {})) for _ in range(int(schema.get("minItems", 0)))]
    if kind == "string":
        return "x" * int(schema.get("minLength", 1))
    if kind in ("integer", "number"):
        return schema.get("minimum", 0)
    return {"boolean": False}.get(kind)
