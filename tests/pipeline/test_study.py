"""`autointerp run`: a study of several dictionaries and draws, in cells, with united tables."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

from autointerp.tables.load import load_explanations, load_latents, load_scores, load_table


def study_yaml(world: Any, folder: Path, **changes: Any) -> Path:
    settings: dict[str, Any] = {
        "subject": {"model": str(world.model)},
        "data": {"dataset": str(world.corpus), "tokens": 20_000, "context_length": 64},
        "limit": 3,
        "sampling": {"window": 16, "explain_activating": 10, "explain_random": 10, "score_activating": 8,
                     "score_random": 8, "min_windows": 4, "prompts": 3, "prompt_tokens": 16},
        "explain": {"client": "fake", "llm": "keyword"},
        "score": {"methods": ["surprisal", "intervention"], "controls": ["shuffled_explanation"]},
        "train": {"architectures": ["topk", "relu"], "hookpoints": ["layers.1"], "widths": [32], "k": [4],
                  "batch_size": 256, "held_out": 4, "dead_after": 100_000},
        "study": {"controls": ["random_sae", "random_model", "neurons"], "neurons": 4, "draws": 2,
                  "once": ["intervention"]},
    }  # fmt: skip
    for name, value in changes.items():
        settings[name] = {**settings[name], **value} if isinstance(settings.get(name), dict) else value
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


@pytest.fixture(scope="module")
def study(world: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from autointerp.config import resolve
    from autointerp.pipeline.study import Study
    from autointerp.progress import Reporter

    folder = tmp_path_factory.mktemp("study")
    settings = resolve({}, config=study_yaml(world, folder), environ={})
    Study(settings, folder / "out", Reporter(quiet=True))()
    return folder / "out"


def test_every_dictionary_and_draw_is_a_run(study: Path) -> None:
    cells = sorted(path.name for path in (study / "cells").iterdir())
    assert len(cells) == 2 * (2 + 3)
    scores = load_scores(study)
    assert set(scores["run_id"]) == {"out"}
    own = scores[~scores["control"].isin(["shuffled_explanation"])]
    assert set(own["control"]) == {"none", "random_sae", "random_model", "neurons_topk"}
    assert own.groupby("control")["sae_id"].nunique().to_dict() == {
        "none": 2, "random_sae": 1, "random_model": 1, "neurons_topk": 1,
    }  # fmt: skip
    assert set(scores["corpus"]) == {"corpus.jsonl"}


def test_draws_are_of_the_same_latents_and_of_other_windows(study: Path) -> None:
    told = load_explanations(study)
    by_draw = told.groupby(["sae_id", "draw"])["latent"].agg(frozenset).unstack("draw")
    assert (by_draw[0] == by_draw[1]).all()
    windows = load_table(study, "windows")
    scored = windows[windows["split"] == "score"].groupby(["sae_id", "draw"])["window_id"].agg(frozenset).unstack()
    assert (scored[0] != scored[1]).all()


def test_dear_scorers_grade_the_first_draw_only(study: Path) -> None:
    scores = load_scores(study)
    assert set(scores.loc[scores["method"] == "intervention", "draw"]) == {0}
    assert set(scores.loc[scores["method"] == "surprisal", "draw"]) == {0, 1}


def test_latents_are_counted_once_and_figures_of_training_are_kept(study: Path) -> None:
    latents = load_latents(study)
    assert not latents.duplicated(["sae_id", "latent"]).any()
    assert latents["sae_id"].nunique() == 5
    metrics = load_table(study, "sae_metrics")
    assert not metrics.duplicated(["sae_id", "metric"]).any()
    trained = metrics[metrics["metric"] == "ce_recovered"]
    assert trained["sae_id"].nunique() == 3, "two trained SAEs, and one trained on the random model"


def test_a_finished_study_asks_and_trains_nothing_again(
    study: Path, cli: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {table: load_table(study, table) for table in ("scores", "explanations", "usage")}
    monkeypatch.setattr("autointerp.pipeline.study.explain", lambda *a, **k: pytest.fail("explained again"))
    ended = cli("run", "--config", study.parent / "study.yaml", "--out", study, "--quiet")
    assert ended.code == 0, ended.err
    assert "of 10 runs" in ended.out
    for table, frame in before.items():
        pd.testing.assert_frame_equal(load_table(study, table), frame)


def test_stores_are_shared_by_draws(study: Path) -> None:
    assert len(list((study / "store").iterdir())) == 5
    assert not list((study / "cells").glob("*/store"))


def test_judges_and_explainers_are_crossed(world: Any, tmp_path: Path, cli: Callable[..., Any]) -> None:
    """Two judges grade the same explanations, each made once."""
    config = study_yaml(
        world, tmp_path, sae=str(world.sae), train={"hookpoints": []}, study={"controls": [], "draws": 1, "once": []},
        score={"client": "fake", "methods": ["detection"]},
    )  # fmt: skip
    out = tmp_path / "crossed"
    ended = cli(
        "run", "--config", config, "--out", out, "--explainers", "tokens,default", "--scorer-llms", "keyword,constant",
    )  # fmt: skip
    assert ended.code == 0, ended.err
    scores, told = load_scores(out), load_explanations(out)
    assert set(told["explainer"]) == {"tokens", "default"}
    assert not told.duplicated(["sae_id", "latent", "pole", "explainer"]).any()
    assert scores["scorer_model"].nunique() == 2
    own = scores[(scores["control"] == "none") & (scores["metric"] == "balanced_accuracy")]
    assert own.groupby(["explainer", "scorer_model"])["latent"].agg(frozenset).nunique() == 1


def test_one_cell_is_an_ordinary_run_folder(world: Any, tmp_path: Path, cli: Callable[..., Any]) -> None:
    config = study_yaml(
        world, tmp_path, train={"hookpoints": []}, study={"controls": [], "draws": 1}, score={"methods": ["surprisal"]},
    )  # fmt: skip
    config.write_text(config.read_text().replace("once:\n  - intervention", "once: []"))
    out = tmp_path / "one"
    ended = cli("run", "--config", config, "--sae", world.sae, "--out", out)
    assert ended.code == 0, ended.err
    assert not (out / "cells").exists()
    assert set(load_scores(out)["method"]) == {"surprisal"}
    again = cli("score", "--run", out, "--method", "intervention")
    assert again.code == 0, again.err


def test_what_would_be_run_is_said_first(world: Any, tmp_path: Path, cli: Callable[..., Any]) -> None:
    ended = cli("run", "--config", study_yaml(world, tmp_path), "--out", tmp_path / "out", "--dry-run")
    assert ended.code == 0, ended.err
    assert "2 SAEs (topk, relu" in ended.out
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"train": {"hookpoints": []}}, "nothing to run"),
        ({"study": {"once": ["detection"]}}, "study.once names detection"),
        ({"study": {"explainers": ["tokens", "tokns"]}}, "tokns"),
        ({"score": {"methods": ["embeding"]}}, "embeding"),
    ],
)
def test_bad_studies_are_refused_before_anything_is_written(
    world: Any, tmp_path: Path, cli: Callable[..., Any], changes: dict[str, Any], said: str
) -> None:
    ended = cli("run", "--config", study_yaml(world, tmp_path, **changes), "--out", tmp_path / "out")
    assert ended.code == 2
    assert said in ended.err
    assert ended.err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_finished_cells_are_known_by_their_settings(study: Path) -> None:
    marks = {json.loads(path.read_text()) for path in study.glob("cells/*/finished.json")}
    assert len(marks) == 10


def test_shards_of_every_stage_give_the_tables_of_one_process(
    world: Any, tmp_path: Path, cli: Callable[..., Any]
) -> None:
    config = study_yaml(
        world, tmp_path, limit=5, train={"hookpoints": []}, study={"controls": ["random_sae"]},
        score={"methods": ["surprisal"]},
    )  # fmt: skip
    config.write_text(config.read_text().replace("once:\n  - intervention", "once: []"))
    how = ("run", "--config", config, "--sae", world.sae, "--quiet")
    assert cli(*how, "--out", tmp_path / "whole").code == 0
    out = tmp_path / "sharded"
    for stage, count in (("collect", 2), ("explain", 3), ("score", 4)):
        for index in reversed(range(count)):
            ended = cli(*how, "--out", out, "--only", stage, "--shard", f"{index}/{count}")
            assert ended.code == 0, ended.err
        if stage == "explain":
            early = cli("merge", out, "--quiet")
            assert early.code == 0, early.err
            assert load_scores(out).empty
    ended = cli("merge", out, "--quiet")
    assert ended.code == 0, ended.err
    for table in ("scores", "judgements", "explanations", "windows", "latents", "lens", "sae_metrics"):
        mine, theirs = load_table(out, table), load_table(tmp_path / "whole", table)
        pd.testing.assert_frame_equal(mine.drop(columns="run_id"), theirs.drop(columns="run_id"))
    counted = ["stage", "model", "calls", "prompt_tokens", "completion_tokens"]
    pd.testing.assert_frame_equal(
        load_table(out, "usage")[counted].drop(columns="prompt_tokens"),
        load_table(tmp_path / "whole", "usage")[counted].drop(columns="prompt_tokens"),
    )


def test_a_missing_shard_is_named_and_not_merged(world: Any, tmp_path: Path, cli: Callable[..., Any]) -> None:
    config = study_yaml(
        world, tmp_path, train={"hookpoints": []}, study={"controls": [], "draws": 1}, score={"methods": ["surprisal"]}
    )  # fmt: skip
    config.write_text(config.read_text().replace("once:\n  - intervention", "once: []"))
    how = ("run", "--config", config, "--sae", world.sae, "--quiet", "--out", tmp_path / "out")
    assert cli(*how, "--only", "collect").code == 0
    assert cli("merge", tmp_path / "out", "--partial").code == 0
    assert not (tmp_path / "out" / "finished.json").exists(), "what was not begun is not finished"
    assert cli(*how, "--only", "explain", "--shard", "1/3").code == 0
    scoring = cli(*how, "--only", "score", "--shard", "1/3")
    assert scoring.code == 2
    assert "not explained yet" in scoring.err
    ended = cli("merge", tmp_path / "out")
    assert ended.code == 2
    assert "2 units of 1 of 1 cells are not finished" in ended.err
