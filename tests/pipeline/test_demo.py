"""The demo at reduced size, on the real subject model, the real encoder and the real corpus, killed in every stage."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import pandas as pd
import pytest
from demo_process import finish_demo, start_demo

import autointerp
import sae

TABLES = ("scores", "judgements", "explanations", "latents", "windows", "sae_metrics", "failures")
STAGES = ("activations", "train", "collect", "explain", "surprisal", "embedding", "intervention")


def kill_in(out: Path, stage: str, how: int = signal.SIGKILL) -> int:
    """Start the demo and end it shortly after a stage has begun; returns the exit code."""
    process = start_demo(out)
    assert process.stderr is not None
    try:
        for line in process.stderr:
            if line.startswith(f"[{stage}]") and line.rstrip().endswith("to do"):
                time.sleep(0.4)
                os.kill(process.pid, how)
                break
        else:
            pytest.fail(f"the stage {stage} never began")
        threading.Thread(target=process.stderr.read, daemon=True).start()
        return process.wait(timeout=60)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        process.stderr.close()
        if process.stdout:
            process.stdout.close()


@pytest.mark.slow
def test_tables_of_the_small_demo(small_demo: Path) -> None:
    scores = autointerp.load_scores(small_demo)
    headline = scores.query("metric in ['auroc', 'logprob_gain']")
    assert set(headline["method"]) == {"surprisal", "embedding", "intervention"}
    assert set(headline["control"]) == {"none", "shuffled_explanation"}
    computed = headline.dropna(subset=["value"])
    assert len(computed) >= 20
    assert (computed["ci_low"] <= computed["value"]).all()
    assert (computed["value"] <= computed["ci_high"]).all()
    assert (computed["ci_low"] < computed["ci_high"]).all()
    reached = scores.query("metric == 'reached_kl'")
    ok = set(scores.query("metric == 'logprob_gain' and status == 'ok'")["latent"])
    assert reached[reached["latent"].isin(ok)]["value"].between(0.9, 1.1).all()
    windows = autointerp.load_table(small_demo, "windows")
    explain, score = (set(windows[windows["split"] == s]["document"]) for s in ("explain", "score"))
    assert explain
    assert score
    assert not explain & score
    model = sae.load(small_demo / "sae")
    assert len(autointerp.load_latents(small_demo)) == model.n_latents
    metrics = autointerp.load_table(small_demo, "sae_metrics").set_index("metric")["value"]
    assert 0 < metrics["fvu"] < 1
    assert model.metadata.metrics["l0"] == pytest.approx(32, abs=0.5)


@pytest.mark.slow
def test_killed_in_every_stage_it_ends_with_the_same_tables(small_demo: Path, tmp_path: Path) -> None:
    out = tmp_path / "demo"
    for stage in STAGES:
        assert kill_in(out, stage) == -signal.SIGKILL, stage
    finish_demo(out)
    for table in TABLES:
        pd.testing.assert_frame_equal(
            pd.read_parquet(small_demo / f"{table}.parquet"), pd.read_parquet(out / f"{table}.parquet"), obj=table
        )


@pytest.mark.slow
def test_an_interrupt_ends_with_130_and_a_word(tmp_path: Path) -> None:
    assert kill_in(tmp_path / "demo", "activations", signal.SIGINT) == 130
