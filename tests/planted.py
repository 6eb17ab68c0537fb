"""A tiny Llama built in-process, and an SAE whose latents are planted: latent i fires exactly on the i-th word.

The model's embedding of every word of the vocabulary is an orthogonal direction and its blocks are left at
almost nothing, so the residual stream says which token stands at a position, and a TopK SAE with the right
weights reads it off. Explanations and activations are therefore known.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import sae
from sae.base import SAEMetadata

CONCEPTS = ["apple", "river", "seven", "python", "music", "winter", "doctor", "silver"]
FILLER = ["the", "a", "of", "and", "to", "in", "is", "was", "for", "on", "with", "as", "by", "at", "from", "it",
          "that", "this", "be", "are", "an", "or", "not", "but", "have", "had", "they", "you", "we", "she", "he", "his"]  # fmt: skip
SPECIAL = ["<unk>", "<sep>"]
WIDTH = 64
HOOKPOINT = "layers.0"
N_LATENTS = 16
"""Latents 0 to 7 are planted, 8 to 15 are dead."""


def vocabulary() -> dict[str, int]:
    words = [*SPECIAL, *("\u2581" + word for word in [*CONCEPTS, *FILLER])]
    return {word: i for i, word in enumerate(words)}


def tokenizer() -> PreTrainedTokenizerFast:
    inner = Tokenizer(models.WordLevel(vocabulary(), unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Metaspace()
    inner.decoder = decoders.Metaspace()
    return PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>", eos_token="<sep>")


def build_model(folder: Path) -> Path:
    """Save the tiny model with its tokenizer."""
    torch.manual_seed(0)
    words = vocabulary()
    config = LlamaConfig(
        vocab_size=len(words), hidden_size=WIDTH, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=4, max_position_embeddings=256, tie_word_embeddings=False,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for block in model.model.layers:
            block.mlp.down_proj.weight.mul_(0.01)
            block.self_attn.o_proj.weight.mul_(0.01)
        model.model.embed_tokens.weight.copy_(10 * torch.eye(len(words), WIDTH))
        model.lm_head.weight.copy_(0.5 * torch.randn(len(words), WIDTH))
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def build_sae(folder: Path, model: Path, dataset: Path) -> Path:
    """Latent i reads and writes the direction of concept i."""
    words = vocabulary()
    planted = sae.SAEMetadata(
        model=str(model), hookpoint=HOOKPOINT, dataset=str(dataset), context_length=64, skip_first=0
    )
    dictionary = make_topk(planted)
    with torch.no_grad():
        for i, concept in enumerate(CONCEPTS):
            dictionary.encoder[i, words["\u2581" + concept]] = 1.0
            # What it writes points elsewhere too: along the token's own direction an edit would vanish in the norm.
            dictionary.W_dec[i, words["\u2581" + concept]] = 0.6
            dictionary.W_dec[i, len(words) + i] = 0.8
        dictionary.b_enc.fill_(-5.0)
        dictionary.W_dec[len(CONCEPTS) :, -1] = 1.0
    sae.save(dictionary, folder)
    return folder


def make_topk(metadata: SAEMetadata) -> sae.SparseAutoencoder:
    from sae.architectures import topk

    return topk.create({"d_in": WIDTH, "n_latents": N_LATENTS, "k": 1}, metadata)


def build_corpus(path: Path, documents: int = 900, seed: int = 0) -> Path:
    """Sentences of filler words; one in two holds a concept."""
    rng = np.random.default_rng(seed)
    with path.open("w") as file:
        for _ in range(documents):
            words = list(rng.choice(FILLER, size=int(rng.integers(20, 60))))
            if rng.random() < 0.8:
                concept = str(rng.choice(CONCEPTS))
                for place in rng.choice(len(words), size=int(rng.integers(1, 3)), replace=False):
                    words[int(place)] = concept
            file.write(json.dumps({"text": " ".join(words)}) + "\n")
    return path
