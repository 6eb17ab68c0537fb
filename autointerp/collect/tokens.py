"""Documents into blocks of tokens: packed one after another, with a separator between, cut at the context length.

Every position knows its document; special tokens, and the first positions of each block, belong to none,
and so to no statistic and to no window.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from autointerp.errors import UserError
from autointerp.subject.load import SubjectModel

NO_DOCUMENT = -1


@dataclass(frozen=True, slots=True)
class TokenBlocks:
    """`tokens` int32 [n_blocks, T]; `documents` int32 of the same shape, -1 where a position counts for nothing."""

    tokens: NDArray[np.int32]
    documents: NDArray[np.int32]

    @property
    def n_documents(self) -> int:
        """Documents begun, those before the first one taken included."""
        return int(self.documents.max()) + 1

    @property
    def n_counted(self) -> int:
        return int((self.documents != NO_DOCUMENT).sum())


def pack(
    subject: SubjectModel,
    texts: Iterable[str],
    *,
    n_tokens: int,
    context_length: int,
    skip_first: int,
    first_document: int = 0,
    source: str = "the data set",
) -> TokenBlocks:
    """Take documents until `n_tokens` tokens are full blocks; a data set that ends sooner gives fewer blocks.

    Raises:
        UserError: no text at all, or not enough for one block.
    """
    bos, separator = subject.bos_id, subject.separator_id
    width = context_length - (bos is not None)
    n_blocks = max(1, -(-n_tokens // context_length))
    stream: list[int] = []
    owners: list[int] = []
    document = first_document
    for text in texts:
        ids = subject.tokenizer(text, add_special_tokens=False, truncation=False, verbose=False)["input_ids"]
        stream += ids
        owners += [document] * len(ids)
        if separator is not None:
            stream.append(separator)
            owners.append(NO_DOCUMENT)
        document += 1
        if len(stream) >= n_blocks * width:
            break
    if not stream:
        raise UserError(f"{source} is empty: it holds no text; name another with --dataset")
    n_full = min(n_blocks, len(stream) // width)
    if n_full == 0:
        raise UserError(
            f"{source} holds {len(stream)} tokens, fewer than one context of {context_length}; "
            "bring more text or lower --context-length"
        )
    tokens = np.array(stream[: n_full * width], dtype=np.int32).reshape(n_full, width)
    owner = np.array(owners[: n_full * width], dtype=np.int32).reshape(n_full, width)
    owner[np.isin(tokens, list(subject.special_ids))] = NO_DOCUMENT
    if bos is not None:
        tokens = np.concatenate([np.full((n_full, 1), bos, np.int32), tokens], axis=1)
        owner = np.concatenate([np.full((n_full, 1), NO_DOCUMENT, np.int32), owner], axis=1)
    owner[:, :skip_first] = NO_DOCUMENT
    return TokenBlocks(tokens, owner)
