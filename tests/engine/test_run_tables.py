"""Final tables, reading them back, seeds, and the summary over latents."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from scipy import stats

from autointerp.errors import UserError
from autointerp.seeds import derive, generator
from autointerp.stats.summary import bootstrap, summarise
from autointerp.tables.load import load_explanations, load_latents, load_scores, load_table
from autointerp.tables.parts import read_rows, write_final, write_rows
from autointerp.tables.schemas import SORT_KEYS, TABLES

CONTROL = "shuffled_explanation"


def score(latent: int, value: float | None, control: str = "none", **more: Any) -> dict[str, Any]:
    return {
        "sae_id": "sae", "latent": latent, "method": "surprisal", "metric": "auroc", "control": control, "value": value,
        "status": "ok" if value is not None else "too_few_windows", **more,
    }  # fmt: skip


# Tables


def test_sort_keys_are_columns() -> None:
    assert SORT_KEYS.keys() == TABLES.keys()
    assert all(set(keys) <= set(TABLES[table].names) for table, keys in SORT_KEYS.items())


def test_final_tables_are_sorted_and_keep_nulls(tmp_path: Path) -> None:
    some = [score(latent, latent / 10, control, layer=None if latent == 2 else 2**53 + 1, draw=0)
            for latent in range(5) for control in ("none", CONTROL)]  # fmt: skip
    some[3]["value"] = None
    files = []
    for seed in (0, 1):
        shuffled = [some[i] for i in np.random.default_rng(seed).permutation(len(some))]
        write_rows(tmp_path / f"{seed}" / "part-x.parquet", "scores", shuffled)
        frame = read_rows([tmp_path / f"{seed}" / "part-x.parquet"], "scores")
        files.append(write_final(tmp_path / f"{seed}", "scores", frame))
    assert files[0].read_bytes() == files[1].read_bytes(), "no trace of the order"
    assert pq.read_schema(files[0]).remove_metadata() == TABLES["scores"]
    back = load_scores(tmp_path / "0")
    assert list(back["latent"]) == sorted([*range(5)] * 2) and list(back["control"][:2]) == ["none", CONTROL]
    assert (
        back["layer"].dtype == "Int64"
        and back["layer"].isna().sum() == 2
        and (back["layer"].dropna() == 2**53 + 1).all()
    )
    assert back["value"].dtype == "float64" and back["value"].isna().sum() == 1
    assert back["draw"].dtype == "Int64" and back["seed"].isna().all(), "columns that no row has are null"


def test_booleans_may_be_null(tmp_path: Path) -> None:
    rows = [
        {"sae_id": "s", "latent": i, "window_id": str(i), "prediction": p} for i, p in enumerate([True, None, False])
    ]
    write_rows(tmp_path / "judgements" / "a-b.parquet", "judgements", rows)
    write_final(tmp_path, "judgements", read_rows([tmp_path / "judgements" / "a-b.parquet"], "judgements"))
    back = load_table(tmp_path, "judgements")
    assert back["prediction"].dtype == "boolean" and [p is pd.NA for p in back["prediction"]] == [False, True, False]
    assert bool(back["prediction"][0]) is True and back["label"].isna().all()


def test_lists_and_odd_text_survive(tmp_path: Path) -> None:
    row = {
        "sae_id": "s",
        "latent": 0,
        "tokens": [1, 2],
        "pieces": ["a\ud800", "日"],
        "activations": [0.0, 1.5],
        "text": "a\ud800",
    }
    write_rows(tmp_path / "a-b.parquet", "windows", [row])
    (back,) = read_rows([tmp_path / "a-b.parquet"], "windows").to_dict("records")
    assert list(back["tokens"]) == [1, 2] and list(back["activations"]) == [0.0, 1.5] and back["part"] == "b"
    assert back["pieces"][1] == "日" and back["pieces"][0][0] == "a" and len(back["text"]) == 2


def test_lone_surrogates_become_the_replacement_character(tmp_path: Path) -> None:
    write_rows(tmp_path / "a-b.parquet", "failures", [{"message": "a\ud800"}])
    assert read_rows([tmp_path / "a-b.parquet"], "failures")["message"][0] == "a\ufffd"


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = write_final(tmp_path, "scores", pd.DataFrame([score(1, 0.5)]))
    before = path.read_bytes()
    with pytest.raises(Exception, match="latent"):
        write_final(tmp_path, "scores", pd.DataFrame([score("no number", 0.5)]))  # type: ignore[arg-type]
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["scores.parquet"]


def test_an_empty_table_keeps_its_columns(tmp_path: Path) -> None:
    write_final(tmp_path, "failures", read_rows([], "failures"))
    back = load_table(tmp_path, "failures")
    assert list(back.columns) == TABLES["failures"].names and back.empty


def test_load_scores_reads_one_run_or_many(tmp_path: Path) -> None:
    for name, latents in (("run-b", 2), ("run-a", 3)):
        write_final(tmp_path / name, "scores", pd.DataFrame([score(i, 0.5, run_id=name) for i in range(latents)]))
    (tmp_path / "run-unfinished").mkdir()
    assert len(load_scores(tmp_path / "run-b")) == 2
    both = load_scores(str(tmp_path / "run-*"))
    assert list(both["run_id"]) == ["run-a"] * 3 + ["run-b"] * 2 and list(both.index) == [*range(5)]
    for load in (load_explanations, load_latents):
        with pytest.raises(UserError, match=r"no (explanations|latents)\.parquet in '.*run-\*'; a finished run folder"):
            load(str(tmp_path / "run-*"))
    with pytest.raises(UserError, match=r"no scores\.parquet in '.*nowhere'"):
        load_scores(tmp_path / "nowhere")


def test_a_run_folder_may_have_brackets_in_its_name(tmp_path: Path) -> None:
    write_final(tmp_path / "run[1]", "scores", pd.DataFrame([score(1, 0.5)]))
    assert len(load_scores(tmp_path / "run[1]")) == 1


# Seeds


def test_seeds_are_stable() -> None:
    # sha256 of "0\x1fa\x1f1", its first 8 bytes little-endian, halved; a change makes every run another one.
    assert derive(0, "a", 1) == 4424143583225978915
    assert generator(0, "a", 1).integers(0, 1 << 30) == np.random.default_rng(4424143583225978915).integers(0, 1 << 30)


def test_seeds_differ_by_run_stage_and_id() -> None:
    seeds = [
        derive(s, stage, *ids) for s in (0, 1) for stage in ("a", "b") for ids in ((), (0,), (1,), (0, 1), ("01",))
    ]
    assert len(set(seeds)) == len(seeds) and all(0 <= seed < 2**63 for seed in seeds)
    assert derive(1, "a", 23) != derive(12, "a", 3) != derive(1, "a2", 3)


# Summary


def planted(rng: np.random.Generator, n: int, gap: float) -> pd.DataFrame:
    """Latents of very different difficulty; each explanation is better than its control by `gap` on average."""
    level = rng.uniform(0.3, 0.8, n)
    real, control = level + gap + rng.normal(0, 0.1, n), level
    return pd.DataFrame(
        [score(i, v, c) for c, values in (("none", real), (CONTROL, control)) for i, v in enumerate(values)]
    )


def test_the_difference_is_paired() -> None:
    frame = planted(np.random.default_rng(0), 60, 0.1)
    (row,) = summarise(frame.sample(frac=1, random_state=0)).to_dict("records")
    wide = frame.pivot(index="latent", columns="control", values="value")
    gaps = wide["none"] - wide[CONTROL]
    assert row["difference"] == pytest.approx(gaps.mean()) and row["median"] == pytest.approx(wide["none"].median())
    assert row["control_median"] == pytest.approx(wide[CONTROL].median()) and (row["n"], row["n_null"]) == (60, 0)
    exact = stats.ttest_1samp(gaps, 0).confidence_interval(0.95)
    assert (row["difference_low"], row["difference_high"]) == pytest.approx((exact.low, exact.high), abs=0.004)
    assert row["ci_low"] < row["median"] < row["ci_high"]
    unpaired = wide["none"].std() / math.sqrt(60)
    assert row["difference_high"] - row["difference_low"] < 2.5 * unpaired, "narrower than an unpaired comparison"


def test_the_interval_of_the_difference_holds_the_planted_one() -> None:
    rng = np.random.default_rng(1)
    rows = [summarise(planted(rng, 40, 0.1)).iloc[0] for _ in range(150)]
    covered = np.mean([row["difference_low"] <= 0.1 <= row["difference_high"] for row in rows])
    assert 0.88 <= covered <= 0.99  # 0.94 expected of a bootstrap at n = 40, standard error 0.019


def test_nulls_are_counted_and_left_out() -> None:
    frame = pd.DataFrame(
        [score(i, v) for i, v in enumerate([0.6, 0.7, 0.8, 0.9, None, None])]
        + [score(i, v, CONTROL) for i, v in enumerate([0.5, 0.5, 0.5, None, 0.5, None])]
        + [score(i, 3.0, metric="reached_kl") for i in range(6)]
    )
    (row,) = summarise(frame).to_dict("records")
    assert (row["n"], row["n_null"], row["metric"]) == (4, 2, "auroc")
    assert row["median"] == pytest.approx(0.75) and row["difference"] == pytest.approx(0.2)
    assert row["control_median"] == 0.5


def test_no_control_too_few_and_nothing() -> None:
    (row,) = summarise(pd.DataFrame([score(i, 0.5 + i / 10) for i in range(2)])).to_dict("records")
    assert row["median"] == pytest.approx(0.55) and math.isnan(row["ci_low"]) and math.isnan(row["difference"])
    (row,) = summarise(pd.DataFrame([score(i, None) for i in range(3)])).to_dict("records")
    assert (row["n"], row["n_null"]) == (0, 3) and math.isnan(row["median"])
    assert summarise(pd.DataFrame([score(0, 0.5)]).iloc[:0]).empty


def test_methods_are_kept_apart_and_two_saes_are_two_units() -> None:
    frame = pd.DataFrame(
        [score(i, 0.9, sae_id=sae) for i in range(3) for sae in ("x", "y")]
        + [score(i, 0.4, method="embedding") for i in range(4)]
    )
    found = summarise(frame).set_index("method")
    assert found["n"].to_dict() == {"embedding": 4, "surprisal": 6}
    assert found["median"].to_dict() == pytest.approx({"embedding": 0.4, "surprisal": 0.9})


def test_the_bootstrap_is_seeded_by_its_purpose() -> None:
    values = np.random.default_rng(0).normal(size=30)
    assert bootstrap(values, "mean", "a") == bootstrap(values, "mean", "a") != bootstrap(values, "mean", "b")
