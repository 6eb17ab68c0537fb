"""Pieces of the report that have a truth of their own: sides of windows, histograms, rounding."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from sklearn.metrics import roc_auc_score

from autointerp.report.by_latent import ByLatent, of_first_draw
from autointerp.report.judged import sides
from autointerp.report.strengths import BINS, Strengths
from autointerp.report.text import SEPARATOR, short, significant, visible, visible_pieces
from autointerp.report.windows import joined, split_pieces


def test_sides_average_to_the_auroc() -> None:
    rng = np.random.default_rng(0)
    group, fires = rng.integers(0, 7, 400), rng.random(400) < 0.4
    value = np.round(rng.normal(fires * 0.7, 1.0), 1)  # with ties
    found = sides(group, fires, value)
    for number in range(7):
        mine = group == number
        auroc = roc_auc_score(fires[mine], value[mine])
        for kind in (True, False):
            assert found[mine & (fires == kind)].mean() == pytest.approx(auroc)


def test_sides_need_both_kinds() -> None:
    assert np.isnan(sides(np.zeros(3, int), np.ones(3, bool), np.arange(3.0))).all()
    assert len(sides(np.zeros(0, int), np.zeros(0, bool), np.zeros(0))) == 0


def test_histogram_counts_activating_windows_of_each_latent() -> None:
    rng = np.random.default_rng(0)
    windows = [(rng.gamma(2.0, 2.0, 16) * (rng.random(16) < 0.4)).astype(np.float32) for _ in range(9)]
    windows[8] = -windows[8]
    found = Strengths(
        pa.chunked_array([pa.array([w.tolist() for w in windows])]), [0, 4, 4, 9], [True, True, False] * 3
    )
    first = np.concatenate([windows[0], windows[1], windows[3]])
    expected = np.histogram(first[first != 0], bins=BINS, range=(0, first.max()))[0]
    histogram = found.histogram(0)
    assert histogram is not None
    assert histogram["counts"] == expected.tolist() and histogram["windows"] == 3
    assert found.histogram(1) is None
    assert found.largest == pytest.approx([np.abs(windows[:4]).max(), 0.0, np.abs(windows[4:]).max()])
    pairs, peak = found.active(8)
    assert dict(zip(pairs[0::2], pairs[1::2], strict=True)) == {
        n: pytest.approx(v, rel=1e-3) for n, v in enumerate(windows[8]) if v
    }
    assert peak == pytest.approx(windows[8].min(), rel=1e-3)


def test_significant_is_short_for_arrays() -> None:
    rng = np.random.default_rng(0)
    values = np.concatenate([10 ** rng.uniform(-9, 9, 500) * rng.choice([-1, 1], 500), [0.0, 0.1, 2.5e-7, 12345678.0]])
    assert significant(values).tolist() == [short(value) for value in values]


def test_pieces_come_back_whatever_is_in_them() -> None:
    pieces = ["a", "", f"b{SEPARATOR}c", "\x1b[31m", "\u202e"]
    (text, empty) = joined(pa.chunked_array([[pieces, None]]))
    assert split_pieces(text) == ["a", "", "b␡c", "␛[31m", "⟨U+202E⟩"]
    assert split_pieces(empty) == []
    assert SEPARATOR not in visible(SEPARATOR) and visible_pieces(SEPARATOR) == SEPARATOR


def test_rows_are_found_by_sae_and_latent() -> None:
    table = pa.table({"sae_id": list("bbaab"), "latent": [2, 1, 5, 1, 2], "row": list(range(5))})
    found = ByLatent(table)
    rows = found.column("row").to_pylist()
    assert {key: rows[span] for key, span in found.spans.items()} == {
        ("b", 1): [1], ("b", 2): [0, 4], ("a", 1): [3], ("a", 5): [2],
    }  # fmt: skip
    assert found.span("a", 9) == slice(0, 0)


def test_first_draw_is_that_of_the_first_corpus() -> None:
    table = pa.table({
        "sae_id": ["a"] * 6, "latent": [1, 1, 1, 2, 2, 3], "corpus": ["web", "code", "code", None, None, "web"],
        "draw": [0, 2, 1, 1, 0, None], "row": list(range(6)),
    })  # fmt: skip
    assert of_first_draw(table).column("row").to_pylist() == [2, 4, 5]
