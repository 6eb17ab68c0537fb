"""Sentence embeddings from a transformers encoder in this process: mean pooling, unit length."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from autointerp.clients._batches import by_length
from autointerp.errors import UserError
from autointerp.subject.load import weights_sha
from prompts.requests import Embed, EmbedReply, Failure, Reply, Request, Usage

BATCH_TOKENS = 4096
REMEMBERED = 200_000
"""Texts whose vectors are kept in memory: windows are the same ones again for other latents, draws and SAEs."""


class EncoderClient:
    """Embeds texts; texts beyond the encoder's length are cut there, as sentence encoders do."""

    name = "encoder"
    supports: frozenset[type] = frozenset({Embed})
    concurrency = 1

    def __init__(self, model: str, *, device: str = "cpu") -> None:
        from transformers import AutoModel, AutoTokenizer
        from transformers.utils import logging

        logging.disable_progress_bar()
        self.model = Path(model).parent.name if Path(model).name == "model" else model
        try:
            self._tokenizer = AutoTokenizer.from_pretrained(model)
            self._encoder = AutoModel.from_pretrained(model, dtype=torch.float32).to(device).eval()
        except (OSError, ValueError) as error:
            line = str(error).strip().split("\n")[0]
            raise UserError(
                f"cannot load the sentence encoder '{model}': {line}; name another with --embedder"
            ) from error
        self.identity = f"encoder {weights_sha(self._encoder)}"
        self._known: dict[str, tuple[NDArray[np.float32], int]] = {}
        self._limit = min(int(self._tokenizer.model_max_length), self._encoder.config.max_position_embeddings)

    async def answer(self, requests: Sequence[Request]) -> list[Reply]:
        return self.replies([request.text for request in requests if isinstance(request, Embed)])

    def replies(self, texts: Sequence[str]) -> list[Reply]:
        """A vector for each text, or a failure; what is among the last REMEMBERED texts is not embedded again."""
        new = [text for text in dict.fromkeys(texts) if text not in self._known]
        found = dict(zip(new, self._embed(new), strict=True))
        replies: list[Reply] = []
        for text in texts:
            vector, tokens = found[text] if text in found else self._known[text]
            usage = Usage(prompt_tokens=tokens)
            replies.append(
                EmbedReply(tuple(vector.tolist()), usage) if text.strip() else Failure("empty", "no text to embed")
            )
        self._known.update(found)
        for old in list(self._known)[: max(0, len(self._known) - REMEMBERED)]:
            del self._known[old]
        return replies

    async def close(self) -> None:
        return None

    @torch.inference_mode()
    def _embed(self, texts: list[str]) -> list[tuple[NDArray[np.float32], int]]:
        """One text at a time on the CPU, where batches gain next to nothing and make a vector depend on its company."""
        ids = [self._tokenizer(t, truncation=True, max_length=self._limit)["input_ids"] for t in texts]
        budget = 1 if self._encoder.device.type == "cpu" else BATCH_TOKENS
        found: dict[int, tuple[NDArray[np.float32], int]] = {}
        for batch in by_length([len(row) for row in ids], budget):
            padded = self._tokenizer.pad({"input_ids": [ids[i] for i in batch]}, return_tensors="pt")
            inputs: dict[str, Any] = {k: v.to(self._encoder.device) for k, v in padded.items()}
            states = self._encoder(**inputs).last_hidden_state
            mask = inputs["attention_mask"][..., None].float()
            vectors = torch.nn.functional.normalize((states * mask).sum(dim=1) / mask.sum(dim=1), dim=-1)
            for i, vector in zip(batch, vectors.cpu().numpy(), strict=True):
                found[i] = vector, len(ids[i])
        return [found[i] for i in range(len(texts))]


def create(model: str, *, device: str = "cpu", **_: Any) -> EncoderClient:
    return EncoderClient(model, device=device)
