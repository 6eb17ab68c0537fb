"""The fake server's tokens: words with the white space before them, their ids, and a cache of prompt prefixes."""

from __future__ import annotations

import hashlib
import re
from collections import OrderedDict
from collections.abc import Sequence

BLOCK = 16
"""Tokens per block of the prefix cache, as in vLLM."""

PIECE = re.compile(r"\s*\S+|\s+")


def pieces(text: str) -> list[str]:
    """The tokens of `text`; joined they are `text` again."""
    return PIECE.findall(text)


class Vocabulary:
    """Ids of tokens, given out as they are met. The same token has the same id in every server, collisions aside."""

    def __init__(self) -> None:
        self._ids: dict[str, int] = {}
        self._pieces: dict[int, str] = {}

    def encode(self, text: str) -> list[int]:
        """Ids of the tokens of `text`."""
        return [self._ids.get(piece) or self._add(piece) for piece in pieces(text)]

    def decode(self, ids: Sequence[int]) -> list[str]:
        """Tokens with these ids.

        Raises:
            ValueError: an id that this server has not given out.
        """
        unknown = [i for i in ids if i not in self._pieces]
        if unknown:
            raise ValueError(f"token ids that this server has not given out: {unknown[:5]}")
        return [self._pieces[i] for i in ids]

    def _add(self, piece: str) -> int:
        digest = hashlib.sha256(piece.encode("utf-8", "surrogatepass")).digest()
        # Small ids are left out, so that a made-up one is not taken for a token.
        i = 1_000 + int.from_bytes(digest[:4], "big")
        while i in self._pieces:
            i += 1
        self._ids[piece], self._pieces[i] = i, piece
        return i


class PrefixCache:
    """Which beginnings of prompts have been seen, in blocks of `BLOCK` tokens; the most recently used `size` blocks."""

    def __init__(self, size: int = 65_536) -> None:
        self.size = size
        self._blocks: OrderedDict[int, None] = OrderedDict()

    def read(self, tokens: Sequence[str]) -> int:
        """Tokens of this prompt that were cached; the prompt is cached from now on.

        The last token never counts as cached: a model has to read it to answer.
        """
        cached, key = 0, 0
        for start in range(0, len(tokens) - BLOCK + 1, BLOCK):
            end = start + BLOCK
            key = hash((key, *tokens[start:end]))
            if key in self._blocks:
                self._blocks.move_to_end(key)
                if cached == start and end < len(tokens):
                    cached = end
            else:
                self._blocks[key] = None
        while len(self._blocks) > self.size:
            self._blocks.popitem(last=False)
        return cached
