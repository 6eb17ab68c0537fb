"""A data set that `datasets` loads as it lies there, that gives away nothing of the machine, and an upload."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub
import planted_tables as planted
import pytest
import yaml
from planted_tables import HOSTILE, PLAIN, explanation, score

import autointerp
from autointerp.errors import UserError
from autointerp.exchange.hub import export_hub
from autointerp.tables.schemas import TABLES

TOKEN = "hf_planted_token"


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    home = tmp_path / "home"
    monkeypatch.setenv("HOME", str(home))
    folder = planted.build(tmp_path / "runs" / "planted")
    planted.write(folder, "failures", [
        {"run_id": "planted", "stage": "explain", "latent": 1, "message": f"cannot read {home}/keys/x"}
    ])  # fmt: skip
    rows = [score(PLAIN, 0.8, "e3", scorer_model=f"{home}/models/judge", explainer_model="owner/writer")]
    rows += [score(PLAIN, 0.5, "e4", control="shuffled_explanation", scorer_model="/data/models/judge")]
    planted.write(folder, "scores", rows)
    (folder / "environment.json").write_text('{"git": "abc", "versions": {"torch": "2.4"}}')
    (folder / "config.yaml").write_text(
        f"out: {folder}\nsae: {home}/saes/mine\nseed: 3\nsubject: {{model: owner/model}}\n"
        "explain: {base_url: 'http://me:secret@host:8000/v1?key=abc', api_key: k-12345, options: {path: /data/x.jsonl}}\n"
        "data: {tokens: 1000, dataset: '```x'}\n"
    )
    return folder


def front(card: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(card.split("---\n")[1])
    return found


def test_it_loads(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "data-set"
    written = export_hub(run, out)
    assert set(written) == {"scores", "explanations", "latents", "windows", "failures"}, "tables with rows"
    for name in written:
        loaded = datasets.load_dataset(str(out), name, split="train", cache_dir=str(tmp_path / "cache"))
        assert loaded.num_rows == len(autointerp.load_table(run, name)) and loaded.column_names == TABLES[name].names
    default = datasets.load_dataset(str(out), split="train", cache_dir=str(tmp_path / "cache"))
    assert default["value"] == [0.8, 0.5] or sorted(default["value"]) == [0.5, 0.8], "scores, where none is named"
    windows = datasets.load_dataset(str(out), "windows", split="train", cache_dir=str(tmp_path / "cache"))
    assert any(HOSTILE in row["pieces"] for row in windows if row["pieces"])
    assert sorted(path.name for path in out.iterdir()) == sorted(["README.md", *(f"{n}.parquet" for n in written)])


def test_the_card(run: Path, tmp_path: Path) -> None:
    export_hub(run, tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert {"config_name": "latents", "data_files": "latents.parquet"} in front(card)["configs"]
    for said in ("Tiny-Model", "topk", "layers.9.mlp", "0.800", "torch: '2.4'", "git: abc", "seed: 3", "Seeds: 0",
                 "host:8000/v1", "owner/model", "stories.jsonl", "| 8 | 7 | 0 | 0 | 1 | 3 | 1 |"):  # fmt: skip
        assert said in card, said
    fenced = card.split("````yaml\n")[1].split("````")[0]
    assert yaml.safe_load(fenced)["settings"]["data"]["dataset"] == "```x", "no fence is closed early"


def test_nothing_of_the_machine_is_given_away(run: Path, tmp_path: Path) -> None:
    export_hub(run, tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    for secret in (str(tmp_path), "secret", "k-12345", "key=abc", "/data/"):
        assert secret not in card, secret
    raw = b"".join(path.read_bytes() for path in (tmp_path / "out").glob("*.parquet"))
    assert str(tmp_path).encode() not in raw
    scores = autointerp.load_scores(tmp_path / "out")
    assert set(scores["scorer_model"]) == {"judge"} and set(scores["explainer_model"]) == {"owner/writer", "writer"}
    assert autointerp.load_table(tmp_path / "out", "failures")["message"].tolist() == ["cannot read ~/keys/x"]


def test_text_that_is_none_and_names_that_break_out(tmp_path: Path) -> None:
    run = tmp_path / "run"
    planted.write(run, "explanations", [explanation(1, "cats", "e", sae_id="a|b\n<script>[x](y)")])
    planted.spoil_text(run, "explanations", "text", 0, planted.NOT_UTF8)
    assert export_hub(run, tmp_path / "out") == ["explanations"]
    loaded = datasets.load_dataset(str(tmp_path / "out"), "explanations", split="train", cache_dir=str(tmp_path / "c"))
    assert loaded["text"][0].startswith("half \ufffd")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "<script>" not in card and "a\\|b &lt;script>" in card


def test_what_is_no_data_set(run: Path, tmp_path: Path) -> None:
    planted.write(tmp_path / "empty", "scores", [])
    with pytest.raises(UserError, match="no rows"):
        export_hub(tmp_path / "empty", tmp_path / "out")
    with pytest.raises(UserError, match="is a run folder"):
        export_hub(run, run)
    with pytest.raises(UserError, match="no run folder"):
        export_hub(tmp_path / "missing", tmp_path / "out")


def test_pushing(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cli: Callable[..., Any]) -> None:
    calls: list[tuple[str, dict[str, Any]]] = []

    class Hub:
        def create_repo(self, repository: str, **given: Any) -> None:
            calls.append(("create", {"repository": repository, **given}))

        def upload_folder(self, **given: Any) -> None:
            calls.append(("upload", given))
            if given["repo_id"] == "me/refused":
                raise OSError(f"403: token {TOKEN} may not write\nand more")

    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    words = ("export", "hub", run, "--out", tmp_path / "out")
    ended = cli(*words, "--push", "me/mine")
    assert ended.code == 2 and "HF_TOKEN" in ended.err and not calls and ended.err.count("\n") == 1
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: TOKEN)
    ended = cli(*words, "--push", "me/mine")
    assert ended.code == 0 and "https://huggingface.co/datasets/me/mine" in ended.out
    (_, made), (_, sent) = calls
    assert made == {"repository": "me/mine", "repo_type": "dataset", "private": True, "exist_ok": True}
    assert sent["folder_path"] == str(tmp_path / "out") and sent["repo_type"] == "dataset"
    assert "README.md" in sent["allow_patterns"] and "scores.parquet" in sent["allow_patterns"]
    assert cli(*words, "--push", "me/mine", "--public").code == 0 and calls[-2][1]["private"] is False
    ended = cli(*words, "--push", "me/refused")
    assert ended.code == 2 and "403" in ended.err and TOKEN not in ended.err + ended.out and "and more" not in ended.err
    for wrong in (("--push", "mine"), ("--push", "../x/y"), ("--public",)):
        assert cli(*words, *wrong).code == 2
