"""Names of hooks and what they are in a Hugging Face model, there and back."""

from __future__ import annotations

import pytest

from sae.formats._hook_names import hookpoint_of, hugging_face_name, model_id, transformer_lens_name

LLAMA, GEMMA, GPT2, PYTHIA = "meta-llama/Llama-3.1-8B", "google/gemma-2-2b", "gpt2", "EleutherAI/pythia-70m-deduped"
BOTH_WAYS = [
    (None, "blocks.9.hook_resid_post", "layers.9"),
    (None, "blocks.9.hook_resid_pre", "layers.9:in"),
    (None, "blocks.9.hook_mlp_out", "layers.9.mlp"),
    (None, "blocks.9.attn.hook_z", "layers.9.self_attn.o_proj:in"),
    (None, "blocks.9.hook_attn_out", "layers.9.self_attn"),
    (LLAMA, "blocks.12.mlp.hook_post", "layers.12.mlp.down_proj:in"),
    (LLAMA, "hook_embed", "embed_tokens"),
    (LLAMA, "blocks.0.hook_resid_mid", "layers.0.post_attention_layernorm:in"),
    (GEMMA, "blocks.9.hook_mlp_out", "layers.9.post_feedforward_layernorm"),
    (GEMMA, "blocks.9.hook_attn_out", "layers.9.post_attention_layernorm"),
    ("google/gemma-2b", "blocks.9.hook_mlp_out", "layers.9.mlp"),
    (GPT2, "blocks.9.hook_resid_post", "h.9"),
    (GPT2, "blocks.9.attn.hook_z", "h.9.attn.c_proj:in"),
    (GPT2, "blocks.9.hook_attn_out", "h.9.attn"),
    (GPT2, "hook_embed", "wte"),
    (PYTHIA, "blocks.3.hook_resid_post", "layers.3"),
    (PYTHIA, "blocks.3.hook_attn_out", "layers.3.attention"),
    (PYTHIA, "blocks.3.attn.hook_z", "layers.3.attention.dense:in"),
    # Not understood, and kept: parallel blocks have no middle, and this norm's value is no module's output.
    (PYTHIA, "blocks.3.hook_resid_mid", "blocks.3.hook_resid_mid"),
    (GEMMA, "blocks.3.ln2.hook_normalized", "blocks.3.ln2.hook_normalized"),
]


@pytest.mark.parametrize(("model", "theirs", "ours"), BOTH_WAYS)
def test_there_and_back(model: str | None, theirs: str, ours: str) -> None:
    assert hookpoint_of(theirs, model) == ours
    assert transformer_lens_name(ours, model) == theirs


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("model.layers.9", "layers.9"), ("model.layers.9.output", "layers.9"), ("transformer.h.4.mlp", "h.4.mlp"),
        ("gpt_neox.layers.2", "layers.2"), ("model.layers.9.self_attn.o_proj.input", "layers.9.self_attn.o_proj:in"),
        ("layers.9", "layers.9"), ("something.else", "something.else"), ("", None), (None, None),
    ],
)  # fmt: skip
def test_names_of_hugging_face(theirs: str | None, ours: str | None) -> None:
    assert hookpoint_of(theirs) == ours


def test_names_for_hugging_face_and_ids() -> None:
    assert hugging_face_name("layers.9", LLAMA) == "model.layers.9"
    assert hugging_face_name("h.9", GPT2) == "transformer.h.9"
    assert hugging_face_name("layers.9", PYTHIA) == "gpt_neox.layers.9"
    assert [model_id(name) for name in ("gpt2-small", "gemma-2-2b", "pythia-70m", "own/model", "other", "", None)] == [
        "gpt2", "google/gemma-2-2b", "EleutherAI/pythia-70m", "own/model", "other", None, None,
    ]  # fmt: skip
    assert transformer_lens_name(None) is None and transformer_lens_name("lm_head") == "lm_head"
