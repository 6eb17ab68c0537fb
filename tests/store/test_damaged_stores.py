"""Whatever happens to a file, it is found and named; of a half-written store, what is sound is kept."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import planted
import pytest
from random_codes import IDENTITY, RandomCodes, cut, files

import sae
from autointerp.collect import encode
from autointerp.collect.encode import Target, collect_stores
from autointerp.collect.tokenise import PLACE, tokenise
from autointerp.config import DataSettings
from autointerp.errors import AutointerpError, Damaged, UserError
from autointerp.files import read_array
from autointerp.shards import Shard
from autointerp.store import layout
from autointerp.store.parts import Part
from autointerp.store.reader import LatentStore
from autointerp.store.unfinished import progress
from autointerp.store.writer import StoreWriter
from autointerp.subject.load import SubjectModel, load_subject
from sae.architectures import topk


def refused(call: Callable[[], Any], kind: type[Exception] = Damaged) -> str:
    """The line that it is refused with."""
    with pytest.raises(kind) as caught:
        call()
    line = str(caught.value)
    assert "\n" not in line and len(line) < 500
    return line


def flip(path: Path, place: int, bit: int = 0) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1 << bit
    path.write_bytes(content)


# --- a finished store -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two stores of other text and another SAE, whose files are of the same sizes."""
    one = RandomCodes.make(0)
    other = RandomCodes(one.tokens + 1, np.roll(one.documents, 1, axis=0), np.roll(one.dense, 8, axis=0)[:, ::-1], 1)
    folder = tmp_path_factory.mktemp("finished")
    one.write(folder / "one"), other.write(folder / "other", identity={"sae_sha": "other", "tokens": 1})
    sizes = [{name: len(content) for name, content in files(folder / of).items()} for of in ("one", "other")]
    assert all(sizes[0][name] == sizes[1][name] for name in layout.ARRAYS)
    return folder / "one", folder / "other"


@pytest.fixture
def store(finished: tuple[Path, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished[0], tmp_path / "store"))


@pytest.mark.parametrize("name", layout.ARRAYS)
def test_a_damaged_file_is_named_with_what_is_wrong(store: Path, finished: tuple[Path, Path], name: str) -> None:
    path, content = store / name, (store / name).read_bytes()
    for length in (0, 1, 60, len(content) // 2, len(content) - 1, len(content) + 1):
        path.write_bytes((content + b"\0")[:length])
        for verify in (False, True):
            line = refused(lambda verify=verify: LatentStore.open(store, verify=verify))
            assert line.startswith(
                f"'{path}' is truncated or was replaced: it has {length:,} bytes, {len(content):,} were"
            )
    rng = np.random.default_rng(0)
    for place in {0, 9, 25, len(content) // 2, len(content) - 1, *rng.integers(0, len(content), 20).tolist()}:
        path.write_bytes(content)
        flip(path, place, int(rng.integers(0, 8)))
        line = refused(lambda: LatentStore.open(store, verify=True))
        assert line.startswith(f"'{path}' is damaged: its sha256 is not the one that was written; copy it again")
    path.unlink()
    assert refused(lambda: LatentStore.open(store)).startswith(f"'{path}' is missing; copy it again")
    shutil.copy(finished[1] / name, path)
    assert refused(lambda: LatentStore.open(store, verify=True)).startswith(f"'{path}' is damaged: its sha256")
    path.write_bytes(content)
    LatentStore.open(store, verify=True)


def test_a_damaged_manifest_is_named_with_what_is_wrong(store: Path, finished: tuple[Path, Path]) -> None:
    path, content = store / layout.MANIFEST, (store / layout.MANIFEST).read_bytes()
    for length in range(0, len(content) - 1, 50):
        path.write_bytes(content[:length])
        assert refused(lambda: LatentStore.open(store)).startswith(f"'{path}' is damaged (")
    rng = np.random.default_rng(0)
    for place in rng.integers(0, len(content), 300).tolist():
        path.write_bytes(content)
        flip(path, place, int(rng.integers(0, 8)))
        assert refused(lambda: LatentStore.open(store)).startswith(f"'{path}' is damaged")
    path.unlink()
    line = refused(lambda: LatentStore.open(store), UserError)
    assert line == f"no finished latent store in '{store}': manifest.json is missing; run the same command again"
    # Another's is whole; it is the files that are not those it speaks of.
    shutil.copy(finished[1] / layout.MANIFEST, path)
    assert refused(lambda: LatentStore.open(store, verify=True)).startswith(f"'{store / layout.TOKENS}' is damaged")


@pytest.mark.parametrize("name", [layout.TOKENS, layout.STATISTICS])
def test_a_damaged_header_breaks_nothing(store: Path, name: str) -> None:
    """Without comparing contents some damage is not seen; but whatever numpy's parser says, it ends in one line."""
    content = (store / name).read_bytes()
    lines = []
    for place in range(content.index(b"\n") + 1):
        (store / name).write_bytes(content)
        flip(store / name, place, place % 8)
        try:
            LatentStore.open(store)
        except Damaged as error:
            lines.append(str(error))
    assert len(lines) > 50
    assert all(line.startswith(f"'{store / name}' is damaged") or "do not fit together" in line for line in lines)


def test_a_manifest_that_is_none(store: Path) -> None:
    path = store / layout.MANIFEST
    sound = json.loads(path.read_text())
    for text, part in (
        ("", "is damaged (Expecting value"), ("{", "is damaged"), ("[]", "holds no object"), ("null", "holds no object"),
        ("[" * 100_000, "is damaged"), ("{}", "has version None, this release reads 2"),
        ('{"version": 1}', "has version 1, this release reads 2"), ('{"version": 2}', "is not what was written"),
        (json.dumps({**sound, "n_tokens": sound["n_tokens"] + 1}), "is not what was written"),
        (json.dumps({key: value for key, value in sound.items() if key != layout.SEAL}), "is not what was written"),
    ):  # fmt: skip
        path.write_text(text)
        line = refused(lambda: LatentStore.open(store), UserError)
        assert str(path) in line and part in line, line
    path.write_bytes(b"\xff\xfe\x00{}")
    assert f"'{path}' is damaged" in refused(lambda: LatentStore.open(store))
    later = {**sound, "version": 3}
    path.write_text(json.dumps({**later, layout.SEAL: layout.seal(later)}))
    assert "has version 3, this release reads 2" in refused(lambda: LatentStore.open(store), UserError)
    path.write_text(json.dumps(sound))
    LatentStore.open(store, verify=True)


def test_no_store_at_all(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "nowhere"):
        assert not layout.begun(folder) and not layout.finished(folder)
        line = refused(lambda folder=folder: LatentStore.open(folder), UserError)
        assert line.startswith(f"no finished latent store in '{folder}'")


# --- shards ---------------------------------------------------------------------------------------------------------


def test_shards_that_do_not_belong_together(tmp_path: Path) -> None:
    truth = RandomCodes.make(2)
    sharded = tmp_path / "sharded"
    truth.write(sharded, shards=4)
    assert layout.finished(sharded)
    folders = layout.shard_folders(sharded)

    def changed(change: Callable[[Path], Any]) -> str:
        copy = Path(shutil.copytree(sharded, tmp_path / "copy"))
        change(copy)
        line = refused(lambda: LatentStore.open(copy, verify=True), UserError)
        shutil.rmtree(copy)
        return line.replace(str(tmp_path), "")

    def another(copy: Path) -> None:
        (copy / "shard-2-of-4").rename(tmp_path / "unwanted")
        RandomCodes.make(2).write(tmp_path / "other", shards=4, identity={**IDENTITY, "tokens": 2})
        (tmp_path / "other" / "shard-2-of-4").rename(copy / "shard-2-of-4")

    def of_other_text(copy: Path) -> None:
        shutil.rmtree(copy / "shard-2-of-4")
        share = truth.part(range(21, 30))
        writer = share.begin(copy / "shard-2-of-4", shard=Shard(2, 4), first_block=21)
        for span in cut(9, 0):
            writer.add(span, *share.of(span))
        writer.finalise()

    unfinished = "'/copy' is unfinished: of 4 shards, missing are {}; run `autointerp collect --shard {}/4` with the settings of the others"
    assert changed(lambda copy: shutil.rmtree(copy / "shard-2-of-4")) == unfinished.format("2", "2")
    assert changed(lambda copy: shutil.rmtree(copy / "shard-3-of-4")) == unfinished.format("3", "3")
    assert changed(lambda copy: [(copy / f"shard-{i}-of-4" / layout.MANIFEST).unlink() for i in (1, 3)]) == (
        unfinished.format("1, 3", "1")
    )
    assert "holds shards of several divisions (of 2, of 4); delete those" in changed(
        lambda copy: truth.part(range(20)).begin(copy / "shard-0-of-2", shard=Shard(0, 2))
    )
    assert changed(another) == (
        "'/copy/shard-2-of-4' was collected with other settings than its siblings (tokens: 2 instead of 1)"
    )
    assert changed(of_other_text).startswith("'/copy/shard-2-of-4' does not follow on the shard before it")
    assert "'/copy/shard-2-of-4' holds shard 1/4 where 2/4 should be" in changed(
        lambda copy: [shutil.rmtree(copy / "shard-2-of-4"), shutil.copytree(folders[1], copy / "shard-2-of-4")]
    )
    assert "'/copy/shard-0-of-2' holds shard 0/4 where 0/2 should be" in changed(
        lambda copy: [
            (copy / f"shard-{i}-of-4").rename(copy / f"shard-{i}-of-2")
            if i < 2
            else shutil.rmtree(copy / f"shard-{i}-of-4")
            for i in range(4)
        ]
    ), "half of a store is not the whole of it"
    assert "holds shard 1/4 where 0/1 should be" in refused(lambda: LatentStore.open(folders[1]))
    # What is not called a shard is none.
    (sharded / "shard-1-of-4.old").mkdir()
    (sharded / "shard-9-of-0").mkdir()
    assert LatentStore.open(sharded, verify=True).n_activations == np.count_nonzero(truth.dense)


# --- a half-written one ---------------------------------------------------------------------------------------------

DATA = {"tokens": 6000, "context_length": 32, "skip_first": 1, "batch_tokens": 320}


@pytest.fixture(scope="module")
def subject(world: Any) -> SubjectModel:
    return load_subject(str(world.model))


class Collection:
    """A collection of a second's length, its parts a few batches each."""

    def __init__(self, world: Any, subject: SubjectModel, monkeypatch: pytest.MonkeyPatch) -> None:
        self.subject, self.data = subject, DataSettings(dataset=str(world.corpus), **DATA)
        self.dictionary = topk.create({"d_in": planted.WIDTH, "n_latents": 24, "k": 4}, sae.SAEMetadata())
        self.dictionary.initialise(0)
        self.encoded: list[int] = []
        self.aside: list[str] = []
        """What it said of parts set aside, a line each."""
        real = encode._encode

        def spy(subject: Any, writing: Any, blocks: Any, span: slice) -> None:
            self.encoded += range(span.start, span.stop)
            real(subject, writing, blocks, span)

        def writer(*args: Any, **how: Any) -> StoreWriter:
            return StoreWriter(*args, **{**how, "part_bytes": 25_000})

        monkeypatch.setattr(encode, "_encode", spy)
        monkeypatch.setattr(encode, "StoreWriter", writer)

    def run(self, folder: Path, *, stop: int | None = None, shard: Shard = Shard(), **identity: Any) -> None:  # noqa: B008
        """To the end, or until `stop` tokens are done."""

        def on_tokens(done: int) -> None:
            if stop is not None and done >= stop:
                raise KeyboardInterrupt

        self.encoded.clear()
        self.aside.clear()

        def say(text: str) -> None:
            if "set aside" in text:
                self.aside.append(text)

        blocks = tokenise(self.subject, self.data, folder, seed=0, skip_documents=0, shard=shard)
        target = Target(self.dictionary, "layers.1", folder, {"sae_sha": "deep", **identity})
        collect_stores(self.subject, [target], blocks, shard=shard, batch_tokens=320, on_tokens=on_tokens, say=say)

    def half(self, folder: Path, **how: Any) -> Path:
        with pytest.raises(KeyboardInterrupt):
            self.run(folder, stop=4000, **how)
        return folder


@pytest.fixture
def collection(world: Any, subject: SubjectModel, monkeypatch: pytest.MonkeyPatch) -> Collection:
    return Collection(world, subject, monkeypatch)


@pytest.fixture(scope="module")
def whole(world: Any, subject: SubjectModel, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patched:
        undamaged = Collection(world, subject, patched)
        undamaged.run(folder)
    assert undamaged.encoded == list(range(188))
    return files(folder)


def parts_of(folder: Path) -> list[Part]:
    return [Part.open(path) for path in sorted((folder / layout.PARTS).glob("*.part"))]


HEADERS: dict[str, Callable[[Path], Any]] = {
    "empty": lambda path: path.write_bytes(b""),
    "cut in the header": lambda path: path.write_bytes(path.read_bytes()[:40]),
    "cut behind the header": lambda path: path.write_bytes(path.read_bytes()[:64]),
    "cut by a byte": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"\0" * 12),
    "garbage in front": lambda path: path.write_bytes(b"\x01\x02\x03\x04" * 16 + path.read_bytes()[64:]),
    "magic": lambda path: flip(path, 3),
    "first context": lambda path: flip(path, 8),
    "end": lambda path: flip(path, 16, 3),
    "number": lambda path: flip(path, 24),
    "owner": lambda path: flip(path, 35),
    "checksum": lambda path: flip(path, 49),
    "seal": lambda path: flip(path, 53),
    "nothing": lambda path: flip(path, 63),
    "no file of ours": lambda path: path.write_bytes(b"PK\x03\x04 something else altogether" * 100),
}


@pytest.mark.parametrize("damage", HEADERS)
def test_a_part_that_is_none_is_collected_again_and_nothing_else(
    collection: Collection, whole: dict[str, bytes], tmp_path: Path, damage: str
) -> None:
    folder = collection.half(tmp_path / "half")
    parts = parts_of(folder)
    assert len(parts) > 4
    some = parts[2]
    HEADERS[damage](some.path)
    assert [line.count(str(some.path)) for line in progress(folder).damaged] == [1]
    with pytest.raises(KeyboardInterrupt):
        collection.run(folder, stop=0)
    aside = some.path.with_suffix(".damaged")
    assert (
        aside.is_file() and not some.path.exists() and [str(some.path) in line for line in collection.aside] == [True]
    )
    left = sorted({*range(some.first, some.end), *range(parts[-1].end, 188)})
    collection.run(folder)
    assert not collection.aside
    assert collection.encoded == left and files(folder) == whole


@pytest.mark.parametrize("place", ["latents", "positions", "values"])
def test_a_part_of_other_content_is_found_when_it_is_needed(
    collection: Collection, whole: dict[str, bytes], tmp_path: Path, place: str
) -> None:
    folder = collection.half(tmp_path / "half")
    some = parts_of(folder)[1]
    third = ["latents", "positions", "values"].index(place)
    flip(some.path, 64 + third * 4 * some.n + 2 * some.n, 1)
    flip(parts_of(folder)[3].path, 100, 1)
    damaged = progress(folder).damaged
    assert len(damaged) == 2 and "checksum is not the one" in damaged[0] and str(some.path) in damaged[0]
    line = refused(lambda: collection.run(folder))
    assert str(some.path) in line and "(and 1 more)" in line and "run the same command again" in line
    assert not (folder / layout.POSITIONS).exists()
    other = Part.open(sorted((folder / layout.PARTS).glob("*.damaged"))[1])
    assert len(list((folder / layout.PARTS).glob("*.damaged"))) == 2
    collection.run(folder)
    assert collection.encoded == [*range(some.first, some.end), *range(other.first, other.end)]
    assert files(folder) == whole


def test_parts_of_other_stores_are_not_taken_in(
    collection: Collection, whole: dict[str, bytes], tmp_path: Path
) -> None:
    """Of another SAE, of other text, or twice the same contexts."""
    folder = collection.half(tmp_path / "half")
    parts = parts_of(folder)
    other = collection.half(tmp_path / "other", sae="another")
    shutil.copy(parts_of(other)[0].path, parts[0].path)
    collection.data = collection.data.model_copy(update={"skip_first": 2})
    shutil.copy(parts_of(collection.half(tmp_path / "text"))[1].path, parts[1].path)
    collection.data = collection.data.model_copy(update={"skip_first": 1})
    shutil.copy(parts[2].path, parts[2].path.with_name("9999999999-9999999999.part"))
    with pytest.raises(KeyboardInterrupt):
        collection.run(folder, stop=0)
    assert len(collection.aside) == 3
    collection.run(folder)
    assert collection.encoded == [*range(parts[0].first, parts[1].end), *range(parts[-1].end, 188)]
    assert files(folder) == whole


def test_parts_of_another_shard_are_not_taken_in(tmp_path: Path) -> None:
    """Their contexts have the same numbers."""
    truth = RandomCodes.make(0)
    same = RandomCodes(truth.tokens[:20], truth.documents[:20], truth.dense[: 20 * 8], 0)
    writers = [
        same.begin(tmp_path / f"shard-{i}-of-2", shard=Shard(i, 2), first_block=20 * i, part_seconds=0)
        for i in range(2)
    ]
    for writer in writers:
        writer.add(slice(0, 20), *same.of(slice(0, 20)))
    (path,) = (tmp_path / "shard-0-of-2" / layout.PARTS).iterdir()
    shutil.copy(path, tmp_path / "shard-1-of-2" / layout.PARTS / path.name)
    again = same.begin(tmp_path / "shard-1-of-2", shard=Shard(1, 2), first_block=20)
    assert len(again.set_aside) == 1 and again.missing(slice(0, 20)) == [slice(0, 20)]


def test_two_processes_that_were_started_on_one_folder(tmp_path: Path) -> None:
    """Their parts overlap. What counts twice would be worse than what is collected twice."""
    truth = RandomCodes.make(3)
    plain = truth.write(tmp_path / "plain")
    one, two = (truth.begin(tmp_path / "both") for _ in range(2))
    for writer, ends in ((one, (0, 10, 24)), (two, (0, 7, 12, 20, 30))):
        for first, end in pairwise(ends):
            writer.add(slice(first, end), *truth.of(slice(first, end)))
            writer.flush()
    again = truth.begin(tmp_path / "both")
    covered = [span for part in again._parts for span in range(part.first, part.end)]
    assert len(covered) == len(set(covered)) and again.set_aside
    for span in again.missing(slice(0, 40)):
        again.add(span, *truth.of(span))
    again.finalise()
    assert files(tmp_path / "both") == files(tmp_path / "plain")
    assert plain.n_activations == LatentStore.open(tmp_path / "both").n_activations


def test_an_identity_that_is_lost_or_garbage(collection: Collection, whole: dict[str, bytes], tmp_path: Path) -> None:
    folder = collection.half(tmp_path / "half")
    path, content = folder / layout.IDENTITY, (folder / layout.IDENTITY).read_bytes()
    for garbage in (b"", b"{", b"[]", b"\xff\xff"):
        path.write_bytes(garbage)
        line = refused(lambda: collection.run(folder))
        assert f"'{path}' is damaged" in line and "use --fresh or another --out" in line
    path.write_bytes(content.replace(b"deep", b"deeq"))
    assert "(sae_sha: deeq instead of deep)" in refused(lambda: collection.run(folder), UserError)
    # Whoever comes first may have a folder that says nothing; but parts know whose they are.
    path.unlink()
    n = len(parts_of(folder))
    with pytest.raises(KeyboardInterrupt):
        collection.run(folder, stop=0, sae="another")
    assert len(collection.aside) == n and not parts_of(folder)
    path.unlink()
    collection.run(folder)
    assert files(folder) == whole


@pytest.mark.parametrize("name", [layout.TOKENS, layout.DOCUMENTS, PLACE])
def test_tokens_of_a_half_written_store(
    collection: Collection, whole: dict[str, bytes], tmp_path: Path, name: str
) -> None:
    folder = collection.half(tmp_path / "half")
    done = {i for part in parts_of(folder) for i in range(part.first, part.end)}
    path, content = folder / name, (folder / name).read_bytes()
    for damaged in (b"", content[:50], content[:-3], content.replace(b"\x07", b"\x06").replace(b"1", b"2")):
        path.write_bytes(damaged)
        line = refused(lambda: collection.run(folder))
        assert f"'{path}' is " in line and "delete it, and the same command makes it again" in line
        assert not collection.encoded
    path.unlink()
    collection.run(folder)
    assert collection.encoded == sorted(set(range(188)) - done) and files(folder) == whole


def test_tokens_of_other_settings_are_not_adopted(collection: Collection, tmp_path: Path) -> None:
    """A kill between the tokens and the identity leaves tokens that no identity speaks for."""
    tokenise(collection.subject, collection.data, tmp_path / "a", seed=0, skip_documents=0)
    before = files(tmp_path / "a")
    for change, how, apart in (
        ({"tokens": 7000}, {}, "tokens: 6000 instead of 7000"),
        ({"skip_first": 0}, {}, "skip_first: 1 instead of 0"),
        ({}, {"seed": 3}, "corpus_seed: 0 instead of 3"),
        ({}, {"skip_documents": 5}, "skip_documents: 0 instead of 5"),
        ({}, {"shard": Shard(0, 2)}, "shard: 0/1 instead of 0/2"),
    ):
        data = collection.data.model_copy(update=change)
        line = refused(
            lambda data=data, how=how: tokenise(
                collection.subject, data, tmp_path / "a", **{"seed": 0, "skip_documents": 0, **how}
            ),
            UserError,
        )
        assert line == f"'{tmp_path / 'a'}' holds tokens of something else ({apart}); use --fresh or another --out"
    assert files(tmp_path / "a") == before
    tokenise(
        collection.subject, collection.data.model_copy(update={"batch_tokens": 64}), tmp_path / "a", seed=0,
        skip_documents=0,
    )  # fmt: skip


def test_other_text_in_the_folder_of_a_target(collection: Collection, tmp_path: Path) -> None:
    """Tokens given in memory are compared with those in the folder."""
    blocks = tokenise(collection.subject, collection.data, tmp_path / "a", seed=0, skip_documents=0)
    for i, other in enumerate((blocks[slice(0, 100)], type(blocks)(blocks.tokens + 1, np.array(blocks.documents)))):
        folder = tmp_path / str(i)
        targets = [Target(collection.dictionary, "layers.1", folder, {"sae_sha": "deep"})]
        with pytest.raises(KeyboardInterrupt):
            collect_stores(collection.subject, targets, blocks, on_tokens=stop)
        before = files(folder)
        line = refused(lambda targets=targets, other=other: collect_stores(collection.subject, targets, other))
        assert f"'{folder / layout.TOKENS}' is damaged, or of other text than is collected now" in line
        assert files(folder) == before


def stop(done: int) -> None:
    raise KeyboardInterrupt


def test_what_killed_processes_left_is_swept(collection: Collection, whole: dict[str, bytes], tmp_path: Path) -> None:
    folder = collection.half(tmp_path / "half")
    for name in (".positions.npy.123.tmp", "parts/.0000000000-0000000010.part.77.tmp", ".tokenising/tokens.npy"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"half a file")
    # A merge that was killed before its manifest: of no use, and in the way on a disk with little room.
    (folder / layout.VALUES).write_bytes(b"old")
    collection.run(folder)
    assert files(folder) == whole


def test_how_far_a_half_written_store_is(collection: Collection, tmp_path: Path) -> None:
    folder = collection.half(tmp_path / "half")
    found = progress(folder)
    assert (found.collected, found.contexts, found.damaged) == (parts_of(folder)[-1].end, 188, [])
    empty = tmp_path / "empty"
    empty.mkdir()
    assert progress(empty).contexts is None
    collection.run(tmp_path / "lost")
    (tmp_path / "lost" / layout.MANIFEST).unlink()
    assert "manifest.json' is missing" in refused(lambda: progress(tmp_path / "lost"))


def test_arrays_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_array(tmp_path / "none.npy")
    pickled = tmp_path / "pickled.npy"
    np.save(pickled, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    for path, content in ((tmp_path / "text.npy", b"hello"), (tmp_path / "empty.npy", b""), (pickled, None)):
        if content is not None:
            path.write_bytes(content)
        assert f"'{path}' is damaged" in refused(lambda path=path: read_array(path))
    assert issubclass(Damaged, AutointerpError)
