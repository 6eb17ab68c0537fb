"""The contexts of a data set, made in the way the settings say, and kept in a folder."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from autointerp.collect.corpus import Where, dialogues, documents
from autointerp.collect.dialogues import templated
from autointerp.collect.tokens import TokenBlocks, alone, joined, packed, trimmed
from autointerp.config import DataSettings
from autointerp.errors import UserError
from autointerp.files import ArrayWriter, full_disk_named, read_array, write_array, write_json
from autointerp.shards import WHOLE, Shard
from autointerp.store.layout import DOCUMENTS, TOKENS
from autointerp.subject.load import SubjectModel

PLACE = "tokens.json"
"""Where a shard's contexts stand among all of the text's."""

MODES: dict[str, Callable[..., Iterator[TokenBlocks]]] = {"packed": packed, "documents": alone, "dialogues": templated}


def blocks_of(
    subject: SubjectModel, data: DataSettings, *, seed: int, skip_documents: int, n_tokens: int | None = None
) -> TokenBlocks:
    """Contexts of about `n_tokens` tokens (default: what the settings say), in memory.

    Raises:
        UserError: see `documents`, `dialogues`, `packed`, `alone` and `templated`.
    """
    blocks = joined(pieces_of(subject, data, seed=seed, skip_documents=skip_documents, n_tokens=n_tokens))
    return blocks if data.mode == "packed" else trimmed(blocks)


def pieces_of(
    subject: SubjectModel, data: DataSettings, *, seed: int, skip_documents: int, n_tokens: int | None = None
) -> Iterator[TokenBlocks]:
    """The same, some contexts at a time."""
    if data.dataset is None:
        raise UserError("no text: name some with --dataset (a .txt, .jsonl or .parquet file, a hub id, or docstrings)")
    where = Where(data.text_column, data.split, data.subset)
    texts: Iterator[Any]
    texts = (
        dialogues(data.dataset, where) if data.mode == "dialogues" else documents(data.dataset, seed=seed, where=where)
    )
    return MODES[data.mode](
        subject, islice(texts, skip_documents, None), source=f"'{data.dataset}'", n_tokens=n_tokens or data.tokens,
        context_length=data.context_length, skip_first=data.skip_first, first_document=skip_documents,
    )  # fmt: skip


def tokenise(
    subject: SubjectModel, data: DataSettings, folder: Path, *, seed: int, skip_documents: int, shard: Shard = WHOLE,
    on_tokens: Callable[[int], None] | None = None,
) -> TokenBlocks:  # fmt: skip
    """A shard's contexts, memory-mapped: those kept in `folder`, or those of the data set, which are then kept there.

    Every shard reads all of the text, because only then are contexts the same for any number of shards.

    Raises:
        UserError: see `blocks_of`; or there are fewer contexts than shards.
    """
    if not (folder / DOCUMENTS).is_file():
        folder.mkdir(parents=True, exist_ok=True)
        working = folder / ".tokenising"
        shutil.rmtree(working, ignore_errors=True)
        working.mkdir()
        try:
            with full_disk_named(folder):
                pieces = pieces_of(subject, data, seed=seed, skip_documents=skip_documents)
                found = _spooled(pieces, working, data.context_length, on_tokens)
            _keep(found if data.mode == "packed" else trimmed(found), folder, shard, data)
        finally:
            shutil.rmtree(working, ignore_errors=True)
    return kept(folder)


def kept(folder: Path) -> TokenBlocks:
    """Contexts that `tokenise` left in a folder."""
    place = json.loads((folder / PLACE).read_text()) if (folder / PLACE).is_file() else {}
    return TokenBlocks(read_array(folder / TOKENS), read_array(folder / DOCUMENTS), place.get("first_block", 0))


def _spooled(
    pieces: Iterator[TokenBlocks], working: Path, context_length: int, on_tokens: Callable[[int], None] | None
) -> TokenBlocks:
    shape = (None, context_length)
    done = 0
    with (
        ArrayWriter(working / TOKENS, np.int32, shape) as tokens,
        ArrayWriter(working / DOCUMENTS, np.int32, shape) as owners,
    ):
        for piece in pieces:
            tokens.append(piece.tokens)
            owners.append(piece.documents)
            done += piece.tokens.size
            if on_tokens:
                on_tokens(done)
    return TokenBlocks(read_array(working / TOKENS), read_array(working / DOCUMENTS))


def _keep(blocks: TokenBlocks, folder: Path, shard: Shard, data: DataSettings) -> None:
    n = len(blocks.tokens)
    mine = shard.of(n)
    if not len(mine):
        raise UserError(
            f"--shard {shard} has nothing to do: '{data.dataset}' gives {n} contexts of {data.context_length} tokens; "
            "use fewer shards"
        )
    span = slice(mine.start, mine.stop)
    write_json(folder / PLACE, {"first_block": mine.start, "n_blocks": len(mine), "n_blocks_in_all": n})
    write_array(folder / TOKENS, blocks.tokens[span])
    # Written last: its presence says that the others are there.
    write_array(folder / DOCUMENTS, blocks.documents[span])
