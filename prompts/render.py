"""Versioned prompt templates. A released template never changes its bytes; a change is a new version.

A template file is split at lines `{# system #}`, `{# user #}`, `{# assistant #}` into messages before
anything is filled in, so that text put into it can neither open a message nor run as template code.
A file without such lines is a plain prompt.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any, get_args

import jinja2

from prompts.requests import Message, Role

FOLDER = Path(__file__).parent / "templates"
LOCK = Path(__file__).parent / "templates.lock.json"

_SECTION = re.compile(r"^\{# (system|user|assistant) #\}\n", flags=re.MULTILINE)
# Prompts are plain text, not HTML; what is filled in is data, and jinja never renders data.
_ENVIRONMENT = jinja2.Environment(
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    autoescape=False,  # noqa: S701
)


def names() -> list[str]:
    """Every template with its version, e.g. `detection.v1`."""
    return sorted(path.name.removesuffix(".jinja") for path in FOLDER.glob("*.jinja"))


@cache
def source(name: str) -> str:
    path = FOLDER / f"{name}.jinja"
    if not path.is_file():
        raise LookupError(f"no prompt template '{name}' (known: {', '.join(names())})")
    return path.read_bytes().decode("utf-8")


@cache
def sha(name: str) -> str:
    """sha256 (16 hex digits) of the template's bytes; stands in every row that came from it."""
    return hashlib.sha256(source(name).encode()).hexdigest()[:16]


def joint_sha(templates: Iterable[str]) -> str:
    """The shas of several templates, joined by +; empty for none."""
    return "+".join(sha(name) for name in templates)


@cache
def _sections(name: str) -> tuple[tuple[Role | None, jinja2.Template], ...]:
    parts = _SECTION.split(source(name))
    if len(parts) == 1:
        return ((None, _ENVIRONMENT.from_string(parts[0])),)
    if parts[0].strip():
        raise ValueError(f"template '{name}' has text before its first section")
    roles = dict.fromkeys(get_args(Role))
    pairs = zip(parts[1::2], parts[2::2], strict=True)
    return tuple((role, _ENVIRONMENT.from_string(body)) for role, body in pairs if role in roles)  # type: ignore[misc]


def text(name: str, **values: Any) -> str:
    """A plain prompt."""
    (role, template), *_ = _sections(name)
    if role is not None:
        raise ValueError(f"template '{name}' is a conversation; use messages()")
    return template.render(**values)


def messages(name: str, **values: Any) -> tuple[Message, ...]:
    """A conversation."""
    return tuple(Message(role or "user", template.render(**values).strip()) for role, template in _sections(name))


def check_lock() -> list[str]:
    """What sets the templates apart from the lock file, one line each; empty when nothing does."""
    locked: dict[str, str] = json.loads(LOCK.read_text())
    found = {name: hashlib.sha256((FOLDER / f"{name}.jinja").read_bytes()).hexdigest() for name in names()}
    problems = [f"{name} is not in the lock: run `make lock`" for name in sorted(found.keys() - locked.keys())]
    problems += [f"{name} is locked but gone" for name in sorted(locked.keys() - found.keys())]
    problems += [
        f"{name} was changed after release: undo it and write a new version"
        for name in sorted(found.keys() & locked.keys())
        if found[name] != locked[name]
    ]
    return problems


def write_lock() -> None:
    """Add new templates to the lock. Entries that are there are never rewritten."""
    locked: dict[str, str] = json.loads(LOCK.read_text()) if LOCK.exists() else {}
    for name in names():
        locked.setdefault(name, hashlib.sha256((FOLDER / f"{name}.jinja").read_bytes()).hexdigest())
    LOCK.write_text(json.dumps(locked, indent=2, sort_keys=True) + "\n")


if __name__ == "__main__":
    write_lock()
