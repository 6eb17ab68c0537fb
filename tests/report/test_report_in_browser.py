"""The report in headless Chromium, opened from `file://`: its scripts run, the text it shows does not."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from synthetic_run import HOSTILE, LATENTS, SIGNED, explanation_of, write

from autointerp.report import build_report

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
in_browser = pytest.mark.skipif(BROWSER is None, reason="no chromium, chromium-browser or google-chrome on PATH")


DRIVE = """
window.setTimeout(async () => {
  const report = (name, value) => document.body.setAttribute(`data-${name}`, value);
  const ids = () => [...document.querySelectorAll("#list .id button")].map((button) => button.textContent).join(" ");
  const pause = () => new Promise((done) => window.setTimeout(done, 200));
  const state = (button) => `${button.getAttribute("aria-expanded")} ${document.querySelectorAll("tr.card h3").length}`;
  document.querySelector('[data-key="c0"] button').click();
  report("ids", ids());
  const search = document.getElementById("search");
  search.value = "rivers towns";
  search.dispatchEvent(new Event("input"));
  report("search", ids());
  const button = document.querySelector("#list .id button");
  button.click();
  await pause();
  report("open", state(button));
  report("hash", location.hash);
  button.click();
  await pause();
  report("closed", state(button));
}, 500);
"""


def shard(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8").removeprefix("window.__autointerp_add(")[:-3])


def dump(page: Path, fragment: str, profile: Path) -> str:
    """The document after its scripts ran. Fails on anything the console was told."""
    assert BROWSER is not None
    command = [
        BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking",
        "--disable-component-update", "--disable-sync", "--no-first-run", f"--user-data-dir={profile}",
        "--virtual-time-budget=5000", "--enable-logging=stderr", "--dump-dom", f"{page.resolve().as_uri()}{fragment}",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", timeout=120, check=True)
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    assert console == []
    return done.stdout


@in_browser
def test_card_opens_through_the_address(page: Path, tmp_path: Path) -> None:
    document = dump(page, "#latent=17", tmp_path)
    assert "<title>synthetic · autointerp report</title>" in document
    assert document.count("<script") == document.count("<script src=") == 3
    assert document.count('<tr class="card"') == 1
    assert f'<h3 dir="auto">{html.escape(explanation_of(17), quote=False)}</h3>' in document
    assert 'title="activation 3.21 (40% of max)"' in document
    piece = html.escape(HOSTILE[1], quote=False)  # latent 17's piece in its strongest window to explain from
    assert re.search(rf'<mark title="activation 3.21 [^>]*>{re.escape(piece)}</mark>', document)
    assert "<img" not in document
    assert '<span class="ws">↵</span>' in document
    assert "where the boats drifted past." in document


@in_browser
def test_every_card_can_be_opened_without_running_its_text(page: Path, tmp_path: Path) -> None:
    document = dump(page, "#" + "&".join(f"latent={n}" for n in LATENTS), tmp_path)
    assert document.count('<tr class="card"') == len(LATENTS)
    assert "<title>synthetic · autointerp report</title>" in document
    assert "No explanation: failed" in document
    assert 'class="negative"' in document, f"latent {SIGNED} has negative activations"


@in_browser
def test_search_through_the_address(page: Path, tmp_path: Path) -> None:
    document = dump(page, "#search=zebra", tmp_path)
    assert sorted(int(n) for n in re.findall(r'aria-controls="card-\d+">(\d+)<', document)) == [7, 12, 17, 22]
    assert "4 of 20 latents" in document


@in_browser
def test_missing_latent_and_missing_shard_are_said(page: Path, tmp_path: Path) -> None:
    assert "Latent 999 is not in this report" in dump(page, "#latent=999", tmp_path / "one")
    folder = tmp_path / "moved"
    shutil.copytree(page.parent, folder)
    (folder / "data-000.js").write_text("// emptied\n")
    assert "data-000.js is missing or damaged" in dump(folder / "index.html", "#latent=17", tmp_path / "two")


@in_browser
def test_long_lists_arrive_in_parts(run_builder: Callable[..., Path], tmp_path: Path) -> None:
    run = run_builder(latents=range(3, 6))
    rows = pq.read_table(run / "scores.parquet", filters=[("latent", "=", 3)]).to_pylist()
    write(run, "scores", [{**row, "latent": latent} for latent in range(3, 1203) for row in rows])
    document = dump(build_report([run]), "#latent=1150", tmp_path)
    assert "1,200 of 1,200 latents" in document
    assert document.count('<tr class="card"') == 1


@in_browser
def test_buttons_sort_search_and_open(page: Path, tmp_path: Path) -> None:
    folder = tmp_path / "driven"
    shutil.copytree(page.parent, folder)
    with (folder / "report.js").open("a", encoding="utf-8") as script:
        script.write(DRIVE)
    document = dump(folder / "index.html", "", tmp_path / "profile")
    seen = dict(re.findall(r' data-(ids|search|open|closed|hash)="([^"]*)"', document))
    scores = {row[0]: row[7][0] for row in shard(page.parent / "index-000.js")["rows"]}
    best_first = sorted(LATENTS, key=lambda n: (scores[n] is None, -(scores[n] or 0), n))
    assert [int(n) for n in seen["ids"].split()] == best_first
    assert [int(n) for n in seen["search"].split()] == [n for n in best_first if "river" in explanation_of(n)]
    assert (seen["open"], seen["closed"]) == ("true 1", "false 0")
    assert html.unescape(seen["hash"]).startswith("#search=rivers+towns&sort=c0-desc&latent=")
