"""Gradients of one batch, and what an architecture reports of it. Knows no data, schedule or file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from sae.base import SparseAutoencoder
from sae.sparse import SortedPairs, values_gradient


class StepResult(NamedTuple):
    """Figures of one batch, kept as tensors so that a step never waits for the device."""

    loss: Tensor
    fvu: Tensor
    auxk: Tensor
    fired: Tensor
    """Rows in which each latent was selected, int64 [F]."""
    n_active: Tensor
    """Non-zero codes in the batch, int64 []."""


@dataclass(slots=True)
class Gradients:
    """One tensor per parameter of a `SparseAutoencoder`."""

    encoder: Tensor
    b_enc: Tensor
    W_dec: Tensor
    b_dec: Tensor

    def __iadd__(self, other: Gradients) -> Gradients:
        for name in ("encoder", "b_enc", "W_dec", "b_dec"):
            getattr(self, name).add_(getattr(other, name))
        return self

    def write(self, model: SparseAutoencoder) -> None:
        for name in ("encoder", "b_enc", "W_dec", "b_dec"):
            getattr(model, name).grad = getattr(self, name)


def gradients_of_pairs(
    model: SparseAutoencoder, pairs: SortedPairs, values: Tensor, latents: Tensor, centred: Tensor, grad_out: Tensor
) -> Gradients:
    """Backward through `decode(relu(encode(x - b_dec)))` on the selected pairs alone.

    Args:
        values, latents: codes `[B, k]` after the ReLU.
        centred: encoder input `x - b_dec` `[B, D]`.
        grad_out: gradient with respect to the decoder's sum `[B, D]` (without `b_dec`).

    Only the encoder's share of the gradient of `b_dec` is in the result; the caller adds `grad_out`'s.
    """
    grad_values = values_gradient(grad_out, latents, model.W_dec)
    grad_values *= values > 0
    b_enc = pairs.sum_weights(grad_values)
    return Gradients(
        encoder=pairs.sum_rows(grad_values, centred),
        b_enc=b_enc,
        W_dec=pairs.sum_rows(values, grad_out),
        # The encoder reads x - b_dec, so every row's gradient flows back with a minus: one mat-vec, not N x D.
        b_dec=torch.mv(model.encoder.T, b_enc).neg_(),
    )


def project_gradient(model: SparseAutoencoder) -> None:
    """Remove from each decoder row's gradient the part along the row, which unit norm would undo anyway."""
    grad = model.W_dec.grad
    if grad is not None:
        along = (grad * model.W_dec).sum(dim=1, keepdim=True)
        grad.addcmul_(model.W_dec, along, value=-1.0)


def normalise_decoder(model: SparseAutoencoder) -> None:
    """Decoder rows back to unit length."""
    model.W_dec.div_(model.W_dec.norm(dim=1, keepdim=True).clamp_min_(1e-8))
