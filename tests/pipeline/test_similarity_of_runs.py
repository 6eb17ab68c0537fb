"""Similarity of the dictionaries of run and study folders: what is read, what is paired, what is left out and why."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

import sae
from autointerp.config import resolve, to_yaml
from autointerp.errors import UserError
from autointerp.pipeline.demo_model import demo_embedder
from autointerp.pipeline.directions import dictionaries
from autointerp.pipeline.names import sae_id
from autointerp.pipeline.similarity import COLUMNS, by_distance, local_embedding, similarities, similarity_table
from autointerp.stats.findings import layers_alike
from autointerp.tables.parts import write_final
from sae.architectures import abstopk, topk
from sae.base import SAEMetadata

WIDTH, LATENTS = 48, 64


def embed(texts: Sequence[str]) -> np.ndarray:
    """A direction of its own for every concept."""
    return np.stack([np.random.default_rng(int(text.removeprefix("concept"))).normal(size=96) for text in texts])


def run_folder(
    folder: Path, rows: np.ndarray, hookpoint: str, *, seed: int = 0, model: str = "tiny", dead: Sequence[int] = (),
    texts: dict[int, str] | None = None, null: str | None = None, module: Any = topk,
) -> Path:  # fmt: skip
    """What an explained run leaves, as far as it is read here."""
    made = module.create({"d_in": rows.shape[1], "n_latents": len(rows), "k": 4}, SAEMetadata(model=model, hookpoint=hookpoint, seed=seed))  # fmt: skip
    made.W_dec.data.copy_(torch.from_numpy(rows))
    sae.save(made, folder / "sae")
    settings = resolve({"out": str(folder), "sae": str(folder / "sae"), "null": null}, environ={})
    (folder / "config.yaml").write_text(to_yaml(settings))
    if null == "random_sae":
        from autointerp.pipeline.dictionary import load_dictionary

        made = load_dictionary(str(folder / "sae"), settings, lambda: pytest.fail("loaded the subject model"))
    name = sae_id(made, hookpoint)
    fired = np.where(np.isin(np.arange(len(rows)), dead), 0, 50)
    write_final(folder, "latents", pd.DataFrame({"sae_id": name, "latent": range(len(rows)), "n_fired": fired, "density": fired / 1000}))  # fmt: skip
    told = pd.DataFrame([
        {"sae_id": name, "latent": latent, "pole": 1, "explainer": "tokens", "draw": draw, "status": "ok", "text": text}
        for latent, text in (texts or {}).items() for draw, text in ((0, text), (1, "concept999"))
    ])  # fmt: skip
    write_final(folder, "explanations", told)
    return folder


@pytest.fixture(scope="module")
def layers(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Four layers whose directions wander; the text of a latent names its concept, whatever its number there."""
    base, rng = tmp_path_factory.mktemp("layers"), np.random.default_rng(0)
    rows, concepts = rng.normal(size=(LATENTS, WIDTH)), np.arange(LATENTS)
    folders = []
    for layer in (3, 6, 9, 12):
        order = rng.permutation(LATENTS)
        rows, concepts = rows[order] + 0.5 * rng.normal(size=rows.shape), concepts[order]
        folders.append(
            run_folder(base / f"at{layer}", rows, f"layers.{layer}", dead=[7, 8], texts={i: f"concept{c}" for i, c in enumerate(concepts[:40])})
        )  # fmt: skip
    return folders


def test_layers_are_compared_by_decoders_and_by_explanations(layers: list[Path]) -> None:
    found = similarities(layers, embed=embed)
    table = found.table
    assert list(table.columns) == COLUMNS and len(table) == 6 * 3 and (table["status"] == "ok").all()
    assert (table["layer_a"] < table["layer_b"]).all() and set(table["layers_apart"]) == {3, 6, 9}
    decoders = table[table["kind"] == "decoder"]
    assert (decoders[["n_a", "n_b", "n_matched"]] == LATENTS - 2).all().all(), "dead ones are no latents"
    assert (decoders["difference_low"] > 0.4).all() and (decoders["over_chance_low"] > 0.1).all()
    assert set(decoders["variant_a"]) == {"topk"} and set(decoders["seed_a"]) == {0}
    assert decoders["same_number"].max() < 0.2
    # Matched latents have the same concept, which is the same text; draw 1 says something else.
    texts = table[table["kind"] == "explanations_of_matched"].set_index("layers_apart")
    assert texts.loc[3, "value"].min() > 0.8 and (texts["difference_low"] > 0.5).all()
    assert texts["chance_matched"].isna().all() and set(texts["explainer"]) == {"tokens"}
    assert (table[table["kind"] == "explanations"]["n_a"] == 40).all()
    said = by_distance(found.matches)
    contrast = said[(said["what"] == "nearer - farther") & (said["anchor"] == "all") & (said["kind"] == "decoder")]
    assert contrast["against"].tolist() == ["shuffled", "chance"] and (contrast["ci_low"] > 0.03).all()
    assert set(said["place"]) == {"layers"}


def test_the_same_call_gives_the_same_numbers(layers: list[Path]) -> None:
    first, again = (similarity_table(order, embed=embed) for order in (layers[:2], layers[1::-1]))
    pd.testing.assert_frame_equal(first, again)
    other = similarity_table(layers[:2], embed=embed, seed=1)
    assert not np.array_equal(first["ci_low"], other["ci_low"])


def test_what_cannot_be_compared_says_why(layers: list[Path], tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    rows = rng.normal(size=(LATENTS, WIDTH))
    near, far = (run_folder(tmp_path / f"random{i}", rows, f"layers.{3 * i}", null="random_sae") for i in (1, 2))
    wide = run_folder(tmp_path / "wide", rng.normal(size=(LATENTS, WIDTH + 1)), "layers.3", seed=1)
    other = run_folder(tmp_path / "other", rows, "layers.3", model="another", seed=2)
    gone = run_folder(tmp_path / "gone", rows, "layers.6", seed=3)
    shutil.rmtree(gone / "sae")
    changed = run_folder(tmp_path / "changed", rows, "layers.6", seed=4)
    run_folder(changed, rows + 1, "layers.6", seed=4).joinpath("latents.parquet").unlink()
    write_final(changed, "latents", pd.DataFrame({"sae_id": "topk-layers.6-64-abcdef", "latent": range(LATENTS), "n_fired": 1, "density": 0.1}))  # fmt: skip
    neurons = run_folder(tmp_path / "neurons", rows, "layers.9.mlp.down_proj:in")
    (neurons / "config.yaml").write_text(to_yaml(resolve({"sae": "neurons:4", "out": str(neurons)}, environ={})))
    table = similarity_table([layers[0], near, far, wide, other, gone, changed, neurons], pairs="all", embed=embed)
    decoders = table[table["kind"] == "decoder"]
    status = {frozenset(pair): status for *pair, status in decoders[["a", "b", "status"]].itertuples(index=False)}
    keys = {one.folder.name: one.key for one in dictionaries([layers[0], near, far, wide, other, gone, changed, neurons])}  # fmt: skip
    at3 = keys["at3"]
    said = {name: status[frozenset((at3, key))] for name, key in keys.items() if name != "at3"}
    assert said == {
        "random1": "ok", "random2": "ok", "wide": "different_dimensions", "other": "different_models",
        "gone": "not_found", "changed": "changed", "neurons": "neurons",
    }  # fmt: skip
    # A run's seed draws the same random directions at every layer: their likeness says nothing.
    assert status[frozenset((keys["random1"], keys["random2"]))] == "same_directions"
    assert decoders.loc[decoders["status"] != "ok", "value"].isna().all()
    assert set(table.loc[table["kind"] == "explanations", "status"]) == {"no_explanations"}


def test_a_direction_and_its_opposite_are_one_latent_of_a_signed_dictionary(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    rows = rng.normal(size=(LATENTS, WIDTH))
    flipped = rows[rng.permutation(LATENTS)] * rng.choice([-1, 1], size=(LATENTS, 1))
    for module, cosine in ((abstopk, "absolute"), (topk, "signed")):
        folders = [run_folder(tmp_path / f"{cosine}{i}", r, "layers.3", seed=i, module=module) for i, r in enumerate((rows, flipped))]  # fmt: skip
        row = similarity_table(folders).query("kind == 'decoder'").iloc[0]
        assert row["cosine"] == cosine and (row["value"] > 0.99) == (cosine == "absolute")


def test_a_moved_folder_keeps_its_dictionary(layers: list[Path], tmp_path: Path) -> None:
    original = run_folder(tmp_path / "original", np.random.default_rng(3).normal(size=(LATENTS, WIDTH)), "layers.6")
    original.rename(tmp_path / "moved")
    table = similarity_table([layers[0], tmp_path / "moved"], embed=embed)
    assert table.loc[table["kind"] == "decoder", "status"].tolist() == ["ok"]


def test_bad_input_is_said_in_one_line(layers: list[Path], tmp_path: Path) -> None:
    for call, said in (
        (lambda: similarity_table(tmp_path), "no run in"),
        (lambda: similarity_table(layers[0]), "needs two"),
        (lambda: similarity_table(layers, pairs="some"), "known: variant, all"),
        (lambda: similarity_table(layers, pairs=[("one", "two")]), "no dictionary 'one'"),
    ):
        with pytest.raises(UserError, match=said) as raised:
            call()
        assert "\n" not in str(raised.value)


def test_few_explained_latents_are_too_few(layers: list[Path], tmp_path: Path) -> None:
    rows = np.random.default_rng(4).normal(size=(LATENTS, WIDTH))
    sparse = run_folder(tmp_path / "sparse", rows, "layers.6", texts={0: "concept1", 1: "concept2"})
    table = similarity_table([layers[0], sparse], embed=embed).set_index("kind")
    assert table.loc["explanations", "status"] == "too_few_latents" and np.isnan(table.loc["explanations", "value"])
    assert table.loc["explanations_of_matched", "status"] == "too_few_latents"


@pytest.fixture(scope="module")
def study(world: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """TopK SAEs really trained at both layers of the tiny model with two seeds."""
    from autointerp.pipeline.study import Study
    from autointerp.progress import Reporter

    out = tmp_path_factory.mktemp("similar") / "study"
    flags = {
        "subject.model": str(world.model), "data.dataset": str(world.corpus), "data.tokens": 10_000,
        "data.context_length": 64, "limit": 5, "sampling.window": 16, "sampling.explain_activating": 10,
        "sampling.explain_random": 10, "sampling.min_windows": 4, "explain.client": "fake", "explain.llm": "keyword",
        "score.methods": ["surprisal"], "score.controls": [], "train.architectures": ["topk"],
        "train.hookpoints": ["layers.0", "layers.1"], "train.widths": [32], "train.k": [4], "train.seeds": [0, 1],
        "train.batch_size": 256, "train.held_out": 4, "train.dead_after": 100_000,
    }  # fmt: skip
    Study(resolve(flags, environ={}), out, Reporter(quiet=True))()
    return out


def test_a_study_of_trained_dictionaries(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("autointerp.pipeline.models.load_subject", lambda *a, **k: pytest.fail("loaded the subject"))
    before = sorted(path.name for path in study.rglob("*"))
    found = similarities(study)
    assert sorted(path.name for path in study.rglob("*")) == before, "nothing is written"
    table = found.table
    decoders = table[table["kind"] == "decoder"]
    trained = decoders[decoders["variant_a"] == "topk"]
    assert len(trained) == 6 and (trained["status"] == "ok").all()
    # The blocks of this model do next to nothing: its layers have the same directions to find.
    same_seed = trained[trained["seed_a"] == trained["seed_b"]]
    assert len(same_seed) == 2 and (same_seed["over_chance_low"] > 0).all()
    # Trained from the same random weights, they number their latents alike; with another seed they do not.
    assert same_seed["same_number"].min() > 0.5 > trained["same_number"].min()
    said = by_distance(found.matches).query("kind == 'decoder' and what == 'similarity' and against == 'shuffled'")
    assert set(zip(said["seeds"], said["steps"], strict=True)) == {("same", "1"), ("different", "0"), ("different", "1")}  # fmt: skip
    assert (table.loc[table["kind"] == "explanations", "status"].isin(["ok", "too_few_latents"])).all()


def test_explanations_are_embedded_by_the_local_encoder(layers: list[Path]) -> None:
    assert demo_embedder().is_dir()
    vectors = local_embedding(dictionaries(layers)[0])(["names of rivers", "words for rivers", "closing brackets"])
    near, far = vectors[0] @ vectors[1], vectors[0] @ vectors[2]
    assert vectors.shape == (3, 384) and near > far + 0.2
    assert not (layers[0] / "replies.sqlite").exists()


def test_what_layers_say_is_said_in_words(layers: list[Path]) -> None:
    said = layers_alike(by_distance(similarities(layers, embed=embed).matches))
    assert "by decoder: SAEs of neighbouring layers are more alike" in said[0] and "in 1 of 1 variants" in said[0]
    assert [line.split(":")[0].split()[-1] for line in said] == ["decoder", "explanations", "explanations_of_matched"]


def test_compare_prints_and_writes_it(study: Path, tmp_path: Path, cli: Callable[..., Any]) -> None:
    ended = cli("compare", study, "--similarity", "--out", tmp_path)
    assert ended.code == 0, ended.err
    assert "Are neighbouring layers more alike than distant ones?" in ended.out
    for name in ("similarity", "distance"):
        written = pd.read_parquet(tmp_path / f"{name}.parquet")
        assert len(written) and "decoder" in set(written["kind"])
        assert (tmp_path / f"{name}.tex").is_file()
