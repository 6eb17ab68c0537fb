"""The report in headless Chromium, opened from `file://`: its scripts run, the text it shows does not."""

from __future__ import annotations

import html
import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from browser import BROWSER, Browser
from synthetic_run import FAILED, HOSTILE, LATENTS, SIGNED, explanation_of, write
from synthetic_study import GAINS, build_study
from synthetic_study import LATENTS as STUDIED

from autointerp.report import build_report

pytestmark = pytest.mark.skipif(BROWSER is None, reason="no chromium, chromium-browser or google-chrome on PATH")

IDS = '[...document.querySelectorAll("#list .id button")].map((button) => Number(button.textContent))'
CARDS = "document.querySelectorAll('tr.card h3').length"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    opened = Browser(tmp_path_factory.mktemp("profile"))
    yield opened
    opened.close()


@pytest.fixture
def tab(browser: Browser) -> Iterator[Browser]:
    """The browser; whatever a test does in it, nothing may be complained of or loaded from elsewhere."""
    yield browser
    assert browser.complaints == []
    assert [url for url in browser.requests if not url.startswith(("file:", "data:"))] == []
    assert browser.run("performance.getEntriesByType('resource').every((one) => one.name.startsWith('file:'))")


@pytest.fixture(scope="module")
def study_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_report([build_study(tmp_path_factory.mktemp("study") / "study")])


def shard(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8").removeprefix("window.__autointerp_add(")[:-3])


def document(tab: Browser) -> str:
    return str(tab.run("document.documentElement.outerHTML"))


def files(tab: Browser) -> list[str]:
    return [url.rsplit("/", 1)[1] for url in tab.requests if url.startswith("file:")]


def test_first_page_loads_one_part_of_the_list(page: Path, tab: Browser) -> None:
    tab.open(page)
    assert files(tab) == ["index.html", "report.js", "index-000.js"]


def test_card_opens_through_the_address(page: Path, tab: Browser) -> None:
    tab.open(page, "#latent=17")
    tab.until(f"{CARDS} === 1")
    text = document(tab)
    assert "<title>synthetic · autointerp report</title>" in text
    assert text.count("<script") == text.count("<script src=") == 3
    assert f'<h3 dir="auto">{html.escape(explanation_of(17), quote=False)}</h3>' in text
    assert 'title="activation 3.21 (40% of max)"' in text
    piece = html.escape(HOSTILE[1], quote=False)  # latent 17's piece in its strongest window to explain from
    assert re.search(rf'<mark title="activation 3.21 [^>]*>{re.escape(piece)}</mark>', text)
    assert "<img" not in text
    assert '<span class="ws">↵</span>' in text
    assert "where the boats drifted past." in text
    assert tab.run("document.querySelectorAll('.histogram rect').length") > 3
    assert "explain <code>01234567</code>" in text


def test_every_card_can_be_opened_without_running_its_text(page: Path, tab: Browser) -> None:
    tab.open(page, "#" + "&".join(f"latent={n}" for n in LATENTS))
    tab.until(f"{CARDS} === {len(LATENTS)}")
    text = document(tab)
    assert tab.run("document.title") == "synthetic · autointerp report"
    assert "No explanation: failed" in text
    assert 'class="negative"' in text, f"latent {SIGNED} has negative activations"


def test_search_through_the_address(page: Path, tab: Browser) -> None:
    tab.open(page, "#search=zebra")
    assert sorted(tab.run(IDS)) == [7, 12, 17, 22]
    assert "4 of 20 latents" in document(tab)


def test_missing_latent_and_missing_shard_are_said(page: Path, tmp_path: Path, browser: Browser) -> None:
    browser.open(page, "#latent=999")
    assert "Latent 999 is not in this report" in document(browser)
    folder = tmp_path / "moved"
    shutil.copytree(page.parent, folder)
    (folder / "data-000.js").write_text("// emptied\n")
    browser.open(folder / "index.html", "#latent=17")
    browser.until("document.body.textContent.includes('data-000.js is missing or damaged')")


def test_long_lists_arrive_when_they_are_asked_for(
    run_builder: Callable[..., Path], tmp_path: Path, tab: Browser
) -> None:
    run = run_builder(latents=range(3, 6))
    kept = [("latent", "=", 3), ("method", "=", "intervention")]
    rows = pq.read_table(run / "scores.parquet", filters=kept).to_pylist()
    write(run, "scores", [{**row, "latent": latent} for latent in range(3, 1203) for row in rows[:2]])
    page = build_report([run])
    tab.open(page)
    assert "1,200 of 1,200 latents" in document(tab)
    assert "index-001.js" not in files(tab)
    tab.click("#search")
    tab.type("1150")
    tab.until(f"{IDS}.join() === '1150'")
    assert "index-001.js" in files(tab)
    tab.open(page, "#latent=1150")
    tab.until("document.querySelectorAll('tr.card').length === 1")


def test_clicks_sort_search_and_open(page: Path, tab: Browser) -> None:
    tab.open(page)
    tab.click('[data-key="c0"] button')
    scores = {row[0]: row[7][0] for row in shard(page.parent / "index-000.js")["rows"]}
    best_first = sorted(LATENTS, key=lambda n: (scores[n] is None, -(scores[n] or 0), n))
    assert tab.run(IDS) == best_first
    tab.click("#search")
    tab.type("rivers towns")
    assert tab.run(IDS) == [n for n in best_first if "river" in explanation_of(n)]
    tab.click("#list .id button")
    tab.until(f"{CARDS} === 1")
    assert tab.run("document.querySelector('#list .id button').getAttribute('aria-expanded')") == "true"
    assert tab.run("location.hash").startswith("#search=rivers+towns&sort=c0-desc&latent=")
    tab.click("#list .id button")
    assert tab.run(CARDS) == 0


def test_filters_by_score_density_and_status(page: Path, tab: Browser) -> None:
    rows = shard(page.parent / "index-000.js")["rows"]
    tab.open(page)
    assert tab.run("document.getElementById('filters').hidden")
    tab.click("#filter")
    tab.click("#f-c0-from")
    tab.type("0.8")
    assert tab.run(IDS) == [row[0] for row in rows if row[7][0] is not None and row[7][0] >= 0.8]
    tab.click("#f-density-to")
    tab.type("0.6")
    wanted = [row[0] for row in rows if row[7][0] is not None and row[7][0] >= 0.8 and 100 * row[2] <= 0.6]
    assert tab.run(IDS) == wanted and 0 < len(wanted) < len(rows)
    assert tab.run("location.hash") == "#c0=0.8..&density=..0.6"
    assert tab.run("document.getElementById('filter').textContent") == "Filters (2)"
    tab.open(page, "#c0=0.8..&density=..0.6")
    assert tab.run(IDS) == wanted
    assert tab.run("['f-c0-from', 'f-density-to'].map((id) => document.getElementById(id).value)") == ["0.8", "0.6"]
    tab.click("#clear")
    assert (tab.run(IDS), tab.run("location.hash")) == (list(LATENTS), "")
    tab.run(
        "(() => { const s = document.getElementById('f-status'); s.value = 'unexplained'; s.dispatchEvent(new Event('change')); })()"
    )
    assert tab.run(IDS) == [FAILED]


def test_filters_by_variant_and_layer(study_page: Path, tab: Browser) -> None:
    tab.open(study_page)
    assert tab.run(f"{IDS}.length") == len(GAINS) * len(STUDIED)
    tab.open(study_page, "#variant=topk&layer=9")
    assert tab.run(IDS) == list(STUDIED)
    labels = tab.run("[...document.querySelectorAll('td.sae')].map((e) => e.textContent)")
    assert set(labels) == {"topk-layers.9"}


def test_links_open_cards_and_details(study_page: Path, tab: Browser) -> None:
    tab.open(study_page)
    wanted = tab.run("document.querySelector('.extremes li a').getAttribute('href')")
    tab.click(".extremes li a")
    tab.until(f"{CARDS} === 1")
    assert wanted == f"#latent={STUDIED[-1]}@2"
    assert tab.run("document.querySelector('tr.card').previousSibling.cells[1].textContent") == "topk-layers.6"
    tab.click(".grid td a")
    tab.until("document.querySelectorAll('details.sae[open]').length === 1")


def test_keys_reach_search_filters_list_and_cards(page: Path, tab: Browser) -> None:
    tab.open(page)
    seen: list[str] = []
    while "filter" not in seen and len(seen) < 60:
        tab.press("Tab")
        seen.append(tab.focused())
    assert seen[0] == "#latents" and {"search", "sort", "direction"} < set(seen)
    tab.press("Enter")
    tab.press("Tab")
    assert tab.focused() == "f-c0-from"
    while not tab.focused().startswith("entry-") and len(seen) < 120:
        tab.press("Tab")
        seen.append(tab.focused())
    assert seen[-1] == "entry-0" and "clear" in seen
    tab.press("Enter")
    tab.until(f"{CARDS} === 1")
    tab.press(" ")
    tab.until(f"{CARDS} === 0")


@pytest.mark.parametrize("dark", [False, True])
def test_colours_follow_the_system_and_can_be_read(page: Path, tab: Browser, dark: bool) -> None:
    tab.open(page, "#latent=17", dark=dark)
    tab.until(f"{CARDS} === 1")
    colours = tab.run(
        "['body', '.card h3', '.card .by', '.key .control', '.wrong b, .right b'].map((s) => getComputedStyle(document.querySelector(s)).color)"
    )
    paper = luminance(tab.run("getComputedStyle(document.body).backgroundColor"))
    assert (paper < 0.05) == dark
    for colour in colours:
        low, high = sorted((luminance(colour), paper))
        assert (high + 0.05) / (low + 0.05) >= 4.5, colour


@pytest.mark.parametrize("name", ["page", "study_page"])
def test_phone_scrolls_one_way(name: str, tab: Browser, request: pytest.FixtureRequest) -> None:
    first = {"page": "17", "study_page": "10@2"}[name]
    tab.open(request.getfixturevalue(name), f"#latent={first}&c0=0..1", width=360)
    tab.until(f"{CARDS} === 1")
    assert tab.run("document.documentElement.scrollWidth") <= 360
    tab.click("details summary")
    assert tab.run("document.documentElement.scrollWidth") <= 360


def luminance(colour: str) -> float:
    """Relative luminance of `rgb(…)`, as WCAG 2.1 defines it."""
    channels = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
    linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
