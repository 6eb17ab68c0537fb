"""TopK: how many are kept, whom AuxK reaches, and what it learns. Gradients and the like are in test_conformance."""

from __future__ import annotations

import pytest
import torch
from planted_features import best_cosines, fvu, planted, random_topk, recovery, scaled, train
from torch import Tensor

from sae import SAEError
from sae.architectures.topk import Config, TopK
from sae.training import Batch, StepContext


def test_codes_are_the_k_largest_and_at_most_k() -> None:
    x = torch.randn(200, 12, generator=torch.Generator().manual_seed(5))
    for k in (1, 3, 40):
        model = random_topk(5, d_in=12, n_latents=40, k=k)
        pre = ((x - model.b_dec) @ model.encoder.T + model.b_enc).detach()
        cut = pre.sort(dim=1, descending=True).values[:, k - 1 : k]
        dense = model.encode_dense(x)
        assert torch.allclose(dense, torch.where(pre >= cut, pre.relu(), 0.0), atol=1e-5)
        assert (dense != 0).sum(dim=1).max() <= k
        with torch.no_grad():
            model.b_enc += 100
        assert (model.encode_dense(x) != 0).sum(dim=1).tolist() == [k] * 200


@pytest.mark.parametrize("k", [0, 41, -1])
def test_k_has_to_fit(k: int) -> None:
    with pytest.raises(SAEError, match="between 1 and n_latents"):
        Config(d_in=12, n_latents=40, k=k)


def test_a_latent_whose_code_is_zero_has_not_fired() -> None:
    model = random_topk(4, d_in=12, n_latents=40, k=40)
    with torch.no_grad():
        model.b_enc[:5] = -1000
    x = torch.randn(50, 12, generator=torch.Generator().manual_seed(2))
    fired = model.step(Batch(x), StepContext()).fired
    assert not fired[:5].any() and fired[5:].all()


def gradients(model: TopK, x: Tensor, dead: Tensor | None) -> dict[str, Tensor]:
    model.step(Batch(x), StepContext(dead=dead))
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def test_the_aux_loss_reaches_dead_latents_only() -> None:
    """The AuxK share of the gradient is nil outside the dead rows, b_dec apart."""
    model = random_topk(3, dtype=torch.float64, d_in=12, n_latents=40, k=4)
    x = torch.randn(50, 12, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    dead = torch.tensor([2, 3, 17])
    plain, with_dead = gradients(model, x, None), gradients(model, x, dead)
    nobody = gradients(model, x, torch.zeros(0, dtype=torch.int64))
    assert all(torch.equal(nobody[name], plain[name]) for name in plain)
    live = torch.ones(40, dtype=torch.bool)
    live[dead] = False
    for name in ("encoder", "b_enc", "W_dec"):
        extra = with_dead[name] - plain[name]
        assert not extra[live].any() and extra[dead].abs().max() > 1e-6, name


def test_planted_features_are_found() -> None:
    before, after = recovery("topk", k=3)
    assert before < 0.7, "the start must not already be the answer"
    assert after > 0.95


def test_with_multi_topk_codes_are_good_at_four_times_k() -> None:
    """Trained for k alone, what the next latents add is no part of the loss, and does harm."""
    wide_fvu, own_fvu = {}, {}
    for multi in (False, True):
        model = TopK(Config(d_in=32, n_latents=96, k=3, multi_topk=multi))
        x = scaled(planted(8192 + 1024)[1], model)
        train(model, x[:8192])
        wide = TopK(Config(d_in=32, n_latents=96, k=12))
        wide.load_state_dict(model.state_dict())
        own_fvu[multi], wide_fvu[multi] = fvu(model, x[8192:]), fvu(wide, x[8192:])
    assert wide_fvu[True] < 0.5 * wide_fvu[False]
    assert own_fvu[True] < own_fvu[False] + 0.05


def test_auxk_revives_dead_latents_that_are_needed() -> None:
    """A latent that never fires gets no gradient but AuxK's; with it, it learns what the others leave over.

    Two thirds of the latents start pushed below the others, which alone cannot hold 64 features.
    """
    directions, raw = planted(8192)
    dead, left, cosine = {}, {}, {}
    for alpha in (0.0, 1 / 32):
        model = TopK(Config(d_in=32, n_latents=96, k=3, auxk_alpha=alpha))
        x = scaled(raw, model)
        model.initialise(0)
        model.initialise_from(x)
        with torch.no_grad():
            model.b_enc[:64] = -1.5
        train(model, x, initialise=False, dead_after=2048)
        dead[alpha] = float((model.encode_dense(x) == 0).all(dim=0).double().mean())
        left[alpha], cosine[alpha] = fvu(model, x), best_cosines(directions, model).mean()
    assert dead[0.0] > 0.6, "without AuxK next to none comes back"
    assert dead[1 / 32] < 0.6 * dead[0.0]
    assert left[1 / 32] < 0.5 * left[0.0]
    assert cosine[1 / 32] > cosine[0.0] + 0.1
