"""Two hundred planted latents, each with a word of its own, and readers of whom it is known what they can tell.

A reader is played by the fake client, whose oracle says whether an explanation fits a text. Of every scorer, who reads
rightly gets the largest value, who says the same of everything gets chance, and who says the opposite the least.
Explanations that were passed around get chance, and each decile of strength counts for a tenth.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from answering import by_hand

from autointerp.clients._fake_prompts import find_windows
from autointerp.clients.fake import LIKELY, UNLIKELY, FakeClient
from autointerp.sampling.sampler import derangement
from prompts.requests import ChatReply, EmbedReply, Reply, Steer, SteerReply
from scoring import detection, embedding, fuzzing, intervention, intruder, simulation, surprisal
from scoring.types import ACTIVATING, RANDOM, Metric, Outcome, Subject, Window

LATENTS = 200
DECILES = 10
LENGTH = 8
FILLERS = [f"{a}{b}" for a in ("ba", "ko", "mi", "tu", "re") for b in ("n", "la", "sto", "ring", "mer", "dle")]

Reader = Callable[[str, str], bool]
"""Whether an explanation fits a text."""


def planted(own: int, per_decile: int, words: int = LATENTS, foreign: int = 2) -> list[Window]:
    """As many activating windows of each decile, which hold the word of latent `own`, and as many others altogether.

    A window has `foreign` words of other latents too, of `words` that there are. Its strength is its decile's.
    """
    rng = random.Random(f"{own}/{per_decile}/{words}")
    others = [i for i in range(words) if i != own]
    made = []
    for i in range(2 * DECILES * per_decile):
        decile = i % DECILES if i < DECILES * per_decile else None
        ids = [rng.randrange(len(FILLERS)) for _ in range(LENGTH)]
        at, *places = rng.sample(range(1, LENGTH), foreign + 1)
        for place, other in zip(places, rng.sample(others, foreign), strict=True):
            ids[place] = 100 + other
        activations = [0.0] * LENGTH
        if decile is not None:
            ids[at], activations[at] = 100 + own, decile + 1.0
        pieces = tuple(f" {FILLERS[i] if i < 100 else word(i - 100)}" for i in ids)
        kind = RANDOM if decile is None else ACTIVATING
        made.append(Window(f"w{i:03d}", i, 0, kind, pieces, tuple(ids), tuple(activations), decile))
    return made


def word(latent: int) -> str:
    return f"zap{latent:03d}"


def given(scorer: ModuleType, own: int) -> list[Window]:
    """Enough for every scorer; to simulate all of one strength, so that who only knows yes and no can know all."""
    windows = planted(own, 4 if scorer is intruder else 2)
    if scorer is simulation:
        windows = [replace(w, activations=tuple(9.0 * bool(a) for a in w.activations)) for w in windows]
    return windows


def finds(explanation: str, text: str) -> bool:
    """Whether the explanation's word is in a text; where there are marks, whether they are on it."""
    return explanation in (" ".join(re.findall("<<(.+?)>>", text)) if "<<" in text else text)


# How each scorer's requests are answered by one who reads like that


def judging(read: Reader, subjects: Sequence[Subject]) -> Callable[[Any], Reply]:
    return FakeClient(oracle=read).reply


def expecting(read: Reader, subjects: Sequence[Subject]) -> Callable[[Any], Reply]:
    return FakeClient(oracle=read, explanation_pattern=r"that contains (zap\d+):").reply


def embedding_(read: Reader, subjects: Sequence[Subject]) -> Callable[[Any], Reply]:
    """An axis for each explanation, on which a text lies where the reader sees that they fit."""
    axes = [subject.explanation for subject in subjects]

    def reply(request: Any) -> Reply:
        if request.text in axes:
            return EmbedReply((*(float(axis == request.text) for axis in axes), 0.0))
        return EmbedReply((*(float(read(axis, request.text)) for axis in axes), 0.1))

    return reply


def naming(read: Reader, subjects: Sequence[Subject]) -> Callable[[Any], Reply]:
    """The first window that the reader does not find to be of the latent, or the first of all."""

    def reply(request: Any) -> Reply:
        fits = [read(subjects[0].explanation, text) for text in find_windows(request.messages[-1].content)]
        return ChatReply(json.dumps({"intruder": 1 + (fits.index(False) if False in fits else 0)}))

    return reply


def steering(read: Reader, subjects: Sequence[Subject]) -> Callable[[Any], Reply]:
    """Steering makes the model say the latent's word."""
    told = FakeClient(
        oracle=lambda passage, text: read(text.removesuffix('"'), passage),
        explanation_pattern=r"<PASSAGE>\n([\s\S]*?)\n</PASSAGE>",
    )

    def reply(request: Any) -> Reply:
        if not isinstance(request, Steer):
            return told.reply(request)
        n = len(request.prompts)
        clean, steered = (tuple(f" {said} {i}" for i in range(n)) for said in ("tula", word(request.latent)))
        return SteerReply(("ban kola",) * n, clean, steered, strength=1.0, reached_kl=request.target_kl, converged=True)

    return reply


ANSWERING: dict[ModuleType, Callable[..., Callable[[Any], Reply]]] = {
    detection: judging, fuzzing: judging, surprisal: expecting, embedding: embedding_, intruder: naming,
    simulation: judging, intervention: steering,
}  # fmt: skip
LESS = {"windows": 10}
CONFIGS: dict[ModuleType, dict[str, Any]] = {
    detection: LESS, fuzzing: LESS, surprisal: LESS, embedding: LESS, simulation: LESS | {"draws": 10},
}  # fmt: skip
WORTH = LIKELY - UNLIKELY
"""Nats between the likeliest and the least likely that the fake reader finds an explanation of one word."""
SCALES: dict[ModuleType, tuple[float, float | None, float]] = {
    detection: (1.0, 0.5, 0.0), fuzzing: (1.0, 0.5, 0.0), surprisal: (1.0, 0.5, 0.0), embedding: (1.0, 0.5, 0.0),
    intruder: (1.0, 0.2, 0.0), simulation: (1.0, None, -1.0), intervention: (WORTH, 0.0, -WORTH),
}  # fmt: skip
"""The largest value, that of a reader who says the same of everything (a correlation has none), and the least."""
each_scorer = pytest.mark.parametrize("scorer", ANSWERING, ids=lambda scorer: scorer.NAME)


def graded(
    scorer: ModuleType, subjects: Sequence[Subject], windows: Sequence[Window], read: Reader, n: int | None = None
) -> list[Outcome]:
    """`n` activating windows and as many others, for scorers that take so many."""
    if scorer is intervention:
        windows = [w for w in windows if w.activating][:6]
    asking = scorer.score(subjects, windows, scorer.Config(**CONFIGS.get(scorer, {}) | ({"windows": n} if n else {})))
    outcomes: list[Outcome] = by_hand(asking, ANSWERING[scorer](read, subjects))[0]
    return outcomes


def headline(scorer: ModuleType, outcome: Outcome) -> Metric:
    """What the scorer is named for, against all other windows together."""
    return next(m for m in outcome.metrics if m.metric == scorer.METRIC and m.negatives in (None, "mixed", RANDOM))


def subject(latent: int, explained_as: int | None = None) -> Subject:
    return Subject(latent, word(latent if explained_as is None else explained_as), f"e{explained_as}")


@each_scorer
def test_an_oracle_gets_the_largest_value_of_every_latent(scorer: ModuleType) -> None:
    for latent in range(LATENTS):
        windows = given(scorer, latent)
        metric = headline(scorer, graded(scorer, [subject(latent)], windows, finds)[0])
        assert metric.value == pytest.approx(SCALES[scorer][0], abs=1e-9), (latent, metric)
        assert (metric.status, metric.n_failed) == ("ok", 0)


@each_scorer
def test_the_same_of_everything_gets_chance_and_the_opposite_the_least(scorer: ModuleType) -> None:
    _, chance, least = SCALES[scorer]
    expected: list[tuple[Reader, float | None]] = [
        (lambda *_: True, chance), (lambda *_: False, chance), (lambda *asked: not finds(*asked), least),
    ]  # fmt: skip
    for latent in range(0, LATENTS, 20):
        windows = given(scorer, latent)
        for read, value in expected:
            metric = headline(scorer, graded(scorer, [subject(latent)], windows, read)[0])
            assert metric.value == (None if value is None else pytest.approx(value, abs=1e-9))


SHARED = 50
"""Words among two hundred latents: four have each in common."""
ERRORS = 0.1


def errs(explanation: str, text: str) -> bool:
    """Reads like `finds`, but one time in ten the opposite."""
    digest = hashlib.sha256(f"{explanation}|{text}".encode()).digest()
    return finds(explanation, text) is not (digest[0] < ERRORS * 256)


@pytest.mark.parametrize("scorer", [detection, fuzzing, surprisal, embedding], ids=lambda scorer: scorer.NAME)
def test_explanations_that_were_passed_around_get_a_half(scorer: ModuleType) -> None:
    """A reader with errors, and windows full of other latents' words: the own explanation gets what is planted."""
    partner = derangement(list(range(LATENTS)), seed=0)
    values = []
    for latent in range(LATENTS):
        windows = planted(latent % SHARED, 2, SHARED, foreign=4)
        subjects = [subject(latent, latent % SHARED), subject(latent, partner[latent] % SHARED)]
        values.append([headline(scorer, outcome).value for outcome in graded(scorer, subjects, windows, errs)])
    own, shuffled = np.mean(np.array(values, dtype=float), axis=0)
    # A reader of yes and no who errs as often on either side has an AUROC that is its balanced accuracy.
    assert own == pytest.approx(1 - ERRORS, abs=0.03)
    assert shuffled == pytest.approx(0.5, abs=0.03)
    assert np.std(np.array(values, dtype=float), axis=0).min() > 0.02, "no noise: nothing was tested"


# Deciles


def only_in(decile: int, windows: Sequence[Window]) -> Reader:
    """Finds the word in windows of one decile, and nothing anywhere else."""
    known = {w.text for w in windows if w.quantile == decile}
    return lambda explanation, text: re.sub("<<|>>", "", text) in known and finds(explanation, text)


@pytest.mark.parametrize(
    ("scorer", "each"), [(detection, 5), (surprisal, 5), (embedding, 5), (simulation, 2)],
    ids=lambda value: getattr(value, "NAME", None),
)  # fmt: skip
def test_activating_windows_are_spread_evenly_over_the_deciles(scorer: ModuleType, each: int) -> None:
    windows = planted(7, 10)
    random.Random(0).shuffle(windows)
    (outcome,) = graded(scorer, [subject(7)], windows, finds, DECILES * each)
    assert Counter(j.quantile for j in outcome.judgements if j.label) == dict.fromkeys(range(DECILES), each)
    assert sum(not j.label for j in outcome.judgements) == DECILES * each


@pytest.mark.parametrize("scorer", [detection, surprisal, embedding], ids=lambda scorer: scorer.NAME)
def test_every_decile_is_a_tenth_of_the_activating_windows(scorer: ModuleType) -> None:
    """Who is right of the activating windows of one decile only is a tenth of the way from chance to the top."""
    windows = planted(7, 10)
    for decile in range(DECILES):
        (outcome,) = graded(scorer, [subject(7)], windows, only_in(decile, windows), 50)
        assert headline(scorer, outcome).value == pytest.approx(0.5 + 0.1 * 0.5, abs=1e-9)


def test_every_decile_is_about_a_tenth_in_fuzzing() -> None:
    """Where decoys go is decided by what fits, one window of each four of like strength."""
    windows = planted(7, 10)
    counts = []
    for decile in range(DECILES):
        (outcome,) = graded(fuzzing, [subject(7)], windows, only_in(decile, windows), 50)
        true = Counter(j.quantile for j in outcome.judgements if j.label)
        counts.append(true[decile])
        expected = 0.5 + 0.5 * true[decile] / true.total()
        assert headline(fuzzing, outcome).value == pytest.approx(expected, abs=1e-9)
    assert sum(counts) == true.total() and set(counts) <= {4, 5, 6}, counts


def test_every_decile_is_a_tenth_of_the_intruders() -> None:
    """Who finds them among the windows of one decile, and elsewhere names an activating window."""
    windows = planted(7, 10)
    for decile in range(DECILES):
        known = {w.text for w in windows if w.quantile == decile}

        def reply(request: Any, known: set[str] = known) -> Reply:
            texts = find_windows(request.messages[-1].content)
            right = any(re.sub("<<|>>", "", text) in known for text in texts)
            return ChatReply(json.dumps({"intruder": 1 + [finds(word(7), text) for text in texts].index(not right)}))

        (outcome,), _ = by_hand(intruder.score([subject(7)], windows, intruder.Config()), reply)
        assert Counter(j.quantile for j in outcome.judgements) == dict.fromkeys(range(DECILES), 2)
        assert headline(intruder, outcome).value == pytest.approx(1 / DECILES, abs=1e-9)
