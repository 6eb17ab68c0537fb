"""Neurons as a dictionary: the k largest coordinates of an activation by size, each a latent of its own.

The baseline that SAEs are held against (Paulo et al. 2024, appendix: the top 32 or 256 MLP neurons of each
token). There is nothing to train, and encoder and decoder are the identity, which is never built.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from sae.base import SAEConfig, SAEMetadata, SparseAutoencoder
from sae.codes import SparseCodes
from sae.errors import SAEError
from sae.largest import largest


@dataclass(frozen=True, kw_only=True)
class Config(SAEConfig):
    k: int = 32
    """Neurons kept per token."""
    apply_b_dec_to_input: bool = False
    """Neurons are read as they are."""

    def __post_init__(self) -> None:
        SAEConfig.__post_init__(self)
        if self.n_latents != self.d_in or self.width_out != self.d_in or self.skip or self.apply_b_dec_to_input:
            raise SAEError(f"neurons are their own latents: n_latents and d_out have to be {self.d_in}, without skip")
        if not 1 <= self.k <= self.n_latents:
            raise SAEError(f"k has to lie between 1 and the {self.n_latents} neurons, not {self.k}")


class Neurons(SparseAutoencoder):
    """f = x where |x| is among the k largest of a token, else 0."""

    architecture: ClassVar[str] = "neurons"
    units: ClassVar[tuple[str, ...]] = ()
    signed: ClassVar[bool] = True
    config: Config

    def __init__(self, config: Config, metadata: SAEMetadata | None = None) -> None:
        nn.Module.__init__(self)  # the base class would make matrices of d_in x d_in
        self.config = config
        self.metadata = metadata or SAEMetadata()
        self.register_buffer("b_dec", torch.zeros(config.d_in))

    def encode_rows(self, inputs: Tensor) -> SparseCodes:
        _, kept = largest(inputs.abs(), self.config.k)
        return SparseCodes.from_topk(inputs.gather(1, kept), kept, self.n_latents)

    @torch.no_grad()
    def decode(self, codes: SparseCodes) -> Tensor:
        """The neurons that were kept, zeros elsewhere: `[N, D]`."""
        out = codes.values.new_zeros(codes.n_rows, self.d_in)
        out[codes.rows, codes.latents] = codes.values
        return out

    def directions(self, latents: Tensor) -> Tensor:
        """Unit vectors `[n, D]`."""
        return nn.functional.one_hot(latents, self.d_in).to(self.b_dec.dtype)


def create(config: dict[str, Any], metadata: SAEMetadata | None = None) -> Neurons:
    return Neurons(Config(**config), metadata)
