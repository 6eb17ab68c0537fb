"""GroupMax: one latent of each group of neighbours, its largest."""

from __future__ import annotations

import pytest
import torch
from planted_features import random_model, recovery
from torch import Tensor

from sae import SAEError
from sae.architectures.groupmax import Config


def pre_activations(model: torch.nn.Module, x: Tensor) -> Tensor:
    parts = dict(model.named_parameters())
    return ((x - parts["b_dec"]) @ parts["encoder"].T + parts["b_enc"]).detach()


@pytest.mark.parametrize("k", [1, 4, 8, 40])
def test_each_group_keeps_its_largest(k: int) -> None:
    model = random_model("groupmax", 2, d_in=12, n_latents=40, k=k)
    x = torch.randn(60, 12, generator=torch.Generator().manual_seed(3))
    groups = pre_activations(model, x).reshape(60, k, 40 // k)
    codes = model.encode_dense(x).reshape(60, k, 40 // k)
    assert ((codes != 0).sum(dim=2) <= 1).all()
    assert torch.allclose(codes.amax(dim=2), groups.amax(dim=2).relu(), atol=1e-5)
    kept = codes.amax(dim=2) > 0
    assert torch.equal(codes.argmax(dim=2)[kept], groups.argmax(dim=2)[kept])
    if k == 40:
        assert torch.allclose(codes.reshape(60, 40), groups.relu().reshape(60, 40), atol=1e-5), "groups of one: a ReLU"


def test_latents_have_to_divide_into_groups() -> None:
    Config(d_in=12, n_latents=40, k=8)
    with pytest.raises(SAEError, match=r"n_latents \(40\) has to be a multiple of k \(7\)"):
        Config(d_in=12, n_latents=40, k=7)


def test_planted_features_are_found() -> None:
    before, after = recovery("groupmax", k=8)
    assert before < 0.7 and after > 0.9
