"""Both explainers on windows whose right label is known."""

from __future__ import annotations

import asyncio
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from autointerp.clients.fake import FakeClient
from autointerp.engine.drive import Router, drive
from autointerp.explain import default, tokens
from autointerp.explain._proposal import Proposal
from autointerp.types import LatentRecord
from prompts.requests import Chat, ChatReply, Embed, Failure
from scoring.types import Window

FILLER = [
    "the",
    "of",
    "and",
    "to",
    "in",
    "is",
    "was",
    "for",
    "on",
    "with",
    "as",
    "by",
    "at",
    "from",
    "it",
    "that",
    "this",
]
TOPIC = ["orchard", "harvest", "cider"]


def window(index: int, words: list[str], active: str | None) -> Window:
    pieces = tuple(f" {word}" for word in words)
    activations = tuple(3.0 if word == active else 0.0 for word in words)
    kind = "activating" if active else "random"
    return Window(f"w{index}", index, 0, kind, pieces, tuple(range(len(words))), activations)


def record(n: int = 30, *, concept: str = "apple", topic: bool = False) -> LatentRecord:
    rng = random.Random(0)
    windows = []
    for i in range(2 * n):
        words = rng.choices(FILLER, k=14)
        if i < n:
            words[rng.randrange(3, 11)] = concept
        if topic and i < n:
            words[0] = rng.choice(TOPIC)
        windows.append(window(i, words, concept if i < n else None))
    return LatentRecord(0, n, 1000, 3.0, 3.0, tuple(windows), ())


def run(subject: LatentRecord, config: tokens.Config | None = None) -> Proposal:
    finished = asyncio.run(drive(tokens.explain(subject, config or tokens.Config()), Router([FakeClient()])))
    result: Proposal = finished.result
    return result


def test_the_planted_word_opens_the_label() -> None:
    proposal = run(record())
    assert proposal.status == "ok"
    assert proposal.text is not None
    assert '"apple"' in proposal.text
    assert proposal.text.index("apple") < 16


def test_words_that_are_everywhere_are_no_evidence() -> None:
    subject = record(concept="the")
    activating = [w for w in subject.explain if w.activating]
    others = [w for w in subject.explain if not w.activating]
    # Here "the" is what the latent fires on, so it is at the peak; of the rest, nothing sets the windows apart.
    evidence = tokens.gather(activating, others, tokens.Config())
    assert evidence.dominant == ["the"]
    topical = record(topic=True)
    found = tokens.gather([w for w in topical.explain if w.activating], others, tokens.Config())
    assert set(TOPIC) <= set(found.context)
    assert len(set(FILLER) & set(found.context)) < len(FILLER)


def test_evidence_is_the_same_in_every_process() -> None:
    """Strings hash differently from process to process; a resumed run has to find the same evidence."""
    code = (
        "import sys; sys.path[:0] = sys.argv[1:]\n"
        "from test_explainers import record\nfrom autointerp.explain import tokens\n"
        "windows = record(200).explain\n"
        "print(tokens.gather(windows[:200], windows[200:], tokens.Config(support=0.01, phrases=40)))"
    )
    here = Path(__file__).parent
    seen = {
        subprocess.run(
            [sys.executable, "-c", code, str(here), str(here.parent)],
            env={**os.environ, "PYTHONHASHSEED": str(seed)}, capture_output=True, text=True, check=True,
        ).stdout
        for seed in range(4)
    }  # fmt: skip
    assert len(seen) == 1
    assert "phrases=[" in seen.pop()


def test_a_label_grows_only_by_what_separates() -> None:
    config = tokens.Config(least_gain=1.1)
    proposal = run(record(topic=True), config)
    assert proposal.text is not None
    assert proposal.text.count('"') == 2


def test_the_word_under_the_peak_is_found_across_pieces() -> None:
    split = Window(
        "w", 0, 0, "activating", (" tor", "ch", ".", "nn", " is"), (1, 2, 3, 4, 5), (0.0, 2.0, 0.0, 0.0, 0.0)
    )
    words, at = tokens.words_and_peak(split)
    assert at is not None
    assert words[at] == "torch.nn"


def test_what_cannot_be_explained_says_why() -> None:
    alone = record()
    nothing = LatentRecord(0, 1, 10, 1.0, 1.0, tuple(w for w in alone.explain if w.activating), ())
    assert run(nothing) == Proposal(None, "too_few_windows")
    asking = tokens.explain(alone, tokens.Config())
    requests = next(asking)
    assert all(isinstance(request, Embed) for request in requests)
    with pytest.raises(StopIteration) as stop:
        asking.send([Failure("timeout", "too slow")] * len(requests))
    assert stop.value.value == Proposal(None, "embedding_failed")


def test_the_prompt_shows_marks_and_strengths() -> None:
    (request,) = next(default.explain(record(3), default.Config()))
    assert isinstance(request, Chat)
    text = request.messages[-1].content
    assert text.count("<< apple>>") == 3
    assert text.count('Strengths: "apple" 10') == 3
    runs = Window("w", 0, 0, "activating", (" a", " b", " c", " d"), (1, 2, 3, 4), (0.0, 1.0, 2.0, 0.0))
    assert default.marked(runs) == " a<< b c>> d"
    assert default.strengths(runs, 4.0) == '"b" 3, "c" 5'


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        (ChatReply('{"explanation": "  fruit \\n words "}'), Proposal("fruit words")),
        (ChatReply("fruit words"), Proposal(None, "unparsable")),
        (ChatReply('{"explanation": ""}'), Proposal(None, "unparsable")),
        (ChatReply('{"explanation": 3}'), Proposal(None, "unparsable")),
        (ChatReply("[" * 100_000), Proposal(None, "unparsable")),
        (Failure("refused", "no"), Proposal(None, "refused")),
    ],
)
def test_replies_become_explanations_or_reasons(reply: ChatReply | Failure, expected: Proposal) -> None:
    asking = default.explain(record(3), default.Config())
    next(asking)
    with pytest.raises(StopIteration) as stop:
        asking.send([reply])
    assert stop.value.value == expected
