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


class Spans:
    """`start` and `length` are `[w]` everywhere; positions are flat."""

    def __init__(self, store: LatentStore, subject: SubjectModel) -> None:
        self.subject = subject
        self.tokens = np.asarray(store.tokens).reshape(-1)
        self._documents = np.asarray(store.documents).reshape(-1)
        self._silence: dict[int, tuple[float, ...]] = {}
        # By token id, each decoded when it is first met: an array, as latents' windows hold billions of tokens.
        self._pieces = np.empty(int(self.tokens.max(initial=0)) + 1, dtype=object)
        self._known = np.zeros(len(self._pieces), dtype=np.bool_)

    def activating(self, firing: Firing, start: Ints, length: Ints, quantile: Sequence[int]) -> list[Window]:
        """Windows with the activations of one pole of a latent."""
        flat = firing.within(start, length).tolist()
        ends = np.cumsum(length).tolist()
        activations = [tuple(flat[end - n : end]) for end, n in zip(ends, length.tolist(), strict=True)]
        return [
            Window(f"{at:x}-{len(tokens):x}", document, at, ACTIVATING, pieces, tokens, values, q, text)
            for (at, document, tokens, pieces, text), values, q in zip(
                self._read(start, length), activations, quantile, strict=True
            )
        ]

    def silent(self, start: Ints, length: Ints, kind: str) -> list[Window]:
        """Windows in which a latent does not fire."""
        return [
            Window(f"{at:x}-{len(tokens):x}", document, at, kind, pieces, tokens, self._zeros(len(tokens)), None, text)
            for at, document, tokens, pieces, text in self._read(start, length)
        ]

    def texts(self, start: Ints, length: Ints) -> list[str]:
        return [text for *_, text in self._read(start, length)]

    def _read(self, start: Ints, length: Ints) -> Iterator[tuple[int, int, tuple[int, ...], tuple[str, ...], str]]:
        """Start, document, tokens, pieces and text of each."""
        if not len(start):
            return
        ends = np.cumsum(length)
        index = np.repeat(start - ends + length, length) + np.arange(int(ends[-1]))
        ids = self.tokens[index]
        tokens, pieces = ids.tolist(), self._pieces_of(ids)
        documents = self._documents[start].tolist()
        begin = 0
        for at, document, end in zip(start.tolist(), documents, ends.tolist(), strict=True):
            mine, words = tuple(tokens[begin:end]), tuple(pieces[begin:end])
            text = "".join(words)
            if "\ufffd" in text:  # parts of a character, which are decoded together
                words = self.subject.pieces(mine)
                text = "".join(words)
            yield at, document, mine, words, text
            begin = end

    def _pieces_of(self, ids: NDArray[np.int32]) -> list[str]:
        new = ids[~self._known[ids]]
        if len(new):
            new = np.unique(new)
            self._pieces[new] = self.subject.pieces_alone(new.tolist())
            self._known[new] = True
        pieces: list[str] = self._pieces[ids].tolist()
        return pieces

    def _zeros(self, n: int) -> tuple[float, ...]:
        if n not in self._silence:
            self._silence[n] = (0.0,) * n
        return self._silence[n]
