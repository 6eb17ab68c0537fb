"""How alike the dictionaries of runs and studies are: by their decoders, and by what is said of their latents."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from autointerp.engine.ask import answer_all
from autointerp.errors import UserError
from autointerp.pipeline.clients import API_EMBEDDER, embedder
from autointerp.pipeline.directions import Found, dictionaries
from autointerp.pipeline.run import Run
from autointerp.pipeline.session import Session
from autointerp.progress import Reporter
from autointerp.seeds import generator
from autointerp.stats.layers_apart import MATCHES, by_distance
from autointerp.stats.matching import Directions, Matching, row_cosines, unit
from autointerp.stats.similarity import COLUMNS as MEASURES
from autointerp.stats.similarity import Measured, measure, row_of, shuffled
from prompts.requests import Embed, EmbedReply

__all__ = ["COLUMNS", "Similarities", "by_distance", "similarities", "similarity_table"]

Embedding = Callable[[Sequence[str]], NDArray[np.float32]]
"""Texts to vectors `[n, E]`."""

SIDE = ("variant", "layer", "hookpoint", "seed", "width")
COLUMNS = [
    "kind", "a", "b", *(f"{name}_{end}" for name in SIDE for end in "ab"), "layers_apart", "cosine", "explainer",
    *MEASURES,
]  # fmt: skip


def same_variant(a: Found, b: Found) -> bool:
    """Layer against layer and seed against seed."""
    return (a.variant, a.position) == (b.variant, b.position)


PAIRS: dict[str, Callable[[Found, Found], bool]] = {"variant": same_variant, "all": lambda a, b: True}


@dataclass
class Similarities:
    """`table` has COLUMNS, a row per kind and pair of dictionaries; `matches` a row per matched pair of latents of
    dictionaries of one variant, which `by_distance` reads."""

    table: pd.DataFrame
    matches: pd.DataFrame = field(repr=False)


def similarity_table(runs: str | Path | Sequence[str | Path], **how: Any) -> pd.DataFrame:
    """The `table` of `similarities`."""
    return similarities(runs, **how).table


def similarities(
    runs: str | Path | Sequence[str | Path], *, seed: int = 0, pairs: str | Iterable[tuple[str, str]] = "variant",
    method: str = "auto", explainer: str | None = None, embed: Embedding | None = None,
    say: Callable[[str], None] | None = None,
) -> Similarities:  # fmt: skip
    """Compare the dictionaries of run and study folders, pair by pair. docs/similarity.md explains the columns.

    `pairs`: `variant` (of one variant and place: layers and seeds), `all`, or pairs of `sae_id`s. `method` is how
    latents are matched (see `matching.match`). `explainer` is whose explanations are compared; without it, the one
    that most dictionaries have. `embed` turns texts to vectors, in place of the runs' own local sentence encoder.
    Subject models are not loaded. What cannot be compared has null values and a status.

    Raises:
        UserError: a folder is no run, there are fewer than two dictionaries, or a name is unknown.
    """
    found = dictionaries(runs)
    if len(found) < 2:
        raise UserError(f"only one dictionary ({found[0].key}): similarity needs two, name another run")
    chosen = _pairs(found, pairs)
    whose = explainer if explainer is not None else _commonest(found)
    texts = _Texts(found, whose, embed, say)
    rows, matches = [], []
    for number, (a, b) in enumerate(chosen, 1):
        if say is not None:
            say(f"[similarity] {number}/{len(chosen)}: {a.key} and {b.key}")
        about = _about(a, b)
        for kind, status, measured in _compared(a, b, texts, method, seed):
            row = {**about, "kind": kind, "explainer": whose if kind != "decoder" else None, "status": status}
            if measured is not None:
                rng = generator(seed, "similarity-interval", kind, a.key, b.key)
                row |= row_of(measured, rng)
                if same_variant(a, b):
                    matches.append(_matches(kind, a, b, measured))
            rows.append(row)
    table = pd.DataFrame(rows, columns=COLUMNS)
    integers = [f"{name}_{end}" for name in ("layer", "seed", "width") for end in "ab"]
    counts = ["layers_apart", "n_a", "n_b", "n_matched"]
    table = table.astype(dict.fromkeys([*integers, *counts], "Int64"))
    together = pd.concat(matches, ignore_index=True) if matches else pd.DataFrame(columns=MATCHES)
    return Similarities(table, together)


def _pairs(found: Sequence[Found], pairs: str | Iterable[tuple[str, str]]) -> list[tuple[Found, Found]]:
    if isinstance(pairs, str):
        if pairs not in PAIRS:
            raise UserError(f"unknown pairs '{pairs}' (known: {', '.join(PAIRS)}, or pairs of sae_id)")
        return [(a, b) for a, b in combinations(found, 2) if PAIRS[pairs](a, b)]
    by_key = {one.key: one for one in found}
    if unknown := {key for pair in pairs for key in pair} - set(by_key):
        raise UserError(f"no dictionary '{sorted(unknown)[0]}' in these runs (there are: {', '.join(by_key)})")
    return [(by_key[a], by_key[b]) for a, b in pairs]


def _commonest(found: Sequence[Found]) -> str | None:
    counts = pd.Series([name for one in found for name in one.explanations["explainer"].unique()], dtype=object)
    return str(counts.value_counts().sort_index().idxmax()) if len(counts) else None


def _about(a: Found, b: Found) -> dict[str, Any]:
    row: dict[str, Any] = {"a": a.key, "b": b.key}
    for end, one in (("a", a), ("b", b)):
        row |= {f"{name}_{end}": getattr(one, name) for name in SIDE}
    apart = abs(a.layer - b.layer) if a.layer is not None and b.layer is not None else None
    return row | {"layers_apart": apart, "cosine": "absolute" if a.signed or b.signed else "signed"}


def _compared(a: Found, b: Found, texts: _Texts, method: str, seed: int) -> list[tuple[str, str, Measured | None]]:
    """Kind, status and what was measured, in the three ways of comparing."""
    decoder, status = None, _obstacle(a, b)
    if status == "ok":
        x, y = a.directions(), b.directions()
        if x.shape[1] != y.shape[1]:
            status = "different_dimensions"
        elif x.shape == y.shape and np.array_equal(x, y):
            status = "same_directions"
        else:
            decoder = measure(
                x, y, rng=generator(seed, "similarity", "decoder", a.key, b.key), live_a=a.live, live_b=b.live,
                method=method, absolute=a.signed or b.signed,
            )  # fmt: skip
    rows: list[tuple[str, str, Measured | None]] = [("decoder", status, decoder)]
    if texts.status != "ok":
        return [*rows, ("explanations", texts.status, None), ("explanations_of_matched", texts.status, None)]
    of_a, of_b = texts.of(a), texts.of(b)
    if not (of_a and of_b):
        return [*rows, *((kind, "no_explanations", None) for kind in ("explanations", "explanations_of_matched"))]
    rng = generator(seed, "similarity", "explanations", a.key, b.key)
    rows.append(("explanations", "ok", _of_texts(of_a, of_b, rng)))
    matched = _of_matched(of_a, of_b, decoder.pairs) if decoder is not None else None
    return [*rows, ("explanations_of_matched", status, matched)]


def _obstacle(a: Found, b: Found) -> str:
    unfit = next((one.status for one in (a, b) if one.status != "ok"), None)
    return unfit or ("different_models" if a.space != b.space else "ok")


Vectors = dict[int, NDArray[np.float32]]
"""Of the explained latents' texts."""


def _of_texts(of_a: Vectors, of_b: Vectors, rng: np.random.Generator) -> Measured:
    sides = [(np.array(sorted(side)), np.stack([side[i] for i in sorted(side)])) for side in (of_a, of_b)]
    measured = measure(sides[0][1], sides[1][1], rng=rng)
    found = measured.pairs
    named = Matching(
        sides[0][0][found.rows_a], sides[1][0][found.rows_b], found.cosines, found.n_a, found.n_b, found.method
    )
    return Measured(named, measured.shuffled, measured.chance, measured.max_cosine_a, measured.max_cosine_b)


def _of_matched(of_a: Vectors, of_b: Vectors, pairs: Matching) -> Measured:
    """Texts of latents that the decoders match. They were not chosen for their texts: chance is the shuffled match."""
    both = [
        (i, j) for i, j in zip(pairs.rows_a.tolist(), pairs.rows_b.tolist(), strict=True) if i in of_a and j in of_b
    ]
    rows = np.array(both, dtype=np.int64).reshape(-1, 2)
    width = len(next(iter(of_a.values())))
    x, y = (
        np.stack([side[int(i)] for i in rows[:, end]]) if both else np.empty((0, width), dtype=np.float32)
        for end, side in enumerate((of_a, of_b))
    )
    cosines = row_cosines(x, y)
    found = Matching(rows[:, 0], rows[:, 1], cosines, len(of_a), len(of_b), pairs.method)
    nothing = float("nan")
    return Measured(found, shuffled(x, y, cosines), np.full(len(rows), nothing), nothing, nothing)


def _matches(kind: str, a: Found, b: Found, measured: Measured) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "kind": kind, "variant": a.variant, "place": a.position, "a": a.key, "b": b.key, "layer_a": a.layer,
            "layer_b": b.layer, "seed_a": a.seed, "seed_b": b.seed, "latent_a": measured.pairs.rows_a,
            "latent_b": measured.pairs.rows_b, "value": measured.pairs.cosines, "shuffled": measured.shuffled,
            "chance": measured.chance,
        },
        columns=MATCHES,
    ).astype(dict.fromkeys(["layer_a", "layer_b", "seed_a", "seed_b"], "Int64"))  # fmt: skip


class _Texts:
    """Unit vectors of one explainer's explanations; every text is embedded once."""

    def __init__(
        self, found: Sequence[Found], explainer: str | None, embed: Embedding | None, say: Callable[[str], None] | None
    ) -> None:
        self._vectors: dict[str, NDArray[np.float32]] = {}
        self._of = {one.key: one.explanations[one.explanations["explainer"] == explainer] for one in found}
        texts = sorted({text for frame in self._of.values() for text in frame["text"] if text.strip()})
        self.status = "ok" if texts else "no_explanations"
        if not texts:
            return
        first = found[0]
        if embed is None and (first.settings.score.embedder or "").startswith(API_EMBEDDER):
            # Nobody has said that this may cost anything.
            self.status = "embedder_is_a_server"
            return
        if say is not None:
            say(f"[similarity] embedding {len(texts):,} explanations")
        try:
            vectors, usable = unit(np.asarray((embed or local_embedding(first))(texts)))
        except UserError as error:
            if say is not None:
                say(f"[similarity] explanations are left out: {error}")
            self.status = "no_embedder"
            return
        self._vectors = {text: row for text, row, good in zip(texts, vectors, usable, strict=True) if good}

    def of(self, one: Found) -> Vectors:
        frame = self._of[one.key]
        return {
            int(latent): self._vectors[text]
            for latent, text in zip(frame["latent"], frame["text"], strict=True)
            if text in self._vectors
        }


def local_embedding(one: Found) -> Embedding:
    """By the sentence encoder that a run's settings name. Asks no server, and writes nothing."""
    client = embedder(Session(Run(one.folder, one.settings), Reporter(quiet=True)))

    def embed(texts: Sequence[str]) -> Directions:
        replies = answer_all(client, [Embed(text) for text in texts])
        vectors = [reply.vector for reply in replies if isinstance(reply, EmbedReply)]
        if len(vectors) != len(texts):
            raise UserError(f"{client.model} gave no vector for {len(texts) - len(vectors)} explanations")
        return np.array(vectors, dtype=np.float32)

    return embed
