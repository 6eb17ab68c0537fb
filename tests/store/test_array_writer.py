"""Arrays written from front to back are what numpy reads, and nothing stands under a name before it is whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from autointerp import files
from autointerp.errors import DiskFull
from autointerp.files import (
    ArrayWriter,
    full_disk_named,
    read_array,
    replacing,
    sweep,
    write_array,
    write_json,
    write_text,
)

STRUCTURED = np.dtype([("n", "<i8"), ("sum", "<f8"), ("max", "<f4")])


def random_array(rng: np.random.Generator, dtype: Any, shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    raw = rng.integers(0, 255, size=(*shape, np.dtype(dtype).itemsize), dtype=np.uint8)
    if np.dtype(dtype).kind == "b":
        raw %= 2
    return raw.view(dtype).reshape(shape)


@pytest.mark.parametrize("dtype", ["<u4", "<f4", "<i8", "<f2", "?", "u1", STRUCTURED], ids=str)
@pytest.mark.parametrize("rest", [(), (7,), (3, 2), (0,)], ids=str)
@pytest.mark.parametrize("open_", [False, True])
def test_what_is_appended_is_read(tmp_path: Path, dtype: Any, rest: tuple[int, ...], open_: bool) -> None:
    rng = np.random.default_rng(0)
    for i, sizes in enumerate([[], [0], [1], [5, 0, 1, 300], [1] * 12, [100_000 // max(1, int(np.prod(rest)))]]):
        pieces = [random_array(rng, dtype, (n, *rest)) for n in sizes]
        path = tmp_path / f"{i}.npy"
        with ArrayWriter(path, dtype, (None if open_ else sum(sizes), *rest)) as writer:
            for piece in pieces:
                writer.append(piece)
        expected = np.concatenate([np.empty((0, *rest), dtype), *pieces])
        for found in (read_array(path), np.load(path)):
            assert found.dtype == np.dtype(dtype) and found.shape == expected.shape
            assert found.tobytes() == expected.tobytes()
        if sum(sizes):
            # To the byte what numpy itself writes.
            np.save(tmp_path / "numpy.npy", expected)
            assert path.read_bytes() == (tmp_path / "numpy.npy").read_bytes()
        assert isinstance(read_array(path), np.memmap)
        assert not read_array(path).flags.writeable


def test_arrays_of_any_layout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Transposed, strided, of another type; copied in slabs where they have to be copied."""
    array = np.arange(6000, dtype=np.int64).reshape(60, 100)
    for slab in (1, 1000, 2**24):
        monkeypatch.setattr(files, "SLAB", slab)
        for given in (
            array,
            array.T,
            array[:, :7],
            array[::-3],
            np.asfortranarray(array),
            array[:0],
            array.astype(">i4"),
        ):
            write_array(tmp_path / "a.npy", given)
            np.testing.assert_array_equal(np.load(tmp_path / "a.npy"), given)
        with ArrayWriter(tmp_path / "b.npy", "<f4", (None, 60)) as writer:
            writer.append(array.T)
        np.testing.assert_array_equal(np.load(tmp_path / "b.npy"), array.T.astype(np.float32))


def test_wrong_shapes_and_wrong_counts(tmp_path: Path) -> None:
    def write(shape: tuple[int | None, ...], rows: np.ndarray[Any, Any]) -> None:
        with replacing(tmp_path / "a.npy") as at, ArrayWriter(at, "<i4", shape) as writer:
            writer.append(rows)

    for shape in ((None, 3), (5, 3)):
        for rows in (np.zeros((5, 4)), np.zeros(3), np.zeros((5, 3, 1))):
            with pytest.raises(ValueError, match=r"rows of shape \(.*\) do not belong into an array of"):
                write(shape, rows)
    for n in (4, 6, 0):
        with pytest.raises(ValueError, match=f"got {n} rows where 5 were announced"):
            write((5, 3), np.zeros((n, 3)))
    assert list(tmp_path.iterdir()) == []


def test_lengths_beyond_the_headers_first_one(tmp_path: Path) -> None:
    """An open first axis is filled in afterwards, in place, whatever its number of digits."""
    for n in (0, 9, 10, 12_345, 1_000_000):
        with ArrayWriter(tmp_path / "a.npy", "u1", (None,)) as writer:
            for begin in range(0, n, 100_000):
                writer.append(np.ones(min(100_000, n - begin), np.uint8))
        assert read_array(tmp_path / "a.npy").shape == (n,) and read_array(tmp_path / "a.npy").sum() == n


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "deeper" / "a.json"
    whole = '{\n  "a": [\n    1,\n    null\n  ],\n  "b": "Größe"\n}\n'
    write_json(path, {"b": "Größe", "a": [1, None]})
    assert path.read_text(encoding="utf-8") == whole

    def interrupted() -> None:
        with replacing(path) as temporary:
            temporary.write_text("half")
            assert path.read_text(encoding="utf-8") == whole
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert [found.name for found in path.parent.iterdir()] == ["a.json"]
    assert path.read_text(encoding="utf-8") == whole
    write_text(path, "other")
    assert path.read_text() == "other"


def test_a_full_disk_is_named(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "not" / "there" / "yet"):
        with pytest.raises(DiskFull) as caught, full_disk_named(folder):
            raise OSError(28, "No space left on device")
        assert f"the disk of '{folder}' is full (" in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(PermissionError), full_disk_named(tmp_path):
        raise PermissionError(13, "no")


def test_sweeping_takes_temporary_files_alone(tmp_path: Path) -> None:
    for name in (".a.npy.1.tmp", ".b.json.22.tmp", "a.tmp", ".hidden", "a.npy"):
        (tmp_path / name).write_text("x")
    sweep(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".hidden", "a.npy", "a.tmp"]
    sweep(tmp_path / "nowhere")
