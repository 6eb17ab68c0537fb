"""Texts into contexts, a piece at a time: what a plain loop over tokens makes of them, whatever comes together."""

from __future__ import annotations

import json
import re
import tracemalloc
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import planted
import pytest
from tokenizers.processors import TemplateProcessing

from autointerp import files
from autointerp.collect import tokenise as tokenise_module
from autointerp.collect import tokens as tokens_module
from autointerp.collect.corpus import Where, documents
from autointerp.collect.tokenise import blocks_of, kept, tokenise
from autointerp.collect.tokens import (
    NO_DOCUMENT,
    PIECE,
    SORTED_TOGETHER,
    TokenBlocks,
    alone,
    batches,
    joined,
    pack,
    packed,
    trimmed,
)
from autointerp.config import DataSettings
from autointerp.errors import UserError
from autointerp.shards import Shard
from autointerp.subject.load import SubjectModel, load_subject

SEPARATOR = planted.vocabulary()["<sep>"]
KINDS = ["separator", "bos", "neither"]
Row = list[tuple[int, int]]
"""Tokens of a context with the documents that they count for."""


def tokens_only(kind: str) -> SubjectModel:
    """A tokenizer with a separator; one that puts a BOS before each text by itself; one that has no special token."""
    tokenizer = planted.tokenizer()
    if kind == "bos":
        tokenizer.bos_token = "<sep>"
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
            single="<sep> $A", special_tokens=[("<sep>", SEPARATOR)]
        )
    if kind == "neither":
        tokenizer.eos_token = None
    subject = SubjectModel("tokens only", None, tokenizer)
    assert subject.bos_id == (SEPARATOR if kind == "bos" else None)
    assert subject.separator_id == (None if kind == "neither" else SEPARATOR)
    return subject


def random_texts(n: int, seed: int, longest: int = 40) -> list[str]:
    """Words of the vocabulary and others; some texts are empty, some name special tokens."""
    rng = np.random.default_rng(seed)
    words = [*planted.CONCEPTS, *planted.FILLER, "unheard-of", "<sep>"]
    return [" ".join(rng.choice(words, int(rng.integers(0, longest) * (rng.random() < 0.9)))) for _ in range(n)]


def ids_of(subject: SubjectModel, text: str) -> list[int]:
    ids: list[int] = subject.tokenizer.convert_tokens_to_ids(subject.tokenizer.tokenize(text))
    return ids


def plain_packing(
    subject: SubjectModel, texts: Sequence[str], n_tokens: int, context_length: int, skip_first: int, first: int = 0
) -> list[Row]:
    stream: Row = []
    for document, text in enumerate(texts, first):
        stream += [(i, NO_DOCUMENT if i in subject.special_ids else document) for i in ids_of(subject, text)]
        if subject.separator_id is not None:
            stream.append((subject.separator_id, NO_DOCUMENT))
    start = [] if subject.bos_id is None else [(subject.bos_id, NO_DOCUMENT)]
    width = context_length - len(start)
    rows = [[*start, *stream[at : at + width]] for at in range(0, len(stream) - width + 1, width)]
    return [skipped(row, skip_first) for row in rows[: max(1, -(-n_tokens // context_length))]]


def plain_rows(
    subject: SubjectModel, texts: Sequence[str], n_tokens: int, context_length: int, skip_first: int, first: int = 0
) -> list[Row]:
    start = [] if subject.bos_id is None else [subject.bos_id]
    width = context_length - len(start)
    rows: list[Row] = []
    counted = 0
    for document, text in enumerate(texts, first):
        ids = ids_of(subject, text)
        for at in range(0, len(ids), width):
            row = [(i, NO_DOCUMENT if i in subject.special_ids else document) for i in [*start, *ids[at : at + width]]]
            row = skipped(row, skip_first)
            mine = sum(document != NO_DOCUMENT for _, document in row)
            if mine and counted < n_tokens:
                rows.append(row)
                counted += mine
    grouped = [rows[at : at + SORTED_TOGETHER] for at in range(0, len(rows), SORTED_TOGETHER)]
    return [
        row + [(0, NO_DOCUMENT)] * (context_length - len(row)) for group in grouped for row in sorted(group, key=len)
    ]


def skipped(row: Row, skip_first: int) -> Row:
    return [(token, NO_DOCUMENT if place < skip_first else document) for place, (token, document) in enumerate(row)]


def same(blocks: TokenBlocks, rows: list[Row]) -> None:
    expected = np.array(rows, dtype=np.int32)
    assert blocks.tokens.dtype == blocks.documents.dtype == np.int32
    np.testing.assert_array_equal(blocks.tokens, expected[..., 0])
    np.testing.assert_array_equal(blocks.documents, expected[..., 1])


def equal(one: TokenBlocks, other: TokenBlocks) -> None:
    np.testing.assert_array_equal(one.tokens, other.tokens)
    np.testing.assert_array_equal(one.documents, other.documents)


def check_pieces(pieces: list[TokenBlocks]) -> TokenBlocks:
    """Each knows how many contexts came before it."""
    assert [piece.first for piece in pieces] == [sum(len(p.tokens) for p in pieces[:i]) for i in range(len(pieces))]
    return joined(pieces)


# --- packed ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("context_length", [8, 13, 64])
@pytest.mark.parametrize("skip_first", [0, 1, 5])
def test_packing_is_a_plain_loop(kind: str, context_length: int, skip_first: int) -> None:
    subject = tokens_only(kind)
    for seed, n_texts, n_tokens in ((0, 30, 200), (1, 300, 3000), (2, 50, 10**6), (3, 20, 1), (4, 700, 9000)):
        texts = random_texts(n_texts, seed)
        how: dict[str, Any] = {"n_tokens": n_tokens, "context_length": context_length, "skip_first": skip_first}
        blocks = check_pieces(list(packed(subject, iter(texts), **how, first_document=seed)))
        same(blocks, plain_packing(subject, texts, n_tokens, context_length, skip_first, seed))
        equal(blocks, pack(subject, texts, **how, first_document=seed))


@pytest.mark.parametrize("kind", KINDS)
def test_more_contexts_than_come_in_one_piece(kind: str) -> None:
    subject, texts = tokens_only(kind), random_texts(2000, 5)
    pieces = list(packed(subject, texts, n_tokens=8 * 4 * PIECE + 3, context_length=8, skip_first=1))
    assert len(pieces) > 1 and all(len(piece.tokens) >= PIECE for piece in pieces[:-1])
    same(check_pieces(pieces), plain_packing(subject, texts, 8 * 4 * PIECE + 3, 8, 1))
    assert sum(len(piece.tokens) for piece in pieces) == 4 * PIECE + 1


@pytest.mark.parametrize("kind", KINDS)
def test_texts_longer_than_many_contexts(kind: str) -> None:
    subject, texts = tokens_only(kind), random_texts(5, 6, longest=20_000)
    blocks = check_pieces(list(packed(subject, texts, n_tokens=30_000, context_length=16, skip_first=0)))
    same(blocks, plain_packing(subject, texts, 30_000, 16, 0))


def test_empty_texts_between_the_others() -> None:
    for kind in KINDS:
        subject, texts = tokens_only(kind), ["", "", "the river", "", *["apple on winter"] * 20, ""]
        blocks = pack(subject, texts, n_tokens=10**6, context_length=8, skip_first=0)
        same(blocks, plain_packing(subject, texts, 10**6, 8, 0))
        assert blocks.n_documents <= 24 and blocks.documents[0].max() >= 2


def test_no_more_texts_are_read_than_are_needed() -> None:
    """At most what the tokenizer reads together."""
    subject, read = tokens_only("separator"), 0

    def endless() -> Iterator[str]:
        nonlocal read
        while True:
            read += 1
            yield "the river is in winter"  # 6 tokens with the separator

    for n_tokens in (8, 600, 24_000):
        read = 0
        assert len(pack(subject, endless(), n_tokens=n_tokens, context_length=8, skip_first=0).tokens) == n_tokens // 8
        assert read <= n_tokens // 6 + 1 + max(8, min(PIECE, n_tokens // 6 + 8))
        read = 0
        rows = joined(alone(subject, endless(), n_tokens=n_tokens, context_length=8, skip_first=0))
        assert rows.n_counted - n_tokens in range(5) and read <= n_tokens // 5 + 1 + PIECE


@pytest.mark.parametrize("make", [packed, alone])
def test_long_texts_are_tokenised_a_few_at_a_time(monkeypatch: pytest.MonkeyPatch, make: Any) -> None:
    texts = random_texts(300, 7, longest=400)
    how: dict[str, Any] = {"n_tokens": 10**6, "context_length": 16, "skip_first": 1}
    expected = joined(make(tokens_only("bos"), texts, **how))
    subject, sizes = tokens_only("bos"), list[int]()
    real = subject.tokenizer

    def spy(some: Any, **how: Any) -> Any:
        if isinstance(some, list):
            sizes.append(sum(map(len, some)))
        return real(some, **how)

    monkeypatch.setattr(tokens_module, "PIECE_CHARACTERS", 5000)
    for name in ("eos_token_id", "bos_token_id", "all_special_ids"):
        setattr(spy, name, getattr(real, name))
    equal(joined(make(SubjectModel("spied", None, spy), texts, **how)), expected)
    assert max(sizes) < 5000 + max(map(len, texts)) and len(sizes) > 25


@pytest.mark.parametrize("kind", KINDS)
def test_too_little_text(kind: str) -> None:
    how: dict[str, Any] = {"n_tokens": 100, "context_length": 64, "skip_first": 0, "source": "'a.txt'"}
    subject = tokens_only(kind)
    with pytest.raises(UserError, match=r"^'a.txt' is empty: it holds no text; name another with --dataset$"):
        list(packed(subject, [], **how))
    n = 3 if kind == "neither" else 4
    with pytest.raises(UserError, match=rf"^'a.txt' holds {n} tokens, fewer than one context of 64; bring more text"):
        list(packed(subject, ["the river is"], **how))
    for texts in ([], ["", ""], *([["<sep>"]] if kind != "neither" else [])):
        with pytest.raises(UserError, match=r"^'a.txt' holds no document longer than 0 tokens; name another"):
            list(alone(subject, texts, **how))
    with pytest.raises(UserError, match=r"^'a.txt' holds no document longer than 9 tokens; name another"):
        list(alone(subject, ["the river is"], **{**how, "skip_first": 9}))


# --- each alone -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("context_length", "skip_first"), [(8, 0), (8, 3), (13, 1), (64, 0), (64, 5)])
def test_documents_alone_are_a_plain_loop(kind: str, context_length: int, skip_first: int) -> None:
    subject = tokens_only(kind)
    for seed, n_texts, n_tokens in ((0, 30, 200), (1, 300, 3000), (2, 50, 10**6), (3, 20, 1), (4, 900, 20_000)):
        texts = random_texts(n_texts, seed)
        pieces = list(
            alone(
                subject, iter(texts), n_tokens=n_tokens, context_length=context_length, skip_first=skip_first,
                first_document=seed,
            )
        )  # fmt: skip
        blocks = check_pieces(pieces)
        same(blocks, plain_rows(subject, texts, n_tokens, context_length, skip_first, seed))
        assert all(len(piece.tokens) <= SORTED_TOGETHER for piece in pieces)
        assert all(len(set(row[row != NO_DOCUMENT])) == 1 for row in blocks.documents), "no row holds two documents"
        # It stops at the row with which enough tokens count: special ones and skipped ones do not.
        everything = joined(alone(subject, texts, n_tokens=10**9, context_length=context_length, skip_first=skip_first))
        assert min(n_tokens, everything.n_counted) <= blocks.n_counted < n_tokens + context_length


@pytest.mark.parametrize("kind", KINDS)
def test_every_token_of_every_document_is_there_once(kind: str) -> None:
    subject, texts = tokens_only(kind), random_texts(600, 8, longest=90)
    blocks = joined(alone(subject, texts, n_tokens=10**6, context_length=16, skip_first=0))
    for number, text in enumerate(texts):
        rows = np.flatnonzero((blocks.documents == number).any(axis=1))
        found = [blocks.tokens[row][blocks.documents[row] == number].tolist() for row in rows]
        expected = [i for i in ids_of(subject, text) if i not in subject.special_ids]
        # Pieces of a document may have changed places, by length; each is a stretch of it.
        assert sorted(i for some in found for i in some) == sorted(expected)
    starts = blocks.tokens[:, 0] == SEPARATOR
    assert starts.all() if kind == "bos" else not starts.all()


# --- blocks ---------------------------------------------------------------------------------------------------------


def random_blocks(seed: int, n: int = 700, width: int = 20) -> TokenBlocks:
    rng = np.random.default_rng(seed)
    documents_ = rng.integers(0, 9, (n, width)).astype(np.int32)
    documents_[np.arange(width) >= rng.integers(0, width + 1, n)[:, None]] = NO_DOCUMENT
    documents_[rng.random((n, width)) < 0.2] = NO_DOCUMENT
    return TokenBlocks(np.ones_like(documents_), documents_)


@pytest.mark.parametrize("seed", range(5))
def test_lengths_and_counts(seed: int) -> None:
    blocks = random_blocks(seed)
    lengths = [max((i + 1 for i, d in enumerate(row) if d != NO_DOCUMENT), default=0) for row in blocks.documents]
    np.testing.assert_array_equal(blocks.lengths, lengths)
    assert blocks.n_counted == sum(d != NO_DOCUMENT for row in blocks.documents for d in row)
    assert trimmed(blocks).tokens.shape == (700, max(lengths))
    nothing = blocks[slice(0, 0)]
    assert nothing.n_counted == 0 and len(nothing.lengths) == 0
    assert blocks[slice(3, 9)][slice(2, 4)].first == 5


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("batch_tokens", [1, 19, 20, 100, 333, 10**6])
def test_batches_cover_every_context_once_and_keep_to_their_size(seed: int, batch_tokens: int) -> None:
    blocks = random_blocks(seed)
    lengths = np.maximum(blocks.lengths, 1)
    spans = list(batches(blocks, batch_tokens))
    assert [i for span in spans for i in range(span.start, span.stop)] == list(range(700))

    def size(first: int, end: int) -> int:
        return int((end - first) * lengths[first:end].max())

    for span in spans:
        assert size(span.start, span.stop) <= batch_tokens or span.stop == span.start + 1
        assert span.stop == 700 or size(span.start, span.stop + 1) > batch_tokens, "and are no smaller than they may be"


# --- into a folder --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def subject(world: Any) -> SubjectModel:
    return load_subject(str(world.model))


def settings(world: Any, **changes: Any) -> DataSettings:
    how = {"dataset": str(world.corpus), "tokens": 9000, "context_length": 32, "skip_first": 1, "batch_tokens": 256}
    return DataSettings(**{**how, **changes})


MODES = ["packed", "documents"]


@pytest.mark.parametrize("mode", MODES)
def test_a_folder_keeps_what_there_is_in_memory(
    world: Any, subject: SubjectModel, tmp_path: Path, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, told = settings(world, mode=mode, tokens=20_000), list[int]()
    expected = blocks_of(subject, data, seed=0, skip_documents=7)
    keep = partial(tokenise, subject, data, tmp_path / "a", seed=0, skip_documents=7)
    blocks = keep(on_tokens=told.append)
    equal(blocks, expected)
    assert isinstance(blocks.tokens, np.memmap) and blocks.first == 0 and len(told) > 1
    assert told == sorted(told) and told[-1] == len(blocks.tokens) * 32
    assert blocks.documents[blocks.documents >= 0].min() == 7
    if mode == "documents":
        assert blocks.tokens.shape[1] == max(blocks.lengths)
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "a").iterdir()}
    assert {path.name for path in times} == {"tokens.npy", "documents.npy", "tokens.json"}
    monkeypatch.setattr(tokenise_module, "pieces_of", None)  # the text is not read again
    equal(keep(), expected)
    equal(kept(tmp_path / "a"), expected)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "a").iterdir()} == times


@pytest.mark.parametrize("mode", MODES)
def test_what_is_half_made_is_made_again(
    world: Any, subject: SubjectModel, tmp_path: Path, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = settings(world, mode=mode)
    keep = partial(tokenise, subject, data, seed=0, skip_documents=0)
    expected = keep(tmp_path / "whole")
    real, calls = tokenise_module.pieces_of, 0

    def interrupted(*args: Any, **how: Any) -> Iterator[TokenBlocks]:
        pieces = real(*args, **how)
        yield next(pieces)
        raise KeyboardInterrupt

    monkeypatch.setattr(tokenise_module, "pieces_of", interrupted)
    with pytest.raises(KeyboardInterrupt):
        keep(tmp_path / "a")
    assert list((tmp_path / "a").iterdir()) == []
    monkeypatch.setattr(tokenise_module, "pieces_of", real)
    for name in ("tokens.json", "documents.npy", "tokens.npy"):
        equal(keep(tmp_path / "a"), expected)
        (tmp_path / "a" / name).unlink()
        (tmp_path / "a" / ".tokenising").mkdir()
        (tmp_path / "a" / ".tokenising" / "tokens.npy").write_bytes(b"of a killed process")
        (tmp_path / "a" / ".documents.npy.99.tmp").write_bytes(b"of a killed process")
        calls += 1
    equal(keep(tmp_path / "a"), expected)
    assert calls == 3 and {path.name for path in (tmp_path / "a").iterdir()} == {
        "tokens.npy", "documents.npy", "tokens.json",
    }  # fmt: skip


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("count", [2, 3, 7])
def test_shards_are_the_whole_cut_between_batches(
    world: Any, subject: SubjectModel, tmp_path: Path, mode: str, count: int
) -> None:
    data = settings(world, mode=mode)
    whole = tokenise(subject, data, tmp_path / "whole", seed=0, skip_documents=0)
    spans = list(batches(whole, data.batch_tokens))
    ends = {span.stop for span in spans}
    shards = [
        tokenise(subject, data, tmp_path / str(i), seed=0, skip_documents=0, shard=Shard(i, count))
        for i in range(count)
    ]
    equal(check_pieces(shards), whole)
    assert all(shard.first + len(shard.tokens) in ends for shard in shards)
    mine = [
        [(s.start + shard.first, s.stop + shard.first) for s in batches(shard, data.batch_tokens)] for shard in shards
    ]
    assert [pair for some in mine for pair in some] == [(span.start, span.stop) for span in spans]
    assert max(map(len, mine)) - min(map(len, mine)) <= 1
    equal(tokenise(subject, data, tmp_path / "1", seed=0, skip_documents=0, shard=Shard(1, count)), shards[1])


def test_more_shards_than_there_is_text_for(world: Any, subject: SubjectModel, tmp_path: Path) -> None:
    data = settings(world, tokens=1000)  # 32 contexts, 8 a batch
    for index, count in ((0, 5), (3, 6), (10, 1000)):
        shard = Shard(index, count)
        with pytest.raises(
            UserError, match=rf"^--shard {shard} has nothing to do: .* gives 4 batches of 256 tokens; use"
        ):
            tokenise(subject, data, tmp_path, seed=0, skip_documents=0, shard=shard)
        assert list(tmp_path.iterdir()) == []
    assert len(tokenise(subject, data, tmp_path, seed=0, skip_documents=0, shard=Shard(3, 4)).tokens) == 8


@pytest.mark.parametrize("mode", MODES)
def test_memory_does_not_grow_with_the_text(
    subject: SubjectModel, tmp_path: Path, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Of pieces as small as the text is, or nothing of the text's size would show beside them.
    for module, name, size in (
        (tokens_module, "PIECE", 16),
        (tokens_module, "SORTED_TOGETHER", 16),
        (files, "SLAB", 2**14),
    ):
        monkeypatch.setattr(module, name, size)
    peaks = []
    for n in (1500, 1500, 6000):  # once to warm up
        path = tmp_path / f"{n}.txt"
        path.write_text("\n\n".join(text or "the" for text in random_texts(n, 9)))
        data = DataSettings(dataset=str(path), tokens=10**9, context_length=32, skip_first=1, mode=mode)
        tracemalloc.start()
        blocks = tokenise(subject, data, tmp_path / f"{n}-{len(peaks)}", seed=0, skip_documents=0)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert len(blocks.tokens) > (n / 4 if mode == "packed" else n / 2)
    assert peaks[2] < 1.2 * peaks[1], peaks


# --- texts ----------------------------------------------------------------------------------------------------------


def read(path: Path, **where: Any) -> list[str]:
    return list(documents(str(path), seed=0, where=Where(**where)))


def paragraphs(text: str) -> list[str]:
    """What a paragraph is: what one or more blank lines stand between."""
    return [some for some in re.split(r"\n\s*\n", text) if some and not some.isspace()]


def test_paragraphs_of_a_text_file(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    for text in (
        "a\n\nb", "a\n\nb\n", "a\nb\n\n\n\nc d\n \n\te\n\n", "\n\n\na\n\n  b\n  c\n\n", "a", "a\n", "", "\n\n \n",
        "a \n\n b", "a\n\t \n\nb", "a\n\x0b\nb", "a\u2028b\n\u00a0\nc", "line\n" * 50 + "\n" + "other\n" * 50,
    ):  # fmt: skip
        path.write_text(text)
        assert read(path) == paragraphs(text), repr(text)
    rng = np.random.default_rng(0)
    for _ in range(500):
        # It begins and ends with a line of text: what stands before and after is not worth the same white space.
        text = (
            "first" + "".join(rng.choice(["a", "b ", " ", "\n", "\n", "\n", "\t"], int(rng.integers(0, 40)))) + "last"
        )
        path.write_text(text)
        assert read(path) == paragraphs(text), repr(text)
    path.write_bytes(b"a\r\n\r\nb\r\nc\r\n \r\nd \xff\xfe")
    assert read(path) == ["a", "b\nc", "d \ufffd\ufffd"]


def test_a_text_file_is_read_as_it_is_needed(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("some words in a row\n\n" * 200_000)
    tracemalloc.start()
    found = documents(str(path), seed=0)
    assert [next(found) for _ in range(3)] == ["some words in a row"] * 3
    assert tracemalloc.get_traced_memory()[1] < 400_000
    tracemalloc.stop()


def rows_of(texts: Iterable[str], column: str = "text") -> str:
    return "".join(json.dumps({"n": i, column: text}) + "\n" for i, text in enumerate(texts))


def test_folders_of_files(tmp_path: Path) -> None:
    from datasets import Dataset

    (tmp_path / "b.jsonl").write_text(rows_of(["b1", "", " ", "b2"]))
    (tmp_path / "a.txt").write_text("a1\n\na2")
    Dataset.from_dict({"text": ["c1", "c2"]}).to_parquet(str(tmp_path / "c.parquet"))
    (tmp_path / "README.md").write_text("no text of ours")
    (tmp_path / "d.jsonl").write_text("")
    assert read(tmp_path) == ["a1", "a2", "b1", "b2", "c1", "c2"]
    (tmp_path / "e.jsonl").write_text(rows_of(["e1"], column="sentence"))
    with pytest.raises(
        UserError, match=r"no text column in '.*e\.jsonl': it has n, sentence; name one with --text-column"
    ):
        read(tmp_path)


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_saved_data_sets(tmp_path: Path) -> None:
    from datasets import Dataset, DatasetDict

    splits = {name: Dataset.from_dict({"text": [f"{name}{i}" for i in range(3)]}) for name in ("train", "test")}
    splits["train"].save_to_disk(str(tmp_path / "one"))
    assert read(tmp_path / "one") == ["train0", "train1", "train2"]
    DatasetDict(splits).save_to_disk(str(tmp_path / "both"))
    assert read(tmp_path / "both") == ["train0", "train1", "train2"]
    assert read(tmp_path / "both", split="test") == ["test0", "test1", "test2"]
    with pytest.raises(UserError, match=r"both' has no split 'dev', but train, test; name one with data\.split"):
        read(tmp_path / "both", split="dev")
    DatasetDict({"test": splits["test"]}).save_to_disk(str(tmp_path / "testing"))
    with pytest.raises(UserError, match=r"has no split 'train', but test; name one"):
        read(tmp_path / "testing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"empty' holds no \.txt, \.jsonl, \.json, \.parquet and is no data set saved"):
        read(tmp_path / "empty")


def test_the_column_that_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": "one", "body": "two"}) + "\n")
    assert read(tmp_path / "a.jsonl") == ["one"] and read(tmp_path / "a.jsonl", column="body") == ["two"]
    with pytest.raises(UserError, match=r"no text column in .*: it has text, body; name one"):
        read(tmp_path / "a.jsonl", column="title")
    for name, part in (("nowhere.txt", "there is no such file"), ("/no/where", "there is no such file")):
        with pytest.raises(UserError, match=part):
            read(Path(name))
    (tmp_path / "a.csv").write_text("text\none")
    with pytest.raises(UserError, match=r"known endings are \.txt, \.jsonl, \.json, \.parquet"):
        read(tmp_path / "a.csv")
