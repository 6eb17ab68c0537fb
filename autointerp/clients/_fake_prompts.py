"""How the fake models read prompts as the templates write them, and write the JSON that a schema asks for."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from prompts.requests import Chat, Choice, Failure, fingerprint

DIGITS = tuple("0123456789")
"""Choices of a request for one token's activation."""
FIRST_WINDOW = re.compile(r'(?m)^<window id="1">$')
STRING = r'"(?:[^"\\]|\\.)*"'
"""Of JSON."""
EXPLANATION = r"(?m)^Explanation: *(.+)$"
Oracle = Callable[[str, str], bool]
"""Whether a window's text matches an explanation: `oracle(explanation, window_text)`."""


def chat_with(judge: Oracle, pattern: str) -> Callable[[Chat], str | Failure]:
    """The chat behaviour whose detection answers come from `judge`."""

    def detect(prompt: str, n: int) -> dict[str, Any] | Failure:
        # What a window says about explanations is not the explanation.
        stated = re.search(pattern, FIRST_WINDOW.split(prompt, 1)[0])
        windows = find_windows(prompt)
        if stated is None or len(windows) != n:
            # Guessing here would hide a template that the fake cannot read.
            return Failure(
                "error", f"fake: {len(windows)} windows for {n} answers, explanation found: {stated is not None}"
            )
        return {"answers": [int(judge(stated.group(1).strip(), window)) for window in windows]}

    def explain(prompt: str, n: int) -> dict[str, Any]:
        # Instructions may show the marks too, so windows go first where the prompt has them.
        text = "\n".join(find_windows(prompt)) or prompt
        marked = Counter(token.strip() for token in re.findall(r"<<(.+?)>>", text, re.S) if token.strip())
        counts = risen(prompt) or marked
        best = min(counts, key=lambda token: (-counts[token], token), default=None)
        return {"explanation": "no token is marked" if best is None else f'the word "{best}"'}

    def simulate(prompt: str, n: int) -> dict[str, Any]:
        stated = re.search(pattern, prompt)
        tokens = [json.loads(token) for token in re.findall(r"(?m)^\d+: (\".*\")$", prompt)]
        explanation = stated.group(1).strip() if stated else ""
        return {"activations": [9 * int(bool(token.strip()) and judge(explanation, token)) for token in tokens]}

    def chat(request: Chat) -> str | Failure:
        answers: dict[str, Callable[[str, int], Any]] = {
            "answers": detect, "explanation": explain, "intruder": odd_one_out, "activations": simulate,
        }  # fmt: skip
        return by_schema(request, answers, otherwise=f"reply {fingerprint(request)}")

    return chat


def choice_with(
    judge: Oracle, pattern: str, otherwise: Callable[[Choice], tuple[float, ...]]
) -> Callable[[Choice], tuple[float, ...]]:
    """The choice behaviour whose digits come from `judge`: 0.9 for 9 where the last token fits the explanation, for 0
    where it does not, the rest shared."""

    def choice(request: Choice) -> tuple[float, ...]:
        prompt = request.messages[-1].content if request.messages else ""
        # The window may quote such a line, but stands before it.
        tokens = re.findall(r"(?m)^Last token: (\".*\")$", prompt)
        stated = re.search(pattern, FIRST_WINDOW.split(prompt, 1)[0])
        if request.choices != DIGITS or not tokens or stated is None:
            return otherwise(request)
        token = json.loads(tokens[-1])
        said = DIGITS[-1] if token.strip() and judge(stated.group(1).strip(), token) else DIGITS[0]
        return tuple(0.9 if digit == said else 0.1 / (len(DIGITS) - 1) for digit in DIGITS)

    return choice


def risen(prompt: str) -> Counter[str]:
    """Tokens of `explain_output` by the sum of their rises, in thousandths; without any, its first list by rank."""
    outside = re.sub(r'(?ms)^<window id="\d+">$.*?^</window>$', "", prompt)
    counts: Counter[str] = Counter()
    for line in re.findall(r"(?m)^Likelier next tokens: (.+)$", outside):
        for token, rise in re.findall(rf"({STRING}) \+(\d\.\d+)", line):
            counts[json.loads(token).strip()] += round(1000 * float(rise))
    first = re.search(r"(?m)^Likelier anywhere: (.+)$", outside)
    if not counts and first:
        listed = re.findall(STRING, first.group(1))
        counts.update({json.loads(token).strip(): len(listed) - i for i, token in reversed(list(enumerate(listed)))})
    del counts[""]
    return counts


def odd_one_out(prompt: str, n: int) -> dict[str, int]:
    """The window whose marked words the others mark least often; the first of several."""
    marked = [" ".join(re.findall(r"<<(.+?)>>", text, re.S)) for text in find_windows(prompt)]
    # Two marks side by side may be one.
    marks = [tuple(sorted(set(text.split()))) for text in marked]
    counts = Counter(marks)
    return {"intruder": 1 + min(range(len(marks)), key=lambda i: (counts[marks[i]], i), default=0)}


def by_schema(request: Chat, answers: Mapping[str, Callable[[str, int], Any]], otherwise: str) -> str | Failure:
    """The JSON of the answer that the schema asks for: a function of the last user message and the list's length."""
    said = [message.content for message in request.messages if message.role == "user"]
    # Who is asked once more, because an answer was none, has read the windows before.
    prompt = next((text for text in reversed(said) if FIRST_WINDOW.search(text)), said[-1] if said else "")
    properties = (request.schema or {}).get("properties", {})
    asked = next((name for name in answers if name in properties), None)
    if asked is None:
        return otherwise
    found = answers[asked](prompt, properties[asked].get("minItems", len(find_windows(prompt))))
    return found if isinstance(found, Failure) else json.dumps(found, ensure_ascii=False)


def mentions(explanation: str, text: str) -> bool:
    """Whether `text` contains a quoted word of the explanation or, if it quotes none, one of 4 letters or more."""
    # `keyword` writes `the word "X"`, and X may itself contain quotes.
    own = re.fullmatch(r'the word "(.+)"', explanation, re.S)
    quoted = [own.group(1)] if own else re.findall(r'["“]([^"“”]*\S[^"“”]*)["”]', explanation)
    words = quoted or re.findall(r"[^\W\d_]{4,}", explanation)
    # A fuzzing prompt marks tokens, which are often parts of words.
    plain = re.sub(r"<<(.+?)>>", r"\1", text, flags=re.S).casefold()
    return any(word.strip().casefold() in plain for word in words)


def find_windows(prompt: str) -> list[str]:
    """The texts between `<window id="1">`, `<window id="2">`, ... and `</window>`, in order.

    A window's text may contain tags of its own: only the next id, right after a closing tag, opens a window.
    """
    starts: list[re.Match[str]] = []
    opening = FIRST_WINDOW.search(prompt)
    while opening:
        starts.append(opening)
        following = re.compile(rf'</window>\s*<window id="{len(starts) + 1}">')
        opening = following.search(prompt, opening.end())
    ends = [*(start.start() + len("</window>") for start in starts[1:]), len(prompt)]
    # Not strict: a prompt without windows has that one end and no start.
    bodies = (prompt[start.end() : end].rpartition("</window>")[0] for start, end in zip(starts, ends, strict=False))
    return [body.removeprefix("\n").removesuffix("\n") for body in bodies]
