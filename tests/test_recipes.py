"""The recipes are right: on tables whose truth is known, and with traps for each of the page's three rules."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from autointerp.tables.schemas import TABLES

DOCS = Path(__file__).parent.parent / "docs"
PAGE = (DOCS / "recipes.md").read_text()
LATENTS = 6
TRUTH = {"a": 0.5 + 0.02 * np.arange(LATENTS), "b": 0.8 + 0.02 * np.arange(LATENTS)}
"""Of the scorer `embedding`. `surprisal` orders the latents the other way round."""
ARCH = {"a": "topk", "b": "relu", "c": "topk"}

Row = dict[str, Any]


def blocks(language: str, page: str = PAGE) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page, flags=re.MULTILINE | re.DOTALL)


def table_of(heading: str) -> Any:
    """What the first block below a heading leaves in `table`."""
    (section,) = re.findall(rf"^## {re.escape(heading)}\n(.*?)(?=^## |\Z)", PAGE, flags=re.MULTILINE | re.DOTALL)
    space: Row = {}
    exec(compile(blocks("python", section)[0], heading, "exec"), space)
    return space["table"]


def score(sae: str, latent: int, method: str, value: float | None, **given: Any) -> Row:
    return {
        "run_id": f"run-{sae}", "model": "m", "sae_id": sae, "arch": ARCH[sae], "hookpoint": "layers.3", "layer": 3,
        "width": 10, "latent": latent, "pole": 1, "explanation_id": f"{sae}{latent}", "explainer": "tokens",
        "explainer_model": "e", "method": method, "scorer_model": "judge", "control": "none", "negatives": "random",
        "metric": "auroc", "value": value, "ci_low": None if value is None else value - 0.1,
        "ci_high": None if value is None else value + 0.1, "n": 100, "n_failed": 0,
        "status": "failed" if value is None else "ok", "seed": 0, "draw": 0, "corpus": "text",
    } | given  # fmt: skip


def scores_of(sae: str) -> list[Row]:
    rows = []
    for latent, value in enumerate(TRUTH[sae]):
        against = float(TRUTH[sae][LATENTS - 1 - latent])
        # The first latent has many draws: rows of its own, they would pull every mean to it.
        for draw in range(9 if latent == 0 else 2):
            shift = 0.05 * (-1) ** draw if draw < 8 else 0.0
            rows.append(score(sae, latent, "embedding", float(value) + shift, draw=draw))
        rows.append(score(sae, latent, "surprisal", against))
        rows.append(score(sae, latent, "embedding", float(value) - 0.2, control="shuffled_explanation"))
        rows.append(score(sae, latent, "surprisal", against - 0.1 - 0.01 * latent, control="shuffled_explanation"))
        rows.append(score(sae, latent, "surprisal", 0.1, negatives="hard:decoder"))
        rows.append(score(sae, latent, "surprisal", 99.0, metric="other"))
    # In an SAE's place: an own explanation, but none of a trained SAE.
    rows.append(score("c", 0, "embedding", 0.1, control="random_sae", run_id=f"run-{sae}"))
    return rows


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `results/run-a` and `results/run-b`."""
    base = tmp_path_factory.mktemp("planted")
    for sae in TRUTH:
        run, about = base / "results" / f"run-{sae}", {"run_id": f"run-{sae}", "sae_id": sae}
        run.mkdir(parents=True)
        told = [
            {**about, "latent": i, "pole": 1, "explanation_id": f"{sae}{i}", "explainer": "tokens", "status": "ok",
             "text": f"the {sae}{i}", "draw": draw}
            for i in range(LATENTS) for draw in (0, 1)
        ]  # fmt: skip
        told.append({**about, "latent": 6, "pole": 1, "explanation_id": f"{sae}6", "status": "failed", "draw": 0})
        states = ["live"] * 7 + ["rare", "dead", "dense" if sae == "a" else "dead"]
        latents = [
            {**about, "latent": i, "density": 10.0 ** -(1.5 + i % 3), "state": state, "n_fired": 1, "n_tokens": 10,
             "corpus": corpus}
            for i, state in enumerate(states) for corpus in ("text", "more")
        ]  # fmt: skip
        judged = [
            {**about, "latent": i, "method": "embedding", "explanation_id": f"{sae}{i}", "control": "none",
             "window_id": f"w{w}", "kind": "activating" if w < 4 else "random", "label": w < 4, "status": "ok",
             # Of the eight windows of a latent, the last silent one and the first activating one change places.
             "probability": float({0: 0, 7: 7}.get(w, 7 - w)), "corpus": "text", "draw": 0}
            for i in range(LATENTS) for w in range(8)
        ]  # fmt: skip
        judged += [
            {**judged[0], "method": "detection", "latent": 1, "window_id": f"w{w}", "label": w < 4, "prediction": w < 3,
             "probability": None, "explanation_id": f"{sae}1"}
            for w in range(8)
        ]  # fmt: skip
        windows = [
            {**about, "latent": i, "pole": 1, "split": split, "window_id": f"w{w}", "text": f"{split} {i} {w}",
             "kind": "activating", "corpus": "text", "draw": draw}
            for i in range(LATENTS) for w in range(8) for split in ("explain", "score") for draw in (0, 1)
        ]  # fmt: skip
        usage = [
            {**about, "stage": stage, "model": "m", "calls": 2, "prompt_tokens": 10, "completion_tokens": 5,
             "price": price, "seconds": 1.0}
            for stage, price in (("explain", 0.5), ("score", 0.25 if sae == "a" else None))
        ]  # fmt: skip
        for name, rows in {
            "scores": scores_of(sae), "explanations": told, "latents": latents, "judgements": judged,
            "windows": windows, "usage": usage, "failures": [],
        }.items():  # fmt: skip
            full = [{column: row.get(column) for column in TABLES[name].names} for row in rows]
            pq.write_table(pa.Table.from_pylist(full, schema=TABLES[name]), run / f"{name}.parquet")
    return base


@pytest.fixture
def here(results: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(results)
    return results


def sem(values: np.ndarray[Any, Any]) -> float:
    return float(values.std(ddof=1) / np.sqrt(len(values)))


def test_scores(here: Path) -> None:
    table = (
        table_of("Scores by architecture, layer and method").reset_index().set_index(["arch", "method", "negatives"])
    )
    for sae, arch in (("a", "topk"), ("b", "relu")):
        row = table.loc[(arch, "embedding", "random")]
        assert row["mean"] == pytest.approx(TRUTH[sae].mean()) and row["count"] == LATENTS
        assert row["sem"] == pytest.approx(sem(TRUTH[sae])), "draws make no interval narrower"
        assert table.loc[(arch, "surprisal", "hard:decoder"), "mean"] == pytest.approx(0.1), "apart from the others"
    assert len(table) == 6, "and nothing of the random SAE"


def test_agreement(here: Path) -> None:
    table = table_of("Do the scorers agree?")
    pair = table.loc["embedding random judge", "surprisal random judge"]
    assert pair == pytest.approx(-1), "the scorers are at odds, though both rank one SAE above the other"


def test_disagreements(here: Path) -> None:
    table = table_of("Where do they disagree?")
    assert table["gap"].is_monotonic_decreasing and table["gap"].iloc[0] > 0.5
    assert table["text"].iloc[0].startswith("the ") and len(table) == 5


def test_density(here: Path) -> None:
    table = table_of("Score against density")
    assert table["count"].groupby("method").sum().to_dict() == {"embedding": 12, "surprisal": 12}, "no score twice"
    both = np.stack([TRUTH["a"], TRUTH["b"]])
    means = [both[:, [i, i + 3]].mean() for i in (2, 1, 0)]
    assert table.loc["embedding", "mean"].tolist() == pytest.approx(means)


def test_controls(here: Path) -> None:
    table = table_of("Does it beat its control?")
    mean, low, high, n = table["embedding"]
    assert mean == pytest.approx(0.2) and n == 2 * LATENTS and (low, high) == pytest.approx((0.2, 0.2))
    mean, low, high, _ = table["surprisal"]
    assert mean == pytest.approx(0.1 + 0.01 * 2.5) and low < mean < high, "and no hard windows in it"


def test_the_difference_of_two(here: Path) -> None:
    table = table_of("The difference between two variants")
    assert set(table) == {("embedding", "a", "b"), ("surprisal", "a", "b")}
    low, high = table["embedding", "a", "b"]
    assert low < -0.3 < high < -0.2
    wanted = 2 * 1.96 * np.hypot(sem(TRUTH["a"]), sem(TRUTH["b"])) * np.sqrt((LATENTS - 1) / LATENTS)
    assert high - low == pytest.approx(wanted, rel=0.1), "as wide as latents make it"


def test_best_and_worst(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    space: Row = {}
    (section,) = re.findall(
        r"^## The best and the worst explanations\n(.*?)(?=^## )", PAGE, flags=re.MULTILINE | re.DOTALL
    )
    exec(blocks("python", section)[0], space)
    said = capsys.readouterr().out
    assert len(space["told"]) == 4 * LATENTS, "each latent once a method"
    assert said.index("the b5") < said.index("the a0"), "the best first"


def test_coverage(here: Path) -> None:
    table = table_of("Coverage")
    shown = ["latents", "explained", "scored", "live", "rare", "dead", "dense"]
    assert table.loc["a", shown].tolist() == [10, 6, 6, 7, 1, 1, 1]
    assert table.loc["b", shown].tolist() == [10, 6, 6, 7, 1, 2, 0]


def test_wrong_windows(here: Path) -> None:
    table = table_of("Judged windows that were wrong")
    wrong = table.groupby("method")["window_id"].agg(lambda ids: sorted(set(ids)))
    assert wrong.to_dict() == {"detection": ["w3"], "embedding": ["w0", "w7"]}
    assert len(table) == 2 * (1 + 2 * LATENTS)


def test_cost(here: Path) -> None:
    table = table_of("Failures and cost")
    assert table.loc[("run-a", "score", "m"), "price"] == 0.25 and np.isnan(table.loc[("run-b", "score", "m"), "price"])
    assert table["calls"].sum() == 8


def test_duckdb(here: Path) -> None:
    table = table_of("DuckDB").set_index(["arch", "method"])
    own = table.loc[("topk", "embedding")]
    assert own["mean"] == pytest.approx(TRUTH["a"].mean()) and own["sem"] == pytest.approx(sem(TRUTH["a"]))
    assert own["latents"] == LATENTS
    beats, words, spent = (duckdb.sql(block).df() for block in blocks("sql"))
    assert len(beats) == 2 * LATENTS and (beats["scorers"] == 2).all()
    assert beats["least"].max() == pytest.approx(0.15) and "c" not in set(beats["sae_id"])
    assert set(words["text"]) == {f"the {sae}{i}" for sae in "ab" for i in range(LATENTS)}
    spent = spent.set_index("run_id")
    assert spent.loc["run-a", "price"] == 0.75 and np.isnan(spent.loc["run-b", "price"]), "unknown in part is unknown"
    assert spent["calls"].tolist() == [4, 4]


@pytest.mark.slow
def test_sql_blocks_on_the_demo(small_demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "demo").symlink_to(small_demo)
    monkeypatch.chdir(tmp_path)
    for block in blocks("sql"):
        assert list(duckdb.sql(block).df().columns)


@pytest.mark.slow
def test_the_exchange_page(
    small_demo: Path, world: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cli: Callable[..., Any]
) -> None:
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "demo").symlink_to(small_demo)
    (tmp_path / "path" / "to").mkdir(parents=True)
    (tmp_path / "path" / "to" / "sae").symlink_to(world.sae)
    monkeypatch.chdir(tmp_path)
    found = [
        shlex.split(line, comments=True)
        for block in blocks("bash", (DOCS / "exchange.md").read_text()) for line in block.splitlines()
    ]  # fmt: skip
    commands = [words[1:] for words in found if words[:1] == ["autointerp"] and "--push" not in words]
    assert [words[:2] for words in commands] == [
        ["export", "neuronpedia"], ["export", "hub"], ["export", "saelens"], ["import", "neuronpedia"],
        ["report", "results/theirs"],
    ]  # fmt: skip
    for words in commands:
        # A shell would expand the star.
        ended = cli(*[str(next(tmp_path.glob(word))) if "*" in word else word for word in words])
        assert ended.code == 0, f"{words}: {ended.err}"
