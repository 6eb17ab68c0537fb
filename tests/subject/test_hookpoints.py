"""What is read at a hookpoint is that module's tensor, on four model families, without running what lies above.

Llama's names name the same modules on all of them; which those are is said here by attribute access.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3Config,
    Gemma3ForCausalLM,
    Gemma3ForConditionalGeneration,
    Gemma3TextConfig,
    GemmaConfig,
    GemmaForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    SiglipVisionConfig,
)

from autointerp.errors import UserError
from autointerp.subject.hookpoints import base_model, editing, find, layer_of, neurons_at, reading, resolve
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


def gemma1() -> Any:
    return GemmaForCausalLM(GemmaConfig(**SIZES, num_key_value_heads=2, head_dim=8))


def gemma3() -> Any:
    return Gemma3ForCausalLM(Gemma3TextConfig(**SIZES, num_key_value_heads=2, head_dim=8))


def gemma3_that_sees() -> Any:
    """What Gemma 3 is from 4B on: the language model is one part, beside a vision tower with layers of its own."""
    text = Gemma3TextConfig(**SIZES, num_key_value_heads=2, head_dim=8)
    vision = SiglipVisionConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=3, num_attention_heads=2, image_size=28, patch_size=14
    )
    return Gemma3ForConditionalGeneration(Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=1))


FAMILIES = {
    "llama": (llama, ["layers.1", "layers.1.mlp", "layers.1.self_attn.o_proj:in"]),
    "gpt2": (gpt2, ["h.1", "h.1.mlp", "h.1.attn.c_proj:in"]),
    "neox": (neox, ["layers.1", "layers.1.mlp", "layers.1.attention.dense:in"]),
    "gemma": (gemma, ["layers.1", "layers.1.mlp", "layers.1.self_attn.o_proj:in"]),
}
OWN = {
    "llama": (llama, "layers.1", "self_attn", "o_proj", "down_proj"),
    "gpt2": (gpt2, "h.1", "attn", "c_proj", "c_proj"),
    "neox": (neox, "layers.1", "attention", "dense", "dense_4h_to_h"),
    "gemma1": (gemma1, "layers.1", "self_attn", "o_proj", "down_proj"),
    "gemma2": (gemma, "layers.1", "self_attn", "o_proj", "down_proj"),
    "gemma3": (gemma3, "layers.1", "self_attn", "o_proj", "down_proj"),
    "gemma3_that_sees": (gemma3_that_sees, "language_model.layers.1", "self_attn", "o_proj", "down_proj"),
}
"""What each family calls block 1, its attention, and the projections that write to the residual stream."""
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
    assert layer_of("blocks.7.ffn:in") == 7
    assert layer_of("language_model.layers.2.mlp") == 2
    with pytest.raises(UserError, match=r"no hookpoint 'layers.1.mlpp'.*near matches: .*h\.1\.mlp.*h\.0 to h\.2"):
        find(gpt2(), "layers.1.mlpp")
    with pytest.raises(UserError, match=r"near matches: .*h\.1\.attn\.c_proj"):
        find(gpt2(), "layers.1.self_attn.o_projj:in")
    with pytest.raises(UserError, match=r"language_model\.layers\.0 to language_model\.layers\.2"):
        find(gemma3_that_sees(), "layers.3")
    for nothing in ("", ":in", "model.", "layers..1", "layers.3", "h.1", "layers.1.mlp.o_proj"):
        with pytest.raises(UserError, match="no hookpoint"):
            resolve(llama(), nothing)


def modules_of(model: Any, family: str) -> dict[str, tuple[str, Any]]:
    """Llama's name -> (this family's, the module itself)."""
    _, block, attention, out, down = OWN[family]
    inner = model.base_model
    blocks = inner.h if family == "gpt2" else getattr(inner, "language_model", inner).layers
    heads = getattr(blocks[1], attention)
    return {
        "layers.1": (block, blocks[1]),
        "layers.1.mlp": (f"{block}.mlp", blocks[1].mlp),
        "layers.1.self_attn": (f"{block}.{attention}", heads),
        "layers.1.self_attn.o_proj": (f"{block}.{attention}.{out}", getattr(heads, out)),
        "layers.1.mlp.down_proj": (f"{block}.mlp.{down}", getattr(blocks[1].mlp, down)),
    }


@pytest.mark.parametrize("family", OWN)
def test_llamas_names_lead_to_the_same_module_of_every_family(family: str) -> None:
    model = OWN[family][0]()
    for name, (own, module) in modules_of(model, family).items():
        for hookpoint, real in ((name, own), (own, own), (f"model.{name}", own)):
            assert resolve(model, hookpoint) == real
            assert resolve(model, f"{hookpoint}:in") == f"{real}:in"
            assert find(model, hookpoint) is find(model, f"{hookpoint}:in") is module


@pytest.mark.parametrize("family", OWN)
def test_what_is_read_goes_by_the_name_that_was_asked_for(family: str) -> None:
    torch.manual_seed(0)
    model = OWN[family][0]().eval()
    tokens = torch.randint(0, 50, (2, 9))
    expected: dict[str, Any] = {}

    def keep(name: str, module: Any, args: Any, kwargs: Any, output: Any) -> None:
        expected[name] = output[0] if isinstance(output, tuple) else output
        expected[f"{name}:in"] = args[0] if args else kwargs["hidden_states"]

    named = modules_of(model, family)
    handles = [
        module.register_forward_hook(lambda *seen, name=name: keep(name, *seen), with_kwargs=True)
        for name, (_, module) in named.items()
    ]
    with torch.no_grad():
        model(input_ids=tokens)
    for handle in handles:
        handle.remove()
    asked = list(dict.fromkeys([*expected, *(own for own, _ in named.values())]))
    found = SubjectModel(family, model, None).activations_at(tokens, asked)
    assert list(found) == asked
    for name, (own, _) in named.items():
        for key, true in ((name, name), (f"{name}:in", f"{name}:in"), (own, name)):
            torch.testing.assert_close(found[key], expected[true].float(), rtol=0, atol=0)
    with torch.no_grad(), reading(model, ["layers.1"], stop=False) as seen:
        model(input_ids=tokens)
    assert list(seen) == ["layers.1"]


@pytest.mark.parametrize("hookpoint", ["layers.1.self_attn.o_proj:in", "layers.1.mlp", "layers.1"])
@pytest.mark.parametrize("family", ["gpt2", "neox", "gemma3_that_sees"])
def test_an_edit_under_llamas_name_is_that_under_the_models_own(family: str, hookpoint: str) -> None:
    torch.manual_seed(0)
    model = OWN[family][0]().eval()
    tokens = torch.randint(0, 50, (2, 9))
    logits = []
    with torch.no_grad():
        clean = model(input_ids=tokens).logits
        for name in (hookpoint, resolve(model, hookpoint)):
            with editing(model, name, lambda x: 2 * x + 1):
                logits.append(model(input_ids=tokens).logits)
    assert torch.equal(*logits)
    assert not torch.allclose(clean, logits[0])


@pytest.mark.parametrize("family", OWN)
def test_neurons_are_what_the_down_projection_reads(family: str) -> None:
    model = OWN[family][0]().eval()
    named = modules_of(model, family)
    neurons = f"{named['layers.1.mlp.down_proj'][0]}:in"
    for name in ("layers.1", "layers.1.mlp", "model.layers.1", named["layers.1"][0], named["layers.1.mlp"][0]):
        assert neurons_at(model, name) == neurons
    wide = 4 * 32 if family == "gpt2" else 48
    assert SubjectModel(family, model, None).activations(torch.zeros(1, 2).long(), neurons).shape == (1, 2, wide)
    for name in ("layers.1.self_attn", "layers.1:in", "layers.1.mlp:in", "layers.1.self_attn.o_proj:in", neurons):
        assert neurons_at(model, name) == resolve(model, name)
    with pytest.raises(UserError, match="no hookpoint"):
        neurons_at(model, "layers.3")


def test_an_exact_name_wins_and_a_missing_down_projection_is_said() -> None:
    odd = torch.nn.Module()
    odd.layers = torch.nn.ModuleList([torch.nn.Module() for _ in range(2)])
    odd.h = torch.nn.ModuleList([torch.nn.Module() for _ in range(2)])
    odd.layers[0].mlp, odd.h[0].mlp, odd.h[1].mlp = torch.nn.Identity(), torch.nn.Module(), torch.nn.Module()
    odd.h[0].mlp.c_proj = torch.nn.Identity()
    assert find(odd, "layers.0.mlp") is odd.layers[0].mlp
    assert find(odd, "layers.1.mlp") is odd.h[1].mlp
    with pytest.raises(UserError, match=r"no hookpoint 'h\.1\.mlp\.down_proj:in'"):
        neurons_at(odd, "h.1")
    other = torch.nn.Module()
    other.blocks = torch.nn.ModuleList([torch.nn.Identity()])
    assert resolve(other, "layers.0") == "blocks.0"
