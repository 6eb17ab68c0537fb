"""SIGKILL at any moment, and the same command ends with the same bytes, having repeated no finished part."""

from __future__ import annotations

import json
import random
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from collection_process import Collections, collections
from random_codes import files

from autointerp.errors import UserError
from autointerp.store import layout
from autointerp.store.parts import Part, parts_in
from autointerp.store.reader import LatentStore

N_CONTEXTS = 188
NAMES = ("planted", "deep")
"""Of the two stores that are collected in one pass, in the order in which they are finished."""

TOKENISING = [
    ("append:spool/tokens.npy", 1), ("close:spool/documents.npy", 1), ("half:tokens.npy", 1), ("replaced:tokens.npy", 1),
    ("half:documents.npy", 1), ("replaced:documents.npy", 1), ("half:tokens.json", 1), ("replaced:tokens.json", 1),
]  # fmt: skip
CLAIMING = [
    ("half:identity.json", 1), ("replaced:identity.json", 1), ("replaced:identity.json", 2), ("replace:tokens.npy", 2),
    ("replaced:documents.npy", 2), ("replace:tokens.json", 2),
]  # fmt: skip
COLLECTING = [
    ("call:add", 1), ("call:add", 6), ("half:*.part", 1), ("replace:*.part", 1), ("replaced:*.part", 1),
    ("replace:*.part", 9), ("call:flush", 3), ("replaced:*.part", 12), ("half:*.part", 15),
]  # fmt: skip
FINISHING = [
    ("call:merge", 1), ("close:indptr.npy", 1), ("replaced:indptr.npy", 1), ("call:range", 1), ("append:values.npy", 2),
    ("close:positions.npy", 1), ("replaced:values.npy", 1), ("replaced:positions.npy", 1), ("call:statistics", 1),
    ("replace:statistics.npy", 1), ("half:manifest.json", 1), ("replace:manifest.json", 1),
    ("replaced:manifest.json", 1), ("call:rmtree", 1), ("call:merge", 2), ("call:range", 12),
    ("append:positions.npy", 20), ("half:values.npy", 2), ("replace:manifest.json", 2), ("replaced:manifest.json", 2),
    ("call:rmtree", 2),
]  # fmt: skip
MOMENTS = [*TOKENISING, *CLAIMING, *COLLECTING, *FINISHING]


@pytest.fixture(scope="module")
def server(world: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Collections]:
    folder = tmp_path_factory.mktemp("server")
    text = folder / "text.txt"
    text.write_text("\n\n".join(json.loads(line)["text"] for line in world.corpus.open()))
    with collections(world.model, {"text": str(text), "sae": str(world.sae)}, folder / "log") as served:
        yield served


@pytest.fixture(scope="module")
def undisturbed(server: Collections, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Every file of the collection that no one kills."""
    out = tmp_path_factory.mktemp("undisturbed")
    assert server.run(out) == 0
    assert len(server.encoded()) == 2 * len({(first, end) for _, first, end in server.encoded()}) > 30
    for name in NAMES:
        assert LatentStore.open(out / name, verify=True).n_activations > 150
    found = files(out)
    expected = (*layout.ARRAYS, layout.MANIFEST, layout.IDENTITY, "tokens.json")
    assert set(found) == {f"{name}/{file}" for name in NAMES for file in expected}, "and nothing is left over"
    return found


def sound_parts(folder: Path) -> list[Part]:
    found = []
    for _, part in parts_in(folder / layout.PARTS):
        assert isinstance(part, Part), "a part under its final name is whole"
        part.verify()
        found.append(part)
    return found


def left_to_collect(out: Path) -> set[tuple[str, int]]:
    """Contexts of each store that are neither in a finished one nor in a part."""
    left = {(name, i) for name in NAMES for i in range(N_CONTEXTS)}
    for name in NAMES:
        if (out / name / layout.MANIFEST).is_file():
            left -= {(name, i) for i in range(N_CONTEXTS)}
        for part in sound_parts(out / name):
            left -= {(name, i) for i in range(part.first, part.end)}
    return left


def check_killed(out: Path, undisturbed: dict[str, bytes]) -> None:
    """No file of a final name is half a file, and no store says that it is finished when it is not."""
    for name, content in files(out).items():
        if "/." not in name and "/parts/" not in name:
            assert content == undisturbed[name], name
    for name in NAMES:
        if not (out / name / layout.MANIFEST).is_file():
            with pytest.raises(UserError, match=r"manifest\.json is missing; run the same command again"):
                LatentStore.open(out / name)
        else:
            LatentStore.open(out / name, verify=True)


def check_finished(server: Collections, out: Path, undisturbed: dict[str, bytes], left: set[tuple[str, int]]) -> None:
    """The same bytes; and exactly what was left has been collected, once."""
    repeated = [(name, i) for name, first, end in server.encoded() for i in range(first, end)]
    assert len(repeated) == len(set(repeated)) and set(repeated) == left
    assert files(out) == undisturbed


@pytest.mark.parametrize("moment", MOMENTS, ids=lambda moment: f"{moment[0]}-{moment[1]}")
def test_killed_at(server: Collections, undisturbed: dict[str, bytes], tmp_path: Path, moment: tuple[str, int]) -> None:
    assert server.run(tmp_path, moment) == -signal.SIGKILL
    check_killed(tmp_path, undisturbed)
    left = left_to_collect(tmp_path)
    parts = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.part")}
    if moment in FINISHING:
        assert not left
    elif moment in COLLECTING:
        assert bool(parts) == (moment not in [("call:add", 1), ("half:*.part", 1), ("replace:*.part", 1)]) and left
    # It dies once more on its way: when everything is collected, or when nothing is left to do.
    again = server.run(tmp_path, ("call:merge", 1))
    assert again in {-signal.SIGKILL, 0}
    for path, written in parts.items():
        # A store that is finished has none any more.
        assert not path.exists() or path.stat().st_mtime_ns == written, "finished parts are not written again"
    encoded = [(name, i) for name, first, end in server.encoded() for i in range(first, end)]
    assert len(encoded) == len(set(encoded)) and set(encoded) == left
    if again:
        check_killed(tmp_path, undisturbed)
        assert server.run(tmp_path) == 0
        assert not server.encoded()
    assert files(tmp_path) == undisturbed


def test_killed_again_and_again(server: Collections, undisturbed: dict[str, bytes], tmp_path: Path) -> None:
    """In one folder, at moments that all come, each a bit further on than the one before."""
    for moment in (
        ("half:documents.npy", 1), ("replaced:identity.json", 2), ("half:*.part", 2), ("replaced:*.part", 3),
        ("call:add", 5), ("replace:*.part", 4), ("replaced:*.part", 5), ("call:flush", 1), ("call:range", 1),
        ("close:values.npy", 1), ("replaced:manifest.json", 1), ("call:range", 3), ("call:rmtree", 1),
    ):  # fmt: skip
        left = left_to_collect(tmp_path)
        assert server.run(tmp_path, moment) == -signal.SIGKILL, moment
        check_killed(tmp_path, undisturbed)
        assert {(name, i) for name, first, end in server.encoded() for i in range(first, end)} <= left
    left = left_to_collect(tmp_path)
    assert not left and server.run(tmp_path) == 0
    check_finished(server, tmp_path, undisturbed, left)


@pytest.mark.parametrize("seed", range(2))
def test_killed_from_outside_at_random(
    server: Collections, undisturbed: dict[str, bytes], tmp_path: Path, seed: int
) -> None:
    rng = random.Random(seed)
    began = time.monotonic()
    assert server.run(tmp_path / "timed") == 0
    whole = time.monotonic() - began
    out, killed = tmp_path / "killed", 0
    out.mkdir()
    for _ in range(12):
        if server.run(out, after=rng.uniform(0.2, 0.9) * whole) == 0:
            if killed:
                break
            # It was faster than the first one, whose time was taken: again, and sooner.
            whole /= 2
            shutil.rmtree(out)
            out.mkdir()
            continue
        killed += 1
        check_killed(out, undisturbed)
    assert killed
    left = left_to_collect(out)
    assert server.run(out) == 0
    check_finished(server, out, undisturbed, left)
