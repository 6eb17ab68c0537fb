"""A run whose subject model takes no time: a tiny random model, and a store of synthetic codes over made-up text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from _codes import Planted

N_WORDS, WIDTH = 400, 64


def prepare(folder: Path, n_latents: int, tokens: int) -> Path:
    """Make model, SAE, text and a finished store of it in `folder`; returns the YAML of a run on them.

    Every latent is live: 8 of them fire on each token, all equally often.
    """
    import torch
    import yaml
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    import sae
    from autointerp.collect.tokenise import tokenise
    from autointerp.collect.tokens import NO_DOCUMENT
    from autointerp.config import resolve
    from autointerp.pipeline.run import Run
    from autointerp.pipeline.session import Session
    from autointerp.progress import Reporter
    from autointerp.store.writer import StoreWriter
    from sae.architectures import topk

    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    words = ["<unk>", "<sep>", *(f"w{i}" for i in range(N_WORDS))]
    inner = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    shape: dict[str, Any] = {"num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2}
    config = LlamaConfig(vocab_size=len(words), hidden_size=WIDTH, intermediate_size=32, **shape)
    LlamaForCausalLM(config).save_pretrained(folder / "model")
    PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>", eos_token="<sep>").save_pretrained(
        folder / "model"
    )
    with (folder / "text.jsonl").open("w") as file:
        for _ in range(tokens // 90):
            file.write(json.dumps({"text": " ".join(rng.choice(words[2:], 100))}) + "\n")
    about = sae.SAEMetadata(model=str(folder / "model"), hookpoint="layers.0", dataset=str(folder / "text.jsonl"))
    dictionary = topk.create({"d_in": WIDTH, "n_latents": n_latents, "k": 8}, about)
    dictionary.initialise(0)
    sae.save(dictionary, folder / "sae")
    settings = {
        "sae": str(folder / "sae"), "stores": str(folder / "stores"),
        "data": {"tokens": tokens, "context_length": 64},
        "sampling": {"window": 16, "explain_activating": 20, "explain_random": 0, "score_activating": 20,
                     "score_random": 20, "min_windows": 4, "prompts": 0},
        "explain": {"client": "fake", "llm": "keyword"},
        "score": {"client": "fake", "llm": "keyword", "methods": ["detection"], "control_latents": 0},
    }  # fmt: skip
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(settings))
    session = Session(Run(folder / "first", resolve({}, config=path, environ={})), Reporter(quiet=True))
    store = session.store_folder
    blocks = tokenise(session.subject, session.data, store, seed=session.corpus_seed, skip_documents=0)
    writer, planted = StoreWriter(store, session.identity, n_latents), Planted(n_latents, k=8, smallest=n_latents)
    width = blocks.tokens.shape[1]
    for begin in range(0, len(blocks.tokens), 256):
        span = slice(begin, min(begin + 256, len(blocks.tokens)))
        at = np.flatnonzero(blocks.documents[span] != NO_DOCUMENT) + begin * width
        writer.add(span, at, planted.codes(len(at), rng))
    writer.finalise()
    return path
