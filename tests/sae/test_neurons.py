"""Neurons as a dictionary: the largest coordinates, kept as they are, without a matrix anywhere."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import sae
from sae.architectures import neurons


def build(d: int = 12, k: int = 3) -> neurons.Neurons:
    return neurons.create({"d_in": d, "n_latents": d, "k": k})


def test_the_largest_coordinates_with_their_signs() -> None:
    x = torch.randn(200, 12, generator=torch.Generator().manual_seed(0))
    dense = build().encode_dense(x)
    kept = x.abs() >= x.abs().kthvalue(10, dim=1, keepdim=True).values
    torch.testing.assert_close(dense, x * kept, rtol=0, atol=0)
    assert (dense < 0).any() and (dense != 0).sum(dim=1).eq(3).all()


def test_decoding_puts_them_back() -> None:
    model = build()
    x = torch.randn(4, 5, 12, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(model(x), model.encode_dense(x), rtol=0, atol=0)
    every = neurons.create({"d_in": 12, "n_latents": 12, "k": 12})
    torch.testing.assert_close(every(x), x, rtol=0, atol=0)
    torch.testing.assert_close(model.directions(torch.tensor([3, 0])), torch.eye(12)[[3, 0]])


def test_nothing_of_the_size_of_a_matrix_is_held() -> None:
    model = build(d=4096, k=32)
    assert sum(tensor.numel() for tensor in model.state_dict().values()) == 4096
    assert not hasattr(model, "W_dec") and not hasattr(model, "step")


def test_saved_and_loaded(tmp_path: Path) -> None:
    model = build()
    sae.save(model, tmp_path / "n")
    again = sae.load(tmp_path / "n")
    assert sae.content_sha(again) == sae.content_sha(model)
    assert sae.content_sha(build(k=4)) != sae.content_sha(model)


@pytest.mark.parametrize(
    "changes", [{"n_latents": 13}, {"k": 0}, {"k": 13}, {"skip": True}, {"d_out": 5, "n_latents": 12}]
)
def test_what_neurons_cannot_be(changes: dict[str, int]) -> None:
    with pytest.raises(sae.SAEError):
        neurons.create({"d_in": 12, "n_latents": 12, "k": 3, **changes})
