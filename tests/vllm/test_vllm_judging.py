"""A real vLLM server judges a run from the command line, and answers that are none are counted alike in all tables."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import autointerp
from autointerp.clients.hf import HFClient
from autointerp.engine.ask import answer_all
from prompts import render
from prompts.requests import Likelihood, LikelihoodReply
from scoring import surprisal

pytestmark = pytest.mark.vllm
served = pytest.mark.parametrize("client", ["openai"], indirect=True)

LATENTS, WINDOWS, FEW = 20, 8, 5
CONTEXT = 2048
"""Tokens, of the server that `conftest` starts."""
JUDGES = ("detection", "fuzzing")
NATS = 0.02
"""By which the log-probability of a token may differ from that of transformers, on average over a window."""


def autointerp_(*args: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "autointerp", *map(str, args), "--plain"], capture_output=True, text=True, check=False
    )


@pytest.fixture(scope="session")
def explained(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty neurons of the demo's model on docstrings, each pole explained by a word. Nobody may change it."""
    out = tmp_path_factory.mktemp("judging") / "run"
    sampling = {"window": 16, "score_activating": WINDOWS, "score_random": 3 * WINDOWS, "explain_activating": 12,
                "explain_random": 12, "prompts": 0}  # fmt: skip
    ended = autointerp_(
        "explain", "--sae", "neurons:32", "--model", model_folder, "--hookpoint", "layers.9", "--dataset", "docstrings",
        "--tokens", 8000, "--context-length", 128, "--limit", LATENTS, "--client", "fake", "--out", out,
        *(part for name, value in sampling.items() for part in ("--set", f"sampling.{name}={value}")),
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    return out


def judge(run: Path, client: Any, methods: str, *more: object) -> subprocess.CompletedProcess[str]:
    options = ", ".join(f"{name}: {{windows: {WINDOWS if name in JUDGES else FEW}}}" for name in methods.split(","))
    return autointerp_(
        "score", "--run", run, "--method", methods, "--client", "openai", "--base-url", client.urls[0],
        "--scorer-llm", client.model, "--set", "score.likelihoods=client", "--set", "score.control_latents=0",
        "--set", "score.timeout=600", "--set", f"score.options={{{options}}}", *more,
    )  # fmt: skip


def asked(judgements: pd.DataFrame) -> pd.DataFrame:
    """One row of each request. Its tokens are booked on the first of its windows; one that was refused has none."""
    booked = judgements[judgements["prompt_tokens"] > 0]
    refused = judgements[~judgements["reply_sha"].isin(booked["reply_sha"])]
    return pd.concat([booked, refused.drop_duplicates(["method", "latent", "pole", "reply_sha"])])


def assert_books_agree(run: Path, methods: tuple[str, ...]) -> pd.DataFrame:
    """Scores, judgements, failures and usage of judges; the judgements."""
    tables = {name: autointerp.load_table(run, name) for name in ("judgements", "scores", "failures", "usage")}
    judged, failures = tables["judgements"].query("method in @methods"), tables["failures"]
    failures = failures[failures["stage"].isin([f"score-{method}" for method in methods])]
    assert judged.groupby("method")["latent"].nunique().to_dict() == dict.fromkeys(methods, LATENTS)
    each = ["method", "latent", "pole"]
    lost = judged["status"] != "ok"
    assert (judged["prediction"].isna() == lost).all(), "what has a status other than ok has no answer"

    # Against each kind of other windows apart, and all together: that is the largest.
    balanced = tables["scores"].query("metric == 'balanced_accuracy' and method in @methods")
    counted = balanced.assign(count=balanced["n"] + balanced["n_failed"]).sort_values("count")
    counted = counted.groupby(each)[["n_failed", "count"]].last()
    counts = judged.assign(n_failed=lost).groupby(each)["n_failed"].agg(["sum", "count"])
    assert counted["n_failed"].tolist() == counts["sum"].tolist()
    assert counted["count"].tolist() == counts["count"].tolist()

    # A failure is of a request, a judgement of a window.
    requests = asked(judged)
    broken = requests[requests["status"] != "ok"]
    assert sorted(zip("score-" + broken["method"], broken["latent"], broken["status"], strict=True)) == sorted(
        zip(failures["stage"], failures["latent"], failures["kind"], strict=True)
    )

    for method in methods:
        mine = requests.query("method == @method")
        usage = tables["usage"].query("stage == @stage", local_dict={"stage": f"score-{method}"})
        paid = usage[["prompt_tokens", "completion_tokens", "saved_tokens"]].sum().sum()
        assert mine[["prompt_tokens", "completion_tokens"]].sum().sum() == paid
        # Who broke the schema was asked once more; so was who mended it then, of whom no table tells.
        calls = usage[["calls", "cached_calls"]].sum().sum() - usage["retries"].sum()
        assert len(mine) + (mine["status"] == "unparsable").sum() <= calls <= 2 * len(mine)
    return judged


@served
def test_twenty_latents_are_judged_and_no_answer_breaks_its_schema(
    client: Any, reference: HFClient, explained: Path, tmp_path: Path
) -> None:
    run = shutil.copytree(explained, tmp_path / "run")
    ended = judge(run, client, "detection,fuzzing,surprisal")
    assert ended.returncode == 0, ended.stderr
    judged = assert_books_agree(run, JUDGES)
    assert (judged["status"] == "ok").all()
    assert len(autointerp.load_table(run, "failures")) == 0
    usage = autointerp.load_table(run, "usage").set_index("stage")
    for method in JUDGES:
        # Nobody was asked twice.
        calls = usage.loc[f"score-{method}", ["calls", "cached_calls"]].sum()
        assert calls == len(asked(judged.query("method == @method")))
        assert judged.query("method == @method")["label"].mean() == pytest.approx(0.5, abs=0.15)
    scores = autointerp.load_scores(run)
    balanced = scores.query("metric == 'balanced_accuracy' and status == 'ok'")
    assert balanced.groupby("method")["latent"].nunique().to_dict() == dict.fromkeys(JUDGES, LATENTS)
    assert set(scores["scorer_model"].dropna()) == {client.model}

    aurocs = scores.query("method == 'surprisal' and metric == 'auroc'")
    assert aurocs["latent"].nunique() == LATENTS
    assert (aurocs["n"] == 2 * FEW).all() and (aurocs["n_failed"] == 0).all()
    gains = autointerp.load_table(run, "judgements").query("method == 'surprisal'")
    assert usage.loc["score-surprisal", ["calls", "cached_calls"]].sum() == 2 * len(gains)
    texts = autointerp.load_table(run, "windows").set_index(["latent", "pole", "window_id"])["text"]
    explanations = autointerp.load_explanations(run).set_index(["latent", "pole"])["text"]
    baseline = render.text(surprisal.TEMPLATES[1])
    for (latent, pole), some in list(gains.groupby(["latent", "pole"]))[:3]:
        told = render.text(surprisal.TEMPLATES[0], explanation=explanations[latent, pole])
        for window_id, gain in zip(some["window_id"], some["probability"], strict=True):
            text = texts[latent, pole, window_id]
            with_it, without = answer_all(reference, [Likelihood(told, text), Likelihood(baseline, text)])
            assert isinstance(with_it, LikelihoodReply) and isinstance(without, LikelihoodReply)
            assert gain == pytest.approx(with_it.logprob - without.logprob, abs=NATS * len(with_it.token_logprobs))


@served
def test_answers_that_break_the_schema_are_counted_alike_everywhere(
    client: Any, explained: Path, tmp_path: Path
) -> None:
    """Without a schema a small model writes what it likes, and often more than there is room for."""
    run = shutil.copytree(explained, tmp_path / "run")
    free = ("--set", "score.schemas=false", "--max-failed")
    ended = judge(run, client, "detection", *free, 1)
    assert ended.returncode == 0, ended.stderr
    judged = assert_books_agree(run, ("detection",))
    failed = judged["status"] != "ok"
    assert failed.mean() > 0.2, "too few broke it for this test to see anything"
    assert set(judged["status"]) <= {"ok", "unparsable", "truncated"} and "unparsable" in set(judged["status"])
    # A share of failures that is allowed, and one that is not: nothing is asked anew.
    calls = autointerp.load_table(run, "usage").set_index("stage")["calls"]
    ended = judge(run, client, "detection", *free, 0)
    assert ended.returncode == 4 and f"{failed.mean():.0%} of the judgements failed" in ended.stderr, ended.stderr
    assert (
        autointerp.load_table(run, "usage").set_index("stage")["calls"]["score-detection"] == calls["score-detection"]
    )


@served
def test_requests_that_are_too_long_are_counted_beside_those_that_are_not(
    client: Any, explained: Path, tmp_path: Path
) -> None:
    """Up to 32 windows of up to 126 tokens, 28 to a request: some do not fit into the context, what is left over does.

    Where the prompt fits and the answer does not, vLLM lets the answer end with the context.
    """
    run = shutil.copytree(explained, tmp_path / "run")
    long = ("--set", "sampling.window=126", "--set", "score.options={detection: {windows: 24, per_request: 28}}")
    ended = judge(run, client, "detection", *long, "--max-failed", 1)
    assert ended.returncode == 0, ended.stderr
    assert_failures_among_others_are_left_out(run)


def assert_failures_among_others_are_left_out(run: Path) -> None:
    """Values are those of the answers that came; the others are counted."""
    judged = assert_books_agree(run, ("detection",))
    assert {"ok", "context_overflow"} <= set(judged["status"]) <= {"ok", "context_overflow", "truncated"}
    cut = asked(judged).query("status == 'truncated'")
    assert (cut["prompt_tokens"] + cut["completion_tokens"] == CONTEXT).all()
    both = judged.groupby(["latent", "pole"])["status"].nunique() == 2
    assert both.any(), "no latent has failed answers beside others"
    scores = autointerp.load_scores(run).query("metric == 'balanced_accuracy'").set_index(["latent", "pole"])
    for (latent, pole), mine in judged.groupby(["latent", "pole"]):
        right = (mine["prediction"] == mine["label"])[mine["status"] == "ok"].astype(float)
        sides = right.groupby(mine["label"]).agg(["mean", "count"])
        if len(sides) == 2 and sides["count"].min() >= 5:
            assert scores.loc[(latent, pole), "value"] == pytest.approx(sides["mean"].mean())
        else:
            assert scores.loc[(latent, pole), "status"] == "too_few_windows"
