"""Transcoders: one activation is read and another reconstructed, by TopK and by others that can."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from planted_features import fvu, planted, scaled, train
from torch import Tensor

from sae import SAEError
from sae.architectures.transcoder import Config, Transcoder
from sae.formats.native import ARCHITECTURES


def small_mlp(n: int, d_out: int) -> tuple[Tensor, Tensor]:
    """Inputs `[n, 32]` of planted features, and outputs `[n, d_out]` that each feature writes in its own direction."""
    directions, x = planted(n)
    rng = np.random.default_rng(7)
    written = rng.normal(size=(64, d_out)) / np.sqrt(d_out)
    codes = np.maximum(x @ directions.T - 0.45, 0)
    return torch.from_numpy(x), torch.from_numpy((codes @ written + 0.3).astype(np.float32))


def test_the_encoder_reads_the_input_itself() -> None:
    model = Transcoder(Config(d_in=32, n_latents=96, k=3))
    assert not model.config.apply_b_dec_to_input and not model.config.skip
    with torch.no_grad():
        model.b_dec.fill_(5.0)
        model.encoder[3, 3] = 1.0
    assert model.encode(torch.eye(32)).to_dense()[3, 3] == 1.0
    with pytest.raises(SAEError, match="a transcoder encodes x itself"):
        Config(d_in=32, n_latents=96, d_out=20, apply_b_dec_to_input=True)


@pytest.mark.parametrize("d_out", [20, 32])
@pytest.mark.parametrize("architecture", ["transcoder", "topk", "batchtopk", "matryoshka", "abstopk"])
def test_a_target_is_learned(architecture: str, d_out: int) -> None:
    """Of another width or of the input's own; what is learned is the target and not the input."""
    settings = {"d_in": 32, "d_out": d_out, "n_latents": 96, "k": 6, "apply_b_dec_to_input": False}
    model = ARCHITECTURES[architecture].create(settings)
    x, y = small_mlp(8192 + 1024, d_out)
    x = scaled(x, model)
    train(model, x[:8192], target=y[:8192])
    assert model(x[8192:]).shape == (1024, d_out)
    assert fvu(model, x[8192:], y[8192:]) < 0.35
    if d_out == 32:
        assert fvu(model, x[8192:]) > 0.8


def test_input_and_target_have_scales_of_their_own() -> None:
    """Trained on scaled inputs and targets, it is folded to read and write raw ones."""
    x, y = small_mlp(2048, 20)
    model = Transcoder(Config(d_in=32, n_latents=96, d_out=20, k=6))
    train(model, 0.1 * x, target=30 * y, steps=30)
    expected = model(0.1 * x) / 30
    model.rescale(0.1, 30.0)
    assert torch.allclose(model(x), expected, atol=1e-4)
