"""The token blocks of a data set, made in the way the settings say, and kept in a folder."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

from autointerp.collect.corpus import dialogues, documents
from autointerp.collect.dialogues import template
from autointerp.collect.tokens import TokenBlocks, pack
from autointerp.config import DataSettings
from autointerp.errors import UserError
from autointerp.files import read_array, write_array
from autointerp.store.layout import DOCUMENTS, TOKENS
from autointerp.subject.load import SubjectModel


def blocks_of(
    subject: SubjectModel, data: DataSettings, *, seed: int, skip_documents: int, n_tokens: int | None = None
) -> TokenBlocks:
    """Packed blocks, or a row per dialogue, of about `n_tokens` tokens (default: what the settings say).

    Raises:
        UserError: see `documents`, `dialogues`, `pack` and `template`.
    """
    if data.dataset is None:
        raise UserError("no text: name some with --dataset (a .txt, .jsonl or .parquet file, a hub id, or docstrings)")
    size = {
        "n_tokens": n_tokens or data.tokens, "context_length": data.context_length, "skip_first": data.skip_first,
        "first_document": skip_documents,
    }  # fmt: skip
    source = f"'{data.dataset}'"
    if data.mode == "dialogues":
        rows = dialogues(data.dataset, column=data.text_column)
        return template(subject, islice(rows, skip_documents, None), source=source, **size)
    texts = documents(data.dataset, seed=seed, column=data.text_column)
    return pack(subject, islice(texts, skip_documents, None), source=source, **size)


def tokenise(subject: SubjectModel, data: DataSettings, folder: Path, *, seed: int, skip_documents: int) -> TokenBlocks:
    """The blocks kept in `folder`, or those of the data set, which are then kept there."""
    if (folder / DOCUMENTS).is_file():
        return TokenBlocks(read_array(folder / TOKENS), read_array(folder / DOCUMENTS))
    blocks = blocks_of(subject, data, seed=seed, skip_documents=skip_documents)
    folder.mkdir(parents=True, exist_ok=True)
    write_array(folder / TOKENS, blocks.tokens)
    write_array(folder / DOCUMENTS, blocks.documents)
    return blocks
