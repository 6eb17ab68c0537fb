"""Choosing windows, and the scorers that draw one number per window: surprisal and embedding."""

from __future__ import annotations

import hashlib
import math
from dataclasses import replace

import numpy as np
import pytest
from answering import by_hand
from planted_windows import CAT, DOG, window, windows
from scipy import stats
from sklearn.metrics import roc_auc_score

from prompts import render
from prompts.requests import Embed, EmbedReply, Failure, Likelihood, LikelihoodReply, Reply, Usage, reply_sha
from scoring import embedding, surprisal
from scoring.windows import evenly

BASELINE = render.text("surprisal_baseline.v1")


def numbers(*parts: str) -> float:
    """A fixed number in [0, 1) for some texts."""
    return int.from_bytes(hashlib.sha256("|".join(parts).encode()).digest()[:6], "big") / 2**48


def random_reader(request: Likelihood) -> LikelihoodReply:
    return LikelihoodReply((-numbers(request.prompt, request.text), -1.0), Usage(5, 0))


# Choosing


def test_evenly_spreads_over_strengths() -> None:
    rng = np.random.default_rng(0)
    strengths = rng.permutation(100) + 1.0
    some = [window(i, True, strength=float(s)) for i, s in enumerate(strengths)] + windows(0, 7)
    chosen = evenly(some, 10)
    assert [max(w.activations) for w in chosen[:10]] == [6, 16, 26, 36, 46, 56, 66, 76, 86, 96]
    assert [w.activating for w in chosen] == [True] * 10 + [False] * 7
    assert evenly(some, 10) == chosen
    negative = [replace(w, activations=tuple(-a for a in w.activations)) for w in some]
    assert [w.window_id for w in evenly(negative, 10)] == [w.window_id for w in chosen], "by magnitude"


@pytest.mark.parametrize(("n", "have", "expected"), [(5, 3, 3), (3, 3, 3), (1, 9, 1), (7, 9, 7), (5, 0, 0)])
def test_evenly_never_repeats_and_takes_what_there_is(n: int, have: int, expected: int) -> None:
    chosen = evenly(windows(have, have), n)
    assert len({w.window_id for w in chosen}) == len(chosen) == 2 * expected


# Surprisal


def test_surprisal_pairs_every_subject_with_the_baseline_on_the_same_windows() -> None:
    some = windows(6, 8)
    (mine, control), rounds = by_hand(surprisal.score([CAT, DOG], some, surprisal.Config()), random_reader)
    (requests,) = rounds
    prompts = list(dict.fromkeys(request.prompt for request in requests))
    assert prompts[0] == BASELINE and "cat" in prompts[1] and "dog" in prompts[2] and len(prompts) == 3
    texts = [[r.text for r in requests if r.prompt == prompt] for prompt in prompts]
    assert texts[0] == texts[1] == texts[2] and sorted(texts[0]) == sorted(w.text for w in some)
    for prompt, outcome in ((prompts[1], mine), (prompts[2], control)):
        gains = {w.window_id: numbers(BASELINE, w.text) - numbers(prompt, w.text) for w in some}
        assert {j.window_id: j.probability for j in outcome.judgements} == pytest.approx(gains)
        labels = [j.label for j in outcome.judgements]
        expected = roc_auc_score(labels, [j.probability for j in outcome.judgements])
        (metric,) = outcome.metrics
        assert metric.value == pytest.approx(expected) and (metric.n, metric.n_failed) == (14, 0)
        reply = random_reader(Likelihood(prompt, some[0].text))
        assert reply_sha(reply) in {j.reply_sha for j in outcome.judgements}


@pytest.mark.parametrize("where", ["baseline", "explained"])
def test_a_failed_window_is_counted_and_not_scored(where: str) -> None:
    some = windows(6, 6)

    def reader(request: Likelihood) -> Reply:
        if request.text == some[2].text and (request.prompt == BASELINE) is (where == "baseline"):
            return Failure("context_overflow", "too long")
        return random_reader(request)

    (outcome,), _ = by_hand(surprisal.score([CAT], some, surprisal.Config()), reader)
    (plain,), _ = by_hand(surprisal.score([CAT], some, surprisal.Config()), random_reader)
    (metric,) = outcome.metrics
    assert (metric.n, metric.n_failed, metric.status) == (11, 1, "ok")
    failed = [j for j in outcome.judgements if j.status != "ok"]
    assert [(j.window_id, j.probability, j.prediction) for j in failed] == [("w2", None, None)]
    rest = [j for j in plain.judgements if j.window_id != "w2"]
    assert metric.value == pytest.approx(roc_auc_score([j.label for j in rest], [j.probability for j in rest]))


def test_surprisal_recovers_a_planted_auroc() -> None:
    """Gains are N(1, 1) on activating and N(0, 1) on other windows: AUROC Phi(1 / sqrt 2) = 0.76."""
    rng = np.random.default_rng(0)
    some = windows(25)
    label = {w.text: w.activating for w in some}

    def reader(request: Likelihood) -> LikelihoodReply:
        return LikelihoodReply((-50.0 if request.prompt == BASELINE else rng.normal(label[request.text], 1) - 50,))

    metrics = [by_hand(surprisal.score([CAT], some, surprisal.Config()), reader)[0][0].metrics[0] for _ in range(150)]
    truth = stats.norm.cdf(1 / math.sqrt(2))
    assert np.mean([m.value for m in metrics]) == pytest.approx(truth, abs=0.02)  # 4 standard errors
    assert np.mean([m.ci_low <= truth <= m.ci_high for m in metrics]) > 0.9


def test_too_few_windows_and_none() -> None:
    for some in (windows(4, 20), windows(0, 20), []):
        (outcome,), _ = by_hand(surprisal.score([CAT], some, surprisal.Config()), random_reader)
        assert outcome.metrics[0].value is None and outcome.metrics[0].status == "too_few_windows"
        assert len(outcome.judgements) == len(some)
    everything_fails, _ = by_hand(
        surprisal.score([CAT], windows(9), surprisal.Config()), lambda _: Failure("timeout", "slow")
    )
    metric = everything_fails[0].metrics[0]
    assert (metric.value, metric.n, metric.n_failed, metric.status) == (None, 0, 18, "too_few_windows")


# Embedding


def embedder(request: Embed) -> EmbedReply:
    """Two axes: cats and everything else; the length is arbitrary."""
    cat, tree = request.text.count("cat"), request.text.count("tree")
    return EmbedReply((3.0 * cat, 3.0 * tree, 0.1), Usage(4, 0))


def test_embedding_is_the_cosine_to_each_window() -> None:
    some = windows(6, 6)
    tree = replace(DOG, explanation="tree")
    (mine, other), rounds = by_hand(embedding.score([CAT, tree], some, embedding.Config(query="q: ")), embedder)
    assert [r.text for r in rounds[0][:2]] == ["q: cat", "q: tree"]
    assert not any(r.text.startswith("q: ") for r in rounds[0][2:]) and len(rounds[0]) == 2 + 12
    assert (mine.metrics[0].value, other.metrics[0].value) == (1.0, 0.0)
    same, different = 1.0, 0.01 / 9.01
    for j in mine.judgements:
        assert j.probability == pytest.approx(same if j.label else different)


def test_embedding_failures() -> None:
    some = windows(6, 6)

    def one_fails(request: Embed) -> Reply:
        return Failure("error", "no") if request.text == some[1].text else embedder(request)

    (outcome,), _ = by_hand(embedding.score([CAT], some, embedding.Config()), one_fails)
    assert (outcome.metrics[0].n, outcome.metrics[0].n_failed, outcome.metrics[0].value) == (11, 1, 1.0)

    def explanation_fails(request: Embed) -> Reply:
        return Failure("error", "no") if request.text == "cat" else embedder(request)

    (mine, control), _ = by_hand(embedding.score([CAT, DOG], some, embedding.Config()), explanation_fails)
    assert (mine.metrics[0].value, mine.metrics[0].n_failed) == (None, 12)
    assert control.metrics[0].n_failed == 0
    assert embedding.cosine(EmbedReply((0.0, 0.0)), EmbedReply((1.0, 0.0))) is None
    assert embedding.cosine(EmbedReply((2.0, 0.0)), EmbedReply((-3.0, 0.0))) == pytest.approx(-1.0)
