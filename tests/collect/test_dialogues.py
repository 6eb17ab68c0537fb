"""Dialogues: each alone in the model's own template. What one says is in no other's context."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import planted
import pytest
import torch
from tokenizers.processors import TemplateProcessing

from autointerp.collect.dialogues import messages, template
from autointerp.collect.sites import counted_rows
from autointerp.collect.tokenise import blocks_of
from autointerp.collect.tokens import NO_DOCUMENT, TokenBlocks, pack
from autointerp.config import DataSettings
from autointerp.errors import UserError
from autointerp.subject.load import SubjectModel, load_subject

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m.role not in ['user', 'assistant'] %}{{ raise_exception('no role ' + m.role) }}{% endif %}"
    "{{ 'you' if m.role == 'user' else 'she' }} {{ m.content }}<sep>{% endfor %}"
)
SITES = ["layers.0.self_attn.o_proj:in", "layers.1"]
BOS = planted.vocabulary()["<sep>"]


def turns(*contents: str) -> list[dict[str, str]]:
    roles = ("user", "assistant")
    return [{"role": roles[i % 2], "content": text} for i, text in enumerate(contents)]


A = turns("the river is in winter", "music for a doctor")
B = turns("python", "seven and silver", "with apple")
C = turns("he had the music of a river", "not this", "was it on the silver river", "they have it")
LONG = turns(" ".join(["river music winter"] * 40))


@pytest.fixture(scope="module")
def subject(world: Any, tmp_path_factory: pytest.TempPathFactory) -> SubjectModel:
    """The planted model with a template, and a tokenizer that puts a BOS before every text by itself."""
    folder = tmp_path_factory.mktemp("instruct") / "model"
    shutil.copytree(world.model, folder)
    tokenizer = planted.tokenizer()
    tokenizer.bos_token = "<sep>"
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<sep> $A", special_tokens=[("<sep>", BOS)])
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    return load_subject(str(folder))


def templated(subject: SubjectModel, rows: list[Any], **changes: Any) -> TokenBlocks:
    return template(subject, rows, **{"n_tokens": 10**6, "context_length": 64, "skip_first": 0, **changes})


def by_dialogue(subject: SubjectModel, blocks: TokenBlocks) -> dict[int, dict[str, torch.Tensor]]:
    """Rows of each dialogue at each site."""
    found = counted_rows(subject, blocks, slice(0, len(blocks.tokens)), SITES)
    owners = blocks.documents[blocks.documents != NO_DOCUMENT]
    return {int(i): {site: found[site][torch.from_numpy(owners == i)] for site in SITES} for i in np.unique(owners)}


def test_a_dialogue_among_others_reads_as_if_it_were_alone(subject: SubjectModel) -> None:
    together = by_dialogue(subject, templated(subject, [C, A, B]))
    assert sorted(together) == [0, 1, 2]
    for number, dialogue in enumerate([C, A, B]):
        ids = subject.tokenizer.apply_chat_template(dialogue, tokenize=True, return_dict=False)
        alone = subject.activations_at(torch.tensor([ids]), SITES)
        for site in SITES:
            torch.testing.assert_close(together[number][site], alone[site][0], atol=1e-5, rtol=0)


def test_what_one_dialogue_says_reaches_no_other(subject: SubjectModel) -> None:
    other = turns("apple apple apple python seven", "winter")
    before, after = (by_dialogue(subject, templated(subject, [first, B])) for first in (A, other))
    site = SITES[0]
    assert torch.equal(before[1][site], after[1][site])
    assert before[0][site].shape != after[0][site].shape
    # Packed, the first one is in the second one's context.
    texts = [
        " ".join(turn["content"] for turn in dialogue)
        for dialogue in (A, turns("winter is apple on it to be at an"), B)
    ]
    packed = [
        by_dialogue(subject, pack(subject, pair, n_tokens=15, context_length=15, skip_first=0))[1][site]
        for pair in ([texts[0], texts[2]], [texts[1], texts[2]])
    ]
    assert packed[0].shape == packed[1].shape
    assert float((packed[0] - packed[1]).abs().max()) > 1e-2


def test_the_templates_own_tokens_count_and_it_alone_brings_the_bos(subject: SubjectModel) -> None:
    assert subject.bos_id == BOS, "this tokenizer would add one of its own"
    blocks = templated(subject, [A, B, C])
    lengths = [
        1 + sum(2 + len(turn["content"].split()) for turn in dialogue) for dialogue in (A, B, C)
    ]  # BOS; who speaks, what is said, separator
    assert blocks.n_counted == sum(lengths) and blocks.tokens.shape == (3, max(lengths))
    for row, owner in zip(blocks.tokens, blocks.documents, strict=True):
        assert row[0] == BOS and row[1] != BOS
        assert (owner != NO_DOCUMENT).sum() == lengths[int(owner[0])]
    assert templated(subject, [A, B, C], skip_first=2).n_counted == sum(lengths) - 6


def test_long_dialogues_are_cut_short_ones_dropped_and_enough_is_enough(subject: SubjectModel) -> None:
    blocks = templated(subject, [LONG, B], context_length=32)
    assert blocks.tokens.shape == (2, 32)
    assert (blocks.documents[blocks.documents == 0]).size == 32
    # The number of a dialogue is its place in the data set, whatever was dropped before it.
    sparse = templated(subject, [turns(""), A, turns(""), B], skip_first=5, first_document=10)
    assert set(np.unique(sparse.documents)) == {NO_DOCUMENT, 11, 13}

    def endless() -> Iterator[Any]:
        while True:
            yield A

    many = templated(subject, endless(), n_tokens=1000)  # type: ignore[arg-type]
    assert 1000 <= many.n_counted < 1000 + 15


def test_rows_of_like_length_lie_together(subject: SubjectModel) -> None:
    rows = [turns(" ".join(["river"] * (1 + 7 * i % 30))) for i in range(300)]
    lengths = (templated(subject, rows).documents != NO_DOCUMENT).sum(axis=1)
    assert all(a <= b for a, b in pairwise(lengths[:256])) and all(a <= b for a, b in pairwise(lengths[256:]))
    assert lengths[255] > lengths[256], "only neighbours: what is held out is a stretch of the data set"


def test_turns_come_in_two_notations() -> None:
    shared = [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "yes"}, {"from": "system", "value": "be"}]
    assert messages(shared, "x") == [
        {"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}, {"role": "system", "content": "be"},
    ]  # fmt: skip
    assert messages(A, "x") == A
    for bad in ("hello", [], ["hello"], [{"role": "user"}], [{"role": "user", "content": None}], None):
        with pytest.raises(UserError, match="a dialogue in 'x'"):
            messages(bad, "x")


def test_dialogues_of_a_file(subject: SubjectModel, tmp_path: Path) -> None:
    path = tmp_path / "chats.jsonl"
    shared = [
        {"from": "human", "value": "python"},
        {"from": "gpt", "value": "seven and silver"},
        {"from": "human", "value": "with apple"},
    ]
    for column, rows in (("messages", [A, B]), ("conversations", [A, shared]), ("chat", [A, B])):
        path.write_text("".join(json.dumps({"text": "no", column: row}) + "\n" for row in rows))
        data = DataSettings(
            dataset=str(path), mode="dialogues", context_length=64, skip_first=0,
            text_column="chat" if column == "chat" else None,
        )  # fmt: skip
        blocks, wanted = blocks_of(subject, data, seed=0, skip_documents=0), templated(subject, [A, B])
        assert np.array_equal(blocks.tokens, wanted.tokens) and np.array_equal(blocks.documents, wanted.documents)
    left = blocks_of(subject, data, seed=0, skip_documents=1)
    assert set(np.unique(left.documents)) == {1}


def test_what_cannot_be_templated_is_refused(world: Any, subject: SubjectModel, tmp_path: Path) -> None:
    plain = load_subject(str(world.model))
    with pytest.raises(UserError, match=r"has no chat template; .*data\.mode=packed"):
        templated(plain, [A])
    with pytest.raises(UserError, match="template of model refuses dialogue 1 of the data set: no role system"):
        templated(subject, [A, [{"role": "system", "content": "be"}]])
    with pytest.raises(UserError, match="holds no dialogue longer than 0 tokens"):
        templated(subject, [])
    (tmp_path / "a.txt").write_text("the river")
    for dataset, line in (
        ("docstrings", "'docstrings' holds no dialogues, only text"),
        (str(tmp_path / "a.txt"), "holds no dialogues, only text"),
        (str(world.corpus), "no dialogue column in .*: it has text; name one with --text-column"),
    ):
        with pytest.raises(UserError, match=line):
            blocks_of(subject, DataSettings(dataset=dataset, mode="dialogues"), seed=0, skip_documents=0)
