"""What Neuronpedia takes, as JSON Schema: lines of its public files, and the body of its upload request.

Names, types and limits are those of the code read (docs/exchange.md names it): the database's tables, the exporter and
importer of the public files, and the checks of the upload route. The importer takes the columns of a whole file
from its first line, so the lines of a file have the same keys.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from jsonschema import Draft202012Validator, ValidationError
from jsonschema.validators import extend

MOST_FEATURES = 128
"""In one upload request."""
MOST_TOKENS = 1024
MOST_TEXT = 512
"""Characters of an uploaded explanation."""
MOST_QUANTILE = 99_999_999
MOST_INDEX = 10_000_000

Schema = dict[str, Any]

STRING: Schema = {"type": "string"}
NUMBER: Schema = {"type": "number"}
SHARE: Schema = {"type": "number", "minimum": 0, "maximum": 1}
STRINGS: Schema = {"type": "array", "items": STRING}
NUMBERS: Schema = {"type": "array", "items": NUMBER}
WHOLE: Schema = {"type": "array", "items": {"type": "integer"}}
NAME: Schema = {"type": "string", "minLength": 1}
MODEL: Schema = {"type": "string", "pattern": r"^[a-z0-9][a-z0-9._-]*$", "maxLength": 128}
SOURCE: Schema = {"type": "string", "pattern": r"^[0-9]+-[a-z0-9][a-z0-9._-]*$"}
"""`{layer}-{name of the set}`."""
INDEX: Schema = {"type": "string", "pattern": r"^[0-9]+$"}


def _nullable(schema: Schema) -> Schema:
    return {"anyOf": [schema, {"type": "null"}]}


def _object(required: Mapping[str, Schema], optional: Mapping[str, Schema] | None = None) -> Schema:
    return {
        "type": "object",
        "properties": {**required, **(optional or {})},
        "required": list(required),
        "additionalProperties": False,
    }


_PLACE: dict[str, Schema] = {"modelId": MODEL, "layer": SOURCE, "index": INDEX}

FEATURE = _object(
    {**_PLACE, "sourceSetName": NAME, "creatorId": _nullable(NAME), "frac_nonzero": {"anyOf": [SHARE, {"const": -1}]}},
    {
        "maxActApprox": _nullable(NUMBER), "pos_str": STRINGS, "pos_values": NUMBERS, "neg_str": STRINGS,
        "neg_values": NUMBERS, "freq_hist_data_bar_heights": NUMBERS, "freq_hist_data_bar_values": NUMBERS,
        "logits_hist_data_bar_heights": NUMBERS, "logits_hist_data_bar_values": NUMBERS, "vector": NUMBERS,
        "hasVector": {"type": "boolean"}, "hookName": _nullable(NAME), "createdAt": NAME,
    },
)  # fmt: skip
"""A line of `features/`, of the table Neuron. A density of -1 is one that nobody knows."""

ACTIVATION = _object(
    {
        "id": NAME, **_PLACE, "creatorId": _nullable(NAME), "tokens": {**STRINGS, "minItems": 1},
        "values": {**NUMBERS, "minItems": 1}, "maxValue": NUMBER,
        "maxValueTokenIndex": {"type": "integer", "minimum": 0}, "minValue": NUMBER,
    },
    {
        "binMin": _nullable(NUMBER), "binMax": _nullable(NUMBER), "binContains": _nullable(SHARE),
        "dataIndex": _nullable(STRING), "dataSource": _nullable(STRING), "dfaValues": NUMBERS,
        "dfaMaxValue": _nullable(NUMBER), "dfaTargetIndex": _nullable({"type": "integer"}),
        "qualifyingTokenIndex": _nullable({"type": "integer"}), "createdAt": NAME,
    },
)  # fmt: skip
"""A line of `activations/`, of the table Activation."""

EXPLANATION = _object(
    {"id": NAME, **_PLACE, "description": NAME, "authorId": _nullable(NAME)},
    {
        "typeName": _nullable(NAME), "explanationModelName": _nullable(NAME), "notes": _nullable(STRING),
        "embedding": _nullable({**NUMBERS, "minItems": 256, "maxItems": 256}), "triggeredByUserId": _nullable(NAME),
        "createdAt": NAME,
    },
)  # fmt: skip
"""A line of `explanations/`, of the table Explanation."""

_LOGITS = _nullable({"type": "array", "items": _object({"token": STRING, "value": NUMBER})})
_QUANTILE = _nullable({"type": "number", "maximum": MOST_QUANTILE})
_UPLOADED_ACTIVATION = _object(
    {
        # The route takes no empty string for a token.
        "tokens": {"type": "array", "items": NAME, "minItems": 1, "maxItems": MOST_TOKENS},
        "values": {**NUMBERS, "minItems": 1, "maxItems": MOST_TOKENS},
    },
    {"quantileMin": _QUANTILE, "quantileMax": _QUANTILE, "quantileFraction": _nullable(SHARE)},
)
_UPLOADED_EXPLANATION = _object(
    {"text": {"type": "string", "minLength": 1, "maxLength": MOST_TEXT}},
    {"methodName": _nullable(NAME), "modelName": _nullable(NAME)},
)
_UPLOADED_FEATURE = _object(
    {
        "index": {"type": "integer", "minimum": 0, "maximum": MOST_INDEX},
        "activations": {"type": "array", "items": _UPLOADED_ACTIVATION, "minItems": 1},
    },
    {
        # Left out where it is not known: the route takes no null for it.
        "density": SHARE, "topLogits": _LOGITS, "bottomLogits": _LOGITS,
        "explanations": {"type": "array", "items": _UPLOADED_EXPLANATION},
    },
)  # fmt: skip
UPLOAD = _object(
    {
        "modelId": MODEL,
        "source": SOURCE,
        "features": {"type": "array", "items": _UPLOADED_FEATURE, "minItems": 1, "maxItems": MOST_FEATURES},
    }
)
"""The body of a POST to `api/feature/upload-batch`."""

SCHEMAS: dict[str, Schema] = {
    "features": FEATURE, "activations": ACTIVATION, "explanations": EXPLANATION, "upload": UPLOAD,
}  # fmt: skip

_PLAIN: dict[str, tuple[type, ...]] = {"string": (str,), "number": (float, int), "integer": (int,)}
_every_item = Draft202012Validator.VALIDATORS["items"]


def _items(validator: Any, items: Any, instance: Any, schema: Any) -> Iterator[ValidationError]:
    """As the standard says; lists of plain values, millions of them, are looked through at once first."""
    kinds = _PLAIN.get(items.get("type")) if len(items) == 1 else None
    plain = kinds and isinstance(instance, list) and all(type(item) in kinds for item in instance)
    if not plain or (float in (kinds or ()) and not all(map(math.isfinite, instance))):
        yield from _every_item(validator, items, instance, schema)


def _finite(checker: Any, instance: Any) -> bool:
    """JSON has no NaN and no infinity, which Python writes all the same."""
    return isinstance(instance, int | float) and not isinstance(instance, bool) and math.isfinite(instance)


_types = Draft202012Validator.TYPE_CHECKER.redefine("number", _finite)
_extend: Any = extend  # without types of its own
_Validator = _extend(Draft202012Validator, {"items": _items}, type_checker=_types)
_VALIDATORS = {name: _Validator(schema) for name, schema in SCHEMAS.items()}


def check(kind: str, document: Any) -> None:
    """`document` is what the schema of that name says, and what a schema cannot say.

    Raises:
        ValueError: it is not; the message names the place.
    """
    for error in _VALIDATORS[kind].iter_errors(document):
        place = "/".join(map(str, error.absolute_path)) or "it"
        raise ValueError(f"{kind}: {place}: {' '.join(error.message.split())[:200]}")
    for problem in _BEYOND[kind](document):
        raise ValueError(f"{kind}: {problem}")


def check_lines(kind: str, lines: Sequence[Mapping[str, Any]]) -> None:
    """All lines of one file.

    Raises:
        ValueError: one is not what the schema says, or they have different keys.
    """
    for line in lines:
        check(kind, line)
        if line.keys() != lines[0].keys():
            raise ValueError(f"{kind}: lines with different keys: {', '.join(sorted(line.keys() ^ lines[0].keys()))}")


def _nothing(document: Any) -> Iterator[str]:
    yield from ()


def _feature(line: Any) -> Iterator[str]:
    for side in ("pos", "neg"):
        if len(line.get(f"{side}_str", ())) != len(line.get(f"{side}_values", ())):
            yield f"{side}_str and {side}_values have different lengths"
    if line["layer"].partition("-")[2] != line["sourceSetName"]:
        yield f"layer '{line['layer']}' is of another set than sourceSetName '{line['sourceSetName']}'"


def _activation(line: Any) -> Iterator[str]:
    tokens, values = line["tokens"], line["values"]
    if len(tokens) != len(values):
        yield f"{len(tokens)} tokens and {len(values)} values"
    elif line["maxValue"] != max(values) or line["minValue"] != min(values):
        yield "maxValue or minValue is not that of the values"
    elif line["maxValueTokenIndex"] != values.index(line["maxValue"]):
        yield "maxValueTokenIndex is not where maxValue is first"


def _upload(body: Any) -> Iterator[str]:
    indices = [feature["index"] for feature in body["features"]]
    if len(set(indices)) < len(indices):
        yield "an index occurs twice"
    for feature in body["features"]:
        for activation in feature["activations"]:
            tokens, values = len(activation["tokens"]), len(activation["values"])
            if tokens != values:
                yield f"index {feature['index']}: {tokens} tokens and {values} values"


_BEYOND = {"features": _feature, "activations": _activation, "explanations": _nothing, "upload": _upload}
