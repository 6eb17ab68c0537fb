"""Sentence embeddings from a transformers encoder in this process: mean pooling, unit length."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from autointerp.clients._batches import by_length
from autointerp.errors import UserError
from autointerp.subject.load import weights_sha
from prompts.requests import Embed, EmbedReply, Failure, Reply, Request, Usage

BATCH_TOKENS = 4096


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
        self._known: dict[str, EmbedReply] = {}
        self._limit = min(int(self._tokenizer.model_max_length), self._encoder.config.max_position_embeddings)

    async def answer(self, requests: Sequence[Request]) -> list[Reply]:
        return self.replies([request.text for request in requests if isinstance(request, Embed)])

    def replies(self, texts: Sequence[str]) -> list[Reply]:
        """A vector for each text, or a failure; nothing is embedded twice."""
        new = [text for text in dict.fromkeys(texts) if text not in self._known]
        self._known.update(zip(new, self._embed(new), strict=True))
        return [self._known[text] if text.strip() else Failure("empty", "no text to embed") for text in texts]

    async def close(self) -> None:
        return None

    @torch.inference_mode()
    def _embed(self, texts: list[str]) -> list[EmbedReply]:
        """One text at a time on the CPU, where batches gain next to nothing and make a vector depend on its company."""
        ids = [self._tokenizer(t, truncation=True, max_length=self._limit)["input_ids"] for t in texts]
        budget = 1 if self._encoder.device.type == "cpu" else BATCH_TOKENS
        replies: list[EmbedReply] = [EmbedReply(())] * len(texts)
        for batch in by_length([len(row) for row in ids], budget):
            padded = self._tokenizer.pad({"input_ids": [ids[i] for i in batch]}, return_tensors="pt")
            inputs: dict[str, Any] = {k: v.to(self._encoder.device) for k, v in padded.items()}
            states = self._encoder(**inputs).last_hidden_state
            mask = inputs["attention_mask"][..., None].float()
            vectors = torch.nn.functional.normalize((states * mask).sum(dim=1) / mask.sum(dim=1), dim=-1)
            for i, vector in zip(batch, vectors.tolist(), strict=True):
                replies[i] = EmbedReply(tuple(vector), Usage(prompt_tokens=len(ids[i])))
        return replies


def create(model: str, *, device: str = "cpu", **_: Any) -> EncoderClient:
    return EncoderClient(model, device=device)
