"""Documents into contexts of tokens: packed one after another with a separator between, or each document alone.

Every position knows its document; special tokens, padding, and the first positions of each context belong
to none, and so to no statistic and to no window. Contexts come in pieces, so that memory does not grow
with the text.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autointerp.errors import UserError
from autointerp.subject.load import SubjectModel

NO_DOCUMENT = -1
PIECE = 256
"""Texts that the tokenizer reads together, and contexts that come in one piece."""
PIECE_CHARACTERS = 2**20
"""Texts that are longer than this together are read a few at a time: tokenizers take a hundred bytes a token."""
SORTED_TOGETHER = 256
"""Rows that are put in order of length, where documents are not packed: neighbours of like length waste the
least padding. Only neighbours: the last rows are to be held out."""


BATCH_TOKENS = 8192
"""Tokens per forward pass."""


@dataclass(frozen=True, slots=True)
class TokenBlocks:
    """`tokens` int32 [n_blocks, T]; `documents` int32 of the same shape, -1 where a position counts for nothing."""

    tokens: NDArray[np.int32]
    documents: NDArray[np.int32]
    first: int = 0
    """Contexts of the text before these, where they are one shard's share."""

    def __getitem__(self, span: slice) -> TokenBlocks:
        return TokenBlocks(self.tokens[span], self.documents[span], self.first + (span.start or 0))

    @property
    def n_documents(self) -> int:
        """Documents begun, those before the first one taken included."""
        return int(self.documents.max()) + 1

    @property
    def n_counted(self) -> int:
        return sum(int(counted.sum()) for counted in self._counted())

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Positions of each context up to the last one that counts, [n_blocks]; what follows is padding."""
        width = self.documents.shape[1]
        lengths = [
            np.where(counted.any(axis=1), width - counted[:, ::-1].argmax(axis=1), 0) for counted in self._counted()
        ]
        return np.concatenate(lengths) if lengths else np.empty(0, dtype=np.int64)

    def _counted(self) -> Iterator[NDArray[np.bool_]]:
        """Which positions count, some contexts at a time: of all of them it would be a quarter of the documents."""
        for begin in range(0, len(self.documents), PIECE):
            yield self.documents[begin : begin + PIECE] != NO_DOCUMENT


def joined(pieces: Iterable[TokenBlocks]) -> TokenBlocks:
    """Pieces of one text, one below the other."""
    all_ = list(pieces)
    return TokenBlocks(np.concatenate([p.tokens for p in all_]), np.concatenate([p.documents for p in all_]))


def trimmed(blocks: TokenBlocks) -> TokenBlocks:
    """Without the padding that every row has."""
    longest = int(blocks.lengths.max())
    return TokenBlocks(blocks.tokens[:, :longest], blocks.documents[:, :longest], blocks.first)


def batches(blocks: TokenBlocks, batch_tokens: int) -> Iterator[slice]:
    """Spans of neighbouring contexts of about `batch_tokens` tokens each, padding included.

    Where documents are not packed, neighbours are of like length, and a batch of short ones holds more of them.
    """
    lengths = np.maximum(blocks.lengths, 1).tolist()
    begin, longest = 0, 0
    for i, length in enumerate(lengths):
        longest = max(longest, length)
        if i > begin and longest * (i + 1 - begin) > batch_tokens:
            yield slice(begin, i)
            begin, longest = i, length
    yield slice(begin, len(lengths))


def pack(subject: SubjectModel, texts: Iterable[str], **how: Any) -> TokenBlocks:
    """All of `packed` at once."""
    return joined(packed(subject, texts, **how))


def packed(
    subject: SubjectModel,
    texts: Iterable[str],
    *,
    n_tokens: int,
    context_length: int,
    skip_first: int,
    first_document: int = 0,
    source: str = "the data set",
) -> Iterator[TokenBlocks]:
    """Take documents until `n_tokens` tokens are full contexts; a data set that ends sooner gives fewer.

    Raises:
        UserError: no text at all, or not enough for one context.
    """
    bos, separator = subject.bos_id, subject.separator_id
    width = context_length - (bos is not None)
    left = max(1, -(-n_tokens // context_length))
    tokens, owners = np.empty(0, np.int32), np.empty(0, np.int32)
    document, taken = first_document, 0
    after = [] if separator is None else [separator]

    def contexts(n: int) -> TokenBlocks:
        block = tokens[: n * width].reshape(n, width)
        owner = owners[: n * width].reshape(n, width).copy()
        owner[np.isin(block, list(subject.special_ids))] = NO_DOCUMENT
        if bos is not None:
            block = np.concatenate([np.full((n, 1), bos, np.int32), block], axis=1)
            owner = np.concatenate([np.full((n, 1), NO_DOCUMENT, np.int32), owner], axis=1)
        owner[:, :skip_first] = NO_DOCUMENT
        return TokenBlocks(block, owner, taken)

    for ids_of_some in _tokenised(subject, texts):
        streams = [np.array([*ids, *after], dtype=np.int32) for ids in ids_of_some]
        whose = [np.full(len(stream), document + i, np.int32) for i, stream in enumerate(streams)]
        for owner in whose if after else []:
            owner[-1] = NO_DOCUMENT
        document += len(streams)
        tokens, owners = np.concatenate([tokens, *streams]), np.concatenate([owners, *whose])
        n = min(left, len(tokens) // width)
        if n >= PIECE or n == left:
            yield contexts(n)
            tokens, owners = tokens[n * width :], owners[n * width :]
            left, taken = left - n, taken + n
        if left == 0:
            return
    if not taken and not len(tokens):
        raise UserError(f"{source} is empty: it holds no text; name another with --dataset")
    n = len(tokens) // width
    if n == 0 and not taken:
        raise UserError(
            f"{source} holds {len(tokens)} tokens, fewer than one context of {context_length}; "
            "bring more text or lower --context-length"
        )
    if n:
        yield contexts(n)


def alone(
    subject: SubjectModel,
    texts: Iterable[str],
    *,
    n_tokens: int,
    context_length: int,
    skip_first: int,
    first_document: int = 0,
    source: str = "the data set",
) -> Iterator[TokenBlocks]:
    """Each document in contexts of its own, the last one padded, until `n_tokens` tokens count.

    Raises:
        UserError: no document is longer than `skip_first` tokens.
    """
    start = [] if subject.bos_id is None else [subject.bos_id]
    width = context_length - len(start)

    def rows() -> Iterator[tuple[int, list[int]]]:
        document = first_document
        for ids_of_some in _tokenised(subject, texts):
            for ids in ids_of_some:
                for at in range(0, len(ids), width):
                    yield document, [*start, *ids[at : at + width]]
                document += 1

    return in_rows(
        rows(), n_tokens=n_tokens, context_length=context_length, skip_first=skip_first, source=source,
        special=subject.special_ids,
    )  # fmt: skip


def in_rows(
    rows: Iterable[tuple[int, Sequence[int]]], *, n_tokens: int, context_length: int, skip_first: int, source: str,
    special: frozenset[int] = frozenset(), what: str = "document",
) -> Iterator[TokenBlocks]:  # fmt: skip
    """Token ids of one document each, as rows padded to `context_length`, until `n_tokens` tokens count.

    Raises:
        UserError: none is longer than `skip_first`.
    """
    left, taken = n_tokens, 0

    def wanted() -> Iterator[tuple[int, Sequence[int]]]:
        nonlocal left
        for number, ids in rows:
            if left <= 0:
                return
            counted = len(ids) - skip_first - sum(i in special for i in ids[skip_first:])
            if counted > 0:
                left -= counted
                yield number, ids

    source_rows = wanted()
    while some := list(islice(source_rows, SORTED_TOGETHER)):
        some.sort(key=lambda row: len(row[1]))
        shape = (len(some), context_length)
        tokens, owners = np.zeros(shape, dtype=np.int32), np.full(shape, NO_DOCUMENT, dtype=np.int32)
        for place, (number, ids) in enumerate(some):
            tokens[place, : len(ids)] = ids
            owners[place, skip_first : len(ids)] = number
        if special:
            owners[np.isin(tokens, list(special))] = NO_DOCUMENT
        yield TokenBlocks(tokens, owners, taken)
        taken += len(some)
    if not taken:
        raise UserError(f"{source} holds no {what} longer than {skip_first} tokens; name another with --dataset")


def _tokenised(subject: SubjectModel, texts: Iterable[str]) -> Iterator[list[list[int]]]:
    """Token ids of the texts, some texts at a time: a slow source is not asked for more than is needed."""
    size, some, characters = 8, list[str](), 0
    stream = iter(texts)
    while True:
        text = next(stream, None)
        if text is not None:
            some.append(text)
            characters += len(text)
        if some and (text is None or len(some) >= size or characters >= PIECE_CHARACTERS):
            ids: list[list[int]] = subject.tokenizer(some, add_special_tokens=False, truncation=False, verbose=False)[
                "input_ids"
            ]
            yield ids
            size, some, characters = min(PIECE, 2 * size), [], 0
        if text is None:
            return
