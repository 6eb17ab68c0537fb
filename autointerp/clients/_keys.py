"""API keys: which variable holds the one for an address, and how to keep it out of every text.

The key of openrouter.ai is OPENROUTER_API_KEY, that of every other address OPENAI_API_KEY, be it of OpenAI, of a
gateway or of an own server. Servers other than OpenAI's and OpenRouter's need none.
"""

from __future__ import annotations

import os
import re
import traceback
from collections.abc import Callable, Iterable
from urllib.parse import urlsplit

from autointerp.errors import UserError

PLACEHOLDER_KEY = "no-key"
"""Sent to servers that ask for none: the SDK refuses to start without one. It is no secret."""

KEY_LIKE = re.compile(r"\b(sk-|Bearer\s+)[\w*.\-]{6,}", re.I)


def is_under(host: str, domain: str) -> bool:
    # Not a substring test: it would hand the key to http://openrouter.ai.example.com.
    return host == domain or host.endswith("." + domain)


def find_key(url: str) -> tuple[str, str]:
    """Name of the environment variable that holds the key for `url`, and the key.

    Raises:
        UserError: none is set, and this service needs one.
    """
    host = urlsplit(url).hostname or ""
    name = "OPENROUTER_API_KEY" if is_under(host, "openrouter.ai") else "OPENAI_API_KEY"
    key = os.environ.get(name, "").strip()
    if not key and (name == "OPENROUTER_API_KEY" or is_under(host, "openai.com")):
        raise UserError(
            f"no API key for {host}: set {name}, or give --base-url of a server that needs none "
            "(vLLM, Ollama, llama.cpp), or use --client fake"
        )
    return name, key or PLACEHOLDER_KEY


def redactor(keys: Iterable[str]) -> Callable[[str], str]:
    """A function that takes these keys out of a text."""
    secret = [key for key in set(keys) if key != PLACEHOLDER_KEY]

    def redact(text: str) -> str:
        for key in secret:
            text = text.replace(key, "[key]")
        return text

    return redact


def without_likenesses(text: str) -> str:
    """`text` without whatever looks like a key: servers quote keys in shortened form too."""
    return KEY_LIKE.sub("[key]", text)


def forget_locals(error: BaseException) -> None:
    """Empty the frames that an exception has left. Those of the SDK hold the headers of the request, which tools that
    print a traceback with its locals would show."""
    seen: set[int] = set()
    chain: list[BaseException | None] = [error]
    while chain:
        link = chain.pop()
        if link is None or id(link) in seen:
            continue
        seen.add(id(link))
        traceback.clear_frames(link.__traceback__)
        chain += [link.__cause__, link.__context__]


def shown(url: str) -> str:
    """`url` without user, password and query.

    Raises:
        UserError: it is no http(s) URL.
    """
    try:
        parts = urlsplit(url)
        port = f":{parts.port}" if parts.port else ""
    except ValueError:
        parts, port = urlsplit(""), ""
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UserError("--base-url has to look like http://127.0.0.1:8000/v1 (several are joined by commas)")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return f"{parts.scheme}://{host}{port}{parts.path}"
