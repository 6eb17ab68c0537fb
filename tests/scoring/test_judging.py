"""Judges that answer one by one, and judges that are stopped: what is asked, what is booked, what the figures hold."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest
from answering import by_hand
from planted_windows import CAT, DOG, figures, window, windows

from autointerp.clients._fake_prompts import find_windows
from prompts.requests import Chat, ChatReply, Choice, ChoiceReply, Failure, Reply, Request, Usage
from scoring import detection, fuzzing
from scoring.detection import Config
from scoring.intervals import auroc
from scoring.judging import JudgeConfig, in_rounds, needs
from scoring.readings import Shown
from scoring.stopping import PlannedStop, rounds

ONE = Config(reading="probabilities")


def sure(request: Choice) -> Reply:
    """Surer of a cat the larger the number in the window; and of some other answers too."""
    (text,) = find_windows(request.messages[-1].content)
    yes = (0.6 + 0.003 * int(text.split()[1])) if "a cat" in text else 0.1
    return ChoiceReply((0.9 * yes, 0.9 * (1 - yes)), Usage(50, 1))


def test_one_by_one_asks_for_the_probability_of_a_digit() -> None:
    (outcome,), (requests,) = by_hand(detection.score([CAT], windows(10, 12), ONE), sure)
    assert len(requests) == 22 and all(isinstance(r, Choice) and r.choices == ("1", "0") for r in requests)
    start = requests[0].messages[1].content.partition("<window")[0]
    assert start.startswith("Explanation: cat\n")
    assert all(r.messages[0] == requests[0].messages[0] for r in requests), "a server's prefix cache has all but the"
    assert all(r.messages[1].content.startswith(start) for r in requests), "window"
    by_id = {j.window_id: j for j in outcome.judgements}
    assert by_id["w4"].probability == pytest.approx(0.612) and by_id["w4"].prediction is True
    assert by_id["w15"].probability == pytest.approx(0.1) and by_id["w15"].prediction is False
    assert figures(outcome)[0].value == 1.0 and figures(outcome, "auroc")[0].value == 1.0
    assert sum(j.prompt_tokens for j in outcome.judgements) == 22 * 50


def test_the_auroc_is_of_the_probabilities() -> None:
    rng = np.random.default_rng(0)
    said = {f"w{i}": float(rng.random()) for i in range(60)}

    def reader(request: Choice) -> Reply:
        (text,) = find_windows(request.messages[-1].content)
        yes = said[f"w{text.split()[1]}"]
        return ChoiceReply((yes, 1 - yes))

    (outcome,), _ = by_hand(detection.score([CAT], windows(30), ONE), reader)
    expected = auroc([said[f"w{i}"] for i in range(30)], [said[f"w{i}"] for i in range(30, 60)])
    assert figures(outcome, "auroc")[0].value == pytest.approx(expected)
    right = [
        np.mean([(said[f"w{i}"] > 0.5) is label for i in some])
        for some, label in ((range(30), True), (range(30, 60), False))
    ]
    assert figures(outcome)[0].value == pytest.approx(np.mean(right))


NONE = [
    ChoiceReply((0.0, 0.0)), ChoiceReply((math.nan, 0.5)), ChoiceReply((0.5,)), ChoiceReply((-0.1, 0.5)),
    ChatReply("1"), Failure("refused", "no"),
]  # fmt: skip


@pytest.mark.parametrize("reply", NONE, ids=repr)
def test_probabilities_that_are_none_are_failed_answers(reply: Reply) -> None:
    def reader(request: Choice) -> Reply:
        return reply if "text 3 " in request.messages[1].content else sure(request)

    (outcome,), _ = by_hand(detection.score([CAT], windows(10), ONE), reader)
    (failed,) = [j for j in outcome.judgements if j.status != "ok"]
    assert failed.window_id == "w3" and failed.prediction is None and failed.probability is None
    assert {m.n_failed for m in outcome.metrics if m.metric != "specificity"} == {1} and figures(outcome)[0].n == 19


def test_fuzzing_reads_probabilities_too() -> None:
    some = [
        replace(w, pieces=("a", " b", " c", " d"), tokens=(1, 2, 3, 4), activations=(0.0, w.activations[1], 0.0, 0.0))
        for w in windows(30)
    ]
    (outcome,), (requests,) = by_hand(
        fuzzing.score([CAT], some, fuzzing.Config(reading="probabilities")), lambda _: ChoiceReply((0.2, 0.8))
    )
    assert all("<<" in r.messages[1].content for r in requests)
    assert figures(outcome)[0].value == 0.5 and figures(outcome, "auroc")[0].value == 0.5


def test_what_is_needed_follows_the_reading() -> None:
    assert needs(Config()) == {Chat} and needs(ONE) == {Choice} and detection.needs is needs is fuzzing.needs


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"reading": "tea leaves"}, "reading is one of list, probabilities"),
        ({"stopping": "never"}, "stopping is one of planned, anytime"),
        ({"ci_halfwidth": 0.7}, "ci_halfwidth lies between"),
        ({"ci_halfwidth": 0.0}, "ci_halfwidth lies between"),
        ({"step": 0}, "step is 1 at least"),
    ],
)
def test_options_that_mean_nothing(options: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Config(**options)  # type: ignore[arg-type]


# Rounds.


def shown(n: int, kinds: Sequence[str] = ("random",), m: int | None = None) -> list[Shown]:
    found = [Shown(w, w.text, True, w.kind) for w in windows(n, 0)]
    for k, kind in enumerate(kinds):
        for i in range(n if m is None else m):
            other = window(1000 * (k + 1) + i, False)
            found.append(Shown(other, other.text, False, kind))
    return found


def test_each_round_is_a_sample_of_the_whole() -> None:
    batches = in_rounds(shown(100), JudgeConfig(), "s")
    assert [len(batch) for batch in batches] == [2 * size for size in rounds(100)]
    everything = [each.window.window_id for batch in batches for each in batch]
    assert len(everything) == len(set(everything)) == 200
    first = batches[0]
    assert sum(each.label for each in first) == 20
    deciles = Counter(int(each.strength - 1) // 10 for each in first if each.label)
    assert set(deciles.values()) == {2} and len(deciles) == 10, "two of each decile among the first twenty"
    assert 3 <= sum(each.label for each in first[:20]) <= 17, "no kind comes first"
    assert (
        batches
        == in_rounds(list(reversed(shown(100))), JudgeConfig(), "s")
        != in_rounds(shown(100), JudgeConfig(), "t")
    )


def test_kinds_take_turns_and_pairs_end_with_the_rarer_side() -> None:
    batches = in_rounds(shown(40, ("random", "hard:decoder")), JudgeConfig(), "s")
    kinds = [Counter(each.kind for each in batch if not each.label) for batch in batches]
    assert all(abs(count["random"] - count["hard:decoder"]) <= 1 for count in kinds)
    assert sum(len(batch) for batch in batches) == 80
    few = in_rounds(shown(40, m=12), JudgeConfig(), "s")
    strengths = sorted(each.strength for batch in few for each in batch if each.label)
    assert len(strengths) == 12 and strengths[0] < 5 and strengths[-1] > 36, "the twelve are spread over all forty"
    assert in_rounds(shown(0), JudgeConfig(), "s") == []


# Stopping.


def knows(rate: float, seed: int) -> Callable[[Chat], Reply]:
    """A judge that is right with this probability, by window."""

    def reader(request: Chat) -> Reply:
        answers = []
        for text in find_windows(request.messages[-1].content):
            draw = np.random.default_rng([seed, int(text.split()[1])]).random()
            answers.append(int(("a cat" in text) is (draw < rate)))
        return ChatReply(json.dumps({"answers": answers}), Usage(10, 1))

    return reader


STOP = Config(windows=100, ci_halfwidth=0.1)


@pytest.mark.parametrize("stopping", ["planned", "anytime"])
def test_a_latent_stops_when_its_interval_is_narrow(stopping: str) -> None:
    config = replace(STOP, stopping=stopping)  # type: ignore[arg-type]
    (outcome,), asked = by_hand(detection.score([CAT], windows(100), config), knows(0.95, 1))
    metric = outcome.metrics[0]
    assert metric.ci_method == {"planned": "planned_stop", "anytime": "confidence_sequence"}[stopping]
    assert metric.ci_low is not None and metric.ci_high is not None and metric.value is not None
    assert metric.ci_high - metric.ci_low <= 0.2 + 1e-9 and metric.ci_low <= metric.value <= metric.ci_high
    assert metric.n == len(outcome.judgements) == sum(j.prompt_tokens // 10 * 5 for j in outcome.judgements) < 100
    assert len(asked) == 1 + (metric.n - 40) // 10
    assert all(m.n <= metric.n for m in outcome.metrics)


def test_each_explanation_stops_for_itself_on_the_same_windows() -> None:
    def reader(request: Chat) -> Reply:
        return knows(1.0 if "Explanation: cat" in request.messages[1].content else 0.5, 3)(request)

    (mine, control), asked = by_hand(detection.score([CAT, DOG], windows(100), STOP), reader)
    a, b = ([j.window_id for j in outcome.judgements] for outcome in (mine, control))
    assert len(a) == 40 < len(b) <= 110 and b[: len(a)] == a
    assert len(asked[0]) == 16 and all(len(some) == 2 for some in asked[1:]), "who has stopped is asked nothing"


def test_windows_run_out() -> None:
    (outcome,), _ = by_hand(detection.score([CAT], windows(23, 31), STOP), knows(0.5, 5))
    metric = outcome.metrics[0]
    assert metric.n == len(outcome.judgements) == 46 and metric.ci_method == "planned_stop"
    assert metric.ci_high is not None and metric.ci_low is not None and metric.ci_high - metric.ci_low > 0.2
    (nothing,), _ = by_hand(detection.score([CAT], [], STOP), knows(1.0, 0))
    assert (nothing.metrics[0].value, nothing.metrics[0].status) == (None, "too_few_windows")


def test_failed_answers_are_passed_over_and_counted() -> None:
    def reader(request: Request) -> Reply:
        assert isinstance(request, Chat)
        return ChatReply("?") if "text 7 " in request.messages[1].content else knows(1.0, 0)(request)

    (outcome,), _ = by_hand(detection.score([CAT], windows(100), STOP), reader)
    failed = sum(j.prediction is None for j in outcome.judgements)
    metric = outcome.metrics[0]
    assert metric.n_failed == failed and metric.value == 1.0 and metric.n <= len(outcome.judgements) - failed


@pytest.mark.parametrize(
    ("rates", "most"), [((0.5, 0.5), 100), ((0.9, 0.9), 50), ((0.95, 0.85), 50), ((0.8, 0.2), 72), ((0.7, 0.7), 84)]
)
def test_the_planned_interval_holds_and_costs_half(rates: tuple[float, float], most: float) -> None:
    """2,000 latents each; enumerated exactly in `benchmarks/scoring_tokens.py`, coverages are 0.953 to 0.971."""
    rng = np.random.default_rng(1)
    held, cost = [], []
    for _ in range(2000):
        rows, rule = np.column_stack([rng.random(100) < rate for rate in rates]), PlannedStop(0.1)
        for size in rounds(100):
            rule.update([(bool(a), bool(b)) for a, b in rows[rule.n : rule.n + size]])
            if rule.narrow:
                break
        held.append(rule.low <= sum(rates) / 2 <= rule.high)
        cost.append(2 * rule.n)
    assert np.mean(held) >= 0.945 and np.mean(cost) <= most


def test_the_base_rate_reaches_the_figures() -> None:
    (outcome,), _ = by_hand(detection.score([CAT], windows(50), Config(), base_rate=0.01), knows(0.9, 2))
    (precision,), (at_base,) = figures(outcome, "precision"), figures(outcome, "precision_at_base_rate")
    recall, specificity = figures(outcome, "recall")[0].value, figures(outcome, "specificity")[0].value
    assert precision.value is not None and recall is not None and specificity is not None
    assert at_base.value == pytest.approx(recall * 0.01 / (recall * 0.01 + (1 - specificity) * 0.99))
    assert at_base.value < 0.3 < precision.value, "what looks precise on equal numbers is not at 1 in 100"
    (without,), _ = by_hand(detection.score([CAT], windows(50), Config()), knows(0.9, 2))
    assert not figures(without, "precision_at_base_rate")
