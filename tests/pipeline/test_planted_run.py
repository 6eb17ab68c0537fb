"""The commands on a planted world: what comes out is known beforehand."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import planted
import pyarrow.parquet as pq
import pytest

import autointerp
from autointerp.tables.schemas import TABLES

SMALL = (
    "--tokens", 30_000, "--context-length", 64, "--set", "sampling.explain_activating=12",
    "--set", "sampling.explain_random=12", "--set", "sampling.score_activating=15", "--set", "sampling.score_random=15",
    "--set", "sampling.window=16", "--set", "sampling.prompts=4", "--plain",
)  # fmt: skip


@pytest.fixture
def explained(world: Any, cli: Callable[..., Any], tmp_path: Path) -> Path:
    out = tmp_path / "run"
    ended = cli("explain", "--sae", world.sae, "--client", "fake", "--out", out, *SMALL)
    assert ended.code == 0, ended.err
    assert "no latent store for this SAE yet" in ended.err
    assert f"next: autointerp score --run {out}" in ended.out
    return out


def test_explanations_name_the_planted_words(explained: Path) -> None:
    table = autointerp.load_explanations(explained)
    assert dict(zip(table["latent"], table["text"], strict=True)) == {
        i: f'the word "{word}"' for i, word in enumerate(planted.CONCEPTS)
    }
    latents = autointerp.load_latents(explained)
    assert len(latents) == planted.N_LATENTS
    assert latents.set_index("latent")["state"].tolist() == ["live"] * 8 + ["dead"] * 8
    assert latents.loc[latents["state"] == "dead", "max_activation"].isna().all()


def test_scores_and_controls(explained: Path, cli: Callable[..., Any]) -> None:
    ended = cli(
        "score", "--run", explained, "--method", "detection,surprisal,intervention", "--client", "fake", "--plain",
        "--set", "score.options={intervention: {target_kl: 0.2, new_tokens: 3}}",
    )  # fmt: skip
    assert ended.code == 0, ended.err
    scores = autointerp.load_scores(explained)
    for table, schema in TABLES.items():
        if (explained / f"{table}.parquet").is_file():
            assert pq.read_schema(explained / f"{table}.parquet").names == schema.names
    detection = scores.query("method == 'detection' and metric == 'balanced_accuracy'").pivot_table(
        index="latent", columns="control", values="value"
    )
    assert (detection["none"] == 1.0).all()
    assert (detection["shuffled_explanation"] < 0.6).all()
    real = scores.query("method == 'detection' and control == 'none' and metric == 'balanced_accuracy'")
    assert (real["ci_low"] < 1).all()
    assert (real["ci_high"] == 1).all()
    assert real["n"].tolist() == [30] * 8
    steered = scores.query("method == 'intervention' and metric == 'reached_kl' and control == 'none'")
    converged = scores.query("method == 'intervention' and metric == 'logprob_gain' and status == 'ok'")
    assert len(steered) == 8
    assert len(converged), "no intervention reached its target"
    reached = steered.set_index("latent")["value"].loc[converged["latent"].unique()]
    assert ((reached - 0.2).abs() <= 0.02 + 1e-9).all()
    assert (explained / "report" / "index.html").is_file()
    assert (explained / "prompts" / "detection.v1.jinja").is_file()
    assert "detection" in ended.out
    assert "shuffled" in ended.out


def test_a_second_run_asks_nothing_and_changes_nothing(world: Any, explained: Path, cli: Callable[..., Any]) -> None:
    before = pd.read_parquet(explained / "explanations.parquet")
    ended = cli("explain", "--sae", world.sae, "--client", "fake", "--out", explained, *SMALL)
    assert ended.code == 0
    assert "8 of 8 latents are explained already" in ended.err
    pd.testing.assert_frame_equal(before, pd.read_parquet(explained / "explanations.parquet"))


def test_scores_of_other_explanations_are_left_out(world: Any, explained: Path, cli: Callable[..., Any]) -> None:
    scoring = ("score", "--run", explained, "--method", "detection", "--client", "fake", "--plain")
    assert cli(*scoring).code == 0
    whole = autointerp.load_scores(explained)
    ended = cli("explain", "--sae", world.sae, "--client", "fake", "--out", explained, *SMALL, "--latents", "2,5")
    assert "the explanations changed" in ended.err
    assert autointerp.load_explanations(explained)["latent"].tolist() == [2, 5]
    assert autointerp.load_scores(explained).empty
    assert cli(*scoring).code == 0
    assert sorted(autointerp.load_scores(explained)["control"].unique()) == [
        "generic_explanation",
        "none",
        "shuffled_explanation",
    ]
    assert cli("explain", "--sae", world.sae, "--client", "fake", "--out", explained, *SMALL).code == 0
    again = cli(*scoring)
    assert "8/8" not in again.err
    pd.testing.assert_frame_equal(autointerp.load_scores(explained), whole)


def test_fresh_redoes_everything_and_spares_the_sae(world: Any, cli: Callable[..., Any], tmp_path: Path) -> None:
    out = tmp_path / "run"
    shutil.copytree(world.sae, out / "sae")
    command = ("explain", "--sae", out / "sae", "--client", "fake", "--out", out, *SMALL)
    assert cli(*command).code == 0
    (out / "notes.txt").write_text("mine")
    ended = cli(*command, "--fresh")
    assert ended.code == 0, ended.err
    assert "collecting activations" in ended.err
    assert "explained already" not in ended.err
    assert (out / "sae" / "weights.safetensors").is_file()
    assert (out / "notes.txt").read_text() == "mine"


def test_failed_explanations_are_rows_with_a_reason(world: Any, cli: Callable[..., Any], tmp_path: Path) -> None:
    script = tmp_path / "replies.jsonl"
    script.write_text(
        # An answer that is no JSON is asked for once more, and not a third time.
        '{"failure": "refused", "message": "no"}\n'
        + '{"text": "not json"}\n' * 2
        + '{"text": "{\\"explanation\\": \\"x\\"}"}\n' * 6
    )
    out = tmp_path / "failing"
    ended = cli("explain", "--sae", world.sae, "--client", "fake", "--llm", f"script:{script}", "--out", out, *SMALL)
    assert ended.code == 0, ended.err
    table = autointerp.load_explanations(out)
    assert table["status"].tolist() == ["refused", "unparsable", *["ok"] * 6]
    assert table["text"].isna().sum() == 2
    failures = autointerp.load_table(out, "failures")
    assert failures["kind"].tolist() == ["refused", "unparsable"]

    ended = cli("score", "--run", out, "--method", "detection", "--client", "fake", "--plain")
    assert ended.code == 0, ended.err
    scores = autointerp.load_scores(out).query("control == 'none'").set_index("latent")
    assert scores.loc[0, "status"] == "no_explanation"
    assert pd.isna(scores.loc[0, "value"])
    # Where there is no explanation, the headline is null; no other figure is made up.
    assert len(scores.query("metric == 'balanced_accuracy'")) == 8 and scores.loc[[0, 1], "metric"].nunique() == 1

    ended = cli("explain", "--sae", world.sae, "--client", "fake", "--out", out, *SMALL, "--retry-failed")
    assert ended.code == 0, ended.err
    assert autointerp.load_explanations(out)["status"].eq("ok").all()


def test_too_many_failures_end_with_4(world: Any, cli: Callable[..., Any], tmp_path: Path) -> None:
    script = tmp_path / "replies.jsonl"
    script.write_text('{"failure": "refused", "message": "no"}\n' * 8)
    out = tmp_path / "all-failed"
    ended = cli("explain", "--sae", world.sae, "--client", "fake", "--llm", f"script:{script}", "--out", out, *SMALL)
    assert ended.code == 4
    assert "100% of the explanations failed" in ended.err
    assert len(autointerp.load_explanations(out)) == 8


def test_other_settings_are_refused_for_the_same_store(world: Any, explained: Path, cli: Callable[..., Any]) -> None:
    ended = cli("explain", "--sae", world.sae, "--client", "fake", "--out", explained, *SMALL, "--seed", 5)
    assert ended.code == 2
    assert "collected with other settings (corpus_seed: 0 instead of 5)" in ended.err


def test_judges_are_stopped_when_they_are_known(explained: Path, cli: Callable[..., Any]) -> None:
    def scored(*more: object) -> pd.DataFrame:
        ended = cli("score", "--run", explained, "--method", "detection", "--client", "fake", "--plain", *more)
        assert ended.code == 0, ended.err
        found = autointerp.load_scores(explained).query("method == 'detection' and control == 'none'")
        assert found["latent"].nunique() == 8
        return found

    whole = scored()
    early = scored("--ci-halfwidth", 0.2, "--set", "score.options={detection: {first_round: 5}}")
    headline = early.query("metric == 'balanced_accuracy'")
    assert set(headline["ci_method"]) == {"planned_stop"} and (headline["value"] == 1.0).all()
    assert headline["n"].sum() < whole.query("metric == 'balanced_accuracy'")["n"].sum() / 2
    one = scored("--set", "score.ci_halfwidth=null", "--set", "score.options={detection: {reading: probabilities}}")
    # The fake says to every choice what stands first in the prompt.
    assert len(one.query("metric == 'auroc'")) == 8
    ended = cli("score", "--run", explained, "--method", "detection", "--client", "fake", "--set",
                "score.options={detection: {reading: cards}}")  # fmt: skip
    assert ended.code == 2 and "reading is one of list, probabilities, not 'cards'" in ended.err


def test_every_scorer_that_asks_a_judge_runs_with_the_fake(explained: Path, cli: Callable[..., Any]) -> None:
    ended = cli("score", "--run", explained, "--method", "detection,fuzzing,simulation,intruder", "--client", "fake",
                "--plain", "--max-failed", 1)  # fmt: skip
    assert ended.code == 0, ended.err
    scores = autointerp.load_scores(explained).query("control == 'none'")
    assert set(scores["method"]) == {"detection", "fuzzing", "simulation", "intruder"}
    fuzzing = scores.query("method == 'fuzzing'")
    # The planted latents fire on every occurrence of their word, so that only decoys elsewhere can be right.
    assert {"mixed", "random", "moved"} >= set(fuzzing["negatives"].dropna()) and len(fuzzing) >= 8
    assert scores.query("method == 'simulation'")["value"].min() > 0.9
    judged = autointerp.load_table(explained, "judgements").query("method == 'fuzzing'")
    assert (judged["status"] == "ok").all() and judged["prediction"].notna().all()
