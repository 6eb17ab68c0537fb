"""Files of a store, and its manifest, which is written last: a store without it is unfinished.

A store is one folder, or one folder a shard below it; every shard holds a contiguous range of contexts and
is a whole store of those.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from autointerp.errors import Damaged, UserError
from autointerp.shards import Shard

VERSION = 2
MANIFEST = "manifest.json"
TOKENS, DOCUMENTS = "tokens.npy", "documents.npy"
INDPTR, POSITIONS, VALUES, STATISTICS = "indptr.npy", "positions.npy", "values.npy", "statistics.npy"
ARRAYS = (TOKENS, DOCUMENTS, INDPTR, POSITIONS, VALUES, STATISTICS)
IDENTITY, PARTS = "identity.json", "parts"


def shard_folder(store: Path, shard: Shard) -> Path:
    return store if shard.whole else store / f"shard-{shard.index}-of-{shard.count}"


def shard_folders(store: Path) -> list[Path]:
    """Folders of a store's shards, in order; the store's own where it is not sharded.

    Raises:
        UserError: shards are missing, or of two different divisions.
    """
    found = {
        (int(match.group(2)), int(match.group(1))): path
        for path in (store.iterdir() if store.is_dir() else ())
        if (match := re.fullmatch(r"shard-(\d+)-of-(\d+)", path.name))
    }
    if not found or (store / MANIFEST).is_file():
        return [store]
    counts = sorted({count for count, _ in found})
    if len(counts) > 1:
        raise UserError(
            f"'{store}' holds shards of several divisions (of {', of '.join(map(str, counts))}); delete those that are "
            "not wanted"
        )
    missing = [i for i in range(counts[0]) if not (found.get((counts[0], i), store / "-") / MANIFEST).is_file()]
    if missing:
        raise UserError(
            f"'{store}' is unfinished: of {counts[0]} shards, missing are {', '.join(map(str, missing))}; run "
            f"`autointerp collect --shard {missing[0]}/{counts[0]}` with the settings of the others"
        )
    return [found[key] for key in sorted(found)]


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
    path = folder / MANIFEST
    if not path.is_file():
        raise UserError(f"no finished latent store in '{folder}': {MANIFEST} is missing; run the same command again")
    try:
        manifest: dict[str, Any] = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise Damaged(f"'{path}' is damaged ({error}); delete the folder and collect again") from error
    if manifest.get("version") != VERSION:
        raise UserError(
            f"'{path}' has version {manifest.get('version')}, this release reads {VERSION}; collect again with --fresh"
        )
    return manifest


def differences(wanted: dict[str, Any], found: dict[str, Any]) -> list[str]:
    """What sets two identities apart, as `key: found instead of wanted`."""
    keys = sorted(wanted.keys() | found.keys())
    return [f"{k}: {found.get(k)} instead of {wanted.get(k)}" for k in keys if wanted.get(k) != found.get(k)]
