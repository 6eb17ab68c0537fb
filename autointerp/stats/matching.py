"""One-to-one matching of the rows of two sets of directions by their cosine: exact, or greedy where that is too dear.

The exact one is the assignment problem (Kuhn 1955; scipy's `linear_sum_assignment`), whose time grows with the cube of
the number of rows. Greedy takes the largest cosine that is left among the CANDIDATES nearest rows of each, and reaches
97 to 100% of the exact mean where both can be run (`tests/stats/test_similarity.py` measures it).
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from autointerp.errors import UserError
from autointerp.stats.frames import Floats

EXACT_UP_TO = 20_000
"""Rows on the longer side. There the cosines (float32) and scipy's own copies (float64) take about 8 GB."""
CANDIDATES = 32
"""Nearest rows that greedy chooses from; rows left without one are given new candidates among what is left."""
GROUP = 16
"""Columns that are looked at together in search of the largest."""
CHUNK_BYTES = 64 * 2**20
"""Cosines in memory at a time, where not all of them are needed at once."""

Directions = NDArray[np.float32]
Rows = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Matching:
    """Pairs of rows, all three `[n]` with n the number of rows on the shorter side, in the order of that side.

    `rows_a` and `rows_b` count all rows, dead ones included; `n_a` and `n_b` are how many could be matched.
    """

    rows_a: Rows
    rows_b: Rows
    cosines: Floats
    n_a: int
    n_b: int
    method: str


def unit(rows: NDArray[Any]) -> tuple[Directions, NDArray[np.bool_]]:
    """Rows at unit length, float32, and which of them have a direction: not those of zeros, NaN or infinity."""
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    good = np.isfinite(norms) & (norms > 0)
    return np.where(good, rows / np.where(good, norms, 1.0), 0.0).astype(np.float32), good[:, 0]


def match(
    a: Directions, b: Directions, method: str = "auto", *, live_a: NDArray[np.bool_] | None = None,
    live_b: NDArray[np.bool_] | None = None, absolute: bool = False,
) -> Matching:  # fmt: skip
    """Match unit rows `[F_a, D]` and `[F_b, D]` such that their cosines are large in sum; each is used once at most.

    `method` is `exact`, `greedy`, or `auto`: exact up to EXACT_UP_TO rows. Only rows that `live_a` and `live_b` name
    are matched. A direction and its opposite are unlike, unless `absolute`: then the size of the cosine counts.

    Raises:
        UserError: rows are not of unit length, not equally wide, or too many for `exact`.
    """
    check(a, b)
    rows_a, rows_b = _chosen(a, live_a), _chosen(b, live_b)
    if method == "auto":
        method = "exact" if max(len(rows_a), len(rows_b)) <= EXACT_UP_TO else "greedy"
    if method not in METHODS:
        raise UserError(f"unknown matching '{method}' (known: auto, {', '.join(METHODS)})")
    if method == "exact" and max(len(rows_a), len(rows_b)) > EXACT_UP_TO:
        raise UserError(
            f"{max(len(rows_a), len(rows_b)):,} latents are too many for an exact matching (up to {EXACT_UP_TO:,}); "
            "match with 'greedy' or 'auto'"
        )
    swapped = len(rows_a) > len(rows_b)
    few, many = (rows_b, rows_a) if swapped else (rows_a, rows_b)
    x, y = (b[few], a[many]) if swapped else (a[few], b[many])
    partner = METHODS[method](x, y, absolute) if len(few) else few
    cosines = row_cosines(x, y[partner], absolute)
    found = (many[partner], few) if swapped else (few, many[partner])
    named = f"{method} (faiss)" if method == "greedy" and has_faiss() else method
    return Matching(*found, cosines, len(rows_a), len(rows_b), named)


def check(a: Directions, b: Directions) -> None:
    """UserError unless the rows are as wide on both sides, and of unit length (or zero: rows that are left out)."""
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1]:
        raise UserError(
            f"directions of shapes {a.shape} and {b.shape} cannot be compared: they have to be equally wide"
        )
    for rows in (a, b):
        squares = np.einsum("nd,nd->n", rows, rows)
        if not np.all((np.abs(squares - 1) < 1e-3) | (squares == 0)):
            raise UserError("directions have to be rows of unit length: make them so with matching.unit")


def row_cosines(x: Directions, y: Directions, absolute: bool = False) -> Floats:
    """Cosine of each row of `[n, D]` with the same row of another, `[n]`."""
    cosines = np.clip(np.einsum("nd,nd->n", x, y).astype(np.float64), -1.0, 1.0)
    return np.asarray(np.abs(cosines) if absolute else cosines)


def cosine_chunks(x: Directions, y: Directions, absolute: bool = False) -> Iterator[tuple[slice, NDArray[np.float32]]]:
    """All cosines of `[n, D]` with `[m, D]`, some rows of x at a time: where they stand, and `[chunk, m]`."""
    step = max(1, CHUNK_BYTES // (4 * max(1, len(y))))
    for begin in range(0, len(x), step):
        cosines = x[begin : begin + step] @ y.T
        yield slice(begin, begin + len(cosines)), np.abs(cosines, out=cosines) if absolute else cosines


def exact(x: Directions, y: Directions, absolute: bool) -> Rows:
    """Partner `[n]` of each row of x in y (which has no fewer rows), with the largest sum of cosines there is."""
    cosines = np.empty((len(x), len(y)), dtype=np.float32)
    for rows, part in cosine_chunks(x, y, absolute):
        cosines[rows] = part
    return np.asarray(linear_sum_assignment(cosines, maximize=True)[1], dtype=np.int64)


def greedy(x: Directions, y: Directions, absolute: bool) -> Rows:
    """As `exact`, taking the largest cosine that is left, until every row of x has a partner."""
    partner = np.full(len(x), -1, dtype=np.int64)
    free_x, free_y = np.arange(len(x)), np.arange(len(y))
    nearest = nearest_by_faiss if has_faiss() else nearest_by_product
    while len(free_x):
        columns, cosines = nearest(x[free_x], y[free_y], min(CANDIDATES, len(free_y)), absolute)
        order = np.argsort(-cosines, axis=None, kind="stable")
        taken_x, taken_y = bytearray(len(free_x)), bytearray(len(free_y))
        pairs = []
        for i, j in zip((order // columns.shape[1]).tolist(), columns.ravel()[order].tolist(), strict=True):
            if not (taken_x[i] or taken_y[j]):
                taken_x[i] = taken_y[j] = 1
                pairs.append((i, j))
        i, j = np.array(pairs).T
        partner[free_x[i]] = free_y[j]
        free_x, free_y = np.delete(free_x, i), np.delete(free_y, j)
    return partner


METHODS: dict[str, Callable[[Directions, Directions, bool], Rows]] = {"exact": exact, "greedy": greedy}


def nearest_by_product(x: Directions, y: Directions, k: int, absolute: bool) -> tuple[Rows, NDArray[np.float32]]:
    """The k rows of y with the largest cosines for each row of x, in no order: indices and cosines `[n, k]`."""
    columns = np.empty((len(x), k), dtype=np.int64)
    found = np.empty((len(x), k), dtype=np.float32)
    for rows, cosines in cosine_chunks(x, y, absolute):
        top = _largest(cosines, k)
        columns[rows], found[rows] = top, np.take_along_axis(cosines, top, axis=1)
    return columns, found


def _largest(values: NDArray[np.float32], k: int) -> Rows:
    """Columns `[n, k]` of the k largest of each row.

    Of many columns, the largest of each group of GROUP first: the k largest values are in the k groups with the largest
    maxima, and maxima are cheap where partitions are not.
    """
    groups = values.shape[1] // GROUP
    if groups <= k:
        return np.argpartition(values, -k, axis=1)[:, -k:]
    split = groups * GROUP
    maxima = values[:, :split].reshape(len(values), GROUP, groups).max(axis=1)
    best = np.argpartition(maxima, -k, axis=1)[:, -k:]
    within = (best[:, None, :] + groups * np.arange(GROUP)[None, :, None]).reshape(len(values), -1)
    left = np.broadcast_to(np.arange(split, values.shape[1]), (len(values), values.shape[1] - split))
    within = np.concatenate([within, left], axis=1)
    among = np.take_along_axis(values, within, axis=1)
    return np.take_along_axis(within, np.argpartition(among, -k, axis=1)[:, -k:], axis=1)


def has_faiss() -> bool:
    return importlib.util.find_spec("faiss") is not None


def nearest_by_faiss(x: Directions, y: Directions, k: int, absolute: bool) -> tuple[Rows, NDArray[np.float32]]:
    """As `nearest_by_product`, by faiss's flat index of inner products."""
    index = importlib.import_module("faiss").IndexFlatIP(y.shape[1])
    index.add(np.ascontiguousarray(np.concatenate([y, -y]) if absolute else y))
    found, columns = index.search(np.ascontiguousarray(x), k)
    return columns.astype(np.int64) % len(y), found


def _chosen(rows: Directions, live: NDArray[np.bool_] | None) -> Rows:
    usable = rows.any(axis=1)
    return np.flatnonzero(usable if live is None else usable & live)
