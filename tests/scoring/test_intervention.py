"""Intervention: the gain in nats from clean to steered text, with the steering and the reader played by hand."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import numpy as np
import pytest
from answering import by_hand
from planted_windows import CAT, DOG, windows

from prompts.requests import Failure, Likelihood, LikelihoodReply, Reply, Steer, SteerReply, Usage, fingerprint
from scoring import intervention
from scoring.intervention import Config
from scoring.types import Metric, Outcome

N = 6
STEERED = SteerReply(
    prompt_texts=tuple(f"prompt {i} " for i in range(N)),
    clean=tuple(f"clean {i}" for i in range(N)),
    steered=tuple(f"steered {i}" for i in range(N)),
    strength=2.5,
    reached_kl=1.02,
    converged=True,
)
PROMPTS = [w for w in windows(N) if w.activating]


def logprob(request: Likelihood) -> tuple[float, ...]:
    """Two tokens with fixed log-probabilities for each (prompt, text)."""
    digest = hashlib.sha256(f"{request.prompt}|{request.text}".encode()).digest()
    return (-digest[0] / 32, -digest[1] / 32)


def reader(steered: Reply = STEERED, fails: str = "nothing fails") -> object:
    def reply(request: Steer | Likelihood) -> Reply:
        if isinstance(request, Steer):
            return steered
        if fails in request.prompt:
            return Failure("context_overflow", "too long")
        return LikelihoodReply(logprob(request), Usage(9, 0))

    return reply


def play(reply: object, subjects: tuple[object, ...] = (CAT, DOG)) -> tuple[list[Outcome], list[object]]:
    return by_hand(intervention.score(subjects, PROMPTS, Config()), reply)  # type: ignore[arg-type, return-value]


def by_name(outcome: Outcome) -> dict[str, Metric]:
    return {metric.metric: metric for metric in outcome.metrics}


def expected_gain(i: int, explanation: str) -> float:
    def passage(continuation: str) -> Likelihood:
        text = f"<PASSAGE>\nprompt {i} {continuation}\n</PASSAGE>\n\n"
        return Likelihood(f'{text}The above passage contains an amplified amount of "', f'{explanation}"')

    return sum(logprob(passage(f"steered {i}"))) - sum(logprob(passage(f"clean {i}")))


def test_one_steer_request_holds_all_prompts() -> None:
    _, (first, likelihoods) = play(reader())
    (request,) = first  # type: ignore[misc]
    assert request == Steer(7, tuple(w.tokens for w in PROMPTS), target_kl=1.0, max_new_tokens=8, seed=0)
    assert len(likelihoods) == 2 * 2 * N  # type: ignore[arg-type]
    assert {r.text for r in likelihoods} == {'cat"', 'dog"'}, "with the closing quote"  # type: ignore[attr-defined]
    assert all(r.prompt.endswith('amount of "') for r in likelihoods)  # type: ignore[attr-defined]


def test_gains_are_steered_minus_clean_of_the_right_subject() -> None:
    outcomes, _ = play(reader())
    for subject, outcome in zip((CAT, DOG), outcomes, strict=True):
        gains = [expected_gain(i, subject.explanation) for i in range(N)]
        assert [j.probability for j in outcome.judgements] == pytest.approx(gains)
        metrics = by_name(outcome)
        gain = metrics["logprob_gain"]
        assert gain.value == pytest.approx(np.mean(gains)) and (gain.n, gain.n_failed, gain.status) == (N, 0, "ok")
        assert gain.ci_low is not None and gain.ci_high is not None and gain.ci_low < np.mean(gains) < gain.ci_high
        assert metrics["reached_kl"].value == 1.02 and metrics["strength"].value == 2.5
        assert [(j.clean_text, j.steered_text) for j in outcome.judgements] == [
            (f"clean {i}", f"steered {i}") for i in range(N)
        ]
        assert all(j.label is None and j.prediction is None for j in outcome.judgements)


def test_swapping_clean_and_steered_flips_the_sign() -> None:
    plain, _ = play(reader())
    swapped, _ = play(reader(replace(STEERED, clean=STEERED.steered, steered=STEERED.clean)))
    for a, b in zip(plain, swapped, strict=True):
        first, second = by_name(a)["logprob_gain"], by_name(b)["logprob_gain"]
        assert first.value is not None and abs(first.value) > 0.01
        assert second.value == pytest.approx(-first.value)
        assert (second.ci_low, second.ci_high) == pytest.approx((-first.ci_high, -first.ci_low))  # type: ignore[operator]


def test_no_steering_no_gain() -> None:
    outcomes, _ = play(reader(replace(STEERED, steered=STEERED.clean)))
    assert [by_name(o)["logprob_gain"].value for o in outcomes] == [0.0, 0.0]


def test_a_failed_steer_gives_null_with_status() -> None:
    outcomes, rounds = play(reader(Failure("error", "no strength reaches the target")))
    assert len(rounds) == 1, "no likelihood is asked for"
    for outcome in outcomes:
        (metric,) = outcome.metrics
        assert (metric.metric, metric.value, metric.ci_low, metric.ci_high) == ("logprob_gain", None, None, None)
        assert (metric.n, metric.n_failed, metric.status) == (0, N, "failed")
        assert {(j.status, j.probability) for j in outcome.judgements} == {("error", None)}
        assert outcome.judgements[0].reply_sha == fingerprint(Failure("error", "no strength reaches the target"))


def test_not_converged_withholds_the_score_and_keeps_the_reached_kl() -> None:
    outcomes, _ = play(reader(replace(STEERED, converged=False, reached_kl=0.2)))
    for outcome in outcomes:
        metrics = by_name(outcome)
        gain = metrics["logprob_gain"]
        assert (gain.value, gain.ci_low, gain.ci_high, gain.status) == (None, None, None, "not_converged")
        assert (metrics["reached_kl"].value, metrics["strength"].value) == (0.2, 2.5)
        assert all(j.probability is not None for j in outcome.judgements), "what was read is on record"


@pytest.mark.parametrize("fails", ["clean 4", "steered 4"])
def test_a_failed_reading_is_counted(fails: str) -> None:
    outcomes, _ = play(reader(fails=fails))
    gain = by_name(outcomes[0])["logprob_gain"]
    rest = [expected_gain(i, "cat") for i in range(N) if i != 4]
    assert gain.value == pytest.approx(np.mean(rest)) and (gain.n, gain.n_failed) == (N - 1, 1)
    assert [j.status for j in outcomes[0].judgements] == ["ok"] * 4 + ["failed"] + ["ok"]


def test_too_few_prompts_and_none() -> None:
    outcomes, _ = play(reader(fails="clean"))
    gain = by_name(outcomes[0])["logprob_gain"]
    assert (gain.value, gain.n_failed, gain.status) == (None, N, "too_few_windows")
    result, rounds = by_hand(intervention.score([CAT, DOG], [], Config()), reader())  # type: ignore[arg-type]
    assert rounds == [] and [o.metrics[0].status for o in result] == ["too_few_windows"] * 2


def test_several_targets_are_steered_in_one_list_and_scored_apart() -> None:
    targets = (0.1, 1.0)
    asking = intervention.score([CAT, DOG], PROMPTS, Config(target_kl=targets))
    requests = next(asking)
    assert [request.target_kl for request in requests] == list(targets)
    weak = replace(STEERED, steered=STEERED.clean, reached_kl=0.1)
    read = asking.send([weak, STEERED])
    texts = [request.prompt for request in read if request.text.startswith(CAT.explanation)]
    assert len(texts) == len(set(texts)) == 2 * N, "clean continuations are read once for both targets"
    with pytest.raises(StopIteration) as stop:
        asking.send([reader()(request) for request in read])  # type: ignore[operator]
    for outcome in stop.value.value:
        found = {metric.metric: metric for metric in outcome.metrics}
        assert set(found) == {
            f"{name}@{kl}" for name in ("logprob_gain", "reached_kl", "strength") for kl in ("0.1", "1")
        }
        assert found["logprob_gain@0.1"].value == 0.0 and found["logprob_gain@1"].value != 0.0
        assert found["reached_kl@0.1"].value == 0.1 and len(outcome.judgements) == 2 * N


def test_a_removal_is_asked_for_once_and_named_apart() -> None:
    asking = intervention.score([CAT, DOG], PROMPTS, Config(edit="zero", target_kl=(0.1, 1.0)))
    (request,) = next(asking)
    assert request == Steer(7, tuple(w.tokens for w in PROMPTS), 0.0, max_new_tokens=8, seed=0, edit="zero")
    read = asking.send([replace(STEERED, strength=1.0, reached_kl=0.03)])
    with pytest.raises(StopIteration) as stop:
        asking.send([reader()(request) for request in read])  # type: ignore[operator]
    for subject, outcome in zip((CAT, DOG), stop.value.value, strict=True):
        metrics = by_name(outcome)
        assert set(metrics) == {"logprob_gain@zero", "reached_kl@zero"}
        gain = metrics["logprob_gain@zero"]
        assert gain.value == pytest.approx(np.mean([expected_gain(i, subject.explanation) for i in range(N)]))
        assert (gain.status, metrics["reached_kl@zero"].value) == ("ok", 0.03)
    failed, _ = by_hand(intervention.score([CAT], PROMPTS, Config(edit="zero")), reader(Failure("error", "no")))  # type: ignore[arg-type]
    assert [m.metric for m in failed[0].metrics] == ["logprob_gain@zero"]
    none, _ = by_hand(intervention.score([CAT], [], Config(edit="zero")), reader())  # type: ignore[arg-type]
    assert [m.metric for m in none[0].metrics] == ["logprob_gain@zero"]


def test_a_negative_pole_is_steered_along_it() -> None:
    (request,) = next(intervention.score([replace(CAT, pole=-1)], PROMPTS, Config()))
    assert isinstance(request, Steer) and request.pole == -1


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"edit": "ablate"}, "edit is one of add, zero, not 'ablate'"),
        ({"target_kl": 0.0}, "target_kl .* above 0, not 0.0"),
        ({"target_kl": ()}, "target_kl is one or more"),
        ({"target_kl": (1.0, float("nan"))}, "target_kl is one or more"),
        ({"new_tokens": 0}, "new_tokens is 1 at least, not 0"),
    ],
)
def test_options_that_mean_nothing_are_refused(options: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Config(**options)  # type: ignore[arg-type]
