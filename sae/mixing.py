"""A buffer that mixes a stream of activations: fill it, shuffle, hand out half, refill what became free.

Neighbouring tokens are highly correlated; a batch drawn from a buffer many times its size is not. What
stays waits for later rounds, so rows of one document are spread over many batches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from sae.errors import SAEError
from sae.sources import SAMPLE_ROWS

Held = Mapping[str, Tensor]
"""Rows `[n, D]` of each site."""

Stream = Callable[[int], Iterator[tuple[int, Held]]]
"""From a position on, pairs of (position after it, rows of each site `[n, D]`)."""


class MixingBuffer:
    """Batches from a stream, in order of steps. Its state can be saved, and so training resumed bit for bit.

    Every row of the stream is handed out once, but for those that fill no last batch.
    """

    def __init__(
        self, stream: Stream, *, n_steps: int, capacity: int, batch_size: int, seed: int, identity: str = ""
    ) -> None:
        """`identity` says what the stream is made of: a state is restored into the same only."""
        if capacity < 2 * batch_size:
            raise SAEError(f"a mixing buffer of {capacity} rows has to hold two batches of {batch_size}, better fifty")
        self.n_steps, self.capacity, self.batch_size, self.seed = n_steps, capacity, batch_size, seed
        self.stream, self.identity = stream, identity
        self.step = 0
        self._position = 0
        self._round = 0
        self._kept: Held = {}
        """Rows that wait for a later round."""
        self._out: Held = {}
        """Rows of this round, shuffled, that are still to be handed out."""
        self._pending: Held = {}
        """Rows that the stream gave and the buffer had no room for."""
        self._iterator: Iterator[tuple[int, Held]] | None = None

    def batch(self, step: int) -> Mapping[str, Tensor]:
        if step < self.step:
            raise SAEError(f"a stream cannot go back from step {self.step} to {step}; use --fresh")
        # A kill may leave its state one checkpoint behind those of the dictionaries.
        while self.step < step:
            self._take()
        return self._take()

    def _take(self) -> Held:
        if _length(self._out) < self.batch_size:
            self._next_round()
        batch, self._out = _split(self._out, self.batch_size)
        self.step += 1
        return batch

    def sample(self) -> Mapping[str, Tensor]:
        """Rows of the round at hand, which stay where they are."""
        if not self._out:
            self._next_round()
        return _split(self._out, SAMPLE_ROWS)[0]

    def save(self, path: Path) -> None:
        """Everything later batches depend on, but the stream."""
        held = {"kept": self._kept, "out": self._out, "pending": self._pending}
        tensors = {f"{part}.{name}": rows.contiguous() for part, sites in held.items() for name, rows in sites.items()}
        counters = {"step": self.step, "position": self._position, "round": self._round, "identity": self.identity}
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".tmp")
        save_file(tensors, temporary, metadata={name: str(value) for name, value in counters.items()})
        temporary.replace(path)

    def restore(self, path: Path) -> None:
        """Go back to a saved state.

        Raises:
            SAEError: the file is damaged, or of another stream.
        """
        try:
            with safe_open(path, "pt") as file:
                counters = file.metadata()
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (it is no dict)
        except (SafetensorError, OSError) as error:
            raise SAEError(f"the saved buffer {path} is damaged ({error}); use --fresh") from error
        if counters.get("identity") != self.identity:
            raise SAEError(f"the saved buffer {path} belongs to other dictionaries or other data; use --fresh")
        self.step, self._position, self._round = (int(counters[name]) for name in ("step", "position", "round"))
        self._kept, self._out, self._pending = (
            {name.removeprefix(part): rows for name, rows in tensors.items() if name.startswith(part)}
            for part in ("kept.", "out.", "pending.")
        )
        self._iterator = None

    def _next_round(self) -> None:
        """Fill up, shuffle, and set half aside to be handed out; everything, once the stream has ended."""
        pool, ended = self._fill(_join([self._kept, self._out]))
        n = _length(pool)
        take = n if ended else max(self.batch_size, n // 2)
        if take < self.batch_size:
            raise SAEError("the stream ended before training did: it gave fewer tokens than were counted")
        order = torch.from_numpy(np.random.default_rng([self.seed, 3, self._round]).permutation(n))
        self._out, self._kept = _split({name: rows[order] for name, rows in pool.items()}, take)
        self._round += 1

    def _fill(self, held: Held) -> tuple[Held, bool]:
        """Up to capacity with what was pending and what the stream gives; also whether it has ended."""
        if self._iterator is None:
            self._iterator = iter(self.stream(self._position))
        parts = [held, self._pending]
        n, ended = sum(map(_length, parts)), False
        while n < self.capacity and not ended:
            given = next(self._iterator, None)
            if given is None:
                ended = True
            else:
                self._position, rows = given
                parts.append(dict(rows))
                n += _length(parts[-1])
        pool, self._pending = _split(_join(parts), self.capacity)
        return pool, ended


def _length(held: Held) -> int:
    return len(next(iter(held.values()))) if held else 0


def _split(held: Held, n: int) -> tuple[Held, Held]:
    """The first n rows of each site, and the others."""
    return {k: rows[:n] for k, rows in held.items()}, {k: rows[n:] for k, rows in held.items()}


def _join(parts: list[Held]) -> Held:
    filled = [part for part in parts if _length(part)]
    return {name: torch.cat([part[name] for part in filled]) for name in filled[0]} if filled else {}
