"""Rows of our tables as Neuronpedia's: features, activations and explanations, and what its upload takes of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from autointerp.exchange.plain import finite, identifier, single, storable
from autointerp.exchange.schemas import MOST_TEXT, MOST_TOKENS
from autointerp.exchange.sources import Source
from scoring.types import ACTIVATING

Row = dict[str, Any]

SPLITS = ("explain", "score")
"""Whose activating windows are activations. Those of the others repeat text of these, cut at the first activation."""


@dataclass(frozen=True, kw_only=True)
class Names:
    """What nobody but the user can know. Neuronpedia refuses methods and models that it has not registered."""

    creator: str | None = None
    """Id of a user of the instance that imports the files."""
    method: str | None = None
    explainer: str | None = None


@dataclass
class Latent:
    """One latent and what there is of it, in the files' form. `explanations` and `activations` are of both poles."""

    index: int
    density: float | None
    largest: float | None
    top: list[Row] | None
    """`token` and `value` of the logits that rise most; None where no lens was taken."""
    bottom: list[Row] | None
    explanations: list[Row] = field(default_factory=list)
    activations: list[Row] = field(default_factory=list)
    poles: list[int] = field(default_factory=list)
    """Of the explanations."""


def feature_line(latent: Latent, source: Source, names: Names, *, lens: bool) -> Row:
    """A line of `features/`. What we have no figures for (histograms, vectors, neurons alike) is left out."""
    line: Row = {
        **_place(latent.index, source),
        "sourceSetName": source.set_name,
        "creatorId": names.creator,
        # What their upload writes where it is told no density.
        "frac_nonzero": -1 if latent.density is None else latent.density,
        "maxActApprox": latent.largest,
    }
    if lens:
        for name, logits in (("pos", latent.top), ("neg", latent.bottom)):
            line[f"{name}_str"] = [logit["token"] for logit in logits or ()]
            line[f"{name}_values"] = [logit["value"] for logit in logits or ()]
    return line


def explanation_line(row: Mapping[str, Any], number: int, note: str, source: Source, names: Names) -> Row:
    """A line of `explanations/`; `number` tells it from the same one in another draw."""
    return {
        "id": identifier(source.model_id, source.source_id, row["latent"], row["explanation_id"], number),
        **_place(row["latent"], source),
        "authorId": names.creator,
        "description": storable(row["text"]),
        "typeName": names.method,
        "explanationModelName": names.explainer,
        "notes": storable(note),
    }


def activation_lines(
    windows: Sequence[Row], source: Source, names: Names, *, quantiles: int | None, most: int | None,
    left_out: Counter[str],
) -> list[Row]:  # fmt: skip
    """Lines of `activations/` for the activating windows of one latent, strongest first, at most `most` of a pole.

    A quantile's `binMin` and `binMax` are the weakest and strongest peak of its windows that are written, and
    `binContains` the share of all the latent's windows that a quantile holds.
    """
    kept: dict[tuple[Any, ...], Row] = {}
    for row in windows:
        if row["split"] not in SPLITS or row["kind"] != ACTIVATING:
            continue
        pieces, values = row["pieces"] or [], row["activations"] or []
        if not pieces or len(pieces) != len(values) or not all(map(finite, values)):
            left_out["windows that hold no numbers, or not one for each token"] += 1
            continue
        # Draws may take the same window again; another corpus has windows of its own under the same names.
        kept.setdefault((row["pole"], row["corpus"], row["window_id"]), row)
    by_pole: dict[int, list[Row]] = {}
    for row in kept.values():
        by_pole.setdefault(-1 if row["pole"] == -1 else 1, []).append(row)
    lines = []
    for pole, of_pole in sorted(by_pole.items(), reverse=True):
        of_pole.sort(key=lambda row: (-_peak(row), str(row["window_id"])))
        chosen = of_pole if most is None else _spread(of_pole, most)
        left_out["windows beyond --activations"] += len(of_pole) - len(chosen)
        peaks: dict[Any, list[float]] = {}
        for row in chosen:
            peaks.setdefault(row["quantile"], []).append(pole * single(_peak(row)))
        lines += [_activation(row, peaks, source, names, quantiles) for row in chosen]
    return lines


def _activation(
    row: Row, peaks: Mapping[Any, Sequence[float]], source: Source, names: Names, quantiles: int | None
) -> Row:
    values = [single(value) for value in row["activations"]]
    quantile = row["quantile"]
    return {
        "id": identifier(
            source.model_id, source.source_id, row["latent"], row["pole"], row["corpus"], row["window_id"]
        ),
        **_place(row["latent"], source),
        "creatorId": names.creator,
        "tokens": [storable(piece or "") for piece in row["pieces"]],
        "values": values,
        "maxValue": max(values),
        "maxValueTokenIndex": values.index(max(values)),
        "minValue": min(values),
        "binMin": None if quantile is None else min(peaks[quantile]),
        "binMax": None if quantile is None else max(peaks[quantile]),
        "binContains": None if quantile is None or not quantiles else 1 / quantiles,
        "dataIndex": storable(f"{row['split']}/{row['window_id']}"),
        "dataSource": None if row["corpus"] is None else storable(row["corpus"]),
    }


def upload_feature(latent: Latent, names: Names, left_out: Counter[str]) -> Row | None:
    """A feature of an upload request, or None where the request cannot hold it: it demands activations.

    A negative pole is left out: the request has no place to say that an explanation is of negative activations.
    """
    activations = []
    for line in latent.activations:
        if line["maxValue"] <= 0:
            left_out["uploads of activations of negative poles"] += 1
        elif len(line["tokens"]) > MOST_TOKENS:
            left_out[f"uploads of windows of more than {MOST_TOKENS:,} tokens"] += 1
        else:
            activations.append({
                # A token that is a part of a character has an empty text, which the request does not take.
                "tokens": [token or "\ufffd" for token in line["tokens"]], "values": line["values"],
                "quantileMin": line["binMin"], "quantileMax": line["binMax"], "quantileFraction": line["binContains"],
            })  # fmt: skip
    if not activations:
        if latent.explanations:
            left_out["uploads of explained latents without activations"] += 1
        return None
    explanations = []
    for line, pole in zip(latent.explanations, latent.poles, strict=True):
        if pole == -1:
            left_out["uploads of explanations of negative poles"] += 1
            continue
        text = line["description"]
        if len(text) > MOST_TEXT:
            left_out[f"ends of uploaded explanations of more than {MOST_TEXT} characters"] += 1
            text = text[: MOST_TEXT - 1] + "…"
        explanations.append({"text": text, "methodName": names.method, "modelName": names.explainer})
    return {
        "index": latent.index,
        **({} if latent.density is None else {"density": latent.density}),
        "topLogits": latent.top, "bottomLogits": latent.bottom, "activations": activations,
        "explanations": explanations,
    }  # fmt: skip


def logits(rows: Sequence[Row], direction: str) -> list[Row]:
    """Of the rows of one latent's lens, those of one direction, by rank."""
    some = sorted((row for row in rows if row["direction"] == direction), key=lambda row: row["rank"] or 0)
    return [{"token": storable(row["token"] or ""), "value": single(row["logit"])} for row in some]


def _place(latent: int, source: Source) -> Row:
    return {"modelId": source.model_id, "layer": source.source_id, "index": str(latent)}


def _peak(row: Row) -> float:
    return float(max(abs(value) for value in row["activations"]))


def _spread(rows: list[Row], most: int) -> list[Row]:
    """`most` of the rows at even distances, first and last included."""
    if len(rows) <= most:
        return rows
    if most == 1:
        return rows[:1]
    return [rows[round(place * (len(rows) - 1) / (most - 1))] for place in range(most)]
