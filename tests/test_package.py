"""The package as it is shipped: what the wheel holds, what starting up loads, how long modules are."""

from __future__ import annotations

import re
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
HEAVY = {"torch", "transformers", "pandas", "numpy", "pyarrow", "datasets", "openai", "scipy", "sklearn", "pydantic"}


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys, runpy\nsys.argv = ['autointerp', '--help']\n"
        "try:\n    runpy.run_module('autointerp', run_name='__main__')\nexcept SystemExit as end:\n    assert not end.code\n"
        "print('LOADED', *sorted({name.split('.')[0] for name in sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split("LOADED", 1)[1].split())
    assert "typer" in loaded
    assert not loaded & HEAVY


def test_the_wheel_holds_the_four_packages_and_their_templates(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)],
        cwd=ROOT, check=True, capture_output=True,
    )  # fmt: skip
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names if ".dist-info/" not in name}
    assert tops == {"autointerp", "sae", "scoring", "prompts"}
    for needed in (
        "prompts/templates/detection.v1.jinja", "prompts/templates.lock.json", "autointerp/report/templates/report.css",
        "autointerp/py.typed", "sae/architectures/topk.py",
    ):  # fmt: skip
        assert needed in names


def test_modules_fit_in_the_head() -> None:
    files = [path for package in ("autointerp", "sae", "scoring", "prompts") for path in (ROOT / package).rglob("*.py")]
    long = {str(path): n for path in files if (n := len(path.read_text().splitlines())) > 400}
    assert not long
    assert len(files) > 50


def test_nothing_unpickles() -> None:
    files = [path for package in ("autointerp", "sae", "scoring", "prompts") for path in (ROOT / package).rglob("*.py")]
    for path in files:
        text = path.read_text()
        assert "import pickle" not in text, path
        assert "allow_pickle=True" not in text, path
        assert not re.search(r"torch\.load\((?![^)]*weights_only=True)", text), path
