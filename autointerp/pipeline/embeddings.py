"""Sentence vectors for sampling, kept in the run folder: a pool of windows is embedded once, for all stages."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from autointerp.engine.ask import answer_all
from autointerp.errors import AutointerpError
from autointerp.files import read_array, write_array
from autointerp.types import Client, Server
from prompts.requests import Embed, EmbedReply, Reply, fingerprint

if TYPE_CHECKING:
    from autointerp.pipeline.session import Session

CHUNK = 256
"""Texts that are kept together: what a kill can lose."""


class KeptEmbeddings:
    """Texts to vectors `[n, E]`; the encoder is loaded when the first text is new."""

    def __init__(self, session: Session) -> None:
        self.session, self.folder = session, session.run.folder / "work" / "embeddings"
        self._encoder: Client | Server | None = None

    def __call__(self, texts: Sequence[str]) -> NDArray[np.float32]:
        if len(texts) < CHUNK:
            return self._embed(texts)
        chunks = [list(texts[begin : begin + CHUNK]) for begin in range(0, len(texts), CHUNK)]
        found = []
        with self.session.reporter.stage("embed", len(texts), "windows") as stage:
            for chunk in chunks:
                path = self.folder / f"{fingerprint([self.session.settings.score.embedder, chunk])}.npy"
                if not path.is_file():
                    write_array(path, self._embed(chunk))
                found.append(np.asarray(read_array(path)))
                stage.update(sum(map(len, found)))
        return np.concatenate(found)

    def _embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        if self._encoder is None:
            from autointerp.pipeline.clients import embedder

            self._encoder = embedder(self.session)
        vectors = [reply.vector for reply in self._replies(self._encoder, texts) if isinstance(reply, EmbedReply)]
        if len(vectors) != len(texts):
            raise AutointerpError(f"{self._encoder.model} gave no vector for {len(texts) - len(vectors)} windows")
        return np.array(vectors, dtype=np.float32)

    def _replies(self, encoder: Client | Server, texts: Sequence[str]) -> list[Reply]:
        requests, account = [Embed(text) for text in texts], self.session.run.account
        # Windows are drawn while an event loop runs, and a loop cannot wait for another one in its own thread.
        with ThreadPoolExecutor(1) as thread:
            return thread.submit(answer_all, encoder, requests, account, stage="sampling").result()
