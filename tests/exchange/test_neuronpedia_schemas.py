"""The schemas take what Neuronpedia takes, and nothing else."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from autointerp.exchange.schemas import SCHEMAS, check, check_lines

Row = dict[str, Any]
PLACE = {"modelId": "gpt2-small", "layer": "6-res-jb", "index": "650"}
GOOD: dict[str, Row] = {
    "features": {
        **PLACE, "sourceSetName": "res-jb", "creatorId": None, "frac_nonzero": 0.01, "maxActApprox": 4.5,
        "pos_str": [" cat"], "pos_values": [0.5], "neg_str": [], "neg_values": [], "hasVector": False,
        "freq_hist_data_bar_heights": [1.0, 2], "hookName": "blocks.6.hook_resid_pre", "vector": [0.1, -0.2],
    },
    "activations": {
        "id": "c1", **PLACE, "creatorId": "someone", "tokens": ["my", " border", ""], "values": [0, 2.5, 5.3],
        "maxValue": 5.3, "maxValueTokenIndex": 2, "minValue": 0, "binMin": 5, "binMax": 6, "binContains": 0.1,
        "dfaValues": [], "dfaTargetIndex": None, "dfaMaxValue": None, "dataSource": "x",
    },
    "explanations": {
        "id": "c2", **PLACE, "authorId": None, "description": "magic dog " * 100, "typeName": "oai_token-act-pair",
        "explanationModelName": "gpt-4o-mini", "notes": None, "embedding": [0.5] * 256,
    },
    "upload": {
        "modelId": "gpt2-small", "source": "6-res-jb",
        "features": [
            {
                "index": 0, "density": 0.03, "topLogits": [{"token": "dog", "value": 0.9}], "bottomLogits": None,
                "explanations": [{"text": "magic dog", "methodName": None, "modelName": None}],
                "activations": [
                    {"tokens": ["my", " collie"], "values": [0, 5.3], "quantileMax": 6, "quantileMin": 5,
                     "quantileFraction": 0.1},
                    {"tokens": ["my"], "values": [0.5]},
                ],
            },
            {"index": 1, "activations": [{"tokens": ["x"], "values": [1]}]},
        ],
    },
}  # fmt: skip


@pytest.mark.parametrize("kind", SCHEMAS)
def test_what_is_right_is_taken(kind: str) -> None:
    Draft202012Validator.check_schema(SCHEMAS[kind])
    check(kind, GOOD[kind])
    for name in set(GOOD[kind]) - set(SCHEMAS[kind]["required"]):
        check(kind, {key: value for key, value in GOOD[kind].items() if key != name and not key.startswith(name[:4])})


def first(body: Row) -> Row:
    feature: Row = body["features"][0]
    return feature


BROKEN: list[tuple[str, Callable[[Row], object], str]] = [
    ("features", lambda x: x.update(index=650), "index"),
    ("features", lambda x: x.update(layer=6), "layer"),
    ("features", lambda x: x.update(layer="res-jb"), "layer"),
    ("features", lambda x: x.update(layer="6-other"), "another set"),
    ("features", lambda x: x.update(frac_nonzero=1.5), "frac_nonzero"),
    ("features", lambda x: x.update(frac_nonzero=math.nan), "frac_nonzero"),
    ("features", lambda x: x.pop("frac_nonzero"), "frac_nonzero"),
    ("features", lambda x: x.update(pos_str=["a", "b"]), "different lengths"),
    ("features", lambda x: x.update(density=0.1), "density"),
    ("activations", lambda x: x.update(tokens=["a"]), "1 tokens and 3 values"),
    ("activations", lambda x: x.update(tokens=["a", "b", 3]), "tokens/2"),
    ("activations", lambda x: x.update(values=[0, 2.5, math.nan]), "values/2"),
    ("activations", lambda x: x.update(values=[0, 2.5, math.inf]), "values/2"),
    ("activations", lambda x: x.update(values=[0, True, 5.3]), "values/1"),
    ("activations", lambda x: x.update(tokens=[], values=[]), "tokens"),
    ("activations", lambda x: x.update(maxValue=5.0), "maxValue"),
    ("activations", lambda x: x.update(maxValueTokenIndex=1), "maxValueTokenIndex"),
    ("activations", lambda x: x.pop("id"), "id"),
    ("activations", lambda x: x.update(binContains=2), "binContains"),
    ("explanations", lambda x: x.update(description=""), "description"),
    ("explanations", lambda x: x.update(description=None), "description"),
    ("explanations", lambda x: x.update(embedding=[0.5]), "embedding"),
    ("explanations", lambda x: x.update(text="x"), "text"),
    ("upload", lambda x: x.update(modelId="GPT2"), "modelId"),
    ("upload", lambda x: x.update(layer="6-res-jb"), "layer"),
    ("upload", lambda x: x.update(features=[]), "features"),
    ("upload", lambda x: first(x).update(index="0"), "features/0/index"),
    ("upload", lambda x: first(x).update(index=10_000_001), "features/0/index"),
    ("upload", lambda x: first(x).update(index=1), "occurs twice"),
    ("upload", lambda x: first(x).update(density=None), "features/0/density"),
    ("upload", lambda x: first(x).update(activations=[]), "features/0/activations"),
    ("upload", lambda x: first(x).pop("activations"), "activations"),
    ("upload", lambda x: first(x)["activations"][0].update(tokens=["", "x"]), "tokens/0"),
    ("upload", lambda x: first(x)["activations"][0].update(values=[1]), "2 tokens and 1 values"),
    ("upload", lambda x: first(x)["activations"][0].update(tokens=["x"] * 1025, values=[0] * 1025), "tokens"),
    ("upload", lambda x: first(x)["activations"][0].update(quantileFraction=1.1), "quantileFraction"),
    ("upload", lambda x: first(x)["activations"][0].update(quantileMax=1e8), "quantileMax"),
    ("upload", lambda x: first(x)["explanations"][0].update(text="x" * 513), "text"),
    ("upload", lambda x: first(x)["explanations"][0].update(score=0.5), "score"),
    ("upload", lambda x: first(x).update(topLogits=[["dog", 0.9]]), "topLogits"),
]


@pytest.mark.parametrize(("kind", "spoil", "place"), BROKEN)
def test_what_is_wrong_is_refused(kind: str, spoil: Callable[[Row], object], place: str) -> None:
    document = copy.deepcopy(GOOD[kind])
    spoil(document)
    with pytest.raises(ValueError, match=place):
        check(kind, document)


def test_a_request_has_at_most_128_features() -> None:
    feature = GOOD["upload"]["features"][1]
    body = {**GOOD["upload"], "features": [{**feature, "index": i} for i in range(128)]}
    check("upload", body)
    body["features"].append({**feature, "index": 128})
    with pytest.raises(ValueError, match="features"):
        check("upload", body)


def test_lines_of_a_file_have_the_same_keys() -> None:
    line = GOOD["explanations"]
    check_lines("explanations", [line, dict(reversed(line.items()))])
    with pytest.raises(ValueError, match="different keys: notes"):
        check_lines("explanations", [line, {key: value for key, value in line.items() if key != "notes"}])
