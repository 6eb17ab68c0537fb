"""A store holds the encoder's output, at its token: neither the input nor the reconstruction, on four families.

What is expected owes nothing to our code. The residual stream is transformers' own `hidden_states` (the last block's,
which passes the final norm, is what that norm is given); what an MLP writes and what an output projection reads come
from hooks set here, on modules reached by attribute; Llama's heads are also computed by hand. Codes are dense float64
arithmetic. The subject model has random weights throughout, biases and norms included, so that no two tensors agree.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
)

from autointerp.collect.encode import collect_store
from autointerp.collect.tokens import TokenBlocks
from autointerp.store.reader import LatentStore
from autointerp.subject.load import SubjectModel
from sae.architectures import abstopk, relu, topk
from sae.base import SAEMetadata, SparseAutoencoder

Floats = NDArray[np.float64]

VOCABULARY, WIDTH, N_LAYERS, N_HEADS, CONTEXT, K = 40, 32, 3, 4, 11, 6
N_BLOCKS = 43
"""More than fit a batch of the subject model or a part of the store, and no multiple of either."""
SIZES = {"vocab_size": VOCABULARY, "hidden_size": WIDTH, "num_hidden_layers": N_LAYERS, "num_attention_heads": N_HEADS,
         "intermediate_size": 48, "bos_token_id": 0, "eos_token_id": 1}  # fmt: skip
GROUPED = {"num_key_value_heads": 2, "head_dim": 6}
"""Heads that are together narrower than the residual stream."""

RESIDUAL, LAST, MLP, HEADS = "layers.1", "layers.2", "layers.1.mlp", "layers.1.self_attn.o_proj:in"
ARCHITECTURES = {"topk": topk, "relu": relu, "abstopk": abstopk}


def llama() -> Any:
    return LlamaForCausalLM(LlamaConfig(**SIZES, num_key_value_heads=2, attn_implementation="eager"))


def gpt2() -> Any:
    return GPT2LMHeadModel(GPT2Config(vocab_size=VOCABULARY, n_embd=WIDTH, n_layer=N_LAYERS, n_head=N_HEADS,
                                      n_positions=CONTEXT, bos_token_id=0, eos_token_id=1))  # fmt: skip


def neox() -> Any:
    return GPTNeoXForCausalLM(GPTNeoXConfig(**SIZES))


def gemma2() -> Any:
    return Gemma2ForCausalLM(Gemma2Config(**SIZES, **GROUPED, query_pre_attn_scalar=6, sliding_window=4))


def gemma3() -> Any:
    return Gemma3ForCausalLM(Gemma3TextConfig(**SIZES, **GROUPED, query_pre_attn_scalar=6, sliding_window=4))


def llama_layout(model: Any) -> tuple[Any, Any, Any]:
    """MLP and attention's output projection of block 1, and the final norm."""
    return model.model.layers[1].mlp, model.model.layers[1].self_attn.o_proj, model.model.norm


def gpt2_layout(model: Any) -> tuple[Any, Any, Any]:
    return model.transformer.h[1].mlp, model.transformer.h[1].attn.c_proj, model.transformer.ln_f


def neox_layout(model: Any) -> tuple[Any, Any, Any]:
    inner = model.gpt_neox
    return inner.layers[1].mlp, inner.layers[1].attention.dense, inner.final_layer_norm


FAMILIES: dict[str, tuple[Callable[[], Any], Callable[[Any], tuple[Any, Any, Any]]]] = {
    "llama": (llama, llama_layout),
    "gpt2": (gpt2, gpt2_layout),
    "neox": (neox, neox_layout),
    "gemma2": (gemma2, llama_layout),
    "gemma3": (gemma3, llama_layout),
}


@cache
def model_of(family: str) -> Any:
    torch.manual_seed(sorted(FAMILIES).index(family))
    model = FAMILIES[family][0]().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.4)
    return model.requires_grad_(False)


@cache
def blocks() -> TokenBlocks:
    """Positions that count for nothing stand at the start, in the middle and at the end of blocks, and fill some."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, VOCABULARY, (N_BLOCKS, CONTEXT)).astype(np.int32)
    documents = np.arange(N_BLOCKS * CONTEXT, dtype=np.int32).reshape(N_BLOCKS, CONTEXT) // 5
    documents[:, 0] = -1
    documents[::3, 1:3] = -1
    documents[rng.random(documents.shape) < 0.1] = -1
    for row in range(0, N_BLOCKS, 2):
        documents[row, CONTEXT - row % 7 :] = -1
    documents[5] = -1
    # So many on end that a batch has none that counts, another none beyond its blocks' middle.
    documents[16:24] = -1
    documents[8:16, 6:] = -1
    return TokenBlocks(tokens, documents)


@cache
def truth(family: str) -> dict[str, Floats]:
    """Activations `[N_BLOCKS * CONTEXT, D]` at each hookpoint, and the residual stream `layers.0` below them."""
    model = model_of(family)
    mlp, out, norm = FAMILIES[family][1](model)
    seen: dict[str, Tensor] = {}

    def keep_output(module: nn.Module, args: Any, output: Any) -> None:
        seen[MLP] = output

    def keep_input(name: str) -> Callable[[nn.Module, Any], None]:
        def keep(module: nn.Module, args: Any) -> None:
            seen[name] = args[0]

        return keep

    handles = [
        mlp.register_forward_hook(keep_output),
        out.register_forward_pre_hook(keep_input(HEADS)),
        norm.register_forward_pre_hook(keep_input(LAST)),
    ]
    with torch.no_grad():
        tokens = torch.from_numpy(blocks().tokens).long()
        states = model(input_ids=tokens, output_hidden_states=True, use_cache=False).hidden_states
        for handle in handles:
            handle.remove()
        assert len(states) == N_LAYERS + 1
        # transformers' own statement of the same tensor, behind the norm.
        torch.testing.assert_close(norm(seen[LAST]), states[-1])
    seen["layers.0"], seen[RESIDUAL] = states[1], states[2]
    return {name: x.double().reshape(-1, x.shape[-1]).numpy() for name, x in seen.items()}


def heads_by_hand() -> Floats:
    """What Llama's output projection reads: each head's attention over its group's values, side by side."""
    model = model_of("llama")
    block = model.model.layers[1]
    with torch.no_grad():
        found = model(
            input_ids=torch.from_numpy(blocks().tokens).long(),
            output_hidden_states=True, output_attentions=True, use_cache=False,
        )  # fmt: skip
    x = found.hidden_states[1].double()
    normed = x / (x.square().mean(-1, keepdim=True) + model.config.rms_norm_eps).sqrt() * block.input_layernorm.weight
    values = (normed @ block.self_attn.v_proj.weight.double().T).unflatten(-1, (2, WIDTH // N_HEADS))
    heads = [found.attentions[1][:, h].double() @ values[:, :, h // (N_HEADS // 2)] for h in range(N_HEADS)]
    assert float(found.attentions[1].triu(1).abs().max()) == 0
    return torch.cat(heads, dim=-1).flatten(0, 1).numpy()


def dictionary(architecture: str, x: Floats, n_latents: int) -> SparseAutoencoder:
    """Random weights whose biases count as much as these activations do, dimension by dimension.

    Of the first seed by which no choice is so close that float32 could make another one.
    """
    config = {"d_in": x.shape[1], "n_latents": n_latents} | ({} if architecture == "relu" else {"k": K})
    made: SparseAutoencoder = ARCHITECTURES[architecture].create(config, SAEMetadata())
    spread = x.std(axis=0)
    for seed in itertools.count():
        rng = np.random.default_rng(seed)
        weights = {
            "encoder": rng.normal(size=(n_latents, x.shape[1])) / spread / np.sqrt(x.shape[1]),
            "b_enc": rng.normal(size=n_latents) - (0.0 if architecture == "abstopk" else 2.2),
            "W_dec": rng.normal(size=(n_latents, x.shape[1])) * spread,
            "b_dec": x.mean(axis=0) + rng.normal(size=x.shape[1]) * spread,
        }
        made.load_state_dict({name: torch.from_numpy(weight).float() for name, weight in weights.items()})
        if closest_choice(made, x) > 3e-5:
            break
    return made


def weight_of(sae: SparseAutoencoder, name: str) -> Floats:
    return sae.state_dict()[name].double().numpy()


def preactivations(sae: SparseAutoencoder, x: Floats) -> Floats:
    """(x - b_dec) W_enc + b_enc, `[N, F]`."""
    return (x - weight_of(sae, "b_dec")) @ weight_of(sae, "encoder").T + weight_of(sae, "b_enc")


def codes_of(sae: SparseAutoencoder, x: Floats) -> Floats:
    """Their ReLU, the K largest of it, or the K largest in size: dense `[N, F]`."""
    pre = preactivations(sae, x)
    if sae.architecture == "relu":
        return np.maximum(pre, 0)
    kept = np.zeros_like(pre)
    chosen = np.argsort(-np.abs(pre) if sae.architecture == "abstopk" else -pre, axis=1)[:, :K]
    np.put_along_axis(kept, chosen, np.take_along_axis(pre, chosen, axis=1), axis=1)
    return kept if sae.architecture == "abstopk" else np.maximum(kept, 0)


def closest_choice(sae: SparseAutoencoder, x: Floats) -> float:
    """Smallest distance of a pre-activation from zero, or of the last one kept from the first one left out."""
    pre = preactivations(sae, x)
    size = np.sort(np.abs(pre) if sae.architecture == "abstopk" else np.maximum(pre, 0), axis=1)[:, ::-1]
    gap = size[:, K - 1] - size[:, K]
    rank = gap[size[:, K - 1] > 0].min(initial=np.inf)
    return float({"relu": np.abs(pre).min(), "topk": min(np.abs(pre).min(), rank), "abstopk": rank}[sae.architecture])


def collected(
    family: str, hookpoint: str, sae: SparseAutoencoder, folder: Path, text: TokenBlocks | None = None
) -> LatentStore:
    subject = SubjectModel(family, model_of(family), None)
    collect_store(subject, sae, text or blocks(), hookpoint, folder, {"golden": family, "hookpoint": hookpoint})
    return LatentStore.open(folder)


@dataclass(frozen=True)
class Comparison:
    """Activations by (latent, flat position)."""

    same_places: bool
    error: float
    """Largest of |stored - expected| / max(1, |expected|) over places that both have; infinite if there is none."""

    @property
    def agree(self) -> bool:
        return self.same_places and self.error < 1e-4


def compare(store: LatentStore, expected: Floats) -> Comparison:
    """With dense codes `[N_BLOCKS * CONTEXT, F]`, of which positions that count for nothing are left out."""
    counted = blocks().documents.reshape(-1) != -1
    stored = np.zeros((len(counted), store.n_latents))
    places = np.zeros(stored.shape, dtype=int)
    for latent in range(store.n_latents):
        positions, values = store.of(latent)
        np.add.at(places[:, latent], positions, 1)
        stored[positions, latent] = values
    assert places.max() <= 1, "an activation is there twice"
    wanted = (expected != 0) & counted[:, None]
    both = wanted & (places == 1)
    error = np.abs(stored - expected) / np.maximum(1, np.abs(expected))
    return Comparison(bool((wanted == (places == 1)).all()), float(error[both].max()) if both.any() else np.inf)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("hookpoint", [RESIDUAL, LAST, MLP, HEADS])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_store_holds_the_encoders_output(family: str, hookpoint: str, architecture: str, tmp_path: Path) -> None:
    x = truth(family)[hookpoint]
    sae = dictionary(architecture, x, n_latents=96)
    expected = codes_of(sae, x)
    store = collected(family, hookpoint, sae, tmp_path)
    found = compare(store, expected)
    assert found.agree, found

    counted = blocks().documents.reshape(-1) != -1
    np.testing.assert_array_equal(store.tokens, blocks().tokens)
    np.testing.assert_array_equal(store.documents, blocks().documents)
    positions = np.concatenate([store.of(latent)[0] for latent in range(store.n_latents)])
    assert counted[positions].all()
    # The text is worth the test: some tokens leave TopK fewer than k, signed codes have both signs.
    per_token = (expected[counted] != 0).sum(axis=1)
    assert {"topk": per_token.min() < K == per_token.max(), "relu": per_token.max() > K,
            "abstopk": (per_token == K).all() and (expected < 0).any() and (expected > 0).any()}[architecture]  # fmt: skip


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("hookpoint", [RESIDUAL, MLP, HEADS])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_comparison_can_fail(family: str, hookpoint: str, architecture: str, tmp_path: Path) -> None:
    """What a store would hold if it were wrong is told from what it holds; as many latents as inputs, for literalness."""
    at = truth(family)
    x = at[hookpoint]
    sae = dictionary(architecture, x, n_latents=x.shape[1])
    store = collected(family, hookpoint, sae, tmp_path)
    codes = codes_of(sae, x)
    reconstruction = codes @ weight_of(sae, "W_dec") + weight_of(sae, "b_dec")
    wrong = {
        "the input": x,
        "the reconstruction": reconstruction,
        "codes of the reconstruction": codes_of(sae, reconstruction),
        "pre-activations": preactivations(sae, x),
        "b_dec not subtracted": codes_of(sae, x + weight_of(sae, "b_dec")),
        "the next token": np.roll(codes, -1, axis=0),
        "the token before": np.roll(codes, 1, axis=0),
        "the next block": np.roll(codes, CONTEXT, axis=0),
        "a transposed encoder": codes_of(transposed(sae), x),
        "sizes without signs": np.abs(codes),
    } | {f"codes of {name}": codes_of(sae, y) for name, y in at.items() if name != hookpoint and y.shape == x.shape}
    if architecture != "abstopk":
        del wrong["sizes without signs"]
    assert compare(store, codes).agree
    for name, expected in wrong.items():
        found = compare(store, expected)
        assert not found.agree, name
        # Not for want of the right places alone.
        assert found.error > 1e-2 or name == "pre-activations", name


def transposed(sae: SparseAutoencoder) -> SparseAutoencoder:
    other = ARCHITECTURES[sae.architecture].create(sae.config_dict(), SAEMetadata())
    other.load_state_dict(sae.state_dict() | {"encoder": sae.state_dict()["encoder"].T})
    return other


def test_llamas_heads_by_hand(tmp_path: Path) -> None:
    x = heads_by_hand()
    np.testing.assert_allclose(truth("llama")[HEADS], x, atol=1e-4)
    sae = dictionary("topk", x, n_latents=96)
    assert compare(collected("llama", HEADS, sae, tmp_path), codes_of(sae, x)).agree


@pytest.mark.parametrize("hookpoint", [RESIDUAL, MLP, HEADS])
@pytest.mark.parametrize("family", FAMILIES)
def test_what_counts_for_nothing_is_seen_but_not_kept(family: str, hookpoint: str, tmp_path: Path) -> None:
    """Masking a position takes its activations out of the store and changes no other: it stays in its context."""
    x = truth(family)[hookpoint]
    sae = dictionary("topk", x, n_latents=96)
    some = collected(family, hookpoint, sae, tmp_path / "some")
    everything = TokenBlocks(blocks().tokens, np.zeros_like(blocks().documents))
    whole = collected(family, hookpoint, sae, tmp_path / "whole", everything)
    counted = blocks().documents.reshape(-1) != -1
    for latent in range(sae.n_latents):
        positions, values = whole.of(latent)
        np.testing.assert_array_equal(some.of(latent)[0], positions[counted[positions]])
        np.testing.assert_allclose(some.of(latent)[1], values[counted[positions]], rtol=1e-4, atol=1e-4)
