"""A run folder as Neuronpedia's public files, and as the bodies of its upload requests."""

from __future__ import annotations

import gzip
import heapq
import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

from autointerp.batched import batched
from autointerp.errors import UserError
from autointerp.exchange.folder import Tables
from autointerp.exchange.neuronpedia import (
    Latent,
    Names,
    activation_lines,
    explanation_line,
    feature_line,
    logits,
    upload_feature,
)
from autointerp.exchange.notes import ScoresOfExplanations
from autointerp.exchange.plain import finite, json_line, single
from autointerp.exchange.schemas import MOST_FEATURES, check, check_lines
from autointerp.exchange.sources import Source, sources
from autointerp.files import replacing, write_json, write_text

Row = dict[str, Any]

FEATURES_PER_FILE = 1024
"""Latents of one public file."""
UPLOAD_BYTES = 4_000_000
"""Of one upload request, unless a single feature has more: servers limit bodies, and do not say to what."""
KINDS = ("features", "activations", "explanations")


@dataclass
class Exported:
    """What was written of one SAE, and what was not, by reason. Paths are below the folder that was exported to."""

    source: Source
    files: str
    uploads: str
    written: Counter[str] = field(default_factory=Counter)
    left_out: Counter[str] = field(default_factory=Counter)


def export_neuronpedia(
    run: Path, out: Path, *, sae: str | None = None, model_id: str | None = None, source_id: str | None = None,
    names: Names | None = None, activations: int | None = None,
) -> list[Exported]:  # fmt: skip
    """Write `v1/{model}/{source}/` and `upload/{model}/{source}/` below `out`, for one or all SAEs of a run.

    `activations` is the most of one latent's pole; default: all in `windows.parquet`. Everything is checked against
    its schema before it is written, and the same tables give the same bytes.

    Raises:
        UserError: no run, or none whose SAEs can be named.
    """
    if activations is not None and activations < 1:
        raise UserError(f"--activations {activations}: at least 1 is wanted")
    tables = Tables(run)
    found = sources(tables, sae=sae, model_id=model_id, source_id=source_id)
    results = [_export(tables, source, Path(out), names or Names(), activations) for source in found]
    write_json(Path(out) / "export.json", [_summary(result) for result in results])
    return results


def _export(tables: Tables, source: Source, out: Path, names: Names, most: int | None) -> Exported:
    place = f"{source.model_id}/{source.source_id}"
    result = Exported(source, f"v1/{place}", f"upload/{place}")
    _remove_earlier(out / result.files, out / result.uploads)
    lens = _lens(tables, source)
    uploads = _Uploads(out / result.uploads, source, result)
    for number, group in enumerate(batched(_latents(tables, source, names, most, lens, result), FEATURES_PER_FILE)):
        lines = {
            "features": [feature_line(latent, source, names, lens=lens is not None) for latent in group],
            "activations": [line for latent in group for line in latent.activations],
            "explanations": [line for latent in group for line in latent.explanations],
        }
        for kind, some in lines.items():
            _write_lines(out / result.files / kind / f"batch-{number}.jsonl.gz", kind, some)
            result.written[kind] += len(some)
        for latent in group:
            if feature := upload_feature(latent, names, result.left_out):
                uploads.add(feature)
    uploads.flush()
    for name, line in _about(tables, source, names).items():
        write_text(out / result.files / f"{name}.jsonl", json_line(line) + "\n")
    return result


def _latents(
    tables: Tables, source: Source, names: Names, most: int | None, lens: dict[int, list[Row]] | None, result: Exported
) -> Iterator[Latent]:
    """The SAE's latents in order: all in `latents.parquet`, and those that other tables speak of."""
    facts = _facts(tables, source, result)
    explained: dict[int, list[Row]] = defaultdict(list)
    for row in _of(tables, "explanations", source):
        if isinstance(row["text"], str) and row["text"].strip():
            explained[row["latent"]].append(row)
        else:
            result.left_out["explanations that failed"] += 1
    scores = ScoresOfExplanations(_of(tables, "scores", source))
    quantiles = _quantiles(tables)
    known: Iterator[tuple[int, list[Row]]] = ((index, []) for index in sorted({*facts, *explained}))
    both = heapq.merge(known, tables.windows(source.sae_id), key=itemgetter(0))
    for index, parts in groupby(both, key=itemgetter(0)):
        windows = [window for _, some in parts for window in some]
        density, largest = facts.get(index, (None, None))
        shown = None if lens is None else lens.get(index)
        latent = Latent(
            index, density, largest, None if shown is None else logits(shown, "top"),
            None if shown is None else logits(shown, "bottom"),
        )  # fmt: skip
        latent.activations = activation_lines(
            windows, source, names, quantiles=quantiles, most=most, left_out=result.left_out
        )
        for number, row in enumerate(explained[index]):
            latent.explanations.append(explanation_line(row, number, scores.note(row), source, names))
            latent.poles.append(-1 if row["pole"] == -1 else 1)
        yield latent


def _facts(tables: Tables, source: Source, result: Exported) -> dict[int, tuple[float | None, float | None]]:
    """Density and largest activation by latent. With several corpora, of the first by name."""
    rows = sorted(_of(tables, "latents", source), key=lambda row: (row["latent"], str(row["corpus"])))
    if len({row["corpus"] for row in rows}) > 1:
        result.left_out["densities of further corpora"] += len(rows) - len({row["latent"] for row in rows})
    facts: dict[int, tuple[float | None, float | None]] = {}
    for row in rows:
        density, largest = row["density"], row["max_activation"]
        # A magnitude, which of a signed latent may be that of its negative pole.
        signed = bool(row["n_negative"])
        facts.setdefault(
            row["latent"],
            (density if finite(density) else None, single(largest) if finite(largest) and not signed else None),
        )
    return facts


def _lens(tables: Tables, source: Source) -> dict[int, list[Row]] | None:
    """Rows of `lens.parquet` by latent; None where there is no lens of this SAE."""
    found: dict[int, list[Row]] = defaultdict(list)
    for row in _of(tables, "lens", source):
        if finite(row["logit"]):
            found[row["latent"]].append(row)
    return found or None


def _about(tables: Tables, source: Source, names: Names) -> dict[str, Row]:
    """The lines that the importer wants of the model, the set and the source; it makes those that it does not have.

    What we do not know of a model (layers, neurons, owner) is left out: the instance has to have the model already.
    """
    data = tables.settings().get("data")
    known: Row = data if isinstance(data, dict) else {}
    dataset = known.get("dataset")
    return {
        "model": {"id": source.model_id, "displayName": source.model_id, "creatorId": names.creator},
        "sourceset": {
            "modelId": source.model_id, "name": source.set_name, "description": source.sae_id, "creatorName": "",
            "creatorId": names.creator, "urls": [],
        },
        "source": {
            "id": source.source_id, "modelId": source.model_id, "setName": source.set_name,
            "creatorId": names.creator, "dataset": Path(dataset).name if isinstance(dataset, str) else None,
            "num_tokens_in_prompt": known.get("context_length"), "notes": f"autointerp: {source.sae_id}",
        },
    }  # fmt: skip


class _Uploads:
    """Bodies of upload requests, of at most `MOST_FEATURES` features each."""

    def __init__(self, folder: Path, source: Source, result: Exported) -> None:
        self.folder, self.source, self.result = folder, source, result
        self._features: list[Row] = []
        self._bytes = 0

    def add(self, feature: Row) -> None:
        size = len(json.dumps(feature).encode())
        if len(self._features) == MOST_FEATURES or (self._features and self._bytes + size > UPLOAD_BYTES):
            self.flush()
        self._features.append(feature)
        self._bytes += size

    def flush(self) -> None:
        if not self._features:
            return
        body = {"modelId": self.source.model_id, "source": self.source.source_id, "features": self._features}
        check("upload", body)
        number = self.result.written["upload requests"]
        write_text(self.folder / f"batch-{number}.json", json_line(body) + "\n")
        self.result.written["upload requests"] += 1
        self.result.written["uploaded features"] += len(self._features)
        self._features, self._bytes = [], 0


def _write_lines(path: Path, kind: str, lines: Sequence[Row]) -> None:
    """Nothing where there are no lines: the importer takes the columns from the first."""
    if not lines:
        return
    check_lines(kind, lines)
    text = "".join(json_line(line) + "\n" for line in lines)
    with replacing(path) as temporary:
        temporary.write_bytes(gzip.compress(text.encode("utf-8"), compresslevel=5, mtime=0))


def _remove_earlier(files: Path, uploads: Path) -> None:
    for pattern in (*(files / kind / "batch-*.jsonl.gz" for kind in KINDS), uploads / "batch-*.json"):
        for path in pattern.parent.glob(pattern.name):
            path.unlink()


def _of(tables: Tables, name: str, source: Source) -> list[Row]:
    return [
        row for batch in tables.batches(name) for row in batch.to_pylist()
        if row["sae_id"] == source.sae_id and row["latent"] is not None
    ]  # fmt: skip


def _quantiles(tables: Tables) -> int | None:
    sampling = tables.settings().get("sampling")
    found = sampling.get("quantiles") if isinstance(sampling, dict) else None
    return found if isinstance(found, int) and found > 0 else None


def _summary(result: Exported) -> Row:
    return {
        "sae_id": result.source.sae_id, "modelId": result.source.model_id, "source": result.source.source_id,
        "files": result.files, "uploads": result.uploads, "written": dict(result.written),
        "left_out": {reason: n for reason, n in result.left_out.items() if n},
    }  # fmt: skip
