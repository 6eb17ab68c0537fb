"""What fits into a cluster, computed by hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from autointerp.errors import UserError
from autointerp.pipeline.cluster import ASSUMED, Cluster, fits, needed
from autointerp.pipeline.cost import HERE, StageCost

COLLECT = StageCost("collect", HERE, 1000, 0, 7_200_000)
EXPLAIN = StageCost("explain", "m at http://127.0.0.1/v1", 1000, 1000, 6_000_000, (0, 1_200_000, 9_000_000))
SCORE = StageCost("score-surprisal", HERE, 1000, 1000, 3_600_000)


def test_gpu_hours_are_tokens_over_speed() -> None:
    cluster = Cluster.parse("2xA100, hours=3, tokens_per_second=1000, subject_tokens_per_second=2000")
    assert cluster.gpu_hours == 6 and cluster.kind == "A100"
    assert [needed(stage, cluster) for stage in (COLLECT, EXPLAIN, SCORE)] == [1.0, 2.0, 0.5]
    lines = fits([COLLECT, EXPLAIN, SCORE], cluster)
    assert "it fits: 58.3% of the GPU-hours" in lines[-1]
    assert all("as you say" in line for line in lines if "for one GPU" in line)


def test_what_is_assumed_is_said_to_be() -> None:
    lines = fits([COLLECT, EXPLAIN], Cluster.parse("1xH100,hours=24,tokens_per_second=5000"))
    told = [line for line in lines if "for one GPU" in line]
    assert [("assumed, not measured" in line) for line in told] == [True, False]
    assert f"{ASSUMED['subject_tokens_per_second']:,.0f}" in told[0]


@pytest.mark.parametrize(
    ("hours", "said"),
    [(2.0, "400 of 1,000 latents do; --limit 400"), (1.0, "collecting alone takes 1.0 GPU-hours")],
)
def test_what_does_not_fit_is_cut_to_what_does(hours: float, said: str) -> None:
    cluster = Cluster.parse(f"1xH100,hours={hours},tokens_per_second=1000,subject_tokens_per_second=2000")
    lines = fits([COLLECT, EXPLAIN, SCORE], cluster)
    assert "it does not fit" in lines[-1] and said in lines[-1]


@pytest.mark.parametrize(
    "text", ["", "H100", "8xH100", "0xH100,hours=1", "8xH100,hours=0", "8xH100,hours=x", "8xH100,hours=1,speed=3",
             "8xH100,hours=1,tokens_per_second=0"],
)  # fmt: skip
def test_bad_clusters_are_refused(text: str) -> None:
    with pytest.raises(UserError, match="8xH100,hours=24"):
        Cluster.parse(text)


def test_the_command_says_what_fits(world: Any, tmp_path: Path, cli: Callable[..., Any]) -> None:
    ended = cli(
        "cost", "--sae", world.sae, "--llm", "m", "--base-url", "servers:", "--limit", 4, "--tokens", 20_000,
        "--context-length", 64, "--method", "detection", "--out", tmp_path / "none", "--cluster", "8xH100,hours=24",
    )  # fmt: skip
    assert ended.code == 0, ended.err
    assert "cluster: 8 x H100 for 24 h, 192 GPU-hours" in ended.out and "assumed, not measured" in ended.out
    assert "it fits" in ended.out and not (tmp_path / "none").exists()
