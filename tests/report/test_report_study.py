"""The report of a study: planted differences, agreement and spread are found, and repeated draws are said to be such."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from synthetic_study import DRAW_STEP, DRAWS, GAINS, LATENTS, POLED, STEP, build_study, sae_of, score

from autointerp.report import build_report
from autointerp.report.content import Content, read_content
from autointerp.report.grid import grids
from autointerp.report.overview import sae_table, summarised
from autointerp.report.scorers import agreement, extremes
from autointerp.report.spread import variance


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_study(tmp_path_factory.mktemp("study") / "study")


@pytest.fixture(scope="module")
def content(study: Path) -> Content:
    return read_content([study])


def place(content: Content, variant: str, layer: int) -> int:
    return [group.sae_id for group in content.groups].index(sae_of(variant, layer))


def card(content: Content, variant: str, layer: int, latent: int) -> dict[str, Any]:
    group = content.groups[place(content, variant, layer)]
    before = sum(len(g.listed) for g in content.groups[: content.groups.index(group)])
    return list(content.cards())[before + group.listed.index(latent)]


def test_grid_holds_the_planted_differences(content: Content) -> None:
    found = grids(content.groups, content.columns, [summarised(group) for group in content.groups])
    assert found is not None
    assert found["layers"] == ["6", "9"]
    assert [one["method"] for one in found["grids"]] == ["detection", "embedding", "surprisal"]
    for one in found["grids"]:
        assert [row["name"] for row in one["rows"]] == ["topk", "random_sae"]
        for row in one["rows"]:
            for layer, cell in zip((6, 9), row["cells"], strict=True):
                gain = GAINS[row["name"], layer]
                assert float(cell["value"].replace("−", "-")) == pytest.approx(gain, abs=5e-4)
                assert cell["css"] == ("above" if gain else "within")
                assert cell["place"] == place(content, row["name"], layer)


def test_grid_names_what_tells_variants_of_one_layer_apart(tmp_path: Path) -> None:
    build_study(tmp_path)
    table = pq.read_table(tmp_path / "scores.parquet").to_pandas()
    table["layer"], table["hookpoint"] = 6, "layers.6"
    table.loc[table["sae_id"] == sae_of("topk", 9), "width"] = 128
    pq.write_table(pa.Table.from_pandas(table, preserve_index=False), tmp_path / "scores.parquet")
    content = read_content([tmp_path])
    found = grids(content.groups, content.columns, [summarised(group) for group in content.groups])
    assert found is not None
    names = [row["name"] for row in found["grids"][0]["rows"]]
    assert len(set(names)) == 4
    assert {name.split(",")[1].strip() for name in names if name.startswith("topk")} == {"64", "128"}


def test_one_sae_has_no_grid(run: Path) -> None:
    content = read_content([run])
    assert grids(content.groups, content.columns, [{}]) is None


def test_list_has_one_row_per_latent_with_the_mean_over_draws(content: Content) -> None:
    entries = list(content.entries())
    assert len(entries) == len(GAINS) * len(LATENTS)
    detection = [column.method for column in content.columns].index("detection")
    mean = np.mean([score("topk", 6, 10, "detection", draw) for draw in range(DRAWS)])
    (entry,) = [e for e in entries if e[0] == 10 and e[1] == place(content, "topk", 6)]
    assert entry[7][detection] == pytest.approx(mean, abs=1e-4)
    assert entry[8][detection] == pytest.approx(mean - GAINS["topk", 6], abs=1e-4)
    assert (entry[4], entry[6]) == ("topk 6 10 draw 0 pole 1", DRAWS - 1)


def test_card_shows_windows_of_the_first_draw_and_says_so(content: Content) -> None:
    found = card(content, "topk", 9, 10)
    assert found["draw"] == 0
    assert [one["setting"] for one in found["explanations"]] == [f"draw {draw}" for draw in range(DRAWS)]
    windows = [window for group in found["windows"] for window in group["windows"]]
    assert {window["id"].split(" draw ")[1][0] for window in windows} == {"0"}
    assert sum(group["total"] for group in found["windows"] if group["quantile"] in (None, 1)) == 8
    assert found["histogram"]["windows"] == 4 and sum(found["histogram"]["counts"]) == 4


def test_card_puts_repeated_scores_together_and_keeps_each(content: Content) -> None:
    found = card(content, "topk", 9, 10)
    assert len(found["scores"]) == 3 * DRAWS
    (detection,) = [one for one in found["headline"] if content.columns[one["column"]].method == "detection"]
    values = [score("topk", 9, 10, "detection", draw) for draw in range(DRAWS)]
    assert detection["setting"] == f"mean and range of {DRAWS}"
    assert detection["real"]["value"] == pytest.approx(np.mean(values), abs=1e-4)
    assert (detection["real"]["low"], detection["real"]["high"]) == pytest.approx((min(values), max(values)), abs=1e-4)
    for one in found["scores"]:  # each draw stands beside the control of its own
        assert one["real"]["value"] - one["control"]["value"] == pytest.approx(GAINS["topk", 9], abs=1e-4)


def test_both_poles_are_shown_with_their_own_verdicts(content: Content) -> None:
    found = card(content, "topk", 6, POLED)
    assert {group["pole"] for group in found["windows"]} == {1, -1}
    assert found["explanations"][0]["setting"].startswith("pole 1")
    assert found["histogram"]["low"] < 0 < found["histogram"]["high"]
    assert all(window["verdicts"] for group in found["windows"] for window in group["windows"])


def test_number_scorers_are_right_where_a_window_is_on_its_side(content: Content) -> None:
    found = card(content, "topk", 6, 10)
    right = {window["id"][-1]: window["verdicts"][0][1] for g in found["windows"] for window in g["windows"]}
    assert right == {str(n): int(n not in (3, 7)) for n in range(8)}
    assert found["tallies"] == [{"method": 0, "right": 6, "wrong": 2, "ranked": True}]


def test_agreement_finds_the_planted_orders(content: Content) -> None:
    found = agreement(content.groups, content.columns)
    assert found is not None
    said = {(row["name"], found["names"][n]): cell for row in found["rows"] for n, cell in enumerate(row["cells"])}
    assert said["embedding", "detection"]["value"] == "1.00"
    turned = said["surprisal", "detection"]
    assert turned["value"].startswith("−") and turned["css"] == "below"


def test_variance_is_of_latents_and_not_of_draws(content: Content) -> None:
    found = variance(content.groups, content.columns)
    assert found is not None
    cells = {one["method"]: one["cells"] for one in found["methods"]}["detection"]
    assert float(cells["latent"]["part"]) + float(cells["layer"]["part"]) > 0.95
    assert float(cells["draw"]["part"]) < 0.01
    assert "explainer" not in found["components"], "there was one"


def test_nothing_repeated_has_no_variance_shares(run: Path) -> None:
    content = read_content([run])
    assert variance(content.groups, content.columns) is None


def test_extremes_are_the_planted_ones(content: Content) -> None:
    found = extremes(content.groups, content.columns, content.grades)
    assert found is not None
    # Two of three methods rank by number of the latent, and the gain is that of layer 6.
    assert (found["best"][0]["latent"], found["best"][0]["place"]) == (LATENTS[-1], place(content, "topk", 6))
    assert (found["worst"][0]["latent"], found["worst"][0]["place"]) == (LATENTS[0], place(content, "topk", 9))
    trained = {place(content, "topk", layer) for layer in (6, 9)}
    assert {row["place"] for rows in found.values() for row in rows} <= trained
    assert found["best"][0]["text"].startswith("topk 6 14")
    assert found["apart"][0]["latent"] in (LATENTS[0], LATENTS[-1])
    assert STEP > DRAW_STEP  # what the order rests on


def test_saes_are_listed_trained_ones_first(content: Content) -> None:
    table = sae_table(content.groups)
    assert [content.groups[at].sae_id for at, _ in table["rows"]] == [sae_of(*key) for key in GAINS]
    assert "Model" not in dict(table["heads"]) and "Hookpoint" in dict(table["heads"])


def test_lens_is_on_the_card(study: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(study, tmp_path / "run")
    rows = [
        {"sae_id": sae_of("topk", 6), "latent": 10, "direction": direction, "rank": rank, "token": f"<b>{rank}", "logit": size}
        for direction, size in (("bottom", -2.0), ("top", 2.5)) for rank in (1, 0)
    ]  # fmt: skip
    pq.write_table(pa.Table.from_pylist(rows), folder / "lens.parquet")
    content = read_content([folder])
    assert card(content, "topk", 6, 10)["lens"] == {
        "top": [["<b>0", 2.5], ["<b>1", 2.5]], "bottom": [["<b>0", -2.0], ["<b>1", -2.0]],
    }  # fmt: skip
    assert card(content, "topk", 6, 11)["lens"] is None


def test_order_of_rows_changes_no_card(study: Path, content: Content, tmp_path: Path) -> None:
    folder = shutil.copytree(study, tmp_path / "run")
    for name in ("windows", "judgements", "scores"):
        table = pq.read_table(folder / f"{name}.parquet")
        # Latents backwards, the rows of each as they were.
        order = np.argsort(-table.column("latent").to_numpy(), kind="stable")
        pq.write_table(table.take(pa.array(order)), folder / f"{name}.parquet", row_group_size=100)
    assert list(read_content([folder]).cards()) == list(content.cards())


def test_page_of_a_study_is_a_table_of_saes_with_details_folded(study: Path, tmp_path: Path) -> None:
    text = build_report([study], tmp_path).read_text(encoding="utf-8")
    assert len(re.findall(r'<details class="sae" id="sae-\d"', text)) == len(GAINS)
    assert "<details open" not in text
    head = json.loads((tmp_path / "index-000.js").read_text()[len("window.__autointerp_add(") : -3])["head"]
    assert sorted(set(head["variants"])) == ["random_sae", "topk"]
    assert sorted(set(head["layers"])) == ["6", "9"]


def test_several_thousand_latents_read_windows_in_passing(run_builder: Callable[..., Path]) -> None:
    """Rows are found in a table of many row groups and batches, of which a later part is asked for first."""
    from autointerp.report.folder import RunFolder
    from autointerp.report.window_texts import WindowTexts

    folder = run_builder(latents=range(3, 103))
    table = pq.read_table(folder / "windows.parquet")
    pq.write_table(table, folder / "windows.parquet", row_group_size=700)
    pieces = table.column("pieces").to_pylist()
    rows = np.arange(1000, len(pieces))
    texts = WindowTexts(RunFolder(folder), rows)
    for wanted in (rows[:5], rows[900:905], rows[[1500, 1400]], rows[3000:], rows[:3]):
        assert texts.take(wanted).column("pieces").to_pylist() == [pieces[n] for n in wanted]
