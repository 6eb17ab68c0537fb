"""Text and numbers as JSON and a database can hold them."""

from __future__ import annotations

import hashlib
import json
import math
import re
from typing import Any

import numpy as np

_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")


def storable(text: str) -> str:
    """NUL and lone surrogates, which PostgreSQL's text and JSON refuse, become the replacement character."""
    return _UNSTORABLE.sub("\ufffd", text)


def single(value: Any) -> float:
    """A float32 as the shortest decimal that is read back as it."""
    return float(str(np.float32(value)))


def finite(value: Any) -> bool:
    return value is not None and math.isfinite(value)


def identifier(*parts: Any) -> str:
    """A name of 25 characters, as long as those that Neuronpedia makes; the same parts give the same."""
    return "c" + hashlib.sha256("\x1f".join(map(str, parts)).encode("utf-8", "surrogatepass")).hexdigest()[:24]


def json_line(value: Any) -> str:
    r"""One line of JSON.

    The importer of Neuronpedia replaces the characters `\u0000` in a file by a space before reading it. Where a text
    holds just these (source code does), its backslash would be left alone and the line be no JSON any more, so that
    backslash is written as a number.
    """
    line = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return line.replace("\\\\u0000", "\\u005cu0000")
