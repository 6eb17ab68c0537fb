"""Files of a store, and its manifest, which is written last: a store without it is unfinished.

A store is one folder, or one folder a shard below it; every shard holds a contiguous range of contexts and
is a whole store of those.
"""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

from autointerp.errors import Damaged, UserError
from autointerp.files import sha256_of
from autointerp.shards import Shard

VERSION = 2
MANIFEST = "manifest.json"
TOKENS, DOCUMENTS = "tokens.npy", "documents.npy"
INDPTR, POSITIONS, VALUES, STATISTICS = "indptr.npy", "positions.npy", "values.npy", "statistics.npy"
ARRAYS = (TOKENS, DOCUMENTS, INDPTR, POSITIONS, VALUES, STATISTICS)
IDENTITY, PARTS = "identity.json", "parts"
SEAL = "sha256"
"""What the manifest says of itself."""


def shard_folder(store: Path, shard: Shard) -> Path:
    return store if shard.whole else store / f"shard-{shard.label}"


def all_shard_folders(store: Path) -> list[Path]:
    """Folders of a store's shards, in order, those not there yet included; the store's own where it is not sharded.

    Raises:
        UserError: there are shards of two different divisions.
    """
    divisions = {
        int(match.group(1))
        for path in (store.iterdir() if store.is_dir() else ())
        if (match := re.fullmatch(r"shard-\d+-of-([1-9]\d*)", path.name))
    }
    if not divisions or (store / MANIFEST).is_file():
        return [store]
    if len(divisions) > 1:
        raise UserError(
            f"'{store}' holds shards of several divisions (of {', of '.join(map(str, sorted(divisions)))}); delete "
            "those that are not wanted"
        )
    (count,) = divisions
    return [store / f"shard-{i}-of-{count}" for i in range(count)]


def shard_folders(store: Path) -> list[Path]:
    """The same, where all shards are finished.

    Raises:
        UserError: shards are missing, or of two different divisions.
    """
    folders = all_shard_folders(store)
    missing = [i for i, folder in enumerate(folders) if not (folder / MANIFEST).is_file()]
    if missing and folders != [store]:
        raise UserError(
            f"'{store}' is unfinished: of {len(folders)} shards, missing are {', '.join(map(str, missing))}; run "
            f"`autointerp collect --shard {missing[0]}/{len(folders)}` with the settings of the others"
        )
    return folders


def begun(store: Path) -> bool:
    """Something of a store is there, finished or not."""
    return any((store / name).exists() for name in (MANIFEST, IDENTITY)) or any(store.glob("shard-*-of-*"))


def finished(store: Path) -> bool:
    """Every shard's manifest is there."""
    try:
        return all((folder / MANIFEST).is_file() for folder in shard_folders(store))
    except UserError:
        return False


def read_manifest(folder: Path) -> dict[str, Any]:
    """What a finished store says of itself.

    Raises:
        UserError: it is unfinished, or of another version.
        Damaged: it is not what was written.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise UserError(f"no finished latent store in '{folder}': {MANIFEST} is missing; run the same command again")
    manifest = read_object(path, "delete the folder and collect again")
    version = manifest.get("version")
    # Manifests of earlier versions bore no seal.
    if manifest.get(SEAL) != seal(manifest) and (SEAL in manifest or version == VERSION):
        raise Damaged(f"'{path}' is damaged: it is not what was written; delete the folder and collect again")
    if version != VERSION:
        raise UserError(f"'{path}' has version {version}, this release reads {VERSION}; collect again with --fresh")
    return manifest


def read_object(path: Path, remedy: str) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        Damaged: it is none.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise Damaged(f"'{path}' is damaged ({error}); {remedy}") from error
    if not isinstance(found, dict):
        raise Damaged(f"'{path}' is damaged (it holds no object); {remedy}")
    return found


def seal(manifest: dict[str, Any]) -> str:
    """sha256 of what a manifest says, but for the seal."""
    rest = {key: value for key, value in manifest.items() if key != SEAL}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def differences(wanted: dict[str, Any], found: dict[str, Any]) -> list[str]:
    """What sets two identities apart, as `key: found instead of wanted`."""
    keys = sorted(wanted.keys() | found.keys())
    return [f"{k}: {found.get(k)} instead of {wanted.get(k)}" for k in keys if wanted.get(k) != found.get(k)]


def recorded(path: Path) -> dict[str, Any]:
    """What a file is known by later."""
    return {"bytes": path.stat().st_size, "sha256": sha256_of(path)}


COPY = "copy it again from where it is whole, or collect with --fresh"


def check_file(path: Path, was: dict[str, Any], *, content: bool, remedy: str = COPY) -> None:
    """Compare a file with what was `recorded` of it.

    Raises:
        Damaged: it is missing, has another length or, with `content`, another sha256.
    """
    if not path.is_file():
        raise Damaged(f"'{path}' is missing; {remedy}")
    size = path.stat().st_size
    if size != was["bytes"]:
        raise Damaged(
            f"'{path}' is truncated or was replaced: it has {size:,} bytes, {was['bytes']:,} were written; {remedy}"
        )
    if content and sha256_of(path) != was["sha256"]:
        raise Damaged(f"'{path}' is damaged: its sha256 is not the one that was written; {remedy}")
