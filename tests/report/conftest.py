"""A synthetic run folder and its report, built once for all tests that only read them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from synthetic_run import build

from autointerp.report import build_report


@pytest.fixture(scope="session")
def run_builder(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Builds a run folder of its own for the test that calls it."""
    return lambda **given: build(tmp_path_factory.mktemp("run") / "synthetic", **given)


@pytest.fixture(scope="session")
def run(run_builder: Callable[..., Path]) -> Path:
    return run_builder()


@pytest.fixture(scope="session")
def page(run: Path) -> Path:
    return build_report([run])
