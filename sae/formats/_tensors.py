"""Tensors of a weight file, taken out by name, with everything checked that can be wrong with them.

Nothing that could run code is ever opened: pickles through torch's restricted unpickler, numpy archives without
objects.
"""

from __future__ import annotations

import warnings
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from sae.errors import SAEError

WEIGHT_SUFFIXES = (".safetensors", ".npz", ".pt", ".pth")


def names_in(path: Path) -> frozenset[str]:
    """Names of what a weight file holds, without reading the weights; none if it cannot be read."""
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as file:
                return frozenset(file.keys())
        if path.suffix == ".npz":
            with zipfile.ZipFile(path) as archive:
                return frozenset(name.removesuffix(".npy") for name in archive.namelist())
        return frozenset(read_pickle(path, mapped=True))
    except (SAEError, SafetensorError, OSError, zipfile.BadZipFile):
        return frozenset()


def read_weights(path: Path) -> dict[str, Any]:
    """Everything in a weight file by name: tensors, and in pickles numbers and strings beside them.

    Raises:
        SAEError: it is not there, damaged, no weight file, or needs code to be run.
    """
    if not path.is_file():
        raise SAEError(f"{path.parent} holds no {path.name}: the checkpoint is incomplete, copy it again")
    with path.open("rb") as file:
        if file.read(64).startswith(b"version https://git-lfs"):
            raise SAEError(f"{path} is git-lfs's placeholder for the weights: run `git lfs pull` there")
    if path.suffix == ".safetensors":
        try:
            return dict(load_file(path))
        except (SafetensorError, OSError) as error:
            raise SAEError(f"{path} is truncated or damaged ({error}); copy it again") from error
    return read_npz(path) if path.suffix == ".npz" else read_pickle(path)


def read_npz(path: Path) -> dict[str, Any]:
    if not zipfile.is_zipfile(path):
        raise SAEError(f"{path} is truncated or damaged (no zip archive); copy it again")
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: torch.from_numpy(np.ascontiguousarray(archive[name])) for name in archive.files}
    except (OSError, EOFError, zipfile.BadZipFile, AttributeError, TypeError) as error:
        raise SAEError(f"{path} is truncated or damaged ({error}); copy it again") from error
    except ValueError as error:
        raise SAEError(f"{path} holds something else than plain arrays ({error}); it is not opened") from error


def read_pickle(path: Path, *, mapped: bool = False) -> dict[str, Any]:
    """`mapped` leaves the tensors on disk where the file allows it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                found = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
            except RuntimeError:
                if not mapped:
                    raise
                found = torch.load(path, map_location="cpu", weights_only=True)  # older files cannot be mapped
    except Exception as error:  # torch fails on damaged files in many ways
        if "GLOBAL" in str(error):  # what its restricted unpickler says of anything that could be called
            raise SAEError(
                f"{path} holds objects other than tensors, and reading those can run code: it is not opened; "
                "ask for it as safetensors"
            ) from error
        raise SAEError(f"{path} is truncated, damaged or no file of torch.save; copy it again") from error
    if not isinstance(found, dict) or not all(isinstance(name, str) for name in found):
        raise SAEError(f"{path} holds no tensors by name but a {type(found).__name__}: it is no SAE's state dict")
    return found


class Tensors:
    """Tensors of one checkpoint. Each is taken out once; what is then left over is an error (`finish`).

    Weights come out in float32, or float64 where the file has that: half precision is for storage, and every
    bfloat16 is a float32. All values have to be finite.
    """

    def __init__(self, path: Path, found: dict[str, Any]) -> None:
        self.path = path
        self._left: dict[str, Tensor] = {name: value for name, value in found.items() if isinstance(value, Tensor)}
        self._strange = sorted(found.keys() - self._left.keys())

    def __contains__(self, name: str) -> bool:
        return name in self._left

    def take(self, name: str, *shape: int) -> Tensor:
        """A tensor of just this shape."""
        found = self._shape(name)
        if found != shape:
            raise SAEError(f"{self.path}: '{name}' has shape {found} instead of {shape}")
        return self._checked(name)

    def vector(self, name: str) -> Tensor:
        """A one-dimensional tensor, whose length says what others have to fit."""
        found = self._shape(name)
        if len(found) != 1:
            raise SAEError(f"{self.path}: '{name}' has shape {found} instead of one dimension")
        return self._checked(name)

    def number(self, name: str) -> float:
        """A scalar's value."""
        return float(self.take(name))

    def directions(self, name: str, n_latents: int, width: int | None = None, *, latents_first: bool | None) -> Tensor:
        """A matrix as `[n_latents, width]`, whichever way it is stored.

        The number of latents says which side is which. Where both sides are alike `latents_first` decides, which
        is None for formats that are not certain.
        """
        found = self._shape(name)
        if len(found) != 2 or n_latents not in found:
            raise SAEError(
                f"{self.path}: '{name}' has shape {found}, and no side is the {n_latents} latents of the biases"
            )
        first, second = found
        if first == second and latents_first is None:
            raise SAEError(
                f"{self.path}: '{name}' is square ({first} x {second}), so nothing says which side is the latents; "
                "convert it with the program that wrote it"
            )
        upright = bool(latents_first) if first == second else first == n_latents
        if width is not None and width != (second if upright else first):
            raise SAEError(f"{self.path}: '{name}' has shape {found} instead of {(n_latents, width)}")
        checked = self._checked(name)
        return (checked if upright else checked.T).contiguous()

    def drop(self, names: Iterable[str]) -> None:
        """Leave out what is known not to matter for what the SAE computes."""
        for name in names:
            self._left.pop(name, None)

    def starting(self, prefix: str) -> list[str]:
        return sorted(name for name in self._left if name.startswith(prefix))

    def finish(self) -> None:
        rest = sorted(self._left) + self._strange
        if rest:
            shown = ", ".join(rest[:6]) + (f" and {len(rest) - 6} more" if len(rest) > 6 else "")
            raise SAEError(f"{self.path} also holds {shown}, of unknown effect; it is another kind of SAE than we read")

    def _shape(self, name: str) -> tuple[int, ...]:
        if name not in self._left:
            held = ", ".join(sorted(self._left)[:12]) or "no tensors"
            raise SAEError(f"{self.path} holds no '{name}' (but {held}): it is incomplete, or another kind of SAE")
        return tuple(self._left[name].shape)

    def _checked(self, name: str) -> Tensor:
        tensor = self._left.pop(name)
        if tensor.dtype != torch.float64:
            tensor = tensor.float()
        if not torch.isfinite(tensor).all():
            raise SAEError(f"{self.path}: '{name}' holds NaN or infinity: its training diverged, or it was damaged")
        return tensor
