"""How a conversation is written for a causal LM in this process, whoever runs it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from prompts.requests import Message


def written_out(tokenizer: Any, messages: Sequence[Message]) -> tuple[str, bool]:
    """The text up to where the assistant speaks, and whether the tokenizer has to add its special tokens to it.

    A chat template writes them itself; without a template the messages' contents are joined by blank lines. Raises
    what a template raises, e.g. for a role that it does not know.
    """
    if not tokenizer.chat_template:
        return "\n\n".join(message.content for message in messages), True
    plain = [{"role": message.role, "content": message.content} for message in messages]
    return tokenizer.apply_chat_template(plain, add_generation_prompt=True, tokenize=False), False
