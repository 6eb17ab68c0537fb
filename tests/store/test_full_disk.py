"""A disk that fills up, at any stage: one line, nothing half-written, and after making room the same bytes."""

from __future__ import annotations

import shutil
from collections import namedtuple
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import planted
import pytest
from random_codes import files
from small_disk import MB, Disk, small_disk

import sae
from autointerp.collect import encode
from autointerp.collect.encode import Target, collect_stores
from autointerp.collect.tokenise import PLACE, kept, tokenise
from autointerp.config import DataSettings
from autointerp.errors import DiskFull
from autointerp.files import write_array
from autointerp.store import layout
from autointerp.store import writer as store_writer
from autointerp.store.parts import Part, parts_in
from autointerp.store.reader import LatentStore
from autointerp.store.writer import StoreWriter
from autointerp.subject.load import SubjectModel, load_subject
from sae.architectures import topk

TOKENS_MB, PARTS_MB = 0.16, 1.77
"""Room for the tokens, and for all parts of the collection below; the finished arrays take two thirds of the parts."""


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    with small_disk(tmp_path / "disk") as made:
        yield made


@pytest.fixture(scope="module")
def subject(world: Any) -> SubjectModel:
    return load_subject(str(world.model))


class Collection:
    def __init__(self, world: Any, subject: SubjectModel) -> None:
        self.subject = subject
        self.data = DataSettings(dataset=str(world.corpus), tokens=20_000, context_length=64, skip_first=1)
        self.dictionary = topk.create({"d_in": planted.WIDTH, "n_latents": 64, "k": 8}, sae.SAEMetadata())
        self.dictionary.initialise(0)

    def run(self, folder: Path) -> None:
        blocks = tokenise(self.subject, self.data, folder, seed=0, skip_documents=0)
        target = Target(self.dictionary, "layers.1", folder, {"sae_sha": "deep"})
        collect_stores(self.subject, [target], blocks, batch_tokens=640, budget=100_000)

    def fails(self, folder: Path) -> str:
        with pytest.raises(DiskFull) as caught:
            self.run(folder)
        line = str(caught.value)
        assert "\n" not in line and str(folder) in line and "free some space and run the same command again" in line
        return line


@pytest.fixture
def collection(world: Any, subject: SubjectModel, monkeypatch: pytest.MonkeyPatch) -> Collection:
    def writer(*args: Any, **how: Any) -> StoreWriter:
        return StoreWriter(*args, **{**how, "part_bytes": 150_000})

    monkeypatch.setattr(encode, "StoreWriter", writer)
    return Collection(world, subject)


@pytest.fixture(scope="module")
def elsewhere(world: Any, subject: SubjectModel, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("elsewhere")
    Collection(world, subject).run(folder)
    found = files(folder)
    n = LatentStore.open(folder).n_activations
    assert len(found[layout.TOKENS]) + len(found[layout.DOCUMENTS]) == pytest.approx(TOKENS_MB * MB, rel=0.1)
    assert 12 * n == pytest.approx(PARTS_MB * MB, rel=0.01)
    return found


def sound(folder: Path, elsewhere: dict[str, bytes]) -> int:
    """Nothing under a final name is half-written, no temporary file is left; the number of parts."""
    n = 0
    for name, content in files(folder).items():
        assert "tmp" not in name and ".tokenising" not in name
        assert content == elsewhere[name] if not name.startswith("parts/") else name.endswith(".part")
    for _, part in parts_in(folder / layout.PARTS):
        assert isinstance(part, Part)
        part.verify()
        n += 1
    return n


def test_while_parts_are_written(disk: Disk, collection: Collection, elsewhere: dict[str, bytes]) -> None:
    folder = disk.folder / "store"
    times: dict[Path, int] = {}
    for step, size in enumerate((0.6, 0.9, 1.7)):
        disk.resize(size)
        assert "the disk of" in collection.fails(folder)
        n = sound(folder, elsewhere)
        assert n >= 2 + 2 * step, "each time it gets further"
        for path, written in times.items():
            assert path.stat().st_mtime_ns == written, "and keeps what it had"
        times = {path: path.stat().st_mtime_ns for path in (folder / layout.PARTS).iterdir()}
    disk.resize(16)
    collection.run(folder)
    assert files(folder) == elsewhere


def test_before_finishing(disk: Disk, collection: Collection, elsewhere: dict[str, bytes]) -> None:
    """It says beforehand that there will be no room, and how much it takes."""
    folder = disk.folder / "store"
    disk.resize(TOKENS_MB + PARTS_MB + 0.5)
    line = collection.fails(folder)
    needed = (2 * len(elsewhere[layout.VALUES]) + 64 * 64) / 1e6
    assert f"finishing '{folder}' takes {needed:,.0f} MB and its disk has" in line
    assert sound(folder, elsewhere) > 8 and not (folder / layout.POSITIONS).exists()
    disk.resize(16)
    collection.run(folder)
    assert files(folder) == elsewhere


@pytest.mark.parametrize("room", [0.2, 0.5, 0.7, 1.05, 1.13])
def test_in_the_middle_of_finishing(
    disk: Disk, collection: Collection, elsewhere: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, room: float
) -> None:
    """When someone else fills it after the look at how much is free."""
    folder = disk.folder / "store"
    disk.resize(TOKENS_MB + PARTS_MB + 0.06 + room)
    usage = namedtuple("usage", "total used free")(10**12, 0, 10**12)
    with monkeypatch.context() as patched:
        patched.setattr(shutil, "disk_usage", lambda path: usage)
        assert "the disk of" in collection.fails(folder)
        n = sound(folder, elsewhere)
        assert n > 8 and not (folder / layout.MANIFEST).exists()
        assert "the disk of" in collection.fails(folder), "and again"
        assert sound(folder, elsewhere) == n
    disk.resize(TOKENS_MB + PARTS_MB + 0.06 + 1.5)
    collection.run(folder)
    assert files(folder) == elsewhere, "room for parts and arrays is enough, whatever was tried before"


def test_what_a_killed_merge_left_takes_no_room(
    disk: Disk, collection: Collection, elsewhere: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is room for the parts and the arrays, but not for the arrays twice."""
    folder = disk.folder / "store"
    disk.resize(TOKENS_MB + PARTS_MB + 0.06 + 1.5)

    def killed(*args: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(store_writer, "write_statistics", killed)
        with pytest.raises(KeyboardInterrupt):
            collection.run(folder)
    assert sound(folder, elsewhere) > 8 and (folder / layout.POSITIONS).exists()
    collection.run(folder)
    assert files(folder) == elsewhere


def test_while_tokenising(disk: Disk, collection: Collection, elsewhere: dict[str, bytes]) -> None:
    folder = disk.folder / "store"
    for size in (0.004, 0.03, 0.1, 0.2, 0.26):
        disk.resize(size)
        assert "the disk of" in collection.fails(folder)
        sound(folder, elsewhere)
        assert not (folder / PLACE).exists()
    disk.resize(16)
    collection.run(folder)
    assert files(folder) == elsewhere
    assert kept(folder).first == 0


def test_arrays_and_texts_leave_nothing_behind(disk: Disk) -> None:
    disk.resize(0.1)
    for shape in ((50_000,), (3, 50_000)):
        with pytest.raises(DiskFull):
            write_array(disk.folder / "a.npy", np.zeros(shape))
        assert list(disk.folder.iterdir()) == []
    write_array(disk.folder / "a.npy", np.zeros(1000))
    with pytest.raises(DiskFull):
        write_array(disk.folder / "a.npy", np.ones(20_000))
    np.testing.assert_array_equal(np.load(disk.folder / "a.npy"), np.zeros(1000))
