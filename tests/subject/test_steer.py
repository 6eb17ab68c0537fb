"""Splice, strength search and likelihoods against plain forward passes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import planted
import pytest
import torch

import sae
from autointerp.clients.hf import HFClient
from autointerp.subject.hookpoints import editing
from autointerp.subject.load import SubjectModel, load_subject
from autointerp.subject.splice import Removal, Splice
from autointerp.subject.steer import SteerClient
from prompts.requests import Failure, Likelihood, LikelihoodReply, Steer, SteerReply
from sae.architectures import topk


@pytest.fixture(scope="module")
def subject(world: Any) -> SubjectModel:
    return load_subject(str(world.model))


@pytest.fixture(scope="module")
def dictionary(world: Any) -> sae.SparseAutoencoder:
    return sae.load(world.sae)


def ids(subject: SubjectModel, text: str) -> tuple[int, ...]:
    return tuple(subject.tokenizer(text)["input_ids"])


PROMPTS = ["the river", "it was on the apple", "a doctor had not but this is an music", "they and we"]


def test_identity_splice_is_exact_and_rows_are_independent(dictionary: sae.SparseAutoencoder) -> None:
    x = torch.randn(3, 5, planted.WIDTH)
    x[0, 0, 0] = -0.0
    splice = Splice(dictionary, torch.tensor([0, 1, 2]), torch.tensor([0.0, 2.0, 0.0]))
    out = splice(x)
    assert torch.equal(out[0], x[0])
    assert torch.signbit(out[0, 0, 0])
    assert torch.equal(out[2], x[2])
    torch.testing.assert_close(out[1] - x[1], 2 * dictionary.W_dec[1].detach().expand(5, -1))


def plain_kl(
    subject: SubjectModel,
    dictionary: sae.SparseAutoencoder,
    latent: int,
    strength: float,
    prompts: list[tuple[int, ...]],
) -> float:
    """KL at the last position, one prompt at a time, without padding, cache or batch."""
    total = 0.0
    for prompt in prompts:
        tokens = torch.tensor([prompt])

        def edit(x: torch.Tensor) -> torch.Tensor:
            out = x.clone()
            out[:, -1] += strength * dictionary.W_dec[latent].detach()
            return out

        with torch.no_grad():
            clean = subject.model(tokens).logits[0, -1].log_softmax(-1)
            with editing(subject.model, planted.HOOKPOINT, edit):
                steered = subject.model(tokens).logits[0, -1].log_softmax(-1)
        total += float((steered.exp() * (steered - clean)).sum())
    return total / len(prompts)


def test_the_same_request_gives_the_same_reply_to_the_bit(
    subject: SubjectModel, dictionary: sae.SparseAutoencoder
) -> None:
    """What a resumed or sharded run rests on: a unit is a call of its own, and its reply hangs on nothing else."""
    prompts = tuple(ids(subject, text) for text in PROMPTS)
    request = Steer(latent=1, prompts=prompts, target_kl=0.2, max_new_tokens=4, seed=0)
    client = SteerClient(subject, dictionary, planted.HOOKPOINT)
    first = client.steer(request)
    client.steer(Steer(latent=2, prompts=prompts[:2], target_kl=0.1, max_new_tokens=2, seed=1))
    assert client.steer(request) == first
    assert client.concurrency == 1


@pytest.mark.parametrize("target", [0.05, 0.2])
def test_the_reached_kl_is_the_target_and_is_true(
    subject: SubjectModel, dictionary: sae.SparseAutoencoder, target: float
) -> None:
    prompts = [ids(subject, text) for text in PROMPTS]
    request = Steer(latent=1, prompts=tuple(prompts), target_kl=target, max_new_tokens=3, seed=0)
    reply = SteerClient(subject, dictionary, planted.HOOKPOINT).steer(request)
    assert isinstance(reply, SteerReply)
    assert reply.converged
    assert abs(reply.reached_kl - target) <= 0.1 * target
    assert plain_kl(subject, dictionary, 1, reply.strength, prompts) == pytest.approx(reply.reached_kl, rel=1e-3)
    assert reply.prompt_texts == tuple(PROMPTS)


def test_zero_strength_leaves_the_continuation_alone(subject: SubjectModel, dictionary: sae.SparseAutoencoder) -> None:
    request = Steer(latent=1, prompts=(ids(subject, PROMPTS[1]),), target_kl=1.0, max_new_tokens=6, seed=5)
    client = SteerClient(subject, dictionary, planted.HOOKPOINT)
    from autointerp.subject.steer import Batch, Found

    with torch.inference_mode():
        ((clean, same),) = Batch(client, [request]).generate([Found(0.0, 0.0, True)])
        ((_, moved),) = Batch(client, [request]).generate([Found(200.0, 0.0, True)])
    assert clean == same
    assert moved != same


def test_an_unreachable_target_is_said_not_scored(subject: SubjectModel, dictionary: sae.SparseAutoencoder) -> None:
    request = Steer(latent=1, prompts=(ids(subject, PROMPTS[1]),), target_kl=1e6, max_new_tokens=1, seed=0)
    reply = SteerClient(subject, dictionary, planted.HOOKPOINT).steer(request)
    assert isinstance(reply, SteerReply)
    assert not reply.converged
    assert reply.reached_kl < 1e6


def test_a_prompt_of_one_token_fails(subject: SubjectModel, dictionary: sae.SparseAutoencoder) -> None:
    request = Steer(latent=1, prompts=((3,),), target_kl=1.0, max_new_tokens=1, seed=0)
    assert isinstance(SteerClient(subject, dictionary, planted.HOOKPOINT).steer(request), Failure)


def plain_logprobs(subject: SubjectModel, prompt: str, text: str) -> list[float]:
    head, tail = ids(subject, prompt), ids(subject, text)
    with torch.no_grad():
        logprobs = subject.model(torch.tensor([[*head, *tail]])).logits[0].log_softmax(-1)
    return [float(logprobs[len(head) + i - 1, token]) for i, token in enumerate(tail)]


def test_likelihoods_equal_plain_forward_passes_whatever_the_batch(subject: SubjectModel) -> None:
    prompts = ["the apple is", "on", "they had seven of it and a river that was by the silver"]
    texts = ["river", "the python is in winter", "music of a doctor at this"]
    requests = [Likelihood(prompt, text) for prompt in prompts for text in texts]
    client = HFClient(subject)
    together = client.likelihoods(requests)
    for request, reply in zip(requests, together, strict=True):
        assert isinstance(reply, LikelihoodReply)
        assert reply.token_logprobs == pytest.approx(plain_logprobs(subject, request.prompt, request.text), abs=1e-4)
    for request, reply in zip(reversed(requests), reversed(together), strict=True):
        (alone,) = client.likelihoods([request])
        assert isinstance(alone, LikelihoodReply)
        assert isinstance(reply, LikelihoodReply)
        assert alone.logprob == pytest.approx(reply.logprob, abs=1e-4)


def test_likelihoods_that_cannot_be(subject: SubjectModel) -> None:
    empty, long = HFClient(subject).likelihoods([Likelihood("the", ""), Likelihood("the", "apple " * 300)])
    assert isinstance(empty, Failure)
    assert empty.kind == "empty"
    assert isinstance(long, Failure)
    assert long.kind == "context_overflow"


def test_pieces_join_to_the_text(subject: SubjectModel) -> None:
    tokens = ids(subject, "the apple is on a river")
    assert subject.pieces(tokens) == (" the", " apple", " is", " on", " a", " river")


def test_many_latents_and_targets_in_one_batch_are_as_each_alone(
    subject: SubjectModel, dictionary: sae.SparseAutoencoder
) -> None:
    """Latents with prompts of their own, several targets, one that cannot be steered and one out of reach."""
    prompts = [tuple(ids(subject, text) for text in PROMPTS[:n]) for n in (4, 2, 3)]
    requests = [
        Steer(latent=latent, prompts=prompts[latent % 3], target_kl=target, max_new_tokens=4, seed=3)
        for latent in range(6)
        for target in (0.05, 0.2)
    ]
    requests += [
        Steer(latent=2, prompts=((3,),), target_kl=0.1, max_new_tokens=4, seed=3),
        Steer(latent=2, prompts=prompts[0], target_kl=1e6, max_new_tokens=4, seed=3),
        Steer(latent=2, prompts=prompts[0], target_kl=0.1, max_new_tokens=2, seed=3),
    ]
    client = SteerClient(subject, dictionary, planted.HOOKPOINT)
    together = client.steer_all(requests)
    for request, reply in zip(requests, together, strict=True):
        alone = client.steer(request)
        assert type(reply) is type(alone)
        if isinstance(reply, SteerReply) and isinstance(alone, SteerReply):
            assert (reply.clean, reply.steered, reply.converged) == (alone.clean, alone.steered, alone.converged)
            if reply.converged:
                assert reply.strength == pytest.approx(alone.strength, rel=1e-3)
                assert reply.reached_kl == pytest.approx(alone.reached_kl, rel=1e-3)
    assert sum(isinstance(reply, SteerReply) and reply.converged for reply in together) >= 12
    assert isinstance(together[12], Failure)


def test_a_batch_runs_each_prompt_once(
    subject: SubjectModel, dictionary: sae.SparseAutoencoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    from autointerp.subject import steer

    prefilled: list[int] = []
    plain = steer.prefill

    def watched(subject: SubjectModel, tokens: torch.Tensor, mask: torch.Tensor) -> Any:
        prefilled.append(len(tokens))
        return plain(subject, tokens, mask)

    monkeypatch.setattr(steer, "prefill", watched)
    prompts = tuple(ids(subject, text) for text in PROMPTS)
    requests = [
        Steer(latent=latent, prompts=prompts, target_kl=target, max_new_tokens=2, seed=0)
        for latent in (1, 2)
        for target in (0.05, 0.1, 0.2)
    ]
    SteerClient(subject, dictionary, planted.HOOKPOINT).steer_all(requests)
    assert prefilled == [len(PROMPTS)]


def test_a_negative_pole_is_steered_the_other_way(subject: SubjectModel, dictionary: sae.SparseAutoencoder) -> None:
    prompts = [ids(subject, text) for text in PROMPTS]
    request = Steer(latent=1, prompts=tuple(prompts), target_kl=0.1, max_new_tokens=2, seed=0, pole=-1)
    reply = SteerClient(subject, dictionary, planted.HOOKPOINT).steer(request)
    assert isinstance(reply, SteerReply) and reply.converged and reply.strength < 0
    assert plain_kl(subject, dictionary, 1, reply.strength, prompts) == pytest.approx(reply.reached_kl, rel=1e-3)


# Removals


def removed(model: sae.SparseAutoencoder, x: torch.Tensor, latent: int) -> torch.Tensor:
    """x + decode(z') - decode(z) of dense codes, one latent of z' being 0."""
    codes = model.encode(x)
    dense = codes.to_dense()
    dense[:, latent] = 0
    less = sae.SparseCodes.from_dense(dense).normalised(codes.scale, codes.shift)
    return x + model.decode(less) - model.decode(codes)


def normalising() -> sae.SparseAutoencoder:
    """An SAE that normalises each token, whose codes are not of the token's own size."""
    model = topk.create({"d_in": planted.WIDTH, "n_latents": 20, "k": 6, "input_norm": "layer_norm"})
    model.initialise(3)
    return model


@pytest.mark.parametrize("normalised", [False, True])
def test_a_removal_clamps_one_latent_and_keeps_the_error(dictionary: sae.SparseAutoencoder, normalised: bool) -> None:
    model = normalising() if normalised else dictionary
    x = 5 * torch.randn(4, 50, planted.WIDTH, generator=torch.Generator().manual_seed(0))
    latents, shares = torch.tensor([0, 3, 3, 5]), torch.tensor([1.0, 1.0, 0.0, 1.0])
    out = Removal(model, latents, shares)(x)
    assert torch.equal(out[2], x[2])
    for row in (0, 1, 3):
        own = model.encode(x[row]).of_latent(int(latents[row]))
        assert 0 < int((own != 0).sum()) < 50
        torch.testing.assert_close(out[row], removed(model, x[row], int(latents[row])), rtol=1e-4, atol=1e-4)
        assert torch.equal(out[row][own == 0], x[row][own == 0]), "where it is silent there is nothing to remove"
        assert not torch.allclose(out[row][own != 0], x[row][own != 0])


def test_a_removal_reports_the_kl_that_it_has(subject: SubjectModel, dictionary: sae.SparseAutoencoder) -> None:
    """Against one prompt at a time, the latent clamped in the whole pass's last position."""
    latent = 0
    ends = f"the on it was {planted.CONCEPTS[latent]}"
    prompts = [ids(subject, ends), ids(subject, f"a doctor had {ends}")]
    total = 0.0
    for prompt in prompts:

        def clamp(x: torch.Tensor) -> torch.Tensor:
            assert dictionary.encode(x[0, -1:]).of_latent(latent) != 0, "the latent fires where the prompt ends"
            return torch.cat([x[:, :-1], removed(dictionary, x[0, -1:], latent)[None]], dim=1)

        tokens = torch.tensor([prompt])
        with torch.no_grad():
            clean = subject.model(tokens).logits[0, -1].log_softmax(-1)
            with editing(subject.model, planted.HOOKPOINT, clamp):
                cut = subject.model(tokens).logits[0, -1].log_softmax(-1)
        total += float((cut.exp() * (cut - clean)).sum())
    request = Steer(latent, tuple(prompts), target_kl=0.0, max_new_tokens=4, seed=0, edit="zero")
    client = SteerClient(subject, dictionary, planted.HOOKPOINT)
    # In company with an additive edit of the same latent, which is another batch.
    reply, added = client.steer_all([request, Steer(latent, tuple(prompts), 0.1, 4, 0)])
    assert isinstance(reply, SteerReply) and isinstance(added, SteerReply)
    assert reply.reached_kl == pytest.approx(total / 2, rel=1e-2) and total > 0
    assert (reply.strength, reply.converged) == (1.0, True)
    assert added.clean == reply.clean and added.reached_kl == pytest.approx(0.1, rel=0.1)
    assert client.steer(request) == reply


def test_removing_a_silent_latent_changes_nothing(subject: SubjectModel, dictionary: sae.SparseAutoencoder) -> None:
    prompt = ids(subject, "the on it was")
    silent = len(planted.CONCEPTS) - 1
    reply = SteerClient(subject, dictionary, planted.HOOKPOINT).steer(Steer(silent, (prompt,), 0.0, 1, 0, edit="zero"))
    assert isinstance(reply, SteerReply)
    assert (reply.reached_kl, reply.steered) == (0.0, reply.clean)


def test_a_transcoder_is_steered_where_it_writes_and_not_removed(subject: SubjectModel, world: Any) -> None:
    transcoder = sae.load(world.sae)
    transcoder.metadata.target_hookpoint = planted.HOOKPOINT
    prompts = [ids(subject, text) for text in PROMPTS]
    request = Steer(latent=1, prompts=tuple(prompts), target_kl=0.1, max_new_tokens=1, seed=0)
    client = SteerClient(subject, transcoder, f"{planted.HOOKPOINT}.mlp")
    reply, removal = client.steer_all([request, replace(request, edit="zero")])
    assert isinstance(reply, SteerReply) and isinstance(removal, Failure) and removal.kind == "rejected"
    assert plain_kl(subject, transcoder, 1, reply.strength, prompts) == pytest.approx(reply.reached_kl, rel=1e-3)
