"""Write a latent store: sparse codes arrive context by context, are kept as parts, and merged at the end.

Memory holds one part at a time, whatever the number of tokens. A killed writer goes on after its last
part; finalising is repeated from the parts until the manifest stands.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from autointerp.errors import Damaged, DiskFull, UserError
from autointerp.files import full_disk_named, read_array, sha256_of, sweep, write_json
from autointerp.shards import WHOLE, Shard
from autointerp.store import layout
from autointerp.store.merge import BUDGET, PER_ENTRY, OnEntries, merge
from autointerp.store.parts import Part, parts_in
from autointerp.store.statistics import write_statistics
from sae.codes import SparseCodes

PART_BYTES = 32 * 2**20
PART_SECONDS = 20.0
"""A part is written when either is reached: what a kill can lose."""


def claim(folder: Path, identity: dict[str, Any]) -> bool:
    """Make a folder the store of `identity`, which says what it is of (model, SAE, data); True if it is finished.

    What is left over of killed writers is removed.

    Raises:
        UserError: it holds a store of something else.
        Damaged: what it holds cannot be told.
    """
    path, finished = folder / layout.IDENTITY, (folder / layout.MANIFEST).is_file()
    if finished or path.is_file():
        what = "finished" if finished else "half-written"
        remedy = "use --fresh or another --out"
        found = layout.read_manifest(folder)["identity"] if finished else layout.read_object(path, remedy)
        apart = layout.differences(json.loads(json.dumps(identity)), found)
        if apart:
            raise UserError(f"'{folder}' holds a {what} store of something else ({'; '.join(apart)}); {remedy}")
    if finished:
        shutil.rmtree(folder / layout.PARTS, ignore_errors=True)
    elif not path.is_file():
        write_json(path, identity)
    sweep(folder)
    return finished


class StoreWriter:
    """A store in the making, of the contexts whose `tokens.npy` and `documents.npy` are in `folder` already.

    `identity` says what the store is of (model, SAE, data); a folder with another identity is refused.

    Raises:
        UserError: the folder holds a store of something else, or a finished one.
        Damaged: what it holds cannot be told, or its tokens are cut off.
    """

    def __init__(
        self, folder: Path, identity: dict[str, Any], n_latents: int, *, shard: Shard = WHOLE, first_block: int = 0,
        part_bytes: int = PART_BYTES, part_seconds: float = PART_SECONDS,
    ) -> None:  # fmt: skip
        self.folder, self.identity, self.n_latents = folder, identity, n_latents
        self.shard, self.first_block = shard, first_block
        self.part_bytes, self.part_seconds = part_bytes, part_seconds
        if claim(folder, identity):
            raise UserError(f"'{folder}' holds a finished store; use --fresh or another --out")
        tokens = read_array(folder / layout.TOKENS)
        self.n_blocks, self.context_length = int(tokens.shape[0]), int(tokens.shape[1])
        if tokens.size > 2**32:
            raise UserError(
                f"{tokens.size:,} tokens are more than one shard's positions can name; collect with --shard 0/2 and 1/2"
            )
        self.parts = folder / layout.PARTS
        with full_disk_named(folder):
            self.parts.mkdir(exist_ok=True)
        sweep(self.parts)
        self._owner = self._digest()
        self.set_aside: list[Path] = []
        """Parts that were damaged, or of other contexts. What they cover counts as never collected."""
        self._covered = np.zeros(self.n_blocks, dtype=np.bool_)
        self._parts = self._sound_parts()
        self._began: int | None = None
        self._buffer: list[dict[str, Any]] = []
        self._since = time.monotonic()

    def _digest(self) -> bytes:
        """16 bytes that are the same for parts of the same SAE, shard and text alone."""
        of = [self.identity, str(self.shard), self.first_block, self.n_latents]
        of += [sha256_of(self.folder / name) for name in (layout.TOKENS, layout.DOCUMENTS)]
        return hashlib.sha256(json.dumps(of, sort_keys=True).encode()).digest()[:16]

    def _sound_parts(self) -> list[Part]:
        found = []
        for path, part in parts_in(self.parts):
            # Two processes that were started on one folder leave parts that overlap.
            if isinstance(part, Damaged) or part.owner != self._owner or self._covered[part.first : part.end].any():
                self._put_aside(path)
            else:
                self._covered[part.first : part.end] = True
                found.append(part)
        return found

    def _put_aside(self, path: Path) -> None:
        path.replace(path.with_suffix(".damaged"))
        self.set_aside.append(path)

    def _verify(self, parts: list[Part]) -> None:
        found = []
        for part in parts:
            try:
                part.verify()
            except Damaged as error:
                found.append(str(error))
                self._put_aside(part.path)
        if found:
            raise Damaged(
                f"{found[0]}{f' (and {len(found) - 1} more)' if len(found) > 1 else ''}; it was set aside: run the "
                "same command again, which collects its contexts anew and nothing else"
            )

    @property
    def n_activations(self) -> int:
        """In parts on the disk."""
        return sum(part.n for part in self._parts)

    def missing(self, span: slice) -> list[slice]:
        """Stretches of contexts within the span that are in no part on the disk."""
        open_ = np.flatnonzero(~self._covered[span]) + span.start
        runs = np.split(open_, np.flatnonzero(np.diff(open_) > 1) + 1) if len(open_) else []
        return [slice(int(run[0]), int(run[-1]) + 1) for run in runs]

    def add(self, span: slice, positions: NDArray[Any], codes: SparseCodes) -> None:
        """Codes of contexts `span`: row t of `codes` is the token at flat position `positions[t]`, ascending."""
        if codes.n_latents != self.n_latents or codes.n_rows != len(positions):
            raise ValueError(f"codes are {codes.n_rows} x {codes.n_latents}, not {len(positions)} x {self.n_latents}")
        if self._buffer and span.start != self._buffer[-1]["end"]:
            self.flush()
        if self._began is None:
            self._began = span.start
        at = torch.from_numpy(np.asarray(positions)).to(codes.rows.device)
        order = torch.sort(codes.latents.to(torch.int32), stable=True)
        self._buffer.append({
            "end": span.stop,
            "latents": order.values.cpu().numpy(),
            "positions": at[codes.rows[order.indices]].cpu().numpy().astype(np.uint32),
            "values": codes.values[order.indices].float().cpu().numpy(),
        })  # fmt: skip
        waiting = 12 * sum(len(some["latents"]) for some in self._buffer)
        if waiting >= self.part_bytes or time.monotonic() - self._since >= self.part_seconds:
            self.flush()

    def flush(self) -> None:
        """Put what has been added onto the disk."""
        if self._began is not None:
            names = ("latents", "positions", "values")
            arrays = {name: np.concatenate([some[name] for some in self._buffer]) for name in names}
            if len(self._buffer) > 1:
                order = torch.sort(torch.from_numpy(arrays["latents"]), stable=True).indices.numpy()
                arrays = {name: array[order] for name, array in arrays.items()}
            part = Part.write(self.parts, self._began, self._buffer[-1]["end"], arrays, self._owner)
            self._parts.append(part)
            self._covered[part.first : part.end] = True
        self._began, self._buffer = None, []
        self._since = time.monotonic()

    def finalise(self, *, budget: int = BUDGET, on_entries: OnEntries | None = None) -> None:
        """Merge the parts, then vouch for everything with the manifest.

        Raises:
            Damaged: a part is not what was written; it is set aside, and the next run collects it again.
            DiskFull: there is no room; the parts are kept.
        """
        self.flush()
        if not self._covered.all():
            raise ValueError(f"{int((~self._covered).sum())} of {self.n_blocks} contexts are not collected yet")
        parts = sorted(self._parts, key=lambda part: part.first)
        self._verify(parts)
        for name in (layout.INDPTR, layout.POSITIONS, layout.VALUES, layout.STATISTICS):
            # Of a writer that was killed here. Without a manifest they are worth only the room they take.
            (self.folder / name).unlink(missing_ok=True)
        n = self.n_activations
        needed = PER_ENTRY * n + 64 * self.n_latents
        free = shutil.disk_usage(self.folder).free
        if free < needed:
            raise DiskFull(
                f"finishing '{self.folder}' takes {needed / 1e6:,.0f} MB and its disk has {free / 1e6:,.0f} MB left: "
                "what was collected is kept; free some space and run the same command again"
            )
        merge(parts, self.n_latents, self.folder, budget=budget, on_entries=on_entries)
        write_statistics(self.folder, read_array(self.folder / layout.INDPTR))
        documents = read_array(self.folder / layout.DOCUMENTS)
        manifest = {
            "version": layout.VERSION,
            "identity": self.identity,
            "n_latents": self.n_latents,
            "n_activations": n,
            "n_tokens": int(sum(np.count_nonzero(some >= 0) for some in np.array_split(documents, 64))),
            "shard": {"index": self.shard.index, "count": self.shard.count, "first_block": self.first_block},
            "files": {name: layout.recorded(self.folder / name) for name in layout.ARRAYS},
        }
        write_json(self.folder / layout.MANIFEST, {**manifest, layout.SEAL: layout.seal(manifest)})
        shutil.rmtree(self.parts, ignore_errors=True)
