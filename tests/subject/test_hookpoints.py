"""What is read at a hookpoint is that module's tensor, on four model families, without running what lies above."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
)

from autointerp.errors import UserError
from autointerp.subject.hookpoints import base_model, editing, find, layer_of
from autointerp.subject.load import SubjectModel

SIZES = {"vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 48}


def llama() -> Any:
    return LlamaForCausalLM(LlamaConfig(**SIZES, num_key_value_heads=2))


def gpt2() -> Any:
    return GPT2LMHeadModel(GPT2Config(vocab_size=50, n_embd=32, n_layer=3, n_head=4))


def neox() -> Any:
    return GPTNeoXForCausalLM(GPTNeoXConfig(**SIZES))


def gemma() -> Any:
    return Gemma2ForCausalLM(Gemma2Config(**SIZES, num_key_value_heads=2, head_dim=8))


FAMILIES = {
    "llama": (llama, ["layers.1", "layers.1.mlp", "layers.1.self_attn.o_proj:in"]),
    "gpt2": (gpt2, ["h.1", "h.1.mlp", "h.1.attn.c_proj:in"]),
    "neox": (neox, ["layers.1", "layers.1.mlp", "layers.1.attention.dense:in"]),
    "gemma": (gemma, ["layers.1", "layers.1.mlp", "layers.1.self_attn.o_proj:in"]),
}
CASES = [(family, hookpoint) for family, (_, hookpoints) in FAMILIES.items() for hookpoint in hookpoints]


def subject_of(family: str) -> SubjectModel:
    torch.manual_seed(0)
    return SubjectModel(family, FAMILIES[family][0]().eval(), None)


@pytest.mark.parametrize(("family", "hookpoint"), CASES)
def test_reads_the_named_tensor_and_stops(family: str, hookpoint: str) -> None:
    subject = subject_of(family)
    tokens = torch.randint(0, 50, (2, 9))
    seen: dict[str, Any] = {}

    def keep(module: Any, args: Any, output: Any) -> None:
        seen["in"], seen["out"] = args[0] if args else None, output[0] if isinstance(output, tuple) else output

    handle = find(subject.model, hookpoint).register_forward_hook(keep)
    with torch.no_grad():
        states = subject.model(input_ids=tokens, output_hidden_states=True).hidden_states
    handle.remove()
    ran: list[str] = []
    last = next(m for name, m in base_model(subject.model).named_modules() if name.endswith(".2"))
    watch = last.register_forward_hook(lambda *_: ran.append("above"))
    got = subject.activations(tokens, hookpoint)
    watch.remove()
    torch.testing.assert_close(got, seen["in" if hookpoint.endswith(":in") else "out"].float())
    assert not ran, "blocks above the hookpoint ran"
    if hookpoint.count(".") == 1:
        torch.testing.assert_close(got, states[2])


@pytest.mark.parametrize(("family", "hookpoint"), CASES)
def test_an_identity_edit_changes_no_bit_and_a_real_one_does(family: str, hookpoint: str) -> None:
    subject = subject_of(family)
    tokens = torch.randint(0, 50, (2, 9))
    with torch.no_grad():
        clean = subject.model(input_ids=tokens).logits
        with editing(subject.model, hookpoint, lambda x: x):
            same = subject.model(input_ids=tokens).logits
        with editing(subject.model, hookpoint, lambda x: x + 1.0 * torch.randn_like(x)):
            other = subject.model(input_ids=tokens).logits
        after = subject.model(input_ids=tokens).logits
    assert torch.equal(clean, same)
    assert not torch.allclose(clean, other)
    assert torch.equal(clean, after)


def test_near_matches_and_layers() -> None:
    with pytest.raises(UserError, match=r"near matches: .*layers\.1\.mlp.*blocks are layers\.0 to layers\.2"):
        find(llama(), "layers.1.mlpp")
    assert find(llama(), "model.layers.1") is not None
    assert layer_of("layers.15.mlp") == 15
    assert layer_of("h.3") == 3
    assert layer_of("embed_tokens") is None
