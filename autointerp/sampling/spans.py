"""Make `Window`s of stretches of the store's text: many at once, so that numpy does the work and not Python."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from autointerp.sampling.firing import Firing
from autointerp.store.reader import LatentStore
from autointerp.subject.load import SubjectModel
from scoring.types import ACTIVATING, Window

Ints = NDArray[np.int64]

Stretch = tuple[str, int, int, tuple[str, ...], tuple[int, ...], str]
"""Id, document, start, pieces, tokens and text."""

KEPT = 2**15
"""Stretches that are kept: latents share the windows of one grid, and stages the latents. About 50 MB."""


class Spans:
    """`start` and `length` are `[w]` everywhere; positions are flat."""

    def __init__(self, store: LatentStore, subject: SubjectModel) -> None:
        self.subject = subject
        self.tokens = np.asarray(store.tokens).reshape(-1)
        self._documents = np.asarray(store.documents).reshape(-1)
        self._kept: dict[int, Stretch] = {}
        # Pieces by token id, each decoded when it is first met.
        self._pieces = np.empty(int(self.tokens.max(initial=0)) + 1, dtype=object)
        self._known = np.zeros(len(self._pieces), dtype=np.bool_)
        self._silence: dict[int, tuple[float, ...]] = {}

    def activating(self, firing: Firing, start: Ints, length: Ints, quantile: Sequence[int]) -> list[Window]:
        """Windows with the activations of one pole of a latent."""
        place, value = firing.within(start, length)
        each = [0.0] * int(length.sum())
        for at, activation in zip(place.tolist(), value.tolist(), strict=True):
            each[at] = activation
        flat, ends = tuple(each), np.cumsum(length).tolist()
        return [
            Window(name, document, at, ACTIVATING, pieces, tokens, flat[end - len(tokens) : end], q, text)
            for (name, document, at, pieces, tokens, text), end, q in zip(
                self._read(start, length), ends, quantile, strict=True
            )
        ]

    def silent(self, start: Ints, length: Ints, kind: str) -> list[Window]:
        """Windows in which a latent does not fire."""
        return [
            Window(name, document, at, kind, pieces, tokens, self._zeros(len(tokens)), None, text)
            for name, document, at, pieces, tokens, text in self._read(start, length)
        ]

    def texts(self, start: Ints, length: Ints) -> list[str]:
        return [text for *_, text in self._read(start, length)]

    def _read(self, start: Ints, length: Ints) -> list[Stretch]:
        keys = (start << 20 | length).tolist()
        new = [i for i, key in enumerate(keys) if key not in self._kept]
        if new:
            if len(self._kept) + len(new) > KEPT:
                self._kept.clear()
                new = list(range(len(keys)))
            for i, stretch in zip(new, self._stretches(start[new], length[new]), strict=True):
                self._kept[keys[i]] = stretch
        return [self._kept[key] for key in keys]

    def _stretches(self, start: Ints, length: Ints) -> Iterator[Stretch]:
        ends = np.cumsum(length)
        ids = self.tokens[np.repeat(start - ends + length, length) + np.arange(int(ends[-1]))]
        new = np.unique(ids[~self._known[ids]])
        if len(new):
            self._pieces[new] = self.subject.pieces_alone(new.tolist())
            self._known[new] = True
        tokens, pieces = tuple(ids.tolist()), tuple(self._pieces[ids].tolist())
        begin = 0
        for at, document, end in zip(start.tolist(), self._documents[start].tolist(), ends.tolist(), strict=True):
            mine, words = tokens[begin:end], pieces[begin:end]
            text = "".join(words)
            if "\ufffd" in text:  # parts of a character, which are decoded together
                words = self.subject.pieces(mine)
                text = "".join(words)
            yield f"{at:x}-{end - begin:x}", document, at, words, mine, text
            begin = end

    def _zeros(self, n: int) -> tuple[float, ...]:
        if n not in self._silence:
            self._silence[n] = (0.0,) * n
        return self._silence[n]
