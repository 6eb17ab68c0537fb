"""The benchmarks run at their small size, and `--check` fails where a figure misses its line."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parent.parent / "benchmarks"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "figure"),
    [
        ("store_scale.py", "bytes on disk per activation"),
        ("sample.py", "CPU-ms per latent"),
        ("collect.py", "ours / floor at 1152, CPU-seconds"),
        ("engine.py", "engine / faster bare client, wall"),
        ("likelihood.py", "shared / unshared, CPU-seconds"),
        ("report.py", "seconds to build"),
    ],
)
def test_small_sizes_run(script: str, figure: str) -> None:
    done = subprocess.run([sys.executable, FOLDER / script, "--size", "small"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (line,) = [line for line in done.stdout.splitlines() if line.strip().startswith(f"{figure} ")]
    assert float(line.removeprefix(f"  {figure}").split()[0]) > 0


@pytest.mark.parametrize(("value", "check", "code"), [(1.0, True, 0), (3.0, True, 1), (3.0, False, 0)])
def test_check_holds_figures_against_their_lines(
    value: float, check: bool, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))
    bench: Any = __import__("_bench")
    figures = bench.Figures("a benchmark")
    figures.add("a ratio", value, 2.0)
    figures.add("a speed", 0.5, 0.1, at_most=False)
    with pytest.raises(SystemExit) as end:
        figures.finish(bench.parser("").parse_args(["--check"] if check else []))
    assert end.value.code == code
    assert ("missed: a ratio" in capsys.readouterr().out) == (value > 2)
