"""The report on disk: hostile text stays text, nothing is loaded from elsewhere, the cards hold what they should."""

from __future__ import annotations

import html
import json
import re
import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from synthetic_run import FAILED, HOSTILE, LATENTS, SAE, explanation_of, write

from autointerp.errors import UserError
from autointerp.report import build_report
from autointerp.report.choosing import MAX_ACTIVATING, MAX_OTHER, choose, spread
from autointerp.report.text import figure, script_json, visible

RunBuilder = Callable[..., Path]
CALL = "window.__autointerp_add("


def shard(path: Path) -> Any:
    """The content of a data file, having checked that it is one call with one JSON argument."""
    source = path.read_text(encoding="utf-8")
    assert source.startswith(CALL)
    assert source.endswith(");\n")
    return json.loads(source[len(CALL) : -3])


def test_page_stands_in_the_run_folder(run: Path, page: Path) -> None:
    assert page == run / "report" / "index.html"
    assert sorted(p.name for p in page.parent.iterdir()) == ["data-000.js", "index-000.js", "index.html", "report.js"]


def test_nothing_is_loaded_from_elsewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    sources = re.findall(r"""<(?:script|link|img|iframe)[^>]*?(?:src|href)=["']?([^"'\s>]+)""", text)
    assert sources == ["data:,", "report.js"]
    assert not re.search(r"url\(|@import", text)
    script = (page.parent / "report.js").read_text(encoding="utf-8")
    outside = [url for url in re.findall(r"https?://[^\s\"']+", script + text) if url != "http://www.w3.org/2000/svg"]
    assert outside == []
    assert "fetch(" not in script
    assert "Content-Security-Policy" in text


def test_script_never_writes_markup(page: Path) -> None:
    script = (page.parent / "report.js").read_text(encoding="utf-8")
    assert not re.search(
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function|\.on\w+ = \"", script
    )


def test_page_holds_only_our_own_script(page: Path) -> None:
    tags: list[tuple[str, dict[str, str | None]]] = []

    class Reader(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            tags.append((tag, dict(attrs)))

    Reader().feed(page.read_text(encoding="utf-8"))
    assert [attributes for tag, attributes in tags if tag == "script"] == [{"src": "report.js"}]
    assert not [tag for tag, attributes in tags if any(name.startswith("on") for name in attributes)]
    assert "img" not in {tag for tag, _ in tags}


def test_sae_name_and_failure_message_are_escaped(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert html.escape(SAE) in text
    assert html.escape(HOSTILE[1], quote=True).replace("&#x27;", "&#39;") in text


@pytest.mark.parametrize("name", ["index-000.js", "data-000.js"])
def test_data_files_are_one_safe_call(page: Path, name: str) -> None:
    source = (page.parent / name).read_text(encoding="utf-8")
    assert not set(source) & set("<>&\u2028\u2029\u202e\x00\x1b")
    shard(page.parent / name)


def test_index_lists_every_explained_latent(page: Path) -> None:
    rows = shard(page.parent / "index-000.js")["rows"]
    assert [row[0] for row in rows] == list(LATENTS)
    by_latent = {row[0]: row for row in rows}
    assert by_latent[FAILED][4:6] == [None, "failed"]
    assert by_latent[FAILED][7] == [None] * 6
    assert by_latent[17][4] == visible(explanation_of(17))


def test_card_holds_scores_beside_their_control(page: Path) -> None:
    card = shard(page.parent / "data-000.js")["cards"][17 - LATENTS.start]
    head = shard(page.parent / "index-000.js")["head"]
    primary = [card["scores"][number] for number in card["headline"]]
    columns = [head["columns"][score["column"]] for score in primary]
    assert [(column["method"], column["metric"]) for column in columns] == [
        ("detection", "balanced accuracy"),
        ("intervention", "logprob gain"),
        ("surprisal", "auroc"),
    ]
    for score in primary:
        assert score["real"]["low"] < score["real"]["value"]
        assert score["control"]["low"] < score["control"]["value"]
    tally = card["tallies"][0]
    assert head["methods"][tally["method"]] == "detection"
    assert (tally["right"] + tally["wrong"], tally["failed"]) == (27, 1)


def test_card_caps_windows_and_spreads_them_over_quantiles(page: Path) -> None:
    card = shard(page.parent / "data-000.js")["cards"][17 - LATENTS.start]
    for split in ("explain", "score"):
        groups = [group for group in card["windows"] if group["split"] == split]
        assert [group["quantile"] for group in groups] == [4, 3, 2, 1, 0, None]
        assert [len(group["windows"]) for group in groups] == [3, 3, 2, 2, 2, 6]
        assert {group["total"] for group in groups} == {20, 8}
    judged = [window for group in card["windows"] if group["split"] == "score" for window in group["windows"]]
    assert all(len(window["verdicts"]) == 2 for window in judged)


def test_card_shows_each_intervention_once(page: Path) -> None:
    card = shard(page.parent / "data-000.js")["cards"][0]
    assert card["n_pairs"] == 3
    assert card["pairs"][0]["steered"] == f"The committee met by the river, {HOSTILE[0]} where the boats drifted past."


def test_same_tables_give_the_same_bytes(run: Path, page: Path, tmp_path: Path) -> None:
    again = build_report([run], tmp_path / "again").parent
    for file in page.parent.iterdir():
        assert (again / file.name).read_bytes() == file.read_bytes()


def test_old_shards_go_and_foreign_files_stay(run: Path, tmp_path: Path) -> None:
    (tmp_path / "data-007.js").write_text("old")
    (tmp_path / "notes.txt").write_text("mine")
    build_report([run], tmp_path)
    assert not (tmp_path / "data-007.js").exists()
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_scores_alone_are_enough(run: Path, tmp_path: Path) -> None:
    shutil.copy(run / "scores.parquet", tmp_path)
    page = build_report([tmp_path])
    assert "No latents table" in page.read_text(encoding="utf-8")
    assert len(shard(page.parent / "data-000.js")["cards"]) == len(LATENTS)


def test_empty_tables_make_a_page(tmp_path: Path) -> None:
    for name in ("scores", "judgements", "explanations", "latents", "windows", "sae_metrics", "usage", "failures"):
        write(tmp_path, name, [])
    page = build_report([tmp_path])
    assert shard(page.parent / "index-000.js")["rows"] == []
    assert tmp_path.name in page.read_text(encoding="utf-8")


def test_several_runs_are_told_apart(run: Path, run_builder: RunBuilder, tmp_path: Path) -> None:
    page = build_report([run, run_builder(latents=range(3, 6))], tmp_path)
    content = shard(page.parent / "index-000.js")
    assert content["head"]["saes"] == [SAE, SAE]
    assert [row[1] for row in content["rows"]] == [0] * len(LATENTS) + [1] * 3


def test_run_of_a_random_sae_is_a_group_of_its_own(run: Path, tmp_path: Path) -> None:
    rows = pq.read_table(run / "scores.parquet").to_pylist()
    write(
        tmp_path,
        "scores",
        [{**row, "control": "random_sae" if row["control"] == "none" else row["control"]} for row in rows],
    )
    head = shard(build_report([tmp_path]).parent / "index-000.js")
    assert head["head"]["groups"] == [f"{SAE} (random_sae)"]
    assert head["rows"][0][7][0] is not None


def test_text_that_is_not_utf8_is_shown(run: Path, tmp_path: Path) -> None:
    for name in ("scores", "windows"):
        shutil.copy(run / f"{name}.parquet", tmp_path)
    raw = [b"lone \xed\xa0\x80 surrogate", b"cut \xe2\x82 short"]
    offsets = pa.array([0, len(raw[0]), len(raw[0]) + len(raw[1])], pa.int32())
    text = pa.Array.from_buffers(pa.string(), 2, [None, offsets.buffers()[1], pa.py_buffer(b"".join(raw))])
    table = pa.table({"sae_id": [SAE, SAE], "latent": [3, 4], "explanation_id": ["e3", "e4"], "text": text,
                      "status": ["ok", "ok"]})  # fmt: skip
    pq.write_table(table, tmp_path / "explanations.parquet")
    rows = shard(build_report([tmp_path]).parent / "index-000.js")["rows"]
    assert [row[4] for row in rows[:2]] == ["lone \\ud800 surrogate", "cut \ufffd short"]


def test_missing_scores_name_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"no scores.parquet in {tmp_path}.*autointerp score --run"):
        build_report([tmp_path])
    with pytest.raises(UserError, match="no run folder"):
        build_report([tmp_path / "nowhere"])


def test_damaged_table_is_named(run: Path, tmp_path: Path) -> None:
    shutil.copy(run / "scores.parquet", tmp_path)
    (tmp_path / "usage.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(UserError, match=r"cannot read .*usage.parquet"):
        build_report([tmp_path])


def test_thousands_of_latents_keep_the_first_page_small(run_builder: RunBuilder) -> None:
    run = run_builder(latents=range(3, 203))
    rows = pq.read_table(run / "scores.parquet", filters=[("latent", "=", 3), ("method", "=", "surprisal")]).to_pylist()
    write(
        run, "scores", [{**row, "latent": latent, "explanation_id": None} for latent in range(3, 2503) for row in rows]
    )
    folder = build_report([run]).parent
    first = sum((folder / name).stat().st_size for name in ("index.html", "report.js", "index-000.js"))
    assert first < 1_500_000
    assert (folder / "index-002.js").is_file()
    assert (folder / "data-049.js").is_file()


# ---- parts -----------------------------------------------------------------------------------------------------------


def test_script_json_escapes_what_could_end_a_script() -> None:
    text = "</script><!-- & \u2028\u2029 \ud800"
    written = script_json({"text": text})
    assert not set(written) & set("<>&\u2028\u2029\ud800")
    assert json.loads(written) == {"text": text}
    with pytest.raises(ValueError, match="not JSON compliant"):
        script_json(float("nan"))


def test_visible_names_what_cannot_be_seen() -> None:
    assert visible("a\nb\tc") == "a\nb\tc"
    assert visible("\x00\x1b\x7f\x9f") == "␀␛␡⟨U+009F⟩"
    assert visible("\u202e\u2028\ufeff\ud83d") == "⟨U+202E⟩⟨U+2028⟩⟨U+FEFF⟩⟨U+D83D⟩"
    assert visible("👩\u200d🚀") == "👩\u200d🚀"


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "—"), (float("nan"), "—"), (0.8615, "0.862"), (-0.5, "−0.500"), (0, "0.000"), (2e-5, "2.0e−05")],
)
def test_figure(value: float | None, text: str) -> None:
    assert figure(value) == text


def test_spread_takes_both_ends() -> None:
    assert spread([3, 4, 5, 6, 7], 3) == [3, 5, 7]
    assert spread([3, 4], 6) == [3, 4]
    assert spread([3, 4], 1) == [3]
    assert spread([3, 4], 0) == []


def test_choose_prefers_judged_windows() -> None:
    rows = [{"pole": 1, "split": "score", "kind": "random", "window_id": str(n), "quantile": None} for n in range(40)]
    assert choose(rows, {"35", "2"}) == sorted({35, 2, *(choose(rows, {"35", "2"}))})
    assert {2, 35} <= set(choose(rows, {"35", "2"}))
    assert len(choose(rows, set())) == MAX_OTHER
    active = [{**row, "kind": "activating", "quantile": n % 2} for n, row in enumerate(rows)]
    assert len(choose(active, set())) == MAX_ACTIVATING
