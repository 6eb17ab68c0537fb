"""Simulation: what is asked, what counts as an answer, and that the score is the correlation over all tokens."""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from answering import by_hand
from planted_windows import CAT, DOG

from prompts.requests import Chat, ChatReply, Failure, LikelihoodReply, Reply, Usage
from scoring import simulation
from scoring.simulation import Config, graded
from scoring.simulators import parse
from scoring.types import ACTIVATING, RANDOM, Metric, Outcome, Window

HARD = "hard:decoder"
N = 12


def window(i: int, kind: str = ACTIVATING, n: int = N, sign: int = 1) -> Window:
    """Window `w<i>` with whole activations up to 10, told apart by its first token."""
    rng = random.Random(i)
    activations = [0.0] * n
    if kind == ACTIVATING:
        for at in rng.sample(range(1, n), 3):
            activations[at] = float(sign * rng.randint(1, 10))
    return Window(
        f"w{i}", i, 0, kind, (f"w{i}", *(f" t{at}" for at in range(1, n))), tuple(range(n)), tuple(activations), 0
    )


def some(activating: int = 8, others: int = 8, hard: int = 0) -> list[Window]:
    made = [window(i) for i in range(activating)] + [window(100 + i, RANDOM) for i in range(others)]
    return made + [window(200 + i, HARD) for i in range(hard)]


def truth(given: Sequence[Window]) -> dict[str, list[int]]:
    return {w.window_id: [round(abs(a)) for a in w.activations] for w in given}


def which(request: Chat) -> str:
    found = re.search(r'^1: "(\w+)"$', request.messages[-1].content, re.M)
    assert found is not None
    return found.group(1)


def says(numbers: Callable[[str], Sequence[int]]) -> Callable[[Chat], ChatReply]:
    return lambda request: ChatReply(json.dumps({"activations": list(numbers(which(request)))}), Usage(40, 30))


def one(reply: Callable[[Any], Reply], given: list[Window] | None = None, **config: Any) -> Outcome:
    asking = simulation.score([CAT], some() if given is None else given, Config(**config))
    (outcome,), _ = by_hand(asking, reply)
    return outcome  # type: ignore[no-any-return]


def by_number(predictions: Callable[[Window], Sequence[float] | None], given: list[Window], **config: Any) -> Metric:
    outcome = graded(given, [predictions(w) for w in given], [[ChatReply("")]] * len(given), Config(**config))
    return outcome.metrics[0]


def test_the_request_and_its_schema() -> None:
    given = some(6, 6)
    given[0] = replace(given[0], pieces=("w0", ' "', "\n2: x", "</window>", *given[0].pieces[4:]))
    _, (requests,) = by_hand(simulation.score([CAT, DOG], given, Config()), says(lambda _: [0] * N))
    assert len(requests) == 24
    assert Counter(which(request) for request in requests) == {w.window_id: 2 for w in given}
    for request in requests:
        assert [m.role for m in request.messages] == ["system", "user"] and request.temperature == 0
        content = request.messages[1].content
        assert re.findall(r"^(\d+): ", content, re.M) == [str(i) for i in range(1, N + 1)]
        assert f"Give {N} numbers." in content
        numbers = request.schema["properties"]["activations"]
        assert (numbers["minItems"], numbers["maxItems"]) == (N, N)
        assert numbers["items"] == {"type": "integer", "minimum": 0, "maximum": 10}
        assert request.max_tokens >= 2 * len(json.dumps({"activations": [10] * N})) / 3
    mine, other = requests[:12], requests[12:]
    assert all(r.messages[1].content.startswith("Explanation: cat\n") for r in mine)
    assert [r.messages[1].content.replace("cat", "dog", 1) for r in mine] == [r.messages[1].content for r in other]


def test_who_knows_the_activations_gets_one() -> None:
    known = truth(some())
    outcome = one(says(lambda name: known[name]))
    metric, other = outcome.metrics
    assert (metric.metric, metric.n, metric.n_failed, metric.negatives) == ("pearson", 16, 0, RANDOM)
    assert other == replace(metric, metric="pearson@constant=0")
    assert metric.value == pytest.approx(1.0) and metric.ci_low == pytest.approx(1.0) == metric.ci_high
    assert metric.ci_method == "bootstrap" and metric.status == "ok"
    assert sum(j.prompt_tokens for j in outcome.judgements) == 40 * 16
    for judged in outcome.judgements:
        assert judged.status == "ok" and judged.label == (judged.kind == ACTIVATING)
        assert judged.probability == max(known[judged.window_id]) / 10


@pytest.mark.parametrize(("slope", "offset"), [(1, 0), (0.3, 2.0), (1e-6, 5.0), (1e6, -3.0)])
def test_scale_and_offset_change_nothing(slope: float, offset: float) -> None:
    metric = by_number(lambda w: [slope * a + offset for a in w.activations], some())
    assert metric.value == pytest.approx(1.0)
    scaled = [replace(w, activations=tuple(1e-4 * a for a in w.activations)) for w in some()]
    noisy = {w.window_id: np.random.default_rng(w.document).integers(0, 11, N).tolist() for w in some()}
    first, second = (by_number(lambda w: noisy[w.window_id], given) for given in (some(), scaled))
    assert first.value == pytest.approx(second.value) and first.ci_low == pytest.approx(second.ci_low)


def test_the_opposite_gets_minus_one() -> None:
    assert by_number(lambda w: [10 - a for a in w.activations], some()).value == pytest.approx(-1.0)


def test_it_is_the_correlation_over_all_tokens_together() -> None:
    rng = np.random.default_rng(1)
    said = {w.window_id: rng.integers(0, 11, N).tolist() for w in some()}
    x = np.concatenate([w.activations for w in some()])
    y = np.concatenate([said[w.window_id] for w in some()])
    metric = one(says(lambda name: said[name])).metrics[0]
    assert metric.value == pytest.approx(np.corrcoef(x, y)[0, 1])
    # Right within each activating window, but as sure of the silent ones.
    alarms = one(says(lambda name: truth(some())[name if int(name[1:]) < 100 else f"w{int(name[1:]) - 100}"])).metrics[
        0
    ]
    assert alarms.value is not None and 0.2 < alarms.value < 0.8


def test_magnitudes_count_at_the_negative_pole() -> None:
    negative = [window(i, sign=-1) for i in range(8)] + some(0)
    assert by_number(lambda w: [abs(a) for a in w.activations], negative).value == pytest.approx(1.0)


@pytest.mark.parametrize("number", [0, 7, 10])
def test_who_says_the_same_of_every_token_has_no_score(number: int) -> None:
    metric, other = one(says(lambda _: [number] * N)).metrics
    assert (metric.value, metric.ci_low, metric.ci_high, metric.status) == (None, None, None, "constant")
    assert (metric.n, metric.n_failed) == (16, 0)
    assert by_number(lambda w: [0.1] * N, some()).value is None
    # Explaining nothing, it does not drop out of means and paired differences.
    assert other == replace(metric, metric="pearson@constant=0", value=0.0, status="ok")


def test_ties_that_chance_breaks_are_worth_nothing() -> None:
    """What stands for a constant is the mean of what it gets when its ties are broken at random."""
    rng = np.random.default_rng(0)
    found = [by_number(lambda w: list(4 + 1e-3 * rng.normal(size=N)), some(), draws=1).value for _ in range(400)]
    assert abs(np.mean(found)) < 3 * np.std(found) / 20  # type: ignore[arg-type]


@pytest.mark.parametrize("numbers", [[3] * N, [*range(N - 2), 0, 0]])
def test_activations_that_are_all_alike_have_no_score(numbers: list[int]) -> None:
    flat = [replace(w, activations=(2.0,) * N) for w in some()]
    metrics = one(says(lambda _: numbers), flat).metrics
    assert [m.metric for m in metrics] == ["pearson", "pearson@constant=0"]
    assert all((m.value, m.status) == (None, "constant") for m in metrics)


WRONG = [
    "", "0, 1, 2", '{"activations": [0, 1]}', '{"activations": [0, 1, 2, 3]}', '{"activations": [0, 1, 11]}',
    '{"activations": [0, 1, -1]}', '{"activations": [0, 1, 2.0]}', '{"activations": [0, 1, true]}',
    '{"activations": [0, 1, "2"]}', '{"activations": [0, 1, null]}', '{"activations": [0, 1, NaN]}',
    '{"activations": 3}', '{"activation": [0, 1, 2]}', "null", "[0, 1, 2]", "[" * 100_000,
]  # fmt: skip


@pytest.mark.parametrize("text", WRONG)
def test_anything_but_the_list_is_no_answer(text: str) -> None:
    assert parse(text, 3) is None
    assert parse('{"activations": [0, 1, 10]}', 3) == [0.0, 1.0, 10.0]


def test_failures_are_counted_and_left_out() -> None:
    known = truth(some())
    bad: dict[str, Reply] = {
        "w0": ChatReply("no"), "w1": Failure("refused", "no"), "w100": LikelihoodReply((-1.0,)),
    }  # fmt: skip
    outcome = one(lambda request: bad.get(which(request)) or says(lambda name: known[name])(request))
    metric = outcome.metrics[0]
    assert metric.value == pytest.approx(1.0) and (metric.n, metric.n_failed) == (13, 3)
    assert Counter(j.status for j in outcome.judgements) == {"ok": 13, "unparsable": 1, "refused": 1, "failed": 1}
    assert all((j.probability is None) == (j.status != "ok") for j in outcome.judgements)
    for nothing in one(lambda _: Failure("timeout", "slow")).metrics:
        assert (nothing.value, nothing.n, nothing.n_failed, nothing.status) == (None, 0, 16, "too_few_windows")


def test_one_subjects_failures_do_not_touch_the_other() -> None:
    def reader(request: Chat) -> Reply:
        if "Explanation: dog" in request.messages[1].content:
            return Failure("timeout", "slow")
        return says(lambda name: truth(some())[name])(request)

    (mine, control), _ = by_hand(simulation.score([CAT, DOG], some(), Config()), reader)
    assert mine.metrics[0].value == pytest.approx(1.0) and control.metrics[0].value is None


@pytest.mark.parametrize("given", [some(4, 8), some(8, 4), some(0, 8), some(8, 0), []])
def test_too_few_windows(given: list[Window]) -> None:
    metric = one(says(lambda _: [i % 10 for i in range(N)]), given).metrics[0]
    assert (metric.value, metric.n, metric.status) == (None, len(given), "too_few_windows")


def test_windows_in_any_order_and_the_same_seed_give_the_same() -> None:
    given = some(30, 30)
    said = {w.window_id: np.random.default_rng(w.document).integers(0, 11, N).tolist() for w in given}
    again = given[:]
    random.Random(3).shuffle(again)
    first, second, third = (
        one(says(lambda name: said[name]), g, seed=seed) for g, seed in ((given, 0), (again, 0), (given, 1))
    )
    assert first == second and first.metrics[0].ci_low != third.metrics[0].ci_low
    assert first.metrics[0].n == 40, "20 of either kind"


def test_each_kind_of_other_windows_has_a_metric() -> None:
    known = truth(some(hard=6))
    outcome = one(says(lambda name: [10, 0] * (N // 2) if int(name[1:]) >= 200 else known[name]), some(hard=6))
    found = {m.negatives: m for m in outcome.metrics if m.metric == "pearson"}
    assert set(found) == {"mixed", RANDOM, HARD} and found[RANDOM].value == pytest.approx(1.0)
    assert (found["mixed"].n, found[RANDOM].n, found[HARD].n) == (22, 16, 14)
    assert found[HARD].value < found["mixed"].value < 1  # type: ignore[operator]


def test_windows_of_different_lengths() -> None:
    given = [window(i, n=4 + i) for i in range(8)] + [window(100 + i, RANDOM, n=3 + i) for i in range(8)]
    assert by_number(lambda w: [*w.activations], given).value == pytest.approx(1.0)


def test_the_interval_covers() -> None:
    """Readers with noise: the interval of 20 + 20 windows holds the correlation of very many in most cases."""
    rng = np.random.default_rng(0)

    def world(n: int) -> tuple[list[Window], list[list[float]]]:
        given = [replace(window(int(rng.integers(1e9)), kind), window_id=f"{kind}{i}")
                 for kind in (ACTIVATING, RANDOM) for i in range(n)]  # fmt: skip
        # Noise of a window's own, besides that of its tokens: windows are what is drawn.
        return given, [list(np.array(w.activations) + 2 * rng.normal(size=N) + rng.normal()) for w in given]

    def metric(n: int, draws: int) -> Metric:
        given, said = world(n)
        return graded(given, said, [[ChatReply("")]] * len(given), Config(draws=draws)).metrics[0]

    target = metric(4000, 1).value
    assert target is not None and 0.3 < target < 0.9
    found = [metric(20, 300) for _ in range(200)]
    covered = np.mean([m.ci_low <= target <= m.ci_high for m in found])  # type: ignore[operator]
    assert 0.87 <= covered <= 0.99
