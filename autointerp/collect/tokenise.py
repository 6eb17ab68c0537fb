"""The contexts of a data set, made in the way the settings say, and kept in a folder."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autointerp.collect.corpus import Where, dialogues, documents
from autointerp.collect.dialogues import templated
from autointerp.collect.tokens import TokenBlocks, alone, batches, joined, packed, trimmed
from autointerp.config import DataSettings
from autointerp.errors import Damaged, UserError
from autointerp.files import ArrayWriter, full_disk_named, read_array, sweep, write_array, write_json
from autointerp.shards import WHOLE, Shard
from autointerp.store.layout import (
    DOCUMENTS,
    SEAL,
    TOKENS,
    check_file,
    differences,
    read_object,
    recorded,
    seal,
)
from autointerp.subject.load import SubjectModel

PLACE = "tokens.json"
"""Written last: what a folder's contexts are of, where they stand among all of the text's, and their checksums."""
AGAIN = "delete it, and the same command makes it again"

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
        UserError: see `blocks_of`; or there are fewer batches than shards, or those in the folder are of other text.
        Damaged: a file in the folder is not what was written.
        DiskFull: no room; nothing is left of what was begun.
    """
    working = folder / ".tokenising"
    shutil.rmtree(working, ignore_errors=True)
    of = {
        **data.model_dump(exclude={"batch_tokens", "skip_documents"}), "model_sha": subject.fingerprint,
        "corpus_seed": seed, "skip_documents": skip_documents, "shard": str(shard),
    }  # fmt: skip
    if not all((folder / name).is_file() for name in (PLACE, TOKENS, DOCUMENTS)):
        try:
            with full_disk_named(folder):
                working.mkdir(parents=True)
                sweep(folder)
                pieces = pieces_of(subject, data, seed=seed, skip_documents=skip_documents)
                found = _spooled(pieces, working, data.context_length, on_tokens)
            _keep(found if data.mode == "packed" else trimmed(found), folder, shard, data, of)
        finally:
            shutil.rmtree(working, ignore_errors=True)
    return kept(folder, of)


def kept(folder: Path, of: dict[str, Any] | None = None) -> TokenBlocks:
    """Contexts that `tokenise` left in a folder; every byte of them is compared with its checksum.

    Raises:
        UserError: they are not `of` this text.
        Damaged: they are not what was written.
    """
    place = read_object(folder / PLACE, AGAIN)
    if place.get(SEAL) != seal(place):
        raise Damaged(f"'{folder / PLACE}' is damaged: it is not what was written; {AGAIN}")
    apart = differences(of or place["of"], place["of"])
    if apart:
        raise UserError(f"'{folder}' holds tokens of something else ({'; '.join(apart)}); use --fresh or another --out")
    for name in (TOKENS, DOCUMENTS):
        check_file(folder / name, place["files"][name], content=True, remedy=AGAIN)
    return TokenBlocks(read_array(folder / TOKENS), read_array(folder / DOCUMENTS), place["first_block"])


def keep_beside(blocks: TokenBlocks, folder: Path, source: Path) -> None:
    """Leave contexts in another folder too; what `tokenise` noted of them is in `source`, if it made them.

    Raises:
        Damaged: the folder holds others.
    """
    for name, array in ((TOKENS, blocks.tokens), (DOCUMENTS, blocks.documents)):
        path = folder / name
        if not path.is_file():
            write_array(path, array)
        elif not _same(read_array(path), array):
            raise Damaged(f"'{path}' is damaged, or of other text than is collected now; use --fresh or another --out")
    if folder != source and (source / PLACE).is_file():
        write_json(folder / PLACE, read_object(source / PLACE, AGAIN))


def _same(one: NDArray[np.int32], other: NDArray[np.int32]) -> bool:
    step = 2**10
    return one.shape == other.shape and all(
        np.array_equal(one[i : i + step], other[i : i + step]) for i in range(0, len(one), step)
    )


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


def _keep(blocks: TokenBlocks, folder: Path, shard: Shard, data: DataSettings, of: dict[str, Any]) -> None:
    # Whole batches: floating-point sums depend on a batch's shape, and codes are to be those of a single process.
    spans = list(batches(blocks, data.batch_tokens))
    mine = shard.of(len(spans))
    if not len(mine):
        raise UserError(
            f"--shard {shard} has nothing to do: '{data.dataset}' gives {len(spans)} batches of {data.batch_tokens} "
            "tokens; use fewer shards, or a smaller --batch-tokens"
        )
    span = slice(spans[mine[0]].start, spans[mine[-1]].stop)
    write_array(folder / TOKENS, blocks.tokens[span])
    write_array(folder / DOCUMENTS, blocks.documents[span])
    place = {
        "of": of, "first_block": span.start, "n_blocks": span.stop - span.start, "n_blocks_in_all": len(blocks.tokens),
        "files": {name: recorded(folder / name) for name in (TOKENS, DOCUMENTS)},
    }  # fmt: skip
    write_json(folder / PLACE, {**place, SEAL: seal(place)})
