"""A run folder of made-up tables whose contents are known: a signed latent, a failure, text that is none, draws."""

from __future__ import annotations

import gzip
import json
import math
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from autointerp.tables.schemas import SORT_KEYS, TABLES

SAE, CONTROL = "topk-layers.9.mlp-64-abcdef", "topk-layers.9.mlp-64-random"
HOSTILE = "</script> \u2028 a\x00b \\u0000 ünï \U0001f600"
"""NUL, and the characters \\u0000 themselves."""
NOT_UTF8 = b"half \xed\xa0\xbd of a pair"
PLAIN, SIGNED, FAILED, UNEXPLAINED, DEAD = 3, 4, 5, 6, 7
N_LATENTS = 8

Row = dict[str, Any]


def write(folder: Path, name: str, rows: list[Row]) -> None:
    schema = TABLES[name]
    full = [{column: row.get(column) for column in schema.names} for row in rows]
    table = pa.Table.from_pylist(full, schema=schema)
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(table.sort_by([(key, "ascending") for key in SORT_KEYS[name]]), folder / f"{name}.parquet")


def window(latent: int, number: int, **given: Any) -> Row:
    """Peaks grow with the number, in tenths that no float32 is."""
    values = [0.0, 0.1 + number, 0.0]
    row = {
        "run_id": "planted", "sae_id": SAE, "latent": latent, "pole": 1, "split": "explain" if number % 2 else "score",
        "window_id": f"{latent:x}-{number:x}", "document": number, "start": number, "kind": "activating",
        "quantile": number // 2, "tokens": [1, 2, 3], "pieces": ["a", f" cat{number}", "."], "activations": values,
        "draw": 0, "corpus": "stories.jsonl",
    } | given  # fmt: skip
    return {**row, "text": "".join(row["pieces"] or [])}


def score(latent: int, value: float | None, explanation_id: str, **given: Any) -> Row:
    return {
        "run_id": "planted", "model": "Tiny-Model", "sae_id": SAE, "arch": "topk", "hookpoint": "layers.9.mlp",
        "layer": 9, "width": 64, "l0": 4.0, "latent": latent, "pole": 1, "explanation_id": explanation_id,
        "explainer": "default", "explainer_model": "writer", "method": "detection", "scorer_model": "judge",
        "control": "none", "negatives": "random", "metric": "balanced_accuracy", "value": value, "n": 20,
        "ci_low": None if value is None else value - 0.1, "ci_high": None if value is None else value + 0.1,
        "status": "ok" if value is not None else "failed", "seed": 0, "draw": 0, "corpus": "stories.jsonl",
    } | given  # fmt: skip


def explanation(latent: int, text: str | None, explanation_id: str, **given: Any) -> Row:
    return {
        "run_id": "planted", "sae_id": SAE, "latent": latent, "pole": 1, "explanation_id": explanation_id,
        "explainer": "default", "explainer_model": "writer", "text": text, "status": "ok" if text else "refused",
        "seed": 0, "draw": 0, "corpus": "stories.jsonl",
    } | given  # fmt: skip


def build(folder: Path) -> Path:
    write(folder, "explanations", [
        explanation(PLAIN, "cats", "e3"), explanation(PLAIN, "cats, later", "e3b", draw=1),
        explanation(SIGNED, "sums", "e4"), explanation(SIGNED, "differences", "e4-", pole=-1),
        explanation(FAILED, None, "e5"), explanation(0, HOSTILE, "e0"),
        explanation(2, "noise", "e2", sae_id=CONTROL),
    ])  # fmt: skip
    write(folder, "scores", [
        score(PLAIN, 0.8, "e3"), score(PLAIN, 0.5, "e4", control="shuffled_explanation"),
        score(PLAIN, 0.7, "e3b", draw=1), score(PLAIN, 0.9, "e3", metric="recall"),
        score(SIGNED, 0.6, "e4"), score(SIGNED, math.nan, "e4-", pole=-1, status="too_few_windows"),
        score(FAILED, None, "e5", status="no_explanation"),
        score(2, 0.5, "e2", sae_id=CONTROL, control="random_sae"),
    ])  # fmt: skip
    write(folder, "latents", [
        {"run_id": "planted", "sae_id": SAE, "latent": i, "n_fired": 10 * i, "n_negative": 5 if i == SIGNED else 0,
         "n_tokens": 1000, "density": i / 100 if i != DEAD else 0.0, "corpus": "stories.jsonl",
         "max_activation": math.nan if i == DEAD else 10.1, "state": "dead" if i == DEAD else "live", "n_windows": 12}
        for i in range(N_LATENTS)
    ])  # fmt: skip
    windows = [window(PLAIN, number) for number in range(6)]
    windows += [
        window(PLAIN, 5, draw=1), window(PLAIN, 30, kind="random", quantile=None, activations=[0.0] * 3),
        window(PLAIN, 31, split="prompt"), window(PLAIN, 32, activations=[0.0, math.nan, 1.0]),
        window(PLAIN, 33, activations=[0.0, math.inf, 1.0]), window(PLAIN, 34, activations=[1.0]),
        window(PLAIN, 35, pieces=None), window(SIGNED, 1), window(SIGNED, 2, pole=-1, activations=[0.0, -2.5, -0.1]),
        window(0, 1, pieces=["", HOSTILE, "."]), window(UNEXPLAINED, 1),
        window(2, 1, sae_id=CONTROL),
    ]  # fmt: skip
    write(folder, "windows", windows)
    (folder / "config.yaml").write_text(
        "sampling: {quantiles: 10}\nsubject: {model: /home/me/models/Tiny-Model}\n"
        "data: {dataset: /home/me/stories.jsonl, context_length: 64}\n"
    )
    return folder


def spoil_text(folder: Path, table: str, column: str, row: int, raw: bytes) -> None:
    """Write bytes that are not UTF-8 where text should be; parquet does not forbid it."""
    path = folder / f"{table}.parquet"
    found = pq.read_table(path)
    values = [None if value is None else value.encode() for value in found.column(column).to_pylist()]
    values[row] = raw
    broken = pa.array(values, pa.binary()).view(pa.string())
    pq.write_table(found.set_column(found.column_names.index(column), column, broken), path)


def lines(path: Path) -> list[Row]:
    """Of every batch of a folder, in order."""
    files = sorted(path.glob("batch-*.jsonl.gz"), key=lambda file: int(file.name.split("-")[1].split(".")[0]))
    return [json.loads(line) for file in files for line in gzip.open(file, "rt", encoding="utf-8")]
