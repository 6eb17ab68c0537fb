"""Untrusted text and numbers on their way to the page: made visible, made safe, made short.

Corpus text, token pieces and model answers can hold anything. Two rules keep them harmless: characters
that would be invisible, or would reorder the line, are replaced by a mark that names them, and what goes
into a script file can neither close the script element nor end a string literal.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any

import numpy as np
from numpy.typing import NDArray

SEPARATOR = "\x7f"
"""Between the pieces of a window where they are one string: no text on the page holds it, see `visible`."""

# Newline and tab stay: the page marks them where it draws them. ZWJ and ZWNJ stay too: emoji and several
# scripts are spelt with them.
_OTHERS = (
    "\x00-\x08\x0b-\x1f\x80-\x9f\u00ad\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u2069\ud800-\udfff"
    "\ufeff\ufff9-\ufffb"
)
_HIDDEN = re.compile(f"[{_OTHERS}{SEPARATOR}]")
_HIDDEN_IN_PIECES = re.compile(f"[{_OTHERS}]")
_SURROGATE = re.compile("[\ud800-\udfff]")

MINUS = "\u2212"


def _mark(match: re.Match[str]) -> str:
    code = ord(match.group())
    if code < 0x20:
        return chr(0x2400 + code)  # the control pictures: ␀ for NUL, ␛ for ESC
    if code == 0x7F:
        return "\u2421"
    return f"⟨U+{code:04X}⟩"


def visible(text: str) -> str:
    """`text` with control characters, bidi overrides, line separators and lone surrogates shown by name."""
    return _HIDDEN.sub(_mark, text)


def visible_pieces(text: str) -> str:
    """The same for pieces that are joined by SEPARATOR."""
    return _HIDDEN_IN_PIECES.sub(_mark, text)


def decode(raw: bytes) -> str:
    """UTF-8 as far as it goes. Bytes of a lone surrogate survive, so that `visible` can name it."""
    try:
        return raw.decode("utf-8", "surrogatepass")
    except UnicodeDecodeError:
        return raw.decode("utf-8", "replace")


def script_json(value: Any) -> str:
    """JSON that is also safe inside a script element and valid in every JavaScript version.

    NaN and infinities raise `ValueError`: they are not JSON, and a value that is missing has to be None.
    """
    plain = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for unsafe in "<>&\u2028\u2029":
        plain = plain.replace(unsafe, f"\\u{ord(unsafe):04x}")
    return _SURROGATE.sub(lambda match: f"\\u{ord(match.group()):04x}", plain) if _broken(plain) else plain


def _broken(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False


def number(value: Any) -> float | None:
    """A finite float, or None for null, NaN and infinities."""
    if value is None:
        return None
    found = float(value)
    return found if math.isfinite(found) else None


def short(value: Any, digits: int = 4) -> float | None:
    """`value` cut to significant digits: the page shows three, and shards should be small."""
    found = number(value)
    return None if found is None else float(f"{found:.{digits}g}")


def significant(values: NDArray[np.float64], digits: int = 4) -> NDArray[np.float64]:
    """`short` for many finite numbers at once."""
    with np.errstate(divide="ignore"):
        places = digits - 1 - np.floor(np.log10(np.abs(values)))
    places = np.where(np.isfinite(places), np.clip(places, -300, 300), 0)
    up, down = 10.0 ** np.maximum(places, 0), 10.0 ** np.maximum(-places, 0)
    # Whole numbers over and times powers of ten are as exact as the decimals they are printed as.
    return np.asarray(np.round(values * up / down) * down / up)


def figure(value: Any, decimals: int = 3) -> str:
    """A number as the tables print it; an em dash where there is none."""
    found = number(value)
    if found is None:
        return "—"
    size = abs(found)
    if size and size < 10.0**-decimals:
        text = f"{found:.1e}"
    elif size >= 1000:
        text = f"{found:,.0f}"
    elif size >= 100:
        text = f"{found:.1f}"
    else:
        text = f"{found:.{decimals}f}"
    return text.replace("-", MINUS)


def signed(value: Any, decimals: int = 3) -> str:
    """`figure` of a difference: with its sign."""
    found = number(value)
    return figure(value, decimals) if found is None or found <= 0 else f"+{figure(value, decimals)}"


def interval(low: Any, high: Any, decimals: int = 3) -> str:
    """`[low, high]`, or nothing when either end is missing."""
    if number(low) is None or number(high) is None:
        return ""
    return f"[{figure(low, decimals)}, {figure(high, decimals)}]"


def count(value: Any) -> str:
    """A whole number with thousands separators; an em dash where there is none."""
    found = number(value)
    return "—" if found is None else f"{round(found):,}"


def percent(part: float, whole: float) -> str:
    """`part` of `whole` in per cent, two significant digits below ten."""
    if not whole:
        return "—"
    share = 100 * part / whole
    if 99.5 <= share < 100:
        return ">99%"  # a hundred would say that nothing is left
    return f"{share:.0f}%" if share >= 10 or share == 0 else f"{share:.2g}%"


def words(name: str) -> str:
    """A column's or metric's name as prose: `balanced_accuracy` becomes `balanced accuracy`."""
    return visible(name).replace("_", " ")
