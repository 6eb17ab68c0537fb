"""The cache of activations: every row, in its place, aligned over sites, collected once, resumed after a kill."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from autointerp.collect import cache
from autointerp.collect.cache import BATCH_BLOCKS, PART_BLOCKS, cached_rows
from autointerp.collect.corpus import documents
from autointerp.collect.sites import counted_rows
from autointerp.collect.tokens import TokenBlocks, pack
from autointerp.errors import AutointerpError, UserError
from autointerp.subject.load import SubjectModel, load_subject
from sae.sources import Rows

RESIDUAL, HEADS, GRADIENT = "layers.0", "layers.1.self_attn.o_proj:in", "layers.0@gradient"
SITES = [RESIDUAL, HEADS, GRADIENT]


@pytest.fixture(scope="module")
def subject(world: Any) -> SubjectModel:
    return load_subject(str(world.model))


@pytest.fixture(scope="module")
def blocks(world: Any, subject: SubjectModel) -> TokenBlocks:
    """Six parts and a bit."""
    texts = documents(str(world.corpus), seed=0)
    found = pack(subject, texts, n_tokens=16 * (6 * PART_BLOCKS + 5), context_length=16, skip_first=2)
    assert len(found.tokens) == 6 * PART_BLOCKS + 5
    return found


@pytest.fixture(scope="module")
def direct(subject: SubjectModel, blocks: TokenBlocks) -> dict[str, torch.Tensor]:
    """Rows of every site in the order of the text."""
    spans = [slice(i, i + BATCH_BLOCKS) for i in range(0, len(blocks.tokens), BATCH_BLOCKS)]
    parts = [counted_rows(subject, blocks, span, SITES) for span in spans]
    return {site: torch.cat([part[site] for part in parts]) for site in SITES}


@pytest.fixture(scope="module")
def whole(subject: SubjectModel, blocks: TokenBlocks, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cache") / "whole"
    cached_rows(subject, blocks, SITES, folder, seed=3)
    return folder


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Sites of each pass of the subject model."""
    seen: list[list[str]] = []

    def counting(subject: Any, blocks: Any, span: slice, sites: Any) -> Any:
        seen.append(list(sites))
        return counted_rows(subject, blocks, span, sites)

    monkeypatch.setattr(cache, "counted_rows", counting)
    return seen


def values(rows: Rows) -> torch.Tensor:
    return rows.read(np.arange(len(rows))).double()


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.npy")}


def place_of(direct: dict[str, torch.Tensor], cached: dict[str, Rows]) -> torch.Tensor:
    """Index of the direct row that each cached row is, found by the values of two sites; each is found once."""
    joint = torch.cat([direct[RESIDUAL], 100 * direct[HEADS]], dim=1).double()
    found = torch.cat([values(cached[RESIDUAL]), 100 * values(cached[HEADS])], dim=1)
    return torch.cat([torch.cdist(part, joint).argmin(dim=1) for part in found.split(512)])


def test_the_cache_is_a_permutation_in_which_sites_stay_together(
    subject: SubjectModel, blocks: TokenBlocks, direct: dict[str, torch.Tensor], whole: Path
) -> None:
    cached = cached_rows(subject, blocks, SITES, whole, seed=3)
    n = blocks.n_counted
    assert n == len(direct[RESIDUAL]) > 2000 and all(len(rows) == n for rows in cached.values())
    # Half-precision copies of whole rows, all sites together: the same set of rows before and after.
    halves = [direct[site].half().numpy() for site in (RESIDUAL, HEADS)]
    stored = [cached[site].values for site in (RESIDUAL, HEADS)]
    before, after = (sorted(row.tobytes() for row in np.concatenate(rows, axis=1)) for rows in (halves, stored))
    assert before == after
    place = place_of(direct, cached)
    # The third site, which had no say in finding the places, stands in them too, at its own precision.
    wanted = direct[GRADIENT].double()[place]
    apart = (values(cached[GRADIENT]) - wanted).abs()
    assert float((apart / wanted.abs().amax(dim=1, keepdim=True).clamp_min(1e-20)).max()) < 2**-11
    gaps = place.double().diff().abs()
    assert 0.25 < float(gaps.mean()) / n < 0.42, "neighbours in the cache are no neighbours in the text (n/3 apart)"


def test_values_keep_the_precision_they_are_stored_in(
    subject: SubjectModel, blocks: TokenBlocks, direct: dict[str, torch.Tensor], whole: Path, tmp_path: Path
) -> None:
    half = cached_rows(subject, blocks, SITES, whole, seed=3)
    eight = cached_rows(subject, blocks, SITES, tmp_path / "eight", seed=3, dtype="int8")
    place = place_of(direct, half)
    for site in SITES:
        wanted = direct[site].double()[place]
        largest = wanted.abs().amax(dim=1, keepdim=True)
        largest = largest.clamp_min(1e-20)  # where nothing is predicted, gradients are zero
        assert float(((values(half[site]) - wanted).abs() / largest).max()) < 2**-11, site
        assert eight[site].values.dtype == np.int8
        # Half a step of 127 per row's largest value.
        error = float(((values(eight[site]) - wanted).abs() / largest).max())
        assert error < 0.501 / 127, site
        assert error > 0.3 / 127 or site == RESIDUAL, "eight bits were not what was stored"
    sizes = [sum(map(len, bytes_of(folder).values())) for folder in (tmp_path / "eight", whole)]
    assert sizes[0] < 0.6 * sizes[1]


def test_activations_are_collected_once_and_a_site_may_join(
    subject: SubjectModel, blocks: TokenBlocks, whole: Path, tmp_path: Path, calls: list[list[str]]
) -> None:
    n_passes = -(-len(blocks.tokens) // BATCH_BLOCKS)
    cached_rows(subject, blocks, [RESIDUAL], tmp_path / "c", seed=3)
    assert len(calls) == n_passes + 1, "and one block, to see how wide the rows are"
    calls.clear()
    first = bytes_of(tmp_path / "c")
    cached_rows(subject, blocks, [RESIDUAL], tmp_path / "c", seed=3)
    assert not calls
    cached_rows(subject, blocks, [RESIDUAL, HEADS], tmp_path / "c", seed=3)
    assert len(calls) == n_passes + 1 and all(sites == [HEADS] for sites in calls)
    both = bytes_of(tmp_path / "c")
    assert both["layers.0.npy"] == first["layers.0.npy"]
    assert both.items() <= bytes_of(whole).items(), "what joined stands in the same order"


@pytest.mark.parametrize("apart", ["tokens", "model", "seed", "dtype"])
def test_a_cache_of_something_else_is_refused(
    world: Any, subject: SubjectModel, blocks: TokenBlocks, whole: Path, calls: list[list[str]], apart: str
) -> None:
    before = bytes_of(whole)
    tokens = blocks.tokens.copy()
    tokens[3, 5] += 1
    other = load_subject(str(world.model))
    with torch.no_grad():
        other.model.model.layers[0].mlp.up_proj.weight.mul_(1.5)
    with pytest.raises(UserError, match=rf"something else \(different: {apart}\); name another folder") as error:
        cached_rows(
            other if apart == "model" else subject,
            replace(blocks, tokens=tokens) if apart == "tokens" else blocks,
            SITES, whole, seed=4 if apart == "seed" else 3, dtype="int8" if apart == "dtype" else "float16",
        )  # fmt: skip
    assert "\n" not in str(error.value) and not calls and bytes_of(whole) == before


def test_a_killed_filling_goes_on_where_it_was(
    subject: SubjectModel, blocks: TokenBlocks, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def until(limit: float) -> Callable[..., Any]:
        def run(subject: Any, blocks: Any, span: slice, sites: Any) -> Any:
            if len(seen) == limit:
                raise KeyboardInterrupt
            seen.append(span)
            return counted_rows(subject, blocks, span, sites)

        return run

    per_part = PART_BLOCKS // BATCH_BLOCKS
    monkeypatch.setattr(cache, "counted_rows", until(1 + 2 * per_part + 3))
    with pytest.raises(KeyboardInterrupt):
        cached_rows(subject, blocks, SITES, tmp_path / "c", seed=3)
    seen.clear()
    monkeypatch.setattr(cache, "counted_rows", until(float("inf")))
    cached_rows(subject, blocks, SITES, tmp_path / "c", seed=3)
    assert seen[0] == slice(2 * PART_BLOCKS, 2 * PART_BLOCKS + BATCH_BLOCKS), "after the two parts that were done"
    assert bytes_of(tmp_path / "c") == bytes_of(whole)
    assert not [*(tmp_path / "c").glob("progress*"), *(tmp_path / "c").glob("filling*")]


@dataclass
class Side:
    """One of two processes, here threads."""

    rank: int
    barrier: threading.Barrier
    size: int = 2

    @property
    def leads(self) -> bool:
        return self.rank == 0

    def wait(self) -> None:
        self.barrier.wait()


def test_two_processes_fill_side_by_side_whatever_each_had_done_before_a_kill(
    world: Any, blocks: TokenBlocks, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second had finished its share and the first none of it: what is done must not be made anew."""
    subjects = [load_subject(str(world.model)) for _ in range(2)]
    passes: list[int] = []

    def fill(first_may_work: bool) -> None:
        barrier = threading.Barrier(2)
        ended = threading.Event()

        def run(subject: Any, blocks: Any, span: slice, sites: Any) -> Any:
            rank = subjects.index(subject)
            if rank == 0 and span != slice(0, 1) and not first_may_work:
                ended.wait(30)
                raise KeyboardInterrupt
            passes.append(rank)
            return counted_rows(subject, blocks, span, sites)

        def side(rank: int) -> None:
            try:
                one: Any = Side(rank, barrier)
                cached_rows(subjects[rank], blocks, [RESIDUAL, HEADS], tmp_path / "c", seed=3, world=one)
            except (KeyboardInterrupt, threading.BrokenBarrierError):
                barrier.abort()

        monkeypatch.setattr(cache, "counted_rows", run)
        with ThreadPoolExecutor(2) as pool:
            both = [pool.submit(side, rank) for rank in (0, 1)]
            while not first_may_work and _parts(tmp_path / "c") != 3 and not all(one.done() for one in both):
                threading.Event().wait(0.01)
            ended.set()
        for one in both:
            one.result()

    fill(first_may_work=False)
    assert passes.count(1) == 3 * PART_BLOCKS // BATCH_BLOCKS, "the second did parts 1, 3 and 5"
    passes.clear()
    fill(first_may_work=True)
    assert passes.count(1) == 0 and passes.count(0) == 3 * PART_BLOCKS // BATCH_BLOCKS + 1
    assert bytes_of(tmp_path / "c").items() <= bytes_of(whole).items()
    assert len(bytes_of(tmp_path / "c")) == 2


def _parts(folder: Path) -> int:
    found = cache._read(folder / "progress.1.json")
    return found["parts"] if found else 0


def test_numbers_that_are_none_or_do_not_fit_are_refused(world: Any, blocks: TokenBlocks, tmp_path: Path) -> None:
    subject = load_subject(str(world.model))
    with torch.no_grad():
        subject.model.model.embed_tokens.weight[5] *= 1e5
    with pytest.raises(AutointerpError, match=r"at 'layers\.0' exceed float16 .*--skip-first, or cache in int8"):
        cached_rows(subject, blocks, [RESIDUAL], tmp_path / "half", seed=3)
    rows = cached_rows(subject, blocks, [RESIDUAL], tmp_path / "eight", seed=3, dtype="int8")
    assert 9e5 < float(values(rows[RESIDUAL]).abs().max()) < 1.1e6
    with torch.no_grad():
        subject.model.model.embed_tokens.weight[5:7] = torch.nan
    with pytest.raises(AutointerpError, match=r"'layers\.0' of model gave NaN or infinity; try --dtype float32"):
        cached_rows(subject, blocks, [RESIDUAL], tmp_path / "nan", seed=3)
    with pytest.raises(UserError, match=r"unknown cache dtype 'int4' \(known: float16, int8\)"):
        cached_rows(subject, blocks, [RESIDUAL], tmp_path / "d", seed=3, dtype="int4")
