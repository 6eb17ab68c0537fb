"""Write a latent store: sparse codes arrive in parts, a counting sort brings them into CSR by latent.

Memory holds one part at a time, whatever the number of tokens. A killed writer goes on after its last
part; finalising is repeated from the parts until the manifest stands.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autointerp.errors import UserError
from autointerp.files import read_array, sha256_of, write_array, write_json
from autointerp.store import layout
from sae.codes import SparseCodes


class StoreWriter:
    """`identity` says what the store is of (model, SAE, data); a folder with another identity is refused."""

    def __init__(self, folder: Path, identity: dict[str, Any], n_latents: int, n_parts: int) -> None:
        self.folder, self.identity, self.n_latents, self.n_parts = folder, identity, n_latents, n_parts
        self.parts = folder / layout.PARTS
        self.parts.mkdir(parents=True, exist_ok=True)
        path = folder / layout.IDENTITY
        if path.is_file():
            apart = layout.differences(identity, json.loads(path.read_text()))
            if apart:
                raise UserError(
                    f"'{folder}' holds a half-written store of something else ({'; '.join(apart)}); "
                    "use --fresh or another --out"
                )
        else:
            write_json(path, identity)

    def write_tokens(self, tokens: NDArray[np.int32], documents: NDArray[np.int32]) -> None:
        """`[n_blocks, T]` each; flat position p is block p // T, place p % T."""
        if tokens.shape != documents.shape or tokens.ndim != 2:
            raise ValueError(f"tokens {tokens.shape} and documents {documents.shape} have to be [n_blocks, T] alike")
        for name, array in ((layout.TOKENS, tokens), (layout.DOCUMENTS, documents)):
            if not (self.folder / name).is_file():  # a killed run wrote it, or whoever made the tokens
                write_array(self.folder / name, array)

    def has(self, part: int) -> bool:
        return (self.parts / f"{part:06d}.npy").is_file()

    def add(self, part: int, positions: NDArray[Any], codes: SparseCodes) -> None:
        """One part: `codes` row t is the token at flat position `positions[t]`."""
        if codes.n_latents != self.n_latents or codes.n_rows != len(positions):
            raise ValueError(f"codes are {codes.n_rows} x {codes.n_latents}, not {len(positions)} x {self.n_latents}")
        latents = codes.latents.cpu().numpy()
        order = np.argsort(latents, kind="stable")
        entries = np.empty(len(latents), dtype=[("latent", "<u4"), ("position", "<u4"), ("value", "<f4")])
        entries["latent"] = latents[order]
        entries["position"] = positions[codes.rows.cpu().numpy()[order]]
        entries["value"] = codes.values.float().cpu().numpy()[order]
        write_array(self.parts / f"{part:06d}.npy", entries)

    def finalise(self) -> None:
        """Merge the parts. Parts hold ascending positions, so each latent's positions come out ascending."""
        missing = [part for part in range(self.n_parts) if not self.has(part)]
        if missing:
            raise ValueError(f"{len(missing)} of {self.n_parts} parts are missing, first {missing[0]}")
        paths = [self.parts / f"{part:06d}.npy" for part in range(self.n_parts)]
        counts = np.zeros(self.n_latents, dtype=np.int64)
        for path in paths:
            counts += np.bincount(read_array(path)["latent"], minlength=self.n_latents)
        indptr = np.concatenate([[0], np.cumsum(counts)])
        write_array(self.folder / layout.INDPTR, indptr)
        total = int(indptr[-1])
        merged = {
            name: np.lib.format.open_memmap(self.folder / f".{name}.tmp", mode="w+", dtype=dtype, shape=(total,))
            for name, dtype in ((layout.POSITIONS, "<u4"), (layout.VALUES, "<f4"))
        }
        cursor = indptr[:-1].copy()
        for path in paths:
            entries = np.load(path, allow_pickle=False)
            here = np.bincount(entries["latent"], minlength=self.n_latents)
            first = np.cumsum(here) - here
            target = np.repeat(cursor - first, here) + np.arange(len(entries))
            merged[layout.POSITIONS][target] = entries["position"]
            merged[layout.VALUES][target] = entries["value"]
            cursor += here
        for name, array in merged.items():
            array.flush()
            (self.folder / f".{name}.tmp").replace(self.folder / name)
        manifest = {
            "version": layout.VERSION,
            "identity": self.identity,
            "n_latents": self.n_latents,
            "n_activations": total,
            "sha256": {name: sha256_of(self.folder / name) for name in layout.ARRAYS},
        }
        write_json(self.folder / layout.MANIFEST, manifest)
        shutil.rmtree(self.parts, ignore_errors=True)
