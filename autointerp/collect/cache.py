"""Activations of every counted token on disk, globally shuffled, for training to replay and later runs to reuse.

Each row goes straight to its place in a seeded permutation, so that reading from front to back is
reading at random: batches are slices of a memory map. One `.npy` file a site, in float16 or in 8 bits
with a scale per row. Filling resumes, several processes fill side by side, and a site that is there
already is not collected again.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from autointerp.collect.sites import GRADIENT, counted_rows, to_half
from autointerp.collect.tokens import NO_DOCUMENT, TokenBlocks
from autointerp.errors import UserError
from autointerp.files import read_array, write_json
from autointerp.seeds import generator
from autointerp.subject.load import SubjectModel
from sae.sources import Rows
from sae.world import ALONE, World

DTYPES = ("float16", "int8")
PART_BLOCKS = 32
"""Blocks between flushes: what a kill can lose."""
BATCH_BLOCKS = 8
MANIFEST, FILLING = "cache.json", "filling.json"


def cached_rows(
    subject: SubjectModel,
    blocks: TokenBlocks,
    sites: Sequence[str],
    folder: Path,
    *,
    seed: int,
    dtype: str = "float16",
    world: World = ALONE,
    on_tokens: Callable[[int], None] | None = None,
) -> dict[str, Rows]:
    """Rows of each site from the cache in `folder`, which is filled first where it lacks one.

    Raises:
        UserError: the folder caches activations of something else.
        AutointerpError: activations do not fit the dtype.
    """
    if dtype not in DTYPES:
        raise UserError(f"unknown cache dtype '{dtype}' (known: {', '.join(DTYPES)})")
    identity = {
        "model": subject.fingerprint, "tokens": digest(blocks), "rows": blocks.n_counted, "dtype": dtype, "seed": seed,
    }  # fmt: skip
    if world.leads:
        _claim(folder, identity)
    world.wait()
    missing = [site for site in sites if site not in _complete(folder)]
    if missing:
        _fill(subject, blocks, missing, folder, identity, world, on_tokens)
        world.wait()
        if world.leads:
            write_json(folder / MANIFEST, {"identity": identity, "sites": sorted({*_complete(folder), *missing})})
            _forget(folder)
        world.wait()
    return {site: _open(folder, site) for site in sites}


def digest(blocks: TokenBlocks) -> str:
    return hashlib.sha256(blocks.tokens.tobytes() + blocks.documents.tobytes()).hexdigest()[:16]


def _claim(folder: Path, identity: dict[str, Any]) -> None:
    path = folder / MANIFEST
    if not path.is_file():
        write_json(path, {"identity": identity, "sites": []})
        return
    found = json.loads(path.read_text()).get("identity", {})
    apart = [name for name in identity if found.get(name) != identity[name]]
    if apart:
        raise UserError(
            f"'{folder}' caches activations of something else (different: {', '.join(apart)}); "
            "name another folder with --cache, or delete this one"
        )


def _complete(folder: Path) -> list[str]:
    sites: list[str] = json.loads((folder / MANIFEST).read_text())["sites"]
    return sites


def _fill(
    subject: SubjectModel,
    blocks: TokenBlocks,
    sites: Sequence[str],
    folder: Path,
    identity: dict[str, Any],
    world: World,
    on_tokens: Callable[[int], None] | None,
) -> None:
    """This process's share of the blocks, every `world.size`-th part."""
    places = generator(identity["seed"], "activation cache").permutation(identity["rows"])
    starts = np.concatenate([[0], np.cumsum((blocks.documents != NO_DOCUMENT).sum(axis=1))])
    state = {"identity": identity, "sites": sorted(sites), "processes": world.size}
    # Files are made once for all processes, whoever of them got how far before a kill.
    if world.leads and _read(folder / FILLING) != state:
        _forget(folder)
        _allocate(subject, blocks, sites, folder, identity)
        write_json(folder / FILLING, state)
    world.wait()
    progress = folder / f"progress.{world.rank}.json"
    done: int = (_read(progress) or {"parts": 0})["parts"]
    arrays = {site: _Site(folder, site) for site in sites}
    parts = range(world.rank, -(-len(blocks.tokens) // PART_BLOCKS), world.size)
    for number, part in enumerate(parts):
        end = min((part + 1) * PART_BLOCKS, len(blocks.tokens))
        if number >= done:
            for begin in range(part * PART_BLOCKS, end, BATCH_BLOCKS):
                span = slice(begin, min(begin + BATCH_BLOCKS, end))
                where = places[starts[span.start] : starts[span.stop]]
                for site, rows in counted_rows(subject, blocks, span, sites).items():
                    arrays[site].write(where, rows)
                if on_tokens:
                    on_tokens(int(starts[span.stop]))
            for array in arrays.values():
                array.flush()
            write_json(progress, {"parts": number + 1})
        elif on_tokens:
            on_tokens(int(starts[end]))


def _read(path: Path) -> Any:
    return json.loads(path.read_text()) if path.is_file() else None


def _forget(folder: Path) -> None:
    """Drop the notes of a filling. The one that vouches for the others goes first."""
    for path in (folder / FILLING, *folder.glob("progress.*.json")):
        path.unlink(missing_ok=True)


def _allocate(
    subject: SubjectModel, blocks: TokenBlocks, sites: Sequence[str], folder: Path, identity: dict[str, Any]
) -> None:
    for site, rows in counted_rows(subject, blocks, slice(0, 1), sites).items():
        shape = (identity["rows"], rows.shape[1])
        # Gradients span too many magnitudes for one float16 scale.
        eight_bit = identity["dtype"] == "int8"
        np.lib.format.open_memmap(
            _path(folder, site), mode="w+", dtype=np.int8 if eight_bit else np.float16, shape=shape
        )
        if eight_bit or site.endswith(GRADIENT):
            np.lib.format.open_memmap(_scales(folder, site), mode="w+", dtype=np.float32, shape=shape[:1])


class _Site:
    """One site's file, open for writing rows to their places."""

    def __init__(self, folder: Path, site: str) -> None:
        self.site = site
        self.values = np.lib.format.open_memmap(_path(folder, site), mode="r+")
        path = _scales(folder, site)
        self.scales = np.lib.format.open_memmap(path, mode="r+") if path.is_file() else None

    def write(self, where: NDArray[Any], rows: Tensor) -> None:
        if self.scales is not None:
            largest = 127 if self.values.dtype == np.int8 else 1024
            scale = (rows.abs().amax(dim=1) / largest).clamp_min(1e-30)
            self.scales[where] = scale.numpy()
            rows = rows / scale[:, None]
        if self.values.dtype == np.int8:
            self.values[where] = rows.round().to(torch.int8).numpy()
            return
        self.values[where] = to_half(self.site, rows).numpy()

    def flush(self) -> None:
        self.values.flush()
        if self.scales is not None:
            self.scales.flush()


def _open(folder: Path, site: str) -> Rows:
    scales = _scales(folder, site)
    return Rows(read_array(_path(folder, site)), read_array(scales) if scales.is_file() else None)


def _path(folder: Path, site: str) -> Path:
    return folder / f"{re.sub(r'[^A-Za-z0-9._-]', '+', site)}.npy"


def _scales(folder: Path, site: str) -> Path:
    return _path(folder, site).with_suffix(".scales.npy")
