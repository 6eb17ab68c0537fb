"""`autointerp compare` on run folders whose scores are planted: what it finds, refuses, prints and writes."""

from __future__ import annotations

import copy
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from rich.console import Console
from run_folders import SETTINGS, rows, with_control, write_run

import autointerp
from autointerp.cli.comparing import show
from autointerp.errors import UserError
from autointerp.pipeline.comparison import Comparison
from autointerp.stats.power import power_at, resolvable
from autointerp.stats.resampling import RESAMPLES, interval, resample
from autointerp.tables.parts import write_final


def scored(rng: np.random.Generator, mean: float, n: int = 30, draws: int = 1, noise: float = 0.01) -> np.ndarray:
    return rng.normal(mean, 0.05, n) + rng.normal(0, noise, (draws, n))


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two architectures that are alike, one that is worse, and a random SAE that is much worse; 3 layers, 3 draws."""
    rng = np.random.default_rng(1)
    parts = [
        with_control(rows(
            f"{name}-{layer}", scored(rng, mean + layer / 100, draws=3), arch=arch, layer=layer, hookpoint=f"layers.{layer}", control=control,
        ), 0.1)
        for layer in (3, 9, 15)
        for name, arch, mean, control in (
            ("topk", "topk", 0.8, "none"), ("batch", "batchtopk", 0.8, "none"), ("relu", "relu", 0.7, "none"),
            ("rand", "topk", 0.5, "random_sae"),
        )
    ]  # fmt: skip
    return write_run(tmp_path_factory.mktemp("study") / "study", pd.concat(parts), dead=10)


@pytest.fixture(scope="module")
def found(study: Path) -> Comparison:
    return autointerp.comparison(study)


@pytest.fixture
def two(tmp_path: Path) -> Callable[..., list[Path]]:
    """Run folders a and b of two SAEs that differ in nothing but what is given for b."""

    def make(settings: dict[str, Any] | None = None, **changed: Any) -> list[Path]:
        rng = np.random.default_rng(2)
        write_run(tmp_path / "a", with_control(rows("one", scored(rng, 0.8)), 0.1))
        other = rows("two", scored(rng, 0.7), arch="relu", run_id="b", **changed)
        write_run(tmp_path / "b", with_control(other, 0.1), settings=settings or SETTINGS)
        return [tmp_path / "a", tmp_path / "b"]

    return make


def test_the_main_table_holds_what_a_direct_calculation_gives(study: Path, found: Comparison) -> None:
    table = found.main
    assert len(table) == 12 and table["control"].tolist() == ["none"] * 9 + ["random_sae"] * 3
    scores = autointerp.load_scores(study)
    row = table.query("variant == 'relu' and layer == 9").iloc[0]
    own = scores.query("sae_id == 'relu-9' and control == 'none'").groupby("latent")["value"].mean().to_numpy()
    assert row["value"] == pytest.approx(own.mean()) and row["n"] == 30
    low, high = interval(resample(own, "mean", np.random.default_rng(7), RESAMPLES), 30)
    assert row["ci_low"] == pytest.approx(low, abs=0.002) and row["ci_high"] == pytest.approx(high, abs=0.002)
    assert row["difference"] == pytest.approx(0.1) and row["shuffled"] == pytest.approx(own.mean() - 0.1)
    assert math.isnan(row["generic"]) and row["n_paired"] == 30
    assert row["share_dead"] == pytest.approx(0.25) and row["share_scored"] == pytest.approx(0.75)
    assert row["covered"] == pytest.approx(0.75 * own.mean() + 0.25 * 0.5)
    # One density for all: nothing is to be weighted but the three bins, which are alike.
    assert row["at_density"] == pytest.approx(own.mean(), abs=0.02) and row["at_density_status"] == "ok"
    # Twelve rows share what one stage took.
    assert table[["calls", "tokens", "price"]].isna().all(axis=None)


def test_planted_differences_are_found_and_none_where_there_is_none(found: Comparison) -> None:
    tests = found.tests.query("site == 'all'").set_index(["a", "b"])
    assert set(tests["question"]) == {"variants", "controls"}
    alike = tests.loc[("batchtopk", "topk")]
    assert alike["conclusion"] == "not_told_apart" and alike["p_holm"] > 0.05 and alike["ci_low"] < 0 < alike["ci_high"]
    worse = tests.loc[("relu", "topk")]
    assert worse["conclusion"] == "differs" and worse["verdict"] == "exceeds" and worse["n_apart"] == 3
    assert worse["ci_low"] < -0.1 < worse["ci_high"] and worse["unseen"] == "corpus, explainer, judge"
    control = tests.loc[("relu", "random_sae")]
    assert control["conclusion"] == "differs" and control["shift"] == pytest.approx(0.2, abs=0.03)
    by_layer = found.tests.query("question == 'variants' and site != 'all'")
    assert by_layer["site"].drop_duplicates().tolist() == ["3", "9", "15"] and len(by_layer) == 9
    assert (by_layer["p_holm"] >= by_layer["p"]).all()
    shares = found.variance.set_index("component")["share"]
    assert (
        shares["latent"] > shares["residual"]
        and found.variance.set_index("component").loc["judge", "status"] == "one_level"
    )
    assert len(found.ranking) == 3 * 3 * 3 and found.ranking["spearman"].min() > 0.8
    said = " ".join(found.findings)
    assert "above random_sae, 95% intervals apart in all 3 layers" in said
    assert "not told apart" in said and "that of another corpus or explainer or judge was not measured" in said


def test_within_the_noise_of_draws(tmp_path: Path) -> None:
    """Draws move one SAE up and the other down by more than they differ by: no verdict can say that they differ."""
    rng = np.random.default_rng(3)
    swings = np.array([[0.1], [-0.1], [0.0]])
    parts = [
        rows("one", scored(rng, 0.85, draws=3) + swings),
        rows("two", scored(rng, 0.7, draws=3) - swings, arch="relu"),
    ]
    found = autointerp.comparison(write_run(tmp_path / "run", pd.concat(parts)))
    (row,) = found.tests.to_dict("records")
    assert row["p_holm"] < 0.05 and row["verdict"] == "within" and row["conclusion"] == "within_noise"
    assert any("by no more than another run of the pipeline" in sentence for sentence in found.findings)


def test_what_is_found_twice_counts_once(two: Callable[..., list[Path]], tmp_path: Path) -> None:
    once = autointerp.compare(two())
    assert isinstance(once, pd.DataFrame)
    copy_of_b = write_run(tmp_path / "copy", autointerp.load_scores(tmp_path / "b"))
    again = autointerp.compare([*two(), copy_of_b, tmp_path / "a"])
    costs = ["calls", "tokens", "price"]  # the copy was paid for as well
    pd.testing.assert_frame_equal(once.drop(columns=costs), again.drop(columns=costs))
    # A folder and its cells are one thing as well, and cells say what was paid for each.
    a, b = two()
    united = write_run(tmp_path / "united", pd.concat([autointerp.load_scores(a), autointerp.load_scores(b)]))
    for cell in (a, b):
        (united / "cells").mkdir(exist_ok=True)
        cell.rename(united / "cells" / cell.name)
    table = autointerp.compare([united, *sorted((united / "cells").glob("*"))])
    assert table["n"].tolist() == [30, 30]
    assert autointerp.compare(united)["price"].tolist() == [0.25, 0.25]


def test_variants_are_named_by_what_tells_them_apart(tmp_path: Path) -> None:
    rng = np.random.default_rng(4)

    def names(*facts: dict[str, Any]) -> list[str]:
        parts = [rows(f"sae{i}", scored(rng, 0.8), **fact) for i, fact in enumerate(facts)]
        found = autointerp.comparison(write_run(tmp_path / "run", pd.concat(parts)))
        return found.dictionaries.sort_values("sae_id")["variant"].tolist()

    assert names({"arch": "topk"}, {"arch": "relu", "l0": 11.0, "width": 128}) == ["topk", "relu"]
    assert names({"width": 64}, {"width": 128}, {"arch": "relu"}) == ["topk-64", "topk-128", "relu"]
    assert names({"l0": 16.0}, {"l0": 32.0}) == ["topk-L0=16", "topk-L0=32"]
    # Seeds, whose L0s are all but the same, are one variant.
    assert names({"arch": "relu", "l0": 30.1}, {"arch": "relu", "l0": 31.0}) == ["relu", "relu"]
    # Sparser in one layer than in the other, each has a dense and a sparse one.
    deep = {"arch": "relu", "layer": 9, "hookpoint": "layers.9"}
    levels = names(
        {"arch": "relu", "l0": 10.0}, {"arch": "relu", "l0": 20.0}, {**deep, "l0": 19.0}, {**deep, "l0": 40.0}
    )
    assert levels == ["relu-L0=14.5", "relu-L0=30"] * 2
    assert names({}, {"control": "random_sae"}, {"control": "neurons_topk", "arch": "neurons"}) == ["topk", "random_sae", "neurons_topk"]  # fmt: skip


def test_one_sae_on_two_models_is_two_dictionaries(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    real, null = scored(rng, 0.8), scored(rng, 0.5)
    own = with_control(rows("one", real), 0.1)
    random = with_control(rows("one", null, model="small (random weights)", control="random_model"), 0.0)
    table = autointerp.compare(write_run(tmp_path / "run", pd.concat([own, random]))).set_index("variant")
    assert table.loc["topk", "value"] == pytest.approx(real.mean())
    assert table.loc["random_model", "value"] == pytest.approx(null.mean())
    assert table.loc["random_model", "difference"] == pytest.approx(0)
    # Their latents cannot be told apart in one table.
    assert (table["covered_status"] == "no_latents").all() and table["covered"].isna().all()


@pytest.mark.parametrize(
    ("factor", "changed", "told"),
    [
        ("judge", {"scorer_model": "gpt-b"}, "were scored by different judges (detection: 'gpt-a' and 'gpt-b')"),
        (
            "prompt",
            {"prompt_sha": "def"},
            "were scored with different prompts (detection, prompt_sha: 'abc' and 'def')",
        ),
        ("prompt", {"method_version": "2"}, "different prompts (detection, method_version: '1' and '2')"),
        ("negatives", {"negatives": "hard:decoder"}, "(detection: 'random' and 'hard:decoder')"),
        ("explainer", {"explainer": "tokens"}, "were explained differently (explainer: 'default' and 'tokens')"),
        ("explainer", {"explainer_model": "poet"}, "(explainer_model: 'writer' and 'poet')"),
        ("corpus", {"corpus": "code"}, "were read on different corpora (corpus: 'pile' and 'code')"),
    ],
)
def test_refusals(two: Callable[..., list[Path]], cli: Callable[..., Any], factor: str, changed: dict[str, Any], told: str) -> None:  # fmt: skip
    a, b = two(**changed)
    refused = cli("compare", a, b)
    assert refused.code == 2 and refused.out == ""
    assert refused.err.count("\n") == 1 and f"{a} and {b} " in refused.err and told in refused.err
    assert f"--allow-different {factor} compares them anyway" in refused.err
    allowed = cli("compare", a, b, "--allow-different", factor)
    assert allowed.code == 0, allowed.err
    assert f"caveat: {a} and {b} " in allowed.out and told in allowed.out
    page = (a / "comparison" / "comparison.md").read_text()
    assert "a difference of their scores may be" in page.partition("## Caveats")[2]


@pytest.mark.parametrize(
    ("factor", "section", "value", "told"),
    [
        ("sampling", "sampling", {"window": 64, "score_random": 50}, "sampling.window: 32 and 64"),
        ("sampling", "data", {**SETTINGS["data"], "context_length": 128}, "data.context_length: 64 and 128"),
        ("prompt", "score", {"options": {"detection": {"reading": "probabilities"}}}, "score.options.detection"),
        ("explainer", "explain", {"options": {"longest": 3}}, "explain.options: {} and {'longest': 3}"),
    ],
)
def test_settings_are_compared_too(two: Callable[..., list[Path]], factor: str, section: str, value: Any, told: str) -> None:  # fmt: skip
    a, b = two(settings={**copy.deepcopy(SETTINGS), section: value})
    with pytest.raises(UserError) as refused:
        autointerp.compare([a, b])
    assert told in str(refused.value) and f"--allow-different {factor}" in str(refused.value)
    (caveat,) = autointerp.compare([a, b], allow_different=[factor]).attrs["caveats"]
    assert told in caveat
    # Settings that shape nothing that is compared may differ.
    autointerp.compare(two(settings={**SETTINGS, "seed": 4, "out": "elsewhere", "draw": 2}))


def test_explanation_prompts_are_compared(two: Callable[..., list[Path]]) -> None:
    folders = two()
    for folder, sae_id, sha in zip(folders, ("one", "two"), ("p1", "p2"), strict=True):
        told = {"sae_id": sae_id, "explainer": "default", "explainer_model": "writer", "prompt_sha": sha, "latent": [0]}
        write_final(folder, "explanations", pd.DataFrame(told))
    with pytest.raises(UserError, match=r"explained differently \(explanation_prompt: 'p1' and 'p2'\)"):
        autointerp.compare(folders)


def test_all_differences_are_named_and_unknown_ones_refused(two: Callable[..., list[Path]]) -> None:
    folders = two(scorer_model="gpt-b", prompt_sha="def")
    with pytest.raises(UserError, match=r"what else differs: prompt.*--allow-different judge,prompt"):
        autointerp.compare(folders)
    with pytest.raises(UserError, match="scored with different prompts"):
        autointerp.compare(folders, allow_different=["judge"])
    with pytest.raises(UserError, match="does not know 'judges'; choose from judge, prompt"):
        autointerp.compare(folders, allow_different=["judges"])
    # Other methods' judges are no matter where the methods are left out.
    rng = np.random.default_rng(6)
    more = [
        rows(name, scored(rng, 0.7), method="fuzzing", scorer_model=name, arch=arch)
        for name, arch in (("one", "topk"), ("two", "relu"))
    ]
    both = [
        pd.concat([rows(name, scored(rng, 0.8), arch=arch), more[i]])
        for i, (name, arch) in enumerate((("one", "topk"), ("two", "relu")))
    ]
    for folder, scores in zip(folders, both, strict=True):
        write_run(folder, scores)
    assert len(autointerp.compare(folders, methods=["detection"])) == 2
    with pytest.raises(UserError, match="fuzzing: 'one' and 'two'"):
        autointerp.compare(folders)


def test_runs_of_one_sae_with_two_judges_are_refused_and_crossed_judges_are_not(tmp_path: Path) -> None:
    rng = np.random.default_rng(7)
    values = {name: scored(rng, 0.8) for name in ("one", "two")}

    def judged(name: str, judge: str) -> pd.DataFrame:
        return rows(
            name, values[name] - (judge == "gpt-b") * 0.1, scorer_model=judge, arch={"one": "topk", "two": "relu"}[name]
        )

    a, b = (write_run(tmp_path / judge, judged("one", judge)) for judge in ("gpt-a", "gpt-b"))
    with pytest.raises(UserError, match="different judges"):
        autointerp.compare([a, b])
    everything = pd.concat([judged(name, judge) for name in values for judge in ("gpt-a", "gpt-b")])
    crossed = autointerp.comparison(write_run(tmp_path / "crossed", everything))
    assert crossed.main["value"].to_numpy() == pytest.approx([values["two"].mean() - 0.05, values["one"].mean() - 0.05])
    assert "over 2 judges ('gpt-a', 'gpt-b')" in crossed.caveats[0]
    assert crossed.variance.set_index("component").loc["judge", "status"] == "ok"
    apart = autointerp.compare(tmp_path / "crossed", by=["variant", "scorer_model"])
    assert apart["n"].tolist() == [30] * 4 and apart.attrs["caveats"] == []
    tests = autointerp.comparison(tmp_path / "crossed", by=["variant", "scorer_model"]).tests
    judges = tests.query("question == 'scorer_model'").iloc[0]
    assert judges["design"] == "latents" and judges["n_pairs"] == 60 and judges["shift"] == pytest.approx(0.1)


def test_nulls_stay_null(tmp_path: Path) -> None:
    rng = np.random.default_rng(8)
    values = scored(rng, 0.8)
    values[0, :5] = np.nan
    lost = rows("one", values)
    # What had no explanation has no negatives either.
    lost.loc[:1, ["negatives", "status"]] = [None, "no_explanation"]
    never = rows("two", np.full((1, 4), np.nan), arch="relu")
    found = autointerp.comparison(write_run(tmp_path / "run", pd.concat([lost, never]), settings=None))
    table = found.main.set_index("variant")
    assert len(table) == 2 and (table.loc["topk", "n"], table.loc["topk", "n_null"]) == (25, 5)
    assert table.loc["topk", "nulls"] == "failed: 3, no_explanation: 2"
    empty = table.loc["relu"]
    assert empty["n"] == 0 and empty["status"] == "too_few_latents"
    for name in ("value", "ci_low", "shuffled", "difference", "generic", "covered", "at_density"):
        assert math.isnan(empty[name]), name
    (test,) = found.tests.to_dict("records")
    assert test["status"] == "too_few_latents" and math.isnan(test["p"]) and test["conclusion"] is None
    assert any("9 of 34 scores are null" in caveat for caveat in found.caveats)
    assert any("No config.yaml" in caveat for caveat in found.caveats)
    found.write(tmp_path / "tables")
    written = pd.read_parquet(tmp_path / "tables" / "main.parquet").set_index("variant")
    assert math.isnan(written.loc["relu", "value"]) and "| relu | 3 | detection | balanced_accuracy | random | – |" in (tmp_path / "tables" / "main.md").read_text()  # fmt: skip


def test_one_run_of_one_sae(tmp_path: Path, cli: Callable[..., Any]) -> None:
    rng = np.random.default_rng(9)
    run = write_run(tmp_path / "run", with_control(rows("one", scored(rng, 0.8)), 0.1))
    ended = cli("compare", run, "--plan", 0.03, "--out", tmp_path / "out")
    assert ended.code == 0, ended.err
    assert "topk" in ended.out and "0.100 [0.100, 0.100]" in ended.out and "…" not in ended.out
    names = {path.name for path in (tmp_path / "out").iterdir()}
    kinds = {
        f"{name}.{ending}"
        for name in ("main", "resolvable", "plan", "dictionaries", "cost")
        for ending in ("parquet", "csv", "md", "tex")
    }
    assert names == kinds | {"comparison.md"}
    assert pd.read_csv(tmp_path / "out" / "main.csv")["price"].tolist() == [0.25]
    assert not (run / "comparison").exists()


def test_windows_are_drawn_again_where_judgements_are_there(tmp_path: Path) -> None:
    rng = np.random.default_rng(10)
    truth, windows = rng.uniform(0.6, 0.9, 20), 20
    label = np.tile(np.repeat([True, False], windows // 2), 20)
    right = rng.random(label.size) < np.repeat(truth, windows)
    own = rows("one", right.reshape(20, windows).mean(axis=1)[None])
    judged = pd.DataFrame({
        "run_id": "run", "sae_id": "one", "latent": np.repeat(np.arange(20), windows), "pole": 1, "method": "detection",
        "explanation_id": np.repeat(own["explanation_id"].to_numpy(), windows), "control": "none", "draw": 0, "corpus": "pile",
        "kind": np.where(label, "activating", "random"), "label": label, "prediction": np.where(right, label, ~label),
    })  # fmt: skip
    run = write_run(tmp_path / "run", own, judgements=judged)
    plain, staged = autointerp.compare(run).iloc[0], autointerp.compare(run, windows=True).iloc[0]
    assert staged["stages"] == 2 and staged["n"] == 20 and staged["value"] == pytest.approx(plain["value"])
    # Windows of a latent are binomial: the mean of 20 of them, over 20 latents.
    noise = math.sqrt((truth * (1 - truth)).mean() / (20 * 20))
    assert staged["sd_windows"] == pytest.approx(noise, rel=0.15)
    assert staged["ci_high"] - staged["ci_low"] == pytest.approx(plain["ci_high"] - plain["ci_low"], rel=0.15)


def test_bad_input_is_one_line(two: Callable[..., list[Path]], tmp_path: Path, cli: Callable[..., Any]) -> None:
    study, _ = two()
    (tmp_path / "empty").mkdir()
    for words, told in (
        ((tmp_path / "nowhere",), "no scores.parquet in"), ((tmp_path / "empty",), "no scores.parquet in"),
        ((study, "--by", "colour"), "cannot group by 'colour'"), ((study, "--by", "method"), "cannot group by 'method'"),
        ((study, "--method", "detektion"), "there are (method/metric): detection/balanced_accuracy"),
        ((study, "--plan", "-1"), "--plan wants a difference"), ((study, "--by", ""), "no columns to group by"),
    ):  # fmt: skip
        ended = cli("compare", *words)
        assert ended.code == 2 and ended.err.count("\n") == 1 and told in ended.err, ended.err
    (tmp_path / "empty" / "scores.parquet").write_bytes(b"no table")
    assert "cannot read" in cli("compare", tmp_path / "empty").err


def test_globs_and_groups_by_any_column(two: Callable[..., list[Path]]) -> None:
    a, _ = two()
    table = autointerp.compare(str(a.parent / "*"), by=["layer"])
    # Both SAEs in one row, as one group of latents; the interval is theirs together.
    assert table["n"].tolist() == [60] and table["control"].tolist() == ["none"]
    assert list(autointerp.compare(str(a.parent / "*"), by="arch")["arch"]) == ["relu", "topk"]


def test_names_that_would_be_markup(tmp_path: Path, cli: Callable[..., Any]) -> None:
    rng = np.random.default_rng(11)
    names = ("a_b|c", "<script>alert(1)</script>", "[red]x[/red]&%$#\\{~^")
    parts = [rows(f"sae{i}", scored(rng, 0.8), arch=name) for i, name in enumerate(names)]
    ended = cli("compare", write_run(tmp_path / "run", pd.concat(parts)))
    assert ended.code == 0, ended.err
    assert all(name in ended.out for name in names)
    page = (tmp_path / "run" / "comparison" / "comparison.md").read_text()
    assert "<script" not in page and "&lt;script&gt;" in page and r"a_b\|c" in page
    body = (tmp_path / "run" / "comparison" / "main.tex").read_text()
    assert r"a\_b\textbar{}c" in body and r"\textless{}script\textgreater{}" in body
    assert r"[red]x[/red]\&\%\$\#\textbackslash{}\{\textasciitilde{}\textasciicircum{}" in body
    counts = {line.count(" & ") for line in body.splitlines() if line.endswith(r"\\")}
    assert len(counts) == 1, "every row has as many cells"


def test_the_same_seed_gives_the_same_files(two: Callable[..., list[Path]], tmp_path: Path) -> None:
    for name in ("first", "second"):
        autointerp.comparison(two(), seed=3).write(tmp_path / name)
    for path in (tmp_path / "first").iterdir():
        assert path.read_bytes() == (tmp_path / "second" / path.name).read_bytes(), path.name


def test_numbers_are_whole_in_a_narrow_terminal(found: Comparison, capfd: pytest.CaptureFixture[str]) -> None:
    for width in (40, 100, 200):
        show(found, Console(width=width, force_terminal=True, color_system=None))
        printed = capfd.readouterr().out
        value = found.main.iloc[0]
        assert f"{value['value']:.3f} [{value['ci_low']:.3f}, {value['ci_high']:.3f}]" in printed and "…" not in printed
        table = printed.partition("- detection")[0]
        assert max(map(len, table.splitlines())) <= width


def test_what_a_sample_resolves() -> None:
    """The difference named is found four times out of five; latents that are all alike resolve any."""
    for paired in (True, False):
        size = resolvable(0.1, 40, paired=paired)
        assert power_at(0.1, 40, size, paired=paired) == pytest.approx(0.8, abs=1e-6)
    assert resolvable(0.0, 40, paired=False) == 0 and math.isnan(resolvable(0.1, 1, paired=False))


def test_help_imports_nothing_heavy() -> None:
    code = "import sys; from autointerp.cli import comparing; assert not {'pandas', 'torch', 'rich.table'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_real_run(world: Any, cli: Callable[..., Any], tmp_path: Path) -> None:
    """Planted words, explained and judged: far above the shuffled control, and a random SAE has nothing to explain."""
    small = ("--tokens", 20_000, "--context-length", 64, "--set", "sampling.score_activating=10", "--set", "sampling.score_random=10",
             "--set", "sampling.window=16", "--plain")  # fmt: skip
    out = tmp_path / "run"
    assert cli("explain", "--sae", world.sae, "--client", "fake", "--out", out, *small).code == 0
    assert cli("score", "--run", out, "--method", "detection,surprisal", "--client", "fake", "--plain").code == 0
    ended = cli("compare", out, "--windows")
    assert ended.code == 0, ended.err
    table = autointerp.compare(out).set_index("method")
    assert table.loc["detection", "value"] == 1.0 and table.loc["detection", "difference_low"] > 0.3
    assert table.loc["detection", "share_dead"] == 0.5 and table.loc["detection", "covered"] == pytest.approx(0.75)
    assert table.loc["detection", "calls"] > 0
