"""Surprisal in SmolLM2 and embedding in MiniLM on concepts that anybody sees: do they find the windows that fit?

Every concept has 25 windows, put together from five beginnings and five ends. They were written before any of them was
scored, and none was changed or left out after. Non-activating windows are those of the other concepts and prose.
"""

from __future__ import annotations

import random
from itertools import product
from types import ModuleType

import pytest

from autointerp.clients.encoder import EncoderClient
from autointerp.clients.hf import HFClient
from autointerp.engine.ask import answer_all
from autointerp.pipeline.demo_model import demo_embedder, demo_subject
from autointerp.subject.load import load_subject
from autointerp.types import Client
from scoring import embedding, surprisal
from scoring.types import ACTIVATING, RANDOM, Outcome, Subject, Window

PROSE = "prose"
PARTS = {
    "days of the week": (
        (
            "The library is closed on Monday,", "We meet every other Tuesday at noon,",
            "Her train leaves late on Thursday night,", "Rain is expected from Friday onwards,",
            "The market opens on Saturday morning,",
        ),
        (
            " and the office will call you back on Wednesday.", " so the match was moved to Sunday afternoon.",
            " but nobody works there on Fridays any more.", " which leaves only Tuesday and Thursday for repairs.",
            " and by Monday everything has to be ready.",
        ),
    ),
    "colours": (
        (
            "She painted the kitchen door bright green,", "The old car was dark blue with a white roof,",
            "He wore a red scarf and a grey coat,", "The leaves had turned yellow and brown,",
            "Mix the purple ink with a little black,",
        ),
        (
            " and the walls were left a pale pink.", " which went well with the orange cushions.",
            " though in that light it looked almost violet.", " so that the silver frame stood out.",
            " and the curtains are to be turquoise.",
        ),
    ),
    "Python code": (
        (
            "def area(width, height):\n    return width * height\n\n",
            "import os\nfor name in os.listdir(path):\n    print(name)\n\n",
            "class Stack:\n    def __init__(self):\n        self.items = []\n\n",
            "with open(path) as file:\n    lines = file.readlines()\n\n",
            "try:\n    value = int(text)\nexcept ValueError:\n    value = None\n\n",
        ),
        (
            'if __name__ == "__main__":\n    main()\n', "result = [x for x in values if x is not None]\n",
            "while queue:\n    node = queue.pop(0)\n", "assert isinstance(result, dict), type(result)\n",
            "total = sum(len(row) for row in rows)\n",
        ),
    ),
    "numbers": (
        (
            "The bridge is 412 metres long", "In 1987 the town had 36,500 inhabitants",
            "Of the 250 tickets 73 were sold early", "It took them 14 hours and 25 minutes",
            "The parcel weighs 3.75 kilograms",
        ),
        (
            " and cost 18 million to build.", ", about 9 per cent more than the 8 before.",
            ", while 1,200 others had to wait.", ", with an error of 0.02 at most.", " at a price of 64.90 for each.",
        ),
    ),
    PROSE: (
        (
            "My grandmother kept a small garden behind the house", "The committee could not agree on a new chairman",
            "A narrow path leads through the forest", "The orchestra rehearsed in an empty hall",
            "He had forgotten the keys in his other jacket",
        ),
        (
            ", where nobody had been for a long time.", " and waited patiently until the others came.",
            ", which was much harder than anyone had thought.", " because the weather had kept everyone at home.",
            ", and that was the end of the matter.",
        ),
    ),
}  # fmt: skip
TEXTS = {kind: ["".join(parts) for parts in product(*halves)] for kind, halves in PARTS.items()}
CONCEPTS = [kind for kind in TEXTS if kind != PROSE]
EACH = 25
GOOD = 0.8


def windows_of(concept: str) -> list[Window]:
    """Its 25 windows, and 25 others: four of each other concept and the rest prose, drawn by chance."""
    rng = random.Random(concept)
    others = [text for kind in CONCEPTS if kind != concept for text in rng.sample(TEXTS[kind], 4)]
    others += rng.sample(TEXTS[PROSE], EACH - len(others))
    labelled = [(text, ACTIVATING) for text in TEXTS[concept]] + [(text, RANDOM) for text in others]
    return [
        Window(f"w{i}", i, 0, kind, (text,), (0,), (float(kind == ACTIVATING),))
        for i, (text, kind) in enumerate(labelled)
    ]


def graded(scorer: ModuleType, client: Client, windows: dict[str, list[Window]]) -> dict[str, Outcome]:
    """Each concept's windows, in one pass: what several have in common is asked once."""
    asking = {name: scorer.score([Subject(0, name)], some, scorer.Config()) for name, some in windows.items()}
    requests = {name: next(each) for name, each in asking.items()}
    every = list(dict.fromkeys(request for some in requests.values() for request in some))
    replies = dict(zip(every, answer_all(client, every), strict=True))
    outcomes: dict[str, Outcome] = {}
    for name, each in asking.items():
        with pytest.raises(StopIteration) as stop:
            each.send([replies[request] for request in requests[name]])
        (outcomes[name],) = stop.value.value
        assert all(judged.status == "ok" for judged in outcomes[name].judgements)
    return outcomes


@pytest.fixture(scope="module")
def reader() -> HFClient:
    return HFClient(load_subject(str(demo_subject())))


@pytest.fixture(scope="module")
def encoder() -> EncoderClient:
    return EncoderClient(str(demo_embedder()))


def values(outcome: Outcome) -> dict[str, float | None]:
    return {judged.window_id: judged.probability for judged in outcome.judgements}


def assert_company_changes_nothing(scorer: ModuleType, client: Client, concept: str, known: Outcome) -> None:
    """Eight windows in another order, and one of them alone."""
    windows = random.Random(1).sample(windows_of(concept), 8)
    for some in (windows, windows[:1]):
        found = values(graded(scorer, client, {concept: some})[concept])
        assert found == pytest.approx({name: values(known)[name] for name in found}, abs=1e-4, rel=0)


def assert_most_are_found(outcomes: dict[str, Outcome]) -> None:
    aurocs = {}
    for concept, outcome in outcomes.items():
        (metric,) = [m for m in outcome.metrics if m.metric == "auroc"]
        assert (metric.n, metric.n_failed, metric.status) == (2 * EACH, 0, "ok")
        aurocs[concept] = metric.value or 0.0
    assert sum(value >= GOOD for value in aurocs.values()) >= 3, aurocs


def test_windows_are_short_and_all_different() -> None:
    every = [text for texts in TEXTS.values() for text in texts]
    assert len(set(every)) == len(every) == EACH * len(TEXTS)
    for concept in CONCEPTS:
        assert len({w.text for w in windows_of(concept)}) == 2 * EACH


@pytest.mark.slow
def test_surprisal_finds_concepts_in_a_small_model(reader: HFClient) -> None:
    lengths = [len(reader.subject.tokenizer(text)["input_ids"]) for texts in TEXTS.values() for text in texts]
    assert min(lengths) >= 12 and max(lengths) <= 45
    outcomes = graded(surprisal, reader, {concept: windows_of(concept) for concept in CONCEPTS})
    assert_most_are_found(outcomes)
    assert_company_changes_nothing(surprisal, reader, CONCEPTS[1], outcomes[CONCEPTS[1]])


@pytest.mark.slow
def test_embedding_finds_concepts_in_a_small_encoder(encoder: EncoderClient) -> None:
    outcomes = graded(embedding, encoder, {concept: windows_of(concept) for concept in CONCEPTS})
    assert_most_are_found(outcomes)
    # Another client, since one remembers what it has embedded.
    assert_company_changes_nothing(embedding, EncoderClient(str(demo_embedder())), CONCEPTS[1], outcomes[CONCEPTS[1]])
