"""The benchmark's tables at a small size: what the report loads first stays small, however many latents there are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from autointerp.report import build_report

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def test_first_page_of_the_benchmark_grows_with_the_list_part_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    bench: Any = __import__("report")
    sizes = []
    for n in (150, 300):
        bench.write_run(tmp_path / str(n), n)
        folder = build_report([tmp_path / str(n)]).parent
        assert len(list(folder.glob("data-*.js"))) == n // 50
        sizes.append({name: (folder / name).stat().st_size for name in bench.FIRST_PAGE})
    few, many = sizes
    assert abs(many["index.html"] - few["index.html"]) < 3000
    per_entry = (many["index-000.js"] - few["index-000.js"]) / 150
    # A part of the list never holds more than a thousand.
    assert many["index.html"] + many["report.js"] + 1000 * per_entry < 1_500_000
