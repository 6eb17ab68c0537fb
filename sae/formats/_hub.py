"""Checkpoints on the Hugging Face hub: which part of a repository to fetch, and fetching no more than that."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from sae.errors import SAEError
from sae.formats._tensors import WEIGHT_SUFFIXES

SCHEME = "hf://"
PART = r"[A-Za-z0-9][\w.-]*"
HUB_ID = re.compile(rf"(?P<repository>{PART}/{PART})(?:/(?P<inside>{PART}(?:/{PART})*))?")
NOT_SAE = re.compile(r"(optimizer|lr_scheduler|rank_|trainer_state|state|activations?_|sparsity|training_args)")
"""Starts of names of weight files that hold a training's state."""


class HubId(NamedTuple):
    repository: str
    inside: str
    """Folder or file in it; empty for its root."""


def parse(path: str) -> HubId | None:
    """`owner/repository/sub/folder`, with or without `hf://`; None for what can only be a local path."""
    found = HUB_ID.fullmatch(path.removeprefix(SCHEME).rstrip("/"))
    return HubId(found["repository"], found["inside"] or "") if found else None


def fetch(hub_id: HubId) -> Path:
    """A local path with the checkpoint, of which only what belongs to it was downloaded.

    Raises:
        SAEError: no network, no such repository, no SAE at that place of it, or several; they are listed.
    """
    whole = f"{hub_id.repository}/{hub_id.inside}".rstrip("/")
    try:
        from huggingface_hub import HfApi, snapshot_download  # most uses of this package never need it
    except ImportError as error:
        raise SAEError(
            f"no SAE at '{whole}': there is no such folder here, and looking on the hub needs "
            "`pip install huggingface_hub`"
        ) from error
    try:
        wanted = _files_of(whole, hub_id, HfApi().list_repo_files(hub_id.repository))
        root = snapshot_download(hub_id.repository, allow_patterns=[_literal(name) for name in wanted])
    except SAEError:
        raise
    except Exception as error:  # offline, missing, private or gated: the hub's client has an error for each
        cached = _cached(snapshot_download, hub_id)
        if cached is None:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
            raise SAEError(
                f"no SAE at '{whole}': there is no such folder here, and the hub could not be reached or has no such "
                f"repository ({reason})"
            ) from error
        return cached
    return Path(root) / hub_id.inside


def _cached(snapshot_download: Callable[..., str], hub_id: HubId) -> Path | None:
    """What an earlier download left, if anything."""
    try:
        place = Path(snapshot_download(hub_id.repository, local_files_only=True)) / hub_id.inside
    except Exception:
        return None
    return place if place.exists() else None


def _files_of(whole: str, hub_id: HubId, files: list[str]) -> list[str]:
    """Names of the one checkpoint's files at or below a place of a repository."""
    weights = [name for name in files if _is_weights(name)]
    if hub_id.inside in files:
        chosen = [hub_id.inside]
        folder = _folder_of(hub_id.inside)
    else:
        below = [name for name in weights if not hub_id.inside or name.startswith(f"{hub_id.inside}/")]
        folders = sorted({_folder_of(name) for name in below})
        if hub_id.inside in folders:
            folders = [hub_id.inside]
        if not folders:
            raise SAEError(f"no SAE at '{whole}': that repository holds no weights there")
        folder = folders[0]
        chosen = [name for name in below if _folder_of(name) == folder]
        alone = [name for name in chosen if not name.endswith(".safetensors")]
        if len(folders) > 1 or len(alone) > 1:
            raise several(whole, folders if len(folders) > 1 else alone)
    above = {str(parent) for parent in PurePosixPath(folder).parents} | {folder or "."}
    beside = [name for name in files if name.endswith(".json") and str(PurePosixPath(name).parent) in above]
    return chosen + beside


def _is_weights(name: str) -> bool:
    path = PurePosixPath(name)
    return path.suffix in WEIGHT_SUFFIXES and not NOT_SAE.match(path.name)


def _folder_of(name: str) -> str:
    """The folder that a checkpoint's weights make one: `checkpoints/` belongs to what is above it."""
    parent = PurePosixPath(name).parent
    folder = parent.parent if parent.name == "checkpoints" else parent
    return "" if str(folder) == "." else str(folder)


def several(whole: str, places: Iterable[str]) -> SAEError:
    places = list(places)
    shown = ", ".join(places[:8]) + (f" and {len(places) - 8} more" if len(places) > 8 else "")
    return SAEError(f"'{whole}' holds several SAEs: {shown}; name one")


def _literal(name: str) -> str:
    """A pattern that matches just this name."""
    return re.sub(r"([*?\[])", r"[\1]", name)
