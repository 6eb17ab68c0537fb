"""The report of many latents: seconds to build it, and megabytes that its first page loads.

Tables are synthetic: detection, embedding and surprisal with their shuffled controls on 40 judged windows a latent,
40 windows of 32 tokens, explanations of usual length, and two steered texts. The limits are absolute, as the page is
meant for a person who waits. The report is built in a process of its own, so that its memory is its own. Where there
is a Chromium, the page is opened from the disk, and searched and filtered by clicks and keys.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from _bench import Figures, in_process, parser, peak_memory

from autointerp.report import build_report
from autointerp.report.text import short
from autointerp.tables.schemas import SORT_KEYS, TABLES

SIZES = {"full": 20_000, "small": 500}
METHODS = {"detection": ("balanced_accuracy", "auroc"), "embedding": ("auroc",), "surprisal": ("auroc",)}
CONTROLS = ("none", "shuffled_explanation")
WINDOWS, TOKENS, STEERED, AT_ONCE = 40, 32, 2, 2000
WORDS = np.array(
    [" the", " river", " return", "ing", " self", ".", ",", "\n", " year", " 19", "84", "(", " x", ")", " counted"]
)
SEARCHED, LEAST = 42, 0.8
"""Searched for in the explanations' texts; the least detection score filtered for."""
FIRST_PAGE = ("index.html", "report.js", "index-000.js")


def table(name: str, rows: int, **columns: object) -> pa.Table:
    """`rows` rows with these columns (arrays, or one value for all); the others are null."""
    schema = TABLES[name]
    arrays = []
    for field in schema:
        value = columns.get(field.name)
        if value is None:
            arrays.append(pa.nulls(rows, field.type))
        elif isinstance(value, np.ndarray | pa.Array | list):
            arrays.append(pa.array(value, from_pandas=True).cast(field.type))
        else:
            arrays.append(pa.repeat(pa.scalar(value, field.type), rows))
    return pa.Table.from_arrays(arrays, schema=schema)


def ids(prefix: str, *numbers: np.ndarray) -> list[str]:
    return [prefix + "-".join(map(str, row)) for row in zip(*(part.tolist() for part in numbers), strict=True)]


def scores(latents: np.ndarray, rng: np.random.Generator, common: dict[str, object]) -> pa.Table:
    parts = []
    for method, metrics in METHODS.items():
        for metric in metrics:
            for control in CONTROLS:
                mean = 0.75 if control == "none" else 0.52
                value = np.clip(rng.normal(mean, 0.1, len(latents)), 0, 1)
                parts.append(table(
                    "scores", len(latents), **common, latent=latents, method=method, metric=metric, control=control,
                    value=value, ci_low=value - 0.08, ci_high=value + 0.07, n=WINDOWS, n_failed=0, negatives="random",
                    explanation_id=ids("e", latents), explainer="max_activations", explainer_model="llm",
                    scorer_model="judge", status="ok", draw=0, pole=1, arch="topk", layer=9, hookpoint="layers.9",
                    width=len(latents), l0=32.0, model="subject", prompt_sha="0123456789abcdef",
                ))  # fmt: skip
    return pa.concat_tables(parts)


def judgements(latents: np.ndarray, rng: np.random.Generator, common: dict[str, object]) -> pa.Table:
    latent, window = np.repeat(latents, WINDOWS), np.tile(np.arange(WINDOWS), len(latents))
    label = window < WINDOWS // 2
    window_id, explanation = ids("w", latent, window), ids("e", latent)
    parts = []
    for method in METHODS:
        for control in CONTROLS:
            shift = 0.3 if control == "none" else 0.02
            number = np.clip(rng.normal(0.4 + shift * label, 0.2), 0, 1)
            said = pa.array(number > 0.5) if method == "detection" else None
            parts.append(table(
                "judgements", len(latent), **common, latent=latent, pole=1, explanation_id=explanation, method=method,
                control=control, window_id=window_id, kind=np.where(label, "activating", "random"), label=label,
                prediction=said, probability=number, status="ok", draw=0,
            ))  # fmt: skip
    pair, n = np.repeat(latents, STEERED), len(latents) * STEERED
    parts.append(table(
        "judgements", n, **common, latent=pair, pole=1, explanation_id=ids("e", pair), method="intervention",
        control="none", window_id=ids("p", pair, np.tile(np.arange(STEERED), len(latents))), kind="random", status="ok",
        probability=rng.normal(size=n), clean_text=ids("The committee met to discuss item ", np.arange(n)),
        steered_text=ids("The committee met by the river, at boat ", np.arange(n)), draw=0,
    ))  # fmt: skip
    return pa.concat_tables(parts)


def windows(latents: np.ndarray, rng: np.random.Generator, common: dict[str, object]) -> pa.Table:
    latent, window = np.repeat(latents, WINDOWS), np.tile(np.arange(WINDOWS), len(latents))
    n = len(latent)
    pieces = pa.DictionaryArray.from_arrays(rng.integers(0, len(WORDS), n * TOKENS), pa.array(WORDS)).cast(pa.string())
    offsets = pa.array(np.arange(0, n * TOKENS + 1, TOKENS), pa.int32())
    active = (rng.random((n, TOKENS)) < 0.12) & (window < WINDOWS // 2)[:, None]
    strength = np.where(active, rng.gamma(2.0, 2.0, (n, TOKENS)), 0.0).astype(np.float32)
    return table(
        "windows", n, **common, latent=latent, pole=1, split="score", window_id=ids("w", latent, window),
        document=rng.integers(0, 5000, n), start=window, draw=0,
        kind=np.where(window < WINDOWS // 2, "activating", "random"),
        quantile=pa.array(window // 2, mask=window >= WINDOWS // 2),
        pieces=pa.ListArray.from_arrays(offsets, pieces),
        activations=pa.ListArray.from_arrays(offsets, pa.array(strength.ravel())),
    )  # fmt: skip


def write_run(folder: Path, n: int, sae_id: str = "topk-layers.9") -> None:
    """A run folder with `n` scored latents of one SAE."""
    folder.mkdir(parents=True, exist_ok=True)
    common: dict[str, object] = {"run_id": "synthetic", "sae_id": sae_id}
    rng = np.random.default_rng(0)
    writers: dict[str, pq.ParquetWriter] = {}
    for begin in range(0, n, AT_ONCE):
        latents = np.arange(begin, min(n, begin + AT_ONCE))
        density = 10 ** rng.uniform(-5, -1, len(latents))
        made = {
            "scores": scores(latents, rng, common),
            "judgements": judgements(latents, rng, common),
            "windows": windows(latents, rng, common),
            "explanations": table(
                "explanations", len(latents), **common, latent=latents, pole=1, explanation_id=ids("e", latents),
                text=ids("names of rivers, of towns on them, and of boats, above all after a comma ", latents % 97),
                explainer="max_activations", explainer_model="llm", status="ok", draw=0, n_windows=WINDOWS,
                prompt_sha="0123456789abcdef",
            ),
            "latents": table(
                "latents", len(latents), **common, latent=latents, density=density, n_tokens=1_000_000, state="live",
                n_fired=(density * 1e6).astype(int), max_activation=rng.uniform(15, 40, len(latents)),
                n_windows=WINDOWS, mean_activation=4.0,
            ),
        }  # fmt: skip
        for name, part in made.items():
            if name not in writers:
                writers[name] = pq.ParquetWriter(folder / f"{name}.parquet", TABLES[name], compression="zstd")
            writers[name].write_table(part.sort_by([(key, "ascending") for key in SORT_KEYS[name]]))
    for writer in writers.values():
        writer.close()


def measure(folder: Path) -> None:
    began, worked = time.perf_counter(), time.process_time()
    page = build_report([folder])
    print(json.dumps({
        "seconds": time.perf_counter() - began, "cpu": time.process_time() - worked, "memory": peak_memory(),
        "first": sum((page.parent / name).stat().st_size for name in FIRST_PAGE),
        "all": sum(file.stat().st_size for file in page.parent.iterdir()),
        "shard": max(file.stat().st_size for file in page.parent.glob("data-*.js")),
    }))  # fmt: skip


def in_the_browser(folder: Path, n: int) -> dict[str, float]:
    """What the page complains of or loads from elsewhere, and by how many latents search and filter are wrong."""
    sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "report"))
    from browser import BROWSER, Browser

    if BROWSER is None:
        return {}
    values = pq.read_table(folder / "scores.parquet", columns=["latent", "method", "metric", "control", "value"])
    graded = values.to_pandas().query("method == 'detection' and metric == 'balanced_accuracy' and control == 'none'")
    # The page has values as it shows them.
    high = [value for value in graded["value"] if (short(value) or 0.0) >= LEAST]
    # Numbers of latents are searched, too.
    found = sum(latent % 97 == SEARCHED or str(SEARCHED) in str(latent) for latent in range(n))
    wanted = {"search": found, "filter": len(high)}
    tab = Browser(folder / "profile")
    try:
        began = time.perf_counter()
        tab.open(folder / "report" / "index.html")
        opened = time.perf_counter() - began
        shown: dict[str, int] = {}
        for name, selector, text in (("search", "#search", str(SEARCHED)), ("filter", "#f-c0-from", str(LEAST))):
            if name == "filter":
                tab.click("#filter")
            tab.click(selector)
            tab.type(text)
            # All parts of the list have to arrive first; the count stands still once they have.
            tab.until(f"document.getElementById('count').textContent.startsWith('{wanted[name]:,} of')")
            count = str(tab.run("document.getElementById('count').textContent"))
            shown[name] = int(re.sub(r"\D", "", count.split(" of ")[0]))
            tab.run("document.getElementById('search').value = ''")
            tab.run("document.getElementById('search').dispatchEvent(new Event('input'))")
        elsewhere = [url for url in tab.requests if not url.startswith(("file:", "data:"))]
        return {
            "complaints": len(tab.complaints), "elsewhere": len(elsewhere), "seconds": opened,
            "wrong": sum(abs(shown[name] - wanted[name]) for name in wanted),
        }  # fmt: skip
    finally:
        tab.close()


def main() -> None:
    made = parser(__doc__ or "")
    made.add_argument("--size", choices=SIZES, default="full", help="small: seconds instead of minutes")
    made.add_argument("--measure", type=Path, metavar="RUN", help="one build, as JSON")
    arguments = made.parse_args()
    if arguments.measure:
        measure(arguments.measure)
        return
    n = SIZES[arguments.size]
    folder = Path(tempfile.mkdtemp(prefix="autointerp-bench-"))
    try:
        write_run(folder, n)
        found = in_process(__file__, "--measure", folder)
        seen = in_the_browser(folder, n)
    finally:
        shutil.rmtree(folder)
    figures = Figures(
        "the report", setting={"latents": n, "windows": WINDOWS, "tokens": TOKENS, "methods": list(METHODS)}
    )
    figures.add("seconds to build", found["seconds"], 60.0, note=f"{found['cpu']:.1f} CPU-s")
    figures.add("first page, MB", found["first"] / 1e6, 1.5, note=", ".join(FIRST_PAGE))
    figures.add("largest shard of cards, MB", found["shard"] / 1e6)
    figures.add("whole report, MB", found["all"] / 1e6)
    figures.add("peak memory, MB", found["memory"])
    if seen:
        figures.add("complaints in the console", seen["complaints"], 0.0)
        figures.add("requests to elsewhere", seen["elsewhere"], 0.0)
        figures.add("latents wrongly found or missed by search and filter", seen["wrong"], 0.0)
        figures.add("seconds to open", seen["seconds"])
    figures.finish(arguments)


if __name__ == "__main__":
    main()
