"""What is written for Neuronpedia is what the tables say, and what is left out is counted."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import planted_tables as planted
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from jsonschema import Draft202012Validator
from planted_tables import DEAD, HOSTILE, PLAIN, SAE, SIGNED, UNEXPLAINED, lines, score, window

from autointerp.errors import UserError
from autointerp.exchange import exporting
from autointerp.exchange.exporting import Exported, export_neuronpedia
from autointerp.exchange.neuronpedia import Names
from autointerp.exchange.notes import read_note
from autointerp.exchange.plain import json_line
from autointerp.exchange.schemas import SCHEMAS

SOURCE = "9-topk-layers-9-mlp-64-abcdef"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return planted.build(tmp_path_factory.mktemp("runs") / "planted")


@pytest.fixture(scope="module")
def out(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported")
    export_neuronpedia(run, folder)
    return folder


def batches(out: Path, kind: str) -> list[dict[str, Any]]:
    return lines(out / "v1" / "tiny-model" / SOURCE / kind)


def bodies(folder: Path) -> list[dict[str, Any]]:
    files = sorted(folder.glob("upload/*/*/batch-*.json"), key=lambda file: int(file.stem.split("-")[1]))
    return [json.loads(file.read_text()) for file in files]


def one(folder: Path, run: Path, **given: Any) -> Exported:
    (result,) = export_neuronpedia(run, folder, **given)
    return result


def test_all_of_it_is_valid(out: Path) -> None:
    for kind in ("features", "activations", "explanations"):
        found = batches(out, kind)
        assert found
        for line in found:
            Draft202012Validator(SCHEMAS[kind]).validate(line)
            assert line["layer"] == SOURCE and line["modelId"] == "tiny-model" and isinstance(line["index"], str)
            assert line.keys() == found[0].keys()
        assert len({line.get("id", line["index"]) for line in found}) == len(found)
    for body in bodies(out):
        Draft202012Validator(SCHEMAS["upload"]).validate(body)
    assert {path.name for path in (out / "v1" / "tiny-model").iterdir()} == {SOURCE}, "a control is no SAE to publish"


def test_features(out: Path) -> None:
    features = {int(line["index"]): line for line in batches(out, "features")}
    assert sorted(features) == list(range(planted.N_LATENTS)), "all latents, dead ones included"
    assert features[PLAIN]["frac_nonzero"] == 0.03 and features[PLAIN]["maxActApprox"] == 10.1
    assert features[DEAD]["frac_nonzero"] == 0 and features[DEAD]["maxActApprox"] is None
    assert features[SIGNED]["maxActApprox"] is None, "the largest magnitude may be the negative pole's"
    assert {line["sourceSetName"] for line in features.values()} == {SOURCE.partition("-")[2]}
    assert "pos_str" not in features[PLAIN] and "vector" not in features[PLAIN], "nothing is invented"


def test_activations(out: Path) -> None:
    found = [line for line in batches(out, "activations") if line["index"] == str(PLAIN)]
    assert [line["dataIndex"] for line in found] == [
        f"{'explain' if i % 2 else 'score'}/3-{i:x}" for i in range(5, -1, -1)
    ], "activating windows to explain from and to score on, once each, strongest first"
    top = found[0]
    assert top["tokens"] == ["a", " cat5", "."] and top["values"] == [0.0, 5.1, 0.0], "no digits that float32 lacks"
    assert (top["maxValue"], top["maxValueTokenIndex"], top["minValue"]) == (5.1, 1, 0.0)
    assert (top["binMin"], top["binMax"], top["binContains"]) == (4.1, 5.1, 0.1), "one bin a quantile"
    assert {(line["binMin"], line["binMax"]) for line in found} == {(0.1, 1.1), (2.1, 3.1), (4.1, 5.1)}
    assert top["dataSource"] == "stories.jsonl" and top["creatorId"] is None
    signed = [line for line in batches(out, "activations") if line["index"] == str(SIGNED)]
    assert [line["values"] for line in signed] == [[0.0, 1.1, 0.0], [0.0, -2.5, -0.1]]
    assert signed[1]["minValue"] == -2.5 and signed[1]["binMin"] == -2.5 and signed[1]["maxValue"] == 0


def test_explanations_and_their_scores(out: Path) -> None:
    found = batches(out, "explanations")
    assert [(line["index"], line["description"]) for line in found] == [
        ("0", HOSTILE.replace("\0", "\ufffd")), ("3", "cats"), ("3", "cats, later"), ("4", "sums"), ("4", "differences"),
    ]  # fmt: skip
    assert {line["typeName"] for line in found} == {None}, "names that Neuronpedia has not registered are refused"
    notes = [read_note(line["notes"]) for line in found]
    assert all(notes)
    cats, later, sums, differences = notes[1:]
    assert cats and later and differences and sums
    figures = {"value": 0.8, "ci_low": pytest.approx(0.7), "ci_high": pytest.approx(0.9), "n": 20}
    (graded,) = cats["scores"]
    assert graded == {
        "method": "detection", "metric": "balanced_accuracy", "negatives": "random", "scorer_model": "judge",
        "draw": 0, "status": "ok", **figures,
        "controls": {
            "shuffled_explanation": {**figures, "value": 0.5, "ci_low": pytest.approx(0.4), "ci_high": pytest.approx(0.6)}
        },
    }, "the headline figure with its control; recall is none"  # fmt: skip
    assert [s["value"] for s in later["scores"]] == [0.7] and later["scores"][0]["controls"] == {}
    assert (differences["pole"], sums["pole"]) == (-1, 1)
    assert differences["scores"][0]["value"] is None and differences["scores"][0]["status"] == "too_few_windows"
    assert cats["explainer"] == "default" and cats["explainer_model"] == "writer"
    assert cats["sae"]["arch"] == "topk" and cats["sae"]["hookpoint"] == "layers.9.mlp"


def test_what_can_be_uploaded(out: Path) -> None:
    (body,) = bodies(out)
    assert body["modelId"] == "tiny-model" and body["source"] == SOURCE
    features = {feature["index"]: feature for feature in body["features"]}
    assert sorted(features) == [0, PLAIN, SIGNED, UNEXPLAINED], "those with activations"
    assert [e["text"] for e in features[SIGNED]["explanations"]] == ["sums"], "it cannot say which pole"
    assert len(features[SIGNED]["activations"]) == 1
    assert features[PLAIN]["activations"][0] == {
        "tokens": ["a", " cat5", "."], "values": [0.0, 5.1, 0.0], "quantileMin": 4.1, "quantileMax": 5.1,
        "quantileFraction": 0.1,
    }  # fmt: skip
    assert features[0]["activations"][0]["tokens"] == ["\ufffd", HOSTILE.replace("\0", "\ufffd"), "."]
    assert features[PLAIN]["topLogits"] is None and features[UNEXPLAINED]["explanations"] == []


def test_what_is_left_out_is_counted(run: Path, tmp_path: Path) -> None:
    result = one(tmp_path, run)
    assert {reason: n for reason, n in result.left_out.items() if n} == {
        "explanations that failed": 1, "windows that hold no numbers, or not one for each token": 4,
        "uploads of activations of negative poles": 1, "uploads of explanations of negative poles": 1,
    }  # fmt: skip
    assert dict(result.written) == {
        "features": 8, "activations": 10, "explanations": 5, "upload requests": 1, "uploaded features": 4,
    }  # fmt: skip
    (said,) = json.loads((tmp_path / "export.json").read_text())
    assert said["sae_id"] == SAE and said["written"] == dict(result.written) and len(said["left_out"]) == 4


def test_the_same_tables_give_the_same_bytes(run: Path, out: Path, tmp_path: Path) -> None:
    (tmp_path / "v1" / "tiny-model" / SOURCE / "features").mkdir(parents=True)
    stale = tmp_path / "v1" / "tiny-model" / SOURCE / "features" / "batch-7.jsonl.gz"
    stale.write_bytes(b"of an earlier export")
    export_neuronpedia(run, tmp_path)
    assert not stale.exists()
    files = [path.relative_to(out) for path in sorted(out.rglob("*")) if path.is_file()]
    assert files == [path.relative_to(tmp_path) for path in sorted(tmp_path.rglob("*")) if path.is_file()]
    assert all((out / file).read_bytes() == (tmp_path / file).read_bytes() for file in files)


def test_names_that_only_the_user_knows(run: Path, tmp_path: Path) -> None:
    names = Names(creator="u1", method="np_max-act", explainer="gpt-4o-mini")
    result = one(tmp_path, run, names=names, model_id="my-model", source_id="9-mine", activations=2)
    assert result.source.source_id == "9-mine" and result.left_out["windows beyond --activations"] == 4
    folder = tmp_path / "v1" / "my-model" / "9-mine"
    explanations, activations = lines(folder / "explanations"), lines(folder / "activations")
    assert {(e["typeName"], e["explanationModelName"], e["authorId"]) for e in explanations} == {
        ("np_max-act", "gpt-4o-mini", "u1")
    }
    assert [a["maxValue"] for a in activations if a["index"] == str(PLAIN)] == [5.1, 0.1], "over all strengths"
    assert {a["creatorId"] for a in activations} == {"u1"}
    uploaded = bodies(tmp_path)[0]["features"][1]["explanations"][0]
    assert uploaded == {"text": "cats", "methodName": "np_max-act", "modelName": "gpt-4o-mini"}
    (source,) = [json.loads(line) for line in (folder / "source.jsonl").read_text().splitlines()]
    assert source["dataset"] == "stories.jsonl" and source["num_tokens_in_prompt"] == 64 and "home" not in str(source)


def test_logits_of_a_lens(run: Path, tmp_path: Path) -> None:
    copy = planted.build(tmp_path / "run")
    rows = [
        {"sae_id": sae, "latent": PLAIN, "direction": direction, "rank": rank, "token": f"{direction}{rank}",
         "logit": sign * (2.1 - rank)}
        for sae in (SAE, "other") for direction, sign in (("bottom", -1), ("top", 1)) for rank in (1, 0)
    ]  # fmt: skip
    pq.write_table(pa.Table.from_pylist(rows), copy / "lens.parquet")
    export_neuronpedia(copy, tmp_path / "out")
    features = {line["index"]: line for line in batches(tmp_path / "out", "features")}
    assert features[str(PLAIN)]["pos_str"] == ["top0", "top1"] and features[str(PLAIN)]["pos_values"] == [2.1, 1.1]
    assert features[str(PLAIN)]["neg_values"] == [-2.1, -1.1] and features["0"]["pos_str"] == []
    uploaded = {feature["index"]: feature for feature in bodies(tmp_path / "out")[0]["features"]}
    assert uploaded[PLAIN]["topLogits"][0] == {"token": "top0", "value": 2.1} and uploaded[0]["topLogits"] is None
    planted.write(copy, "lens", [])
    export_neuronpedia(copy, tmp_path / "out")
    assert "pos_str" not in batches(tmp_path / "out", "features")[0], "a lens of nothing is none"
    (copy / "lens.parquet").write_bytes(b"words")
    with pytest.raises(UserError, match=r"cannot read '.*lens\.parquet'"):
        export_neuronpedia(copy, tmp_path / "out")


def test_requests_of_at_most_128(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    planted.write(tmp_path / "run", "windows", [window(latent, 1) for latent in range(300)])
    planted.write(tmp_path / "run", "scores", [score(0, 0.5, "e")])
    result = one(tmp_path / "out", tmp_path / "run")
    assert [len(body["features"]) for body in bodies(tmp_path / "out")] == [128, 128, 44]
    assert [f["index"] for body in bodies(tmp_path / "out") for f in body["features"]] == list(range(300))
    assert result.written["uploaded features"] == 300
    monkeypatch.setattr(exporting, "UPLOAD_BYTES", 4000)
    monkeypatch.setattr(exporting, "FEATURES_PER_FILE", 100)
    export_neuronpedia(tmp_path / "run", tmp_path / "out")
    assert all(1 <= len(body["features"]) < 30 for body in bodies(tmp_path / "out"))
    assert sum(len(body["features"]) for body in bodies(tmp_path / "out")) == 300
    found = batches(tmp_path / "out", "features")
    assert [line["index"] for line in found] == [str(i) for i in range(300)]
    assert {line["frac_nonzero"] for line in found} == {-1}, "what nobody knows is not 0"
    assert "density" not in bodies(tmp_path / "out")[0]["features"][0]


def test_long_explanations_are_cut_in_uploads_only(tmp_path: Path) -> None:
    planted.write(
        tmp_path / "run", "windows", [window(1, 1), window(2, 1, pieces=["x"] * 1025, activations=[1.0] * 1025)]
    )
    texts = {1: "y" * 513, 2: "z"}
    planted.write(
        tmp_path / "run", "explanations", [planted.explanation(i, text, f"e{i}") for i, text in texts.items()]
    )
    planted.write(tmp_path / "run", "scores", [score(1, 0.5, "e1")])
    result = one(tmp_path / "out", tmp_path / "run")
    ((uploaded,),) = (body["features"] for body in bodies(tmp_path / "out"))
    assert len(uploaded["explanations"][0]["text"]) == 512 and uploaded["explanations"][0]["text"].endswith("y…")
    assert [line["description"] for line in batches(tmp_path / "out", "explanations")] == ["y" * 513, "z"]
    assert {reason for reason, n in result.left_out.items() if n} == {
        "ends of uploaded explanations of more than 512 characters", "uploads of windows of more than 1,024 tokens",
        "uploads of explained latents without activations",
    }  # fmt: skip


def test_text_that_is_none(tmp_path: Path) -> None:
    run = planted.build(tmp_path / "run")
    planted.spoil_text(run, "explanations", "text", 2, planted.NOT_UTF8)
    export_neuronpedia(run, tmp_path / "out")
    texts = [line["description"] for line in batches(tmp_path / "out", "explanations")]
    assert any(text.startswith("half \ufffd") and text.endswith("of a pair") for text in texts)


def test_a_line_survives_the_importer() -> None:
    """Which replaces the six characters of an escaped NUL by a space before it reads the JSON."""
    for text in ("\\u0000", "\\\\u0000", "a\\\\\\u0000b", "\\U0000", "plain \\ u0000", HOSTILE.replace("\0", "")):
        line = json_line({"text": text})
        assert json.loads(line) == {"text": text}
        assert json.loads(line.replace("\\u0000", " ")) == {"text": text}
        assert "\n" not in line
    with pytest.raises(ValueError, match="JSON"):
        json_line({"value": float(np.nan)})


def test_windows_of_two_corpora_may_share_a_name(tmp_path: Path) -> None:
    rows = [window(1, 1), window(1, 1, corpus="other"), window(1, 1, draw=1)]
    planted.write(tmp_path / "run", "windows", rows)
    planted.write(tmp_path / "run", "scores", [score(1, 0.5, "e")])
    assert one(tmp_path / "out", tmp_path / "run").written["activations"] == 2
    found = batches(tmp_path / "out", "activations")
    assert len({line["id"] for line in found}) == 2 and {line["dataSource"] for line in found} == {
        "stories.jsonl", "other",
    }  # fmt: skip


def test_several_saes(tmp_path: Path) -> None:
    for name, rows in {
        "scores": [score(1, 0.5, "e", sae_id=f"s{i}", layer=i, hookpoint=f"layers.{i}") for i in (0, 1)],
        "windows": [window(1, 1, sae_id="s0"), window(1, 2, sae_id="s1")],
    }.items():
        planted.write(tmp_path / "run", name, rows)
    results = export_neuronpedia(tmp_path / "run", tmp_path / "out")
    assert [result.source.source_id for result in results] == ["0-s0", "1-s1"]
    folders = [tmp_path / "out" / result.files / "activations" for result in results]
    assert [lines(folder)[0]["values"][1] for folder in folders] == [1.1, 2.1]
    assert one(tmp_path / "one", tmp_path / "run", sae="s1").source.source_id == "1-s1"
    with pytest.raises(UserError, match="--source-id names one SAE, but there are 2"):
        export_neuronpedia(tmp_path / "run", tmp_path / "out", source_id="0-x")
    with pytest.raises(UserError, match=r"has no SAE 's2' \(but s0, s1\)"):
        export_neuronpedia(tmp_path / "run", tmp_path / "out", sae="s2")


def test_without_most_tables(tmp_path: Path) -> None:
    planted.write(tmp_path / "run", "explanations", [planted.explanation(1, "cats", "e1")])
    with pytest.raises(UserError, match="--model-id"):
        export_neuronpedia(tmp_path / "run", tmp_path / "out")
    result = one(tmp_path / "out", tmp_path / "run", model_id="m")
    assert result.source.source_id == SOURCE, "the layer is in the SAE's name"
    assert result.written["explanations"] == 1 and not bodies(tmp_path / "out")
    assert not list((tmp_path / "out").rglob("activations/*")), "the importer fails on a file without lines"
    assert result.left_out["uploads of explained latents without activations"] == 1
    planted.write(tmp_path / "other", "explanations", [planted.explanation(1, "cats", "e1", sae_id="mine")])
    with pytest.raises(UserError, match="the layer of 'mine' is not known"):
        export_neuronpedia(tmp_path / "other", tmp_path / "out", model_id="m")


def test_runs_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "nothing").mkdir()
    planted.write(tmp_path / "empty", "explanations", [])
    planted.write(tmp_path / "controls", "scores", [score(2, 0.5, "e", control="random_sae")])
    for name, message in {"missing": "no run folder", "nothing": "no tables", "empty": "tables name no SAE",
                          "controls": "has only controls"}.items():  # fmt: skip
        with pytest.raises(UserError, match=message):
            export_neuronpedia(tmp_path / name, tmp_path / "out")
    (tmp_path / "empty" / "scores.parquet").write_bytes(b"words")
    with pytest.raises(UserError, match=r"cannot read '.*scores\.parquet'"):
        export_neuronpedia(tmp_path / "empty", tmp_path / "out")


def test_the_command(run: Path, out: Path, tmp_path: Path, cli: Callable[..., Any]) -> None:
    ended = cli("export", "neuronpedia", run, "--out", tmp_path / "out")
    assert ended.code == 0, ended.err
    assert (
        "8 features, 10 activations, 5 explanations" in ended.out
        and "left out: 1 explanations that failed" in ended.out
    )
    assert "--creator-id" in ended.out
    assert batches(tmp_path / "out", "explanations") == batches(out, "explanations")
    for words, message in {
        ("export", "neuronpedia", run): "name a folder with --out",
        ("export", "neuronpedia", "--out", tmp_path): "no run",
        ("export", "elsewhere", run, "--out", tmp_path): "known are neuronpedia, hub, saelens",
        ("export", "hub", run, "--out", tmp_path, "--sae", "x"): "takes no --sae",
        ("export", "neuronpedia", run, "--out", tmp_path, "--push", "a/b"): "takes no --push",
        ("export", "saelens", run, "--out", tmp_path): "takes no run folder",
        ("export", "neuronpedia", run, "--out", tmp_path, "--model-id", "My Model"): "say 'my-model'",
        ("export", "neuronpedia", run, "--out", tmp_path, "--source-id", "res-jb"): "6-res-jb",
        ("export", "neuronpedia", run, "--out", tmp_path, "--activations", 0): "at least 1",
    }.items():
        ended = cli(*words)
        assert ended.code == 2 and message in ended.err and ended.err.count("\n") == 1, ended.err
