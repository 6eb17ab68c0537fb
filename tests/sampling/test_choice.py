"""The orders in which activating windows are taken, as distributions."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from autointerp.sampling.choice import ORDERS, ascending, slices


def peaks_of(n: int, seed: int = 0) -> np.ndarray:
    return np.sort(np.random.default_rng(seed).gamma(1.0, size=n).astype(np.float32))


def draw(mode: str, peaks: np.ndarray, n: int, quantiles: int, seed: int) -> np.ndarray:
    return ORDERS[mode](peaks, n, quantiles, np.random.default_rng(seed))


@pytest.mark.parametrize("n", [0, 1, 2, 7, 10, 1000])
@pytest.mark.parametrize("quantiles", [1, 3, 10, 50])
@pytest.mark.parametrize("mode", list(ORDERS))
def test_every_order_holds_every_window_once(mode: str, quantiles: int, n: int) -> None:
    for asked in (1, 5, 2000):
        order = draw(mode, peaks_of(n), asked, quantiles, seed=1)
        assert sorted(order.tolist()) == list(range(n))
        np.testing.assert_array_equal(order, draw(mode, peaks_of(n), asked, quantiles, seed=1))
        if n > 5 and mode != "top" and not (mode == "mixed" and asked > n):
            assert (order != draw(mode, peaks_of(n), asked, quantiles, seed=2)).any()


def test_ascending_is_a_stable_sort() -> None:
    rng = np.random.default_rng(0)
    for n in (0, 1, 5000):
        for peaks in (rng.gamma(1, size=n), 10.0 ** rng.integers(-44, 38, size=n), rng.integers(1, 4, size=n)):
            some = peaks.astype(np.float32)
            np.testing.assert_array_equal(ascending(some), np.argsort(some, kind="stable"))


def test_slices_are_equal() -> None:
    for n in (10, 99, 1000):
        counts = np.bincount(slices(n, 10), minlength=10)
        assert counts.max() - counts.min() <= 1 and (np.diff(slices(n, 10)) >= 0).all()
    np.testing.assert_array_equal(slices(3, 10), [0, 3, 6])


@pytest.mark.parametrize(("n", "quantiles", "asked"), [(1000, 10, 50), (1003, 7, 70), (60, 6, 60), (33, 4, 32)])
def test_quantiles_are_drawn_evenly(n: int, quantiles: int, asked: int) -> None:
    counts = np.bincount(slices(n, quantiles)[draw("quantiles", peaks_of(n), asked, quantiles, 0)[:asked]])
    assert (counts == asked // quantiles).all()


def test_what_does_not_divide_favours_no_strength() -> None:
    """Seven windows of five slices, two of ten: which slices have one more is drawn, too."""
    for asked, quantiles in ((7, 5), (2, 10)):
        counts = Counter[int]()
        for seed in range(2000):
            drawn = slices(500, quantiles)[draw("quantiles", peaks_of(500), asked, quantiles, seed)[:asked]]
            here = np.bincount(drawn, minlength=quantiles)
            assert here.max() - here.min() == 1
            counts.update(drawn.tolist())
        expected = 2000 * asked / quantiles
        assert max(abs(count - expected) for count in counts.values()) < 4 * np.sqrt(expected)
        assert len(counts) == quantiles


def test_within_a_slice_every_window_is_as_likely() -> None:
    counts = Counter[int]()
    for seed in range(3000):
        counts.update(draw("quantiles", peaks_of(40), 8, 4, seed)[:8].tolist())
    assert max(abs(counts[i] - 600) for i in range(40)) < 4.5 * np.sqrt(600)


def test_top_are_the_strongest() -> None:
    np.testing.assert_array_equal(draw("top", peaks_of(100), 10, 10, 0)[:10], np.arange(99, 89, -1))


def test_random_knows_no_strength() -> None:
    counts = np.bincount(np.concatenate([draw("random", peaks_of(50), 10, 10, s)[:10] for s in range(2000)]))
    assert abs(counts - 400).max() < 4.5 * np.sqrt(400)


def test_importance_is_sequential_drawing_without_replacement() -> None:
    """Against a simulation that draws one after another with probability proportional to what is left."""
    peaks, asked, runs = peaks_of(12, seed=3), 4, 6000
    rng = np.random.default_rng(0)
    expected = np.zeros(len(peaks))
    for _ in range(runs):
        left = peaks.astype(np.float64)
        for _ in range(asked):
            index = rng.choice(len(peaks), p=left / left.sum())
            expected[index] += 1
            left[index] = 0
    found = np.bincount(
        np.concatenate([draw("importance", peaks, asked, 10, seed)[:asked] for seed in range(runs)]), minlength=12
    )
    share = expected / runs
    error = np.sqrt(2 * share * (1 - share) / runs) + 1e-9
    assert (abs(found / runs - share) < 4.5 * error).all()
    # Stronger windows come more often, and no less than a weighted draw without replacement has to.
    assert found[-1] > 2 * found[:4].max()
    first = np.bincount([draw("importance", peaks, asked, 10, seed)[0] for seed in range(runs)], minlength=12) / runs
    np.testing.assert_allclose(first, peaks / peaks.sum(), atol=4.5 * np.sqrt(0.25 / runs))


@pytest.mark.parametrize(("n", "asked"), [(1000, 50), (1000, 12), (30, 50), (3, 50), (5, 5)])
def test_mixed_has_a_fifth_from_the_top(n: int, asked: int) -> None:
    for seed in range(20):
        drawn = draw("mixed", peaks_of(n), asked, 10, seed)[:asked]
        top = min(round(asked / 5), n)
        np.testing.assert_array_equal(drawn[:top], np.arange(n)[::-1][:top])
        if n > 2 * asked:
            rest = np.bincount(slices(n - top, 10)[drawn[top:]], minlength=10)
            assert rest.max() - rest.min() <= 1
