"""Matryoshka: groups and weights, what prefixes are for, and that one group is BatchTopK."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from planted_features import planted_zipf, random_model, randomise, recovery, scaled, train

from sae import SAEError
from sae.architectures import batchtopk
from sae.architectures.matryoshka import Config, Matryoshka
from sae.training import Batch, StepContext


def test_shares_become_sizes_that_sum_to_the_dictionary() -> None:
    assert Config(d_in=8, n_latents=4096).sizes == (128, 256, 512, 1024, 2176)
    assert Config(d_in=8, n_latents=40).sizes == (1, 3, 5, 10, 21)
    assert Config(d_in=8, n_latents=40).group_weights == (0.2,) * 5
    for n in range(37, 200):
        assert sum(Config(d_in=8, n_latents=n, k=1).sizes) == n
    assert Config(d_in=8, n_latents=40, group_sizes=(4, 36), k=3).sizes == (4, 36)


def test_lists_from_a_file_are_the_same_config() -> None:
    config = Config(d_in=8, n_latents=40, k=3, group_sizes=(4, 36), weights=(0.25, 0.75))
    model = Matryoshka(config)
    assert Config(**json.loads(json.dumps(model.config_dict()))) == config


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"groups": (0.5, 0.4)}, r"have to sum to 1, not 0\.9"),
        ({"groups": (0.001, 0.999)}, "groups of 0, 40 latents do not divide 40"),
        ({"group_sizes": (10, 20)}, "groups of 10, 20 latents do not divide 40"),
        ({"group_sizes": ()}, "groups of nothing latents"),
        ({"weights": (0.5, 0.5)}, "5 non-negative numbers that sum to 1"),
        ({"weights": (0.2, 0.2, 0.2, 0.2, 0.3)}, "that sum to 1"),
        ({"weights": (-0.2, 0.2, 0.2, 0.3, 0.5)}, "non-negative"),
    ],
)
def test_groups_and_weights_have_to_fit(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SAEError, match=message):
        Config(d_in=8, n_latents=40, k=3, **settings)


def test_one_group_is_batchtopk() -> None:
    settings = {"d_in": 12, "n_latents": 40, "k": 4}
    one = randomise(Matryoshka(Config(**settings, groups=(1.0,))), 3).double()
    plain = randomise(batchtopk.BatchTopK(batchtopk.Config(**settings)), 3).double()
    x = torch.randn(50, 12, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    results = [model.step(Batch(x), StepContext(dead=torch.tensor([1, 5]))) for model in (one, plain)]
    assert torch.allclose(results[0].loss, results[1].loss, rtol=1e-12)
    assert torch.equal(results[0].fired, results[1].fired)
    for name, parameter in one.named_parameters():
        assert torch.allclose(parameter.grad, dict(plain.named_parameters())[name].grad, rtol=1e-9, atol=1e-12), name


def test_the_last_prefix_is_the_whole_reconstruction() -> None:
    """Its error is the figure `fvu`, and the other prefixes' are those of decoding with fewer latents."""
    model = random_model("matryoshka", 3, dtype=torch.float64, d_in=12, n_latents=40, k=4)
    x = torch.randn(50, 12, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    u = ((x - model.b_dec) @ model.encoder.T + model.b_enc).detach()
    cut = u.flatten().sort(descending=True).values[199]
    codes = u * (u >= cut)
    result = model.step(Batch(x), StepContext())
    variance = (x - x.mean(dim=0)).square().sum()
    for group, end in enumerate((1, 4, 9, 19, 40)):
        error = codes[:, :end] @ model.W_dec[:end] + model.b_dec - x
        assert torch.allclose(result.parts[f"fvu_{group}"], error.square().sum() / variance)
    assert torch.equal(result.fvu, result.parts["fvu_4"])
    assert torch.allclose(result.loss, sum(result.parts.values()) / 5)


def test_prefixes_reconstruct_on_their_own() -> None:
    """On features of Zipf's frequencies the first eighth explains far more than that of a BatchTopK, at little cost."""
    directions, raw, _ = planted_zipf(8192 + 2048, d=32, features=64, active=4.0)
    prefix, whole, frequent = {}, {}, {}
    for kind in (Matryoshka, batchtopk.BatchTopK):
        settings: dict[str, Any] = {"d_in": 32, "n_latents": 64, "k": 4}
        groups = {"group_sizes": (8, 8, 16, 32)} if kind is Matryoshka else {}
        model = kind((Config if groups else batchtopk.Config)(**settings, **groups))
        x = scaled(raw, model)
        train(model, x[:8192], steps=400)
        held, codes = x[8192:], model.encode_dense(x[8192:])
        variance = (held - held.mean(dim=0)).square().sum()
        for name, kept in (("prefix", codes * (torch.arange(64) < 8)), ("whole", codes)):
            left = float((kept @ model.W_dec + model.b_dec - held).detach().square().sum() / variance)
            (prefix if name == "prefix" else whole)[kind] = left
        cosines = directions @ model.W_dec.detach().numpy()[:8].T
        frequent[kind] = np.median(cosines.argmax(axis=0))  # features are numbered by falling frequency
    assert prefix[Matryoshka] < 0.7 * prefix[batchtopk.BatchTopK]
    assert whole[Matryoshka] < whole[batchtopk.BatchTopK] + 0.15
    assert frequent[Matryoshka] < 8 < frequent[batchtopk.BatchTopK]


def test_planted_features_are_found() -> None:
    before, after = recovery("matryoshka", k=3, steps=400)
    assert before < 0.7 and after > 0.9
