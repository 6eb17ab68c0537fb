"""Logit lens and gains of next tokens against plain forward passes, and on directions whose effect is planted."""

from __future__ import annotations

import asyncio
import math
from dataclasses import fields, replace
from typing import Any

import planted
import pytest
import torch
from transformers import Gemma2Config, Gemma2ForCausalLM, GPT2Config, GPT2LMHeadModel

import sae
from autointerp.pipeline.demo_model import demo_subject
from autointerp.subject.effects import EffectsClient
from autointerp.subject.hookpoints import editing
from autointerp.subject.lens import largest, logit_lens, residual_directions
from autointerp.subject.load import SubjectModel, load_subject
from autointerp.subject.steer import SteerClient
from prompts.requests import Effects, EffectsReply, Failure, Steer, SteerReply, fingerprint
from sae.architectures import topk
from sae.base import SAEMetadata

WORDS = ["apple", "river", "seven", "python"]
"""What latents 0 to 3 promote."""
PROMPTS = ["the river", "it was on the apple", "a doctor had not but this is an music", "they and we"]


@pytest.fixture(scope="module")
def subject(world: Any) -> SubjectModel:
    """Its unembedding has rows at right angles: a direction along one promotes that token and no other."""
    made = load_subject(str(world.model))
    generator = torch.Generator().manual_seed(0)
    made.model.lm_head.weight.copy_(torch.linalg.qr(torch.randn(64, 64, generator=generator))[0][:42])
    return made


@pytest.fixture(scope="module")
def dictionary(subject: SubjectModel) -> sae.SparseAutoencoder:
    """Decoder rows are rows of the unembedding, of any length; that of latent 4 is a mixture of all."""
    made = planted.make_topk(SAEMetadata(hookpoint=planted.HOOKPOINT))
    with torch.no_grad():
        for latent, word in enumerate(WORDS):
            made.W_dec[latent] = (1 + latent) * subject.model.lm_head.weight[token_of(word)]
        made.W_dec[4] = torch.randn(planted.WIDTH, generator=torch.Generator().manual_seed(1))
    return made


@pytest.fixture(scope="module")
def client(subject: SubjectModel, dictionary: sae.SparseAutoencoder) -> EffectsClient:
    return EffectsClient(subject, dictionary, planted.HOOKPOINT)


def token_of(word: str) -> int:
    return planted.vocabulary()["\u2581" + word]


def ids(subject: SubjectModel, text: str) -> tuple[int, ...]:
    return tuple(subject.tokenizer(text)["input_ids"])


def asked(subject: SubjectModel, latent: int, **more: Any) -> Effects:
    prompts = tuple(ids(subject, text) for text in PROMPTS)
    return Effects(**{"latent": latent, "prompts": prompts, "target_kl": 0.5, "n_tokens": 6, **more})


def effects(client: EffectsClient, request: Effects) -> EffectsReply:
    reply = client.effects(request)
    assert isinstance(reply, EffectsReply)
    return reply


@pytest.mark.parametrize("latent", range(4))
def test_the_planted_token_is_promoted_everywhere(client: EffectsClient, subject: SubjectModel, latent: int) -> None:
    token, word = token_of(WORDS[latent]), f" {WORDS[latent]}"
    reply = effects(client, asked(subject, latent))
    assert reply.promoted is not None and (reply.promoted[0].token, reply.promoted[0].text) == (token, word)
    assert reply.converged and abs(reply.reached_kl - 0.5) <= 0.05 and reply.strength > 0  # type: ignore[operator]
    assert reply.prompt_texts == tuple(PROMPTS)
    assert [gains[0].token for gains in reply.gains] == [token] * len(PROMPTS)
    against = effects(client, asked(subject, latent, pole=-1))
    assert against.suppressed is not None and against.suppressed[0].token == token
    assert against.strength is not None and against.strength < 0
    assert token not in {gain.token for gains in against.gains for gain in gains}


def test_the_model_is_left_as_it_was(client: EffectsClient, subject: SubjectModel) -> None:
    tokens = torch.tensor([ids(subject, PROMPTS[1])])
    before = subject.model(tokens).logits
    client.effects(asked(subject, 1))
    assert torch.equal(subject.model(tokens).logits, before)


def test_the_lens_is_the_unembedding_of_the_normed_direction(
    client: EffectsClient, subject: SubjectModel, dictionary: sae.SparseAutoencoder
) -> None:
    d = dictionary.W_dec[4].detach()
    change = subject.model.lm_head.weight.detach() @ (d / d.square().mean().sqrt())
    reply = effects(client, asked(subject, 4, prompts=(), lens_tokens=5))
    for shown, sign in ((reply.promoted, 1), (reply.suppressed, -1)):
        assert shown is not None and len(shown) == 5
        order = [i for i in (-sign * change).argsort().tolist() if i not in subject.special_ids][:5]
        assert [shift.token for shift in shown] == order
        assert [shift.change for shift in shown] == pytest.approx(change[order].tolist(), rel=1e-4)
    turned = effects(client, asked(subject, 4, prompts=(), lens_tokens=5, pole=-1))
    assert [s.token for s in turned.promoted or ()] == [s.token for s in reply.suppressed or ()]


def gains_by_hand(subject: SubjectModel, direction: torch.Tensor, prompt: tuple[int, ...]) -> list[tuple[int, float]]:
    """Of all tokens that gain and can be shown, largest first: one prompt, without padding, cache or batch."""
    tokens = torch.tensor([prompt])

    def edit(x: torch.Tensor) -> torch.Tensor:
        out = x.clone()
        out[:, -1] += direction
        return out

    with torch.no_grad():
        clean = subject.model(tokens).logits[0, -1].softmax(-1)
        with editing(subject.model, planted.HOOKPOINT, edit):
            change = subject.model(tokens).logits[0, -1].softmax(-1) - clean
    order = change.argsort(descending=True).tolist()
    return [(i, float(change[i])) for i in order if change[i] > 0 and i not in subject.special_ids]


@pytest.mark.parametrize(("target", "pole"), [(0.1, 1), (0.5, -1), (1e6, 1)])
def test_gains_are_those_of_plain_passes(
    client: EffectsClient, subject: SubjectModel, dictionary: sae.SparseAutoencoder, target: float, pole: int
) -> None:
    """Also at the nearest strength where the target is out of reach."""
    reply = effects(client, asked(subject, 2, target_kl=target, pole=pole, n_tokens=40))
    assert reply.converged == (target < 10)
    assert reply.strength is not None and reply.strength * pole > 0
    for prompt, gains in zip(PROMPTS, reply.gains, strict=True):
        hand = gains_by_hand(subject, reply.strength * dictionary.W_dec[2].detach(), ids(subject, prompt))
        assert hand
        assert [gain.change for gain in gains] == pytest.approx([change for _, change in hand], abs=1e-5)
        by_token = dict(hand)
        assert all(gain.change == pytest.approx(by_token[gain.token], abs=1e-5) for gain in gains)


def test_the_strength_is_that_of_the_intervention_scorer(
    client: EffectsClient, subject: SubjectModel, dictionary: sae.SparseAutoencoder
) -> None:
    reply, request = effects(client, asked(subject, 3)), asked(subject, 3)
    steered = SteerClient(subject, dictionary, planted.HOOKPOINT).steer(Steer(3, request.prompts, 0.5, 1, 0))
    assert isinstance(steered, SteerReply)
    assert (reply.strength, reply.reached_kl) == pytest.approx((steered.strength, steered.reached_kl))


def test_a_closer_search(client: EffectsClient, subject: SubjectModel) -> None:
    for latent in range(5):
        reply = effects(client, asked(subject, latent, tolerance=1e-3))
        assert reply.converged and reply.reached_kl == pytest.approx(0.5, rel=1e-3)


def test_every_field_is_part_of_the_question(subject: SubjectModel) -> None:
    request = asked(subject, 1)
    changes = {
        "latent": 2, "prompts": (), "target_kl": 1.0, "n_tokens": 7, "lens_tokens": 5, "pole": -1, "tolerance": 0.2
    }  # fmt: skip
    assert set(changes) == {field.name for field in fields(request)}
    prints = {fingerprint(request), *(fingerprint(replace(request, **{k: v})) for k, v in changes.items())}
    assert len(prints) == 1 + len(changes)


def test_nothing_else_that_is_asked_counts(client: EffectsClient, subject: SubjectModel) -> None:
    requests = [
        asked(subject, latent, pole=pole, target_kl=kl) for latent in range(2) for pole in (1, -1) for kl in (0.1, 1.0)
    ]
    requests += [asked(subject, 1, prompts=()), asked(subject, 1, prompts=((3,),)), asked(subject, 0, target_kl=1e6)]
    together = asyncio.run(client.answer(requests))
    assert together == [client.effects(request) for request in requests]
    assert together[::-1] == asyncio.run(client.answer(requests[::-1]))
    assert len({repr(reply) for reply in together}) == len(together)


def test_without_prompts_there_is_the_lens_alone(client: EffectsClient, subject: SubjectModel) -> None:
    reply = effects(client, asked(subject, 0, prompts=()))
    assert reply.promoted and reply.suppressed
    assert (reply.gains, reply.prompt_texts, reply.strength, reply.reached_kl, reply.converged) == (
        (),
        (),
        None,
        None,
        False,
    )


def test_what_cannot_be(client: EffectsClient, subject: SubjectModel) -> None:
    assert isinstance(client.effects(asked(subject, 0, prompts=((3,), (3, 4)))), Failure)
    dead = effects(client, asked(subject, 15))
    # Its decoder row is zero: it promotes nothing, and no strength has an effect.
    assert (dead.promoted, dead.suppressed) == ((), ()) and not any(dead.gains)
    assert (dead.converged, dead.reached_kl) == (False, 0.0)


def test_tokens_that_cannot_be_shown_are_passed_over(subject: SubjectModel, monkeypatch: pytest.MonkeyPatch) -> None:
    values = torch.arange(-2.0, 40.0)
    (sep,) = subject.tokenizer.convert_tokens_to_ids(["<sep>"])
    assert sep in subject.special_ids and len(values) == len(planted.vocabulary())
    monkeypatch.setattr(
        subject, "pieces_alone", lambda tokens: [{41: "", 40: "\ufffd"}.get(t, f"t{t}") for t in tokens]
    )
    assert [shift.token for shift in largest(subject, values, 3)] == [39, 38, 37]
    assert [shift.token for shift in largest(subject, values, 100)] == [*range(39, 2, -1)]
    values[sep] = 99.0
    assert largest(subject, values, 1)[0].token == 39
    assert largest(subject, -values - 5, 9, -1) == ()
    assert [(s.token, s.change) for s in largest(subject, 5 - values, 2, -1)] == [(2, -5.0), (3, -4.0)]


# the logit lens at other places and in other families


def test_last_linear_maps_are_gone_through(subject: SubjectModel) -> None:
    block = subject.model.model.layers[1]
    for name, linear in (("self_attn.o_proj", block.self_attn.o_proj), ("mlp.down_proj", block.mlp.down_proj)):
        d = torch.randn(3, linear.in_features)
        found = residual_directions(subject.model, f"layers.1.{name}:in", d)
        torch.testing.assert_close(found, d @ linear.weight.detach().T)
    d = torch.randn(3, planted.WIDTH)
    for name in ("", ":in", ".mlp", ".self_attn", ".self_attn.o_proj", ".mlp.down_proj"):
        assert residual_directions(subject.model, f"layers.1{name}", d) is d
    for name in (
        "layers.1.mlp:in",
        "layers.1.self_attn:in",
        "layers.1.input_layernorm",
        "layers.1.mlp.up_proj",
        "norm",
    ):
        assert residual_directions(subject.model, name, d) is None
        assert logit_lens(subject, name, d) is None


def test_a_latent_that_is_not_in_the_residual_stream_has_gains_only(subject: SubjectModel) -> None:
    made = planted.make_topk(SAEMetadata())
    with torch.no_grad():
        made.W_dec.copy_(torch.randn(made.W_dec.shape, generator=torch.Generator().manual_seed(0)))
    reply = effects(EffectsClient(subject, made, "layers.0.input_layernorm"), asked(subject, 0, target_kl=1e-6))
    assert reply.promoted is None and reply.suppressed is None and len(reply.gains) == len(PROMPTS)


def test_a_transcoder_is_steered_where_it_writes(subject: SubjectModel, dictionary: sae.SparseAutoencoder) -> None:
    """Its input is not in the residual stream, its output is."""
    metadata = SAEMetadata(hookpoint="layers.1.mlp:in", target_hookpoint="layers.1.mlp")
    made = planted.make_topk(metadata)
    made.load_state_dict(dictionary.state_dict())
    reply = effects(EffectsClient(subject, made, "layers.1.mlp:in"), asked(subject, 1))
    assert reply.promoted is not None and reply.promoted[0].text == " river"
    assert reply.converged and {gains[0].text for gains in reply.gains} == {" river"}


def tiny(model: Any) -> SubjectModel:
    return SubjectModel("tiny", model.eval().requires_grad_(False), planted.tokenizer())


def test_layer_norm_with_biases() -> None:
    torch.manual_seed(1)
    subject = tiny(GPT2LMHeadModel(GPT2Config(vocab_size=42, n_embd=64, n_layer=2, n_head=2, n_positions=32)))
    norm, d = subject.model.transformer.ln_f, torch.randn(2, 64)
    with torch.no_grad():
        norm.weight.uniform_(0.5, 2)
        norm.bias.normal_()
    centred = d - d.mean(dim=-1, keepdim=True)
    normed = norm.weight * centred / centred.square().mean(dim=-1, keepdim=True).sqrt()
    expected = normed @ subject.model.lm_head.weight.T
    for scale in (1e-3, 1.0, 50.0):
        lens = logit_lens(subject, "layers.0", scale * d)
        assert lens is not None
        torch.testing.assert_close(lens, expected, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(logit_lens(subject, "h.1.attn", -d), -expected, rtol=1e-3, atol=1e-4)
    linear, wide = subject.model.transformer.h[1].mlp.c_proj, torch.randn(2, 256)
    with torch.no_grad():
        linear.bias.normal_()
    written = residual_directions(subject.model, "layers.1.mlp.down_proj:in", wide)
    torch.testing.assert_close(written, wide @ linear.weight, rtol=1e-4, atol=1e-5)


def test_norms_after_a_sublayer_are_not_linear() -> None:
    config = Gemma2Config(
        vocab_size=42, hidden_size=64, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, head_dim=32,
    )  # fmt: skip
    torch.manual_seed(2)
    subject, d = tiny(Gemma2ForCausalLM(config)), torch.randn(1, 64)
    assert residual_directions(subject.model, "layers.0.mlp", d) is None
    lens = logit_lens(subject, "layers.0", d)
    assert lens is not None
    # Its logits are capped, which keeps their order.
    row = (subject.model.lm_head.weight @ (d[0] / d.square().mean().sqrt())).argsort()
    assert lens[0].argsort().tolist() == row.tolist()


@pytest.mark.slow
def test_a_real_model_says_the_planted_word() -> None:
    subject = load_subject(str(demo_subject()))
    width = subject.model.config.hidden_size
    made = topk.create({"d_in": width, "n_latents": 2, "k": 1}, SAEMetadata())
    words = [ids(subject, word)[0] for word in (" winter", " seven")]
    with torch.no_grad():
        made.W_dec.copy_(subject.model.get_output_embeddings().weight[words])
    prompts = tuple(
        ids(subject, text) for text in ("The most beautiful thing in life is", "She opened the door and saw")
    )
    client = EffectsClient(subject, made, "layers.27")
    for latent, word in enumerate(words):
        reply = effects(client, Effects(latent, prompts, 3.0, 3))
        assert reply.promoted is not None and reply.promoted[0].token == word
        assert reply.converged and math.isclose(reply.reached_kl or 0, 3.0, rel_tol=0.1)
        for gains in reply.gains:
            assert word in [gain.token for gain in gains]
