"""File names and the manifest of a store. The manifest is written last: a store without it is unfinished."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from autointerp.errors import UserError

VERSION = 1
MANIFEST = "manifest.json"
TOKENS, DOCUMENTS = "tokens.npy", "documents.npy"
INDPTR, POSITIONS, VALUES = "indptr.npy", "positions.npy", "values.npy"
ARRAYS = (TOKENS, DOCUMENTS, INDPTR, POSITIONS, VALUES)
IDENTITY, PARTS = "identity.json", "parts"


def read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    if not path.is_file():
        raise UserError(f"no finished latent store in '{folder}': {MANIFEST} is missing; run the same command again")
    try:
        manifest: dict[str, Any] = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise UserError(f"'{path}' is damaged ({error}); delete the folder and collect again") from error
    if manifest.get("version") != VERSION:
        raise UserError(
            f"'{path}' has version {manifest.get('version')}, this release reads {VERSION}; collect again with --fresh"
        )
    return manifest


def differences(wanted: dict[str, Any], found: dict[str, Any]) -> list[str]:
    """What sets two identities apart, as `key: found instead of wanted`."""
    keys = sorted(wanted.keys() | found.keys())
    return [f"{k}: {found.get(k)} instead of {wanted.get(k)}" for k in keys if wanted.get(k) != found.get(k)]
