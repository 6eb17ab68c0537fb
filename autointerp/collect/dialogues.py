"""Dialogues for training on instruct models: each alone in the model's own chat template (FAST, arXiv 2506.07691).

Nothing is packed, so no activation is computed with another dialogue in its context. A dialogue is one
row of tokens, padded on the right; padding counts for nothing, the template's own tokens do count.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from jinja2 import TemplateError

from autointerp.collect.tokens import TokenBlocks, in_rows, joined, trimmed
from autointerp.errors import UserError
from autointerp.subject.load import SubjectModel

ROLES = {"human": "user", "gpt": "assistant", "bot": "assistant", "model": "assistant"}


def messages(row: Any, where: str) -> list[dict[str, str]]:
    """A row's turns as role and content, from `role`/`content` or `from`/`value` entries.

    Raises:
        UserError: it holds no such list.
    """
    turns = []
    for turn in row if isinstance(row, list | tuple) else []:
        if isinstance(turn, Mapping):
            role, content = turn.get("role", turn.get("from")), turn.get("content", turn.get("value"))
            if isinstance(role, str) and isinstance(content, str):
                turns.append({"role": ROLES.get(role, role), "content": content})
                continue
        raise UserError(f"a dialogue in '{where}' is no list of {{role, content}} turns")
    if not turns:
        raise UserError(f"a dialogue in '{where}' has no turns; its column has to hold lists of {{role, content}}")
    return turns


def template(subject: SubjectModel, rows: Iterable[Any], **how: Any) -> TokenBlocks:
    """All of `templated` at once."""
    return trimmed(joined(templated(subject, rows, **how)))


def templated(
    subject: SubjectModel,
    rows: Iterable[Any],
    *,
    n_tokens: int,
    context_length: int,
    skip_first: int,
    first_document: int = 0,
    source: str = "the data set",
) -> Iterator[TokenBlocks]:
    """Take dialogues until `n_tokens` tokens count; each is cut at `context_length`.

    Raises:
        UserError: the tokenizer has no chat template, it refuses a dialogue, or there is none.
    """
    if not getattr(subject.tokenizer, "chat_template", None):
        raise UserError(f"{subject.label} has no chat template; dialogues need an instruct model (or data.mode=packed)")

    def ids_of() -> Iterator[tuple[int, list[int]]]:
        for number, row in enumerate(rows, first_document):
            turns = messages(row, source)
            try:
                # The template brings its own BOS; encoding its text again would put a second one before it.
                ids = subject.tokenizer.apply_chat_template(turns, tokenize=True, return_dict=False)
            except TemplateError as error:
                raise UserError(
                    f"the chat template of {subject.label} refuses dialogue {number} of {source}: {error}"
                ) from error
            yield number, list(ids)[:context_length]

    yield from in_rows(
        ids_of(), n_tokens=n_tokens, context_length=context_length, skip_first=skip_first, source=source,
        what="dialogue",
    )  # fmt: skip
