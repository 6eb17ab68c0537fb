"""What other programs wrote, and what we wrote for them, as run folders; SAEs for SAELens."""

from __future__ import annotations

import asyncio
import gzip
import importlib
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import planted_tables as planted
import pytest
import torch
from planted_tables import HOSTILE, PLAIN, SAE, SIGNED, explanation, score, window

import autointerp
import sae as sae_package
from autointerp.engine.drive import Router, drive
from autointerp.errors import UserError
from autointerp.exchange.activations import read_activations
from autointerp.exchange.exporting import export_neuronpedia
from autointerp.exchange.importing import import_delphi, import_neuronpedia
from autointerp.explain._proposal import Proposal
from autointerp.types import LatentRecord
from sae.files import find

imported = importlib.import_module("autointerp.explain.import")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return planted.build(tmp_path_factory.mktemp("runs") / "planted")


@pytest.fixture(scope="module")
def exported(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source's folder."""
    folder = tmp_path_factory.mktemp("exported")
    (result,) = export_neuronpedia(run, folder)
    return folder / result.files


def explained(path: Path, latent: int, pole: int = 1) -> Proposal:
    record = LatentRecord(latent, 1, 10, 1.0, 1.0, (), (), pole=pole)
    config = imported.Config(path=str(path))
    result: Proposal = asyncio.run(drive(imported.explain(record, config), Router({}))).result
    return result


def test_the_explainer_says_what_was_exported(run: Path, exported: Path, tmp_path: Path) -> None:
    own = tmp_path / "explanations.jsonl"
    rows = autointerp.load_explanations(run).query("sae_id == @SAE", local_dict={"SAE": SAE})
    own.write_text("".join(json.dumps({k: row[k] for k in ("latent", "pole", "text", "status")}) + "\n"
                           for row in rows.to_dict("records")))  # fmt: skip
    for folder in (exported, exported / "explanations", exported / "explanations" / "batch-0.jsonl.gz"):
        for latent, pole in [(PLAIN, 1), (SIGNED, 1), (SIGNED, -1), (PLAIN, -1)]:
            assert explained(folder, latent, pole) == explained(own, latent, pole), (folder, latent, pole)
        assert explained(folder, SIGNED, -1) == Proposal("differences")
        assert explained(folder, 0).text == " ".join(HOSTILE.replace("\0", "\ufffd").split())
    # A failure has no line there: that the explainer was asked is not told.
    assert explained(exported, planted.FAILED) == Proposal(None, "not_in_file")
    assert explained(own, planted.FAILED) == Proposal(None, "refused")


def test_activations_come_back(run: Path, exported: Path) -> None:
    was = autointerp.load_table(run, "windows").query("sae_id == @SAE", local_dict={"SAE": SAE})
    was = was[(was["kind"] == "activating") & was["split"].isin(["explain", "score"]) & was["pieces"].notna()]
    was = was[
        [len(a) == len(p) and np.isfinite(a).all() for a, p in zip(was["activations"], was["pieces"], strict=True)]
    ]
    was = was.drop_duplicates(["latent", "pole", "window_id"]).set_index(["latent", "pole", "window_id"])
    for path in (exported, exported / "activations"):
        found = read_activations(path).set_index(["latent", "pole", "window_id"])
        assert len(found) == len(was) == 10 and set(found.index) == set(was.index)
        for key, row in found.iterrows():
            old = was.loc[key]
            assert np.array_equal(np.float32(row["activations"]), old["activations"]), "to the last bit"
            assert row["pieces"] == [piece.replace("\0", "\ufffd") for piece in old["pieces"]]
            assert row["split"] == old["split"] and row["kind"] == "activating" and row["corpus"] == "stories.jsonl"
        of_plain = found.loc[PLAIN].droplevel("pole")["quantile"]
        assert of_plain.to_dict() == {f"3-{i:x}": i // 2 for i in range(6)}


def test_a_run_folder_of_an_export(run: Path, exported: Path, tmp_path: Path, cli: Callable[..., Any]) -> None:
    out = tmp_path / "theirs"
    ended = cli("import", "neuronpedia", exported, "--out", out)
    assert ended.code == 0, ended.err
    assert "5 explanations, 5 scores, 10 windows, 8 latents" in ended.out
    assert cli("import", "neuronpedia", exported, "--out", out).code == 0, "made here, it may be made again"
    told = autointerp.load_explanations(out).set_index("explanation_id")
    assert told.loc["e4-", ["latent", "pole", "text", "explainer", "sae_id"]].tolist() == [
        SIGNED, -1, "differences", "default", exported.name,
    ]  # fmt: skip
    old = autointerp.load_scores(run).query("sae_id == @SAE and metric == 'balanced_accuracy'", local_dict={"SAE": SAE})
    new = autointerp.load_scores(out)
    key = ["latent", "pole", "method", "control", "draw", "value"]
    old = old[old["status"] != "no_explanation"]
    assert sorted(map(str, new[key].values.tolist())) == sorted(map(str, old[key].values.tolist()))
    assert set(new["arch"]) == {"topk"} and set(new["layer"]) == {9} and set(new["run_id"]) == {"theirs"}
    latents = autointerp.load_latents(out).set_index("latent")
    assert latents.loc[PLAIN, "density"] == 0.03 and latents.loc[planted.DEAD, "state"] == "dead"
    assert latents.loc[PLAIN, "state"] is None or latents["state"].isna()[PLAIN], "live or rare is not told"
    ended = cli("import", "neuronpedia", exported, "--out", run)
    assert ended.code == 2 and "something else" in ended.err
    assert explained(out, SIGNED, -1) == Proposal("differences")


@pytest.mark.parametrize("name", ["batch-0.jsonl", "batch-0.jsonl.gz"])
def test_what_neuronpedia_wrote(tmp_path: Path, name: str) -> None:
    """Lines as its exporter writes them, with columns that we never do."""
    place = {"modelId": "gpt2-small", "layer": "6-res-jb"}
    files = {
        "explanations": [
            {"id": "a", **place, "index": "7", "description": " a  dog ", "typeName": "oai_token-act-pair", "umap_x": 0,
             "explanationModelName": "gpt-4o-mini", "notes": "{", "authorId": "u", "embedding": None},
            {"id": "b", **place, "layer": "7-res-jb", "index": "8", "description": "", "notes": None},
        ],
        "activations": [
            {"id": "x", **place, "index": "7", "tokens": [" dog", "s"], "values": [2.5, 0], "maxValue": 2.5, "dfaValues": [],
             "binMin": 2.0, "binMax": 3.0, "dataSource": None, "dataIndex": None},
            {"id": "y", **place, "index": "7", "tokens": [" cat"], "values": [1], "binMin": 0.0, "binMax": 2.0},
            {"id": "z", **place, "index": "7", "tokens": [" silent"], "values": [0.0]},
        ],
        "features": [
            {**place, "index": "7", "frac_nonzero": 0.25, "maxActApprox": 2.5, "vector": []},
            {**place, "index": "8", "frac_nonzero": -1},
        ],
    }  # fmt: skip
    for kind, rows in files.items():
        text = "".join(json.dumps(row) + "\n" for row in rows).encode()
        path = tmp_path / "source" / kind / name
        path.parent.mkdir(parents=True)
        path.write_bytes(gzip.compress(text) if name.endswith(".gz") else text)
    counts = import_neuronpedia(tmp_path / "source", tmp_path / "out")
    assert counts["explanations without a text"] == 1 and counts["scores"] == 0
    told = autointerp.load_explanations(tmp_path / "out").set_index("latent")
    assert told.loc[7, ["text", "status", "explainer", "explainer_model", "sae_id"]].tolist() == [
        "a dog", "ok", "oai_token-act-pair", "gpt-4o-mini", "6-res-jb",
    ]  # fmt: skip
    assert told.loc[8, "status"] == "failed" and told["pole"].isna().all()
    windows = autointerp.load_table(tmp_path / "out", "windows").set_index("window_id")
    assert windows.index.tolist() == ["y", "x"] or windows.index.tolist() == ["x", "y"], "the silent row is none"
    assert windows.loc["x", ["quantile", "text", "pole"]].tolist() == [1, " dogs", 1]
    assert windows.loc["y", "quantile"] == 0 and windows["split"].isna().all()
    latents = autointerp.load_latents(tmp_path / "out").set_index("latent")
    assert latents.loc[7, "density"] == 0.25 and math.isnan(latents.loc[8, "density"])
    import_neuronpedia(tmp_path / "source", tmp_path / "one", "7-res-jb")
    assert autointerp.load_explanations(tmp_path / "one")["latent"].tolist() == [8]
    assert len(autointerp.load_table(tmp_path / "one", "windows")) == 0
    with pytest.raises(UserError, match="6-res-jb, 7-res-jb"):
        import_neuronpedia(tmp_path / "source", tmp_path / "two", "res-jb")
    with pytest.raises(UserError, match="several SAEs"):
        explained(tmp_path / "source", 7)


def test_activations_that_are_none(tmp_path: Path) -> None:
    good = {"layer": "6-res-jb", "index": "7", "tokens": ["a"], "values": [1.0], "id": "x"}
    for spoilt, message in [
        ({"index": "seven"}, "no latent's 'index'"), ({"tokens": ["a", "b"]}, "one value a token"),
        ({"tokens": None}, "one value a token"), ({"tokens": [3]}, "no strings"), ({"values": ["1"]}, "no numbers"),
        ({"values": [math.nan]}, "no numbers"), ({"values": []}, "one value a token"),
    ]:  # fmt: skip
        (tmp_path / "x.jsonl").write_text(json.dumps(good) + "\n" + json.dumps({**good, **spoilt}) + "\n")
        with pytest.raises(UserError, match=rf"activation 2: .*{message}"):
            read_activations(tmp_path / "x.jsonl")
    (tmp_path / "x.jsonl").write_text("[1]\n")
    with pytest.raises(UserError, match="line 1: a JSON object"):
        read_activations(tmp_path / "x.jsonl")
    (tmp_path / "x.jsonl").write_text("\n")
    with pytest.raises(UserError, match="it is empty"):
        read_activations(tmp_path / "x.jsonl")
    with pytest.raises(UserError, match="no activations at"):
        read_activations(tmp_path / "missing")


def test_delphis_folder(tmp_path: Path, cli: Callable[..., Any]) -> None:
    folder = tmp_path / "delphi" / "explanations"
    folder.mkdir(parents=True)
    for i, text in enumerate(['"cats"', '"Explanation could not be parsed."', "plain </script>"]):
        (folder / f"layers.3.mlp_latent{i}.txt").write_text(text)
    (folder / "layers.4_latent9.txt").write_text('"dogs"')
    for path in (folder, folder.parent):
        ended = cli("import", "delphi", path, "--out", tmp_path / "out")
        assert ended.code == 0 and "4 explanations" in ended.out and "1 of the explanations have no text" in ended.out
    told = autointerp.load_explanations(tmp_path / "out")
    assert told[["sae_id", "latent", "text"]].fillna("").values.tolist() == [
        ["layers.3.mlp", 0, "cats"], ["layers.3.mlp", 1, ""], ["layers.3.mlp", 2, "plain </script>"],
        ["layers.4", 9, "dogs"],
    ]  # fmt: skip
    assert import_delphi(folder, tmp_path / "one", "layers.4")["explanations"] == 1
    assert cli("import", "delphi", folder, "--out", tmp_path / "two", "--source", "layers.5").code == 2
    assert cli("import", "delphi", tmp_path / "missing", "--out", tmp_path / "two").code == 2
    assert not (tmp_path / "two").exists(), "nothing is made of nothing"
    ended = cli("import", "elsewhere", folder, "--out", tmp_path / "two")
    assert ended.code == 2 and "known are neuronpedia, delphi" in ended.err


def test_an_unfinished_run_is_no_export(tmp_path: Path) -> None:
    planted.write(tmp_path / "run" / "explanations", "explanations", [explanation(1, "cats", "e")])
    with pytest.raises(UserError, match="no explanations in the folder"):
        explained(tmp_path / "run", 1)


def test_a_report_of_an_import(exported: Path, tmp_path: Path, cli: Callable[..., Any]) -> None:
    import_neuronpedia(exported, tmp_path / "theirs")
    ended = cli("report", tmp_path / "theirs")
    assert ended.code == 0, ended.err
    page = "".join(path.read_text() for path in (tmp_path / "theirs" / "report").iterdir())
    assert "differences" in page and "</script> " not in page.partition("window.__autointerp_add")[2].partition("<")[0]


def test_saelens_reads_what_we_write(world: Any, tmp_path: Path, cli: Callable[..., Any]) -> None:
    ended = cli("export", "saelens", "--sae", world.sae, "--out", tmp_path / "out")
    assert ended.code == 0, ended.err
    assert (tmp_path / "out" / "cfg.json").is_file() and find(tmp_path / "out").format == "saelens"
    was, now = sae_package.load(world.sae), sae_package.load(tmp_path / "out")
    x = torch.randn(8, was.d_in, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(was.encode_dense(x), now.encode_dense(x), atol=1e-5)
    for words, message in {
        ("--out", tmp_path / "b"): "no SAE: name its folder", ("--sae", tmp_path / "no", "--out", tmp_path / "b"): "no SAE at",
    }.items():  # fmt: skip
        ended = cli("export", "saelens", *words)
        assert ended.code == 2 and message in ended.err, ended.err


def test_a_signed_score_finds_its_own(tmp_path: Path) -> None:
    """Scores of old tables have no pole, and mean the positive one."""
    planted.write(tmp_path / "run", "scores", [score(1, 0.5, "e", pole=None), score(1, 0.4, "e", pole=-1)])
    planted.write(tmp_path / "run", "explanations", [explanation(1, "cats", "e"), explanation(1, "dogs", "e", pole=-1)])
    planted.write(tmp_path / "run", "windows", [window(1, 1)])
    (result,) = export_neuronpedia(tmp_path / "run", tmp_path / "out")
    import_neuronpedia(tmp_path / "out" / result.files, tmp_path / "back")
    found = autointerp.load_scores(tmp_path / "back").set_index("pole")["value"]
    assert found.to_dict() == {1: 0.5, -1: 0.4}
