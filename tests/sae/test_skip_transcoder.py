"""Skip transcoders: a linear map costs no latents, is learned from zero, and leaves the rest to them."""

from __future__ import annotations

import torch
from planted_features import fvu, planted, scaled, train
from torch import Tensor

from sae.architectures.skip_transcoder import Config, SkipTranscoder
from sae.architectures.transcoder import Transcoder


def linear(n: int, d_out: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    weight = torch.randn(d_out, 32, generator=generator) / 32**0.5
    x = torch.randn(n, 32, generator=generator)
    return weight, x, x @ weight.T + 0.5


def test_an_exact_map_leaves_nothing_over() -> None:
    """Where the target is linear and W_skip is that map, no code is needed."""
    weight, x, y = linear(500, 20)
    model = SkipTranscoder(Config(d_in=32, n_latents=96, d_out=20, k=4))
    with torch.no_grad():
        model.W_skip.copy_(weight)
        model.b_dec.fill_(0.5)
    assert model.encode(x).latents.numel() == 0
    assert fvu(model, x, y) < 1e-10
    assert torch.allclose(model.decode(model.encode(x)), torch.full((500, 20), 0.5)), "a decode is of the codes alone"


def test_the_map_is_learned_from_zero() -> None:
    _, x, y = linear(8192 + 1024, 32)
    model = SkipTranscoder(Config(d_in=32, n_latents=64, k=2))
    model.initialise(0)
    assert not model.W_skip.any()
    train(model, x[:8192], target=y[:8192], steps=400, lr=1e-2)
    assert fvu(model, x[8192:], y[8192:]) < 0.01
    with torch.no_grad():
        model.W_dec.zero_()
    assert fvu(model, x[8192:], y[8192:]) < 0.02, "it is the map that does it"


def test_latents_explain_what_is_not_linear() -> None:
    """A linear part too wide for k latents beside steps of planted features: only both together do."""
    directions, raw = planted(8192 + 1024)
    generator = torch.Generator().manual_seed(1)
    raw = torch.from_numpy(raw)
    steps = (raw @ torch.from_numpy(directions).T > 0.75).float()
    weight = torch.randn(32, 32, generator=generator) / 32**0.5
    x = scaled(raw + 0.1 * torch.randn(raw.shape, generator=generator), Transcoder(Config(d_in=32, n_latents=96, k=3)))
    y = x @ weight.T + steps @ torch.randn(64, 32, generator=generator)
    linear_only = y - x @ torch.linalg.lstsq(x[:8192], y[:8192]).solution
    left = {"map": float(linear_only[8192:].square().sum() / (y[8192:] - y[8192:].mean(dim=0)).square().sum())}
    for skip in (False, True):
        model = (SkipTranscoder if skip else Transcoder)(Config(d_in=32, n_latents=96, k=3, skip=skip))
        train(model, x[:8192], target=y[:8192])
        left["both" if skip else "latents"] = fvu(model, x[8192:], y[8192:])
    assert left["both"] < 0.75 * left["map"]
    assert left["both"] < 0.75 * left["latents"]
