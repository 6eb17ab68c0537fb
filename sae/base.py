"""What every sparse autoencoder is: weights, a rule from activations to sparse codes, a linear decoder."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from sae.codes import SparseCodes
from sae.errors import SAEError
from sae.sparse import decode_csr

CHUNK_BYTES = 32 * 2**20
"""Pre-activations of one encoder chunk. Chunks of this size stay near the cache and cost the product no speed."""


@dataclass(frozen=True, kw_only=True)
class SAEConfig:
    """Shape of a dictionary. Architectures add their own fields."""

    d_in: int
    """Width of the activations that are encoded."""
    n_latents: int
    """Number of latents (dictionary size)."""

    def __post_init__(self) -> None:
        if self.d_in < 1 or self.n_latents < 1:
            raise SAEError(f"d_in and n_latents have to be positive, not {self.d_in} and {self.n_latents}")


@dataclass(kw_only=True)
class SAEMetadata:
    """Where a dictionary comes from. Kept with the weights; unknown entries of a file go to `extra`."""

    model: str | None = None
    """Subject model, a hub id or a path."""
    hookpoint: str | None = None
    """Module path whose activations were encoded, e.g. `layers.9`."""
    dataset: str | None = None
    context_length: int | None = None
    skip_first: int | None = None
    """Leading positions of each context that training left out (attention sinks)."""
    n_tokens: int | None = None
    """Tokens trained on, counted with repetition."""
    seed: int | None = None
    normalization: dict[str, Any] | None = None
    """Scale that training divided by. It is already folded into the weights."""
    metrics: dict[str, float] = field(default_factory=dict)
    """Held-out figures at the end of training (`fvu`, `l0`, `dead_share`)."""
    extra: dict[str, Any] = field(default_factory=dict)


class SparseAutoencoder(nn.Module, ABC):
    """A dictionary of `n_latents` directions in a space of `d_in` dimensions.

    Weights: `encoder` [F, D] (rows are encoder directions), `b_enc` [F], `W_dec` [F, D] (rows are decoder
    directions) and `b_dec` [D]. `W_enc` [D, F] is the encoder in the field's usual orientation.
    """

    architecture: ClassVar[str]
    config: SAEConfig

    def __init__(self, config: SAEConfig, metadata: SAEMetadata | None = None) -> None:
        super().__init__()
        self.config = config
        self.metadata = metadata or SAEMetadata()
        self.encoder = nn.Parameter(torch.zeros(config.n_latents, config.d_in))
        self.b_enc = nn.Parameter(torch.zeros(config.n_latents))
        self.W_dec = nn.Parameter(torch.zeros(config.n_latents, config.d_in))
        self.b_dec = nn.Parameter(torch.zeros(config.d_in))

    @property
    def W_enc(self) -> Tensor:
        return self.encoder.T

    @property
    def d_in(self) -> int:
        return self.config.d_in

    @property
    def n_latents(self) -> int:
        return self.config.n_latents

    @abstractmethod
    def encode_rows(self, x: Tensor) -> SparseCodes:
        """Codes of a chunk of rows `[n, D]`, in inference."""

    def initialise(self, seed: int) -> None:
        """Random unit decoder rows, the encoder their transpose, zero biases."""
        generator = torch.Generator(device="cpu").manual_seed(seed)
        directions = torch.randn(self.n_latents, self.d_in, generator=generator)
        directions /= directions.norm(dim=1, keepdim=True)
        with torch.no_grad():
            self.W_dec.copy_(directions)
            self.encoder.copy_(directions)
            self.b_enc.zero_()
            self.b_dec.zero_()

    def rescale(self, scale: float) -> None:
        """Fold an input scale into the weights: a dictionary trained on `scale * x` becomes one for `x`.

        For rules that commute with positive scaling (ReLU, TopK) the codes shrink by `scale` and the
        decoder keeps its norm; others override this together with their thresholds.
        """
        with torch.no_grad():
            self.b_enc.div_(scale)
            self.b_dec.div_(scale)

    @torch.no_grad()
    def encode(self, x: Tensor) -> SparseCodes:
        """Codes of activations `[..., D]`; leading dimensions are flattened in order.

        Raises:
            SAEError: the last dimension is not `d_in`, or a value is not finite.
        """
        rows = self._rows(x)
        if rows.shape[0] == 0:
            return SparseCodes.from_topk(rows.new_zeros(0, 1), torch.zeros(0, 1, dtype=torch.int64), self.n_latents)
        step = max(1, CHUNK_BYTES // (rows.element_size() * self.n_latents))
        return SparseCodes.cat([self.encode_rows(chunk) for chunk in torch.split(rows, step)])

    @torch.no_grad()
    def decode(self, codes: SparseCodes) -> Tensor:
        """Reconstructions `[N, D]`, decoder bias included."""
        return decode_csr(codes.offsets, codes.latents, codes.values, self.W_dec) + self.b_dec

    def encode_dense(self, x: Tensor) -> Tensor:
        """Codes as a dense `[..., F]` tensor; for small inputs only."""
        return self.encode(x).to_dense().reshape(*x.shape[:-1], self.n_latents)

    def forward(self, x: Tensor) -> Tensor:
        """Reconstruction of `[..., D]`."""
        return self.decode(self.encode(x)).reshape(x.shape)

    def config_dict(self) -> dict[str, Any]:
        return asdict(self.config)

    def _rows(self, x: Tensor) -> Tensor:
        if x.ndim < 1 or x.shape[-1] != self.d_in:
            raise SAEError(f"activations have shape {tuple(x.shape)}; this SAE reads a last dimension of {self.d_in}")
        rows = x.reshape(-1, self.d_in).to(self.encoder.dtype)
        if not torch.isfinite(rows).all():
            raise SAEError("activations hold NaN or infinity; check the subject model's dtype (try float32)")
        return rows
