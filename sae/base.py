"""What every sparse autoencoder is: weights, a rule from activations to sparse codes, a linear decoder."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from sae.codes import SparseCodes
from sae.errors import SAEError
from sae.input_norms import INPUT_NORMS, undo
from sae.sparse import decode_csr

CHUNK_BYTES = 32 * 2**20
"""Pre-activations of one encoder chunk. Chunks of this size stay near the cache and cost the product no speed."""

PART_ROWS = 2048
"""Decoder rows that are handled together where a product of the weights' size would be too large."""


@dataclass(frozen=True, kw_only=True)
class SAEConfig:
    """Shape of a dictionary. Architectures add their own fields."""

    d_in: int
    """Width of the activations that are encoded."""
    n_latents: int
    """Number of latents (dictionary size)."""
    d_out: int | None = None
    """Width of what is reconstructed, where that is not the input (a transcoder)."""
    apply_b_dec_to_input: bool = True
    """Encode x - b_dec rather than x."""
    skip: bool = False
    """Add a linear map of the input, W_skip, to the reconstruction."""
    input_norm: str = "none"
    """What is done to each token before encoding and undone after decoding: none, layer_norm, constant_norm."""

    def __post_init__(self) -> None:
        if self.d_in < 1 or self.n_latents < 1 or (self.d_out is not None and self.d_out < 1):
            raise SAEError(f"d_in, d_out and n_latents have to be positive, not {self.d_in}, {self.width_out} and "
                           f"{self.n_latents}")  # fmt: skip
        if self.apply_b_dec_to_input and self.width_out != self.d_in:
            raise SAEError("apply_b_dec_to_input needs d_out equal to d_in; a transcoder encodes x itself")
        if self.input_norm not in INPUT_NORMS:
            raise SAEError(f"unknown input_norm '{self.input_norm}' (known: {', '.join(INPUT_NORMS)})")
        if self.input_norm != "none" and self.width_out != self.d_in:
            raise SAEError("input_norm is undone on the output, which has to be as wide as the input")

    @property
    def width_out(self) -> int:
        return self.d_in if self.d_out is None else self.d_out


@dataclass(kw_only=True)
class SAEMetadata:
    """Where a dictionary comes from. Kept with the weights; unknown entries of a file go to `extra`."""

    model: str | None = None
    """Subject model, a hub id or a path."""
    hookpoint: str | None = None
    """Module path whose activations were encoded, e.g. `layers.9`."""
    target_hookpoint: str | None = None
    """What is reconstructed, where that is not the hookpoint (a transcoder)."""
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
    """Held-out figures at the end of training (`fvu`, `l0`, `dead_share`, ...)."""
    extra: dict[str, Any] = field(default_factory=dict)


class SparseAutoencoder(nn.Module, ABC):
    """A dictionary of `n_latents` directions in a space of `d_out` dimensions (`d_in`, but for transcoders).

    Weights: `encoder` [F, D] (rows are encoder directions), `b_enc` [F], `W_dec` [F, O] (rows are decoder
    directions), `b_dec` [O] and, with `skip`, `W_skip` [O, D]. `W_enc` [D, F] is the encoder in the field's
    usual orientation. Architectures add thresholds and the like.
    """

    architecture: ClassVar[str]
    tied: ClassVar[bool] = False
    """The encoder is `W_dec` itself."""
    input_length: ClassVar[float | None] = None
    """Mean length that training scales inputs to; None means sqrt(d_in)."""
    units: ClassVar[tuple[str, ...]] = ("b_enc",)
    """Tensors that stand in units of the encoder's input, and shrink when an input scale is folded in."""
    config: SAEConfig

    def __init__(self, config: SAEConfig, metadata: SAEMetadata | None = None) -> None:
        super().__init__()
        if self.tied and config.width_out != config.d_in:
            raise SAEError(f"{self.architecture} encodes with its decoder: d_out has to equal d_in")
        self.config = config
        self.metadata = metadata or SAEMetadata()
        self._low_rows: Tensor | None = None
        if not self.tied:
            self.encoder = nn.Parameter(torch.zeros(config.n_latents, config.d_in))
        if "b_enc" in self.units:
            self.b_enc = nn.Parameter(torch.zeros(config.n_latents))
        self.W_dec = nn.Parameter(torch.zeros(config.n_latents, config.width_out))
        self.b_dec = nn.Parameter(torch.zeros(config.width_out))
        if config.skip:
            self.W_skip = nn.Parameter(torch.zeros(config.width_out, config.d_in))

    @property
    def W_enc(self) -> Tensor:
        return self.encoder_rows.T

    @property
    def encoder_rows(self) -> Tensor:
        """Encoder directions `[F, D]`, whether they are parameters of their own or the decoder's."""
        return self.W_dec if self.tied else self.encoder

    @property
    def d_in(self) -> int:
        return self.config.d_in

    @property
    def n_latents(self) -> int:
        return self.config.n_latents

    @property
    def unit_decoder(self) -> bool:
        """Training keeps decoder rows at unit length."""
        return True

    # Inference

    @abstractmethod
    def encode_rows(self, inputs: Tensor) -> SparseCodes:
        """Codes of encoder inputs `[n, D]` (see `encoder_input`), in inference."""

    @torch.no_grad()
    def encode(self, x: Tensor) -> SparseCodes:
        """Codes of activations `[..., D]`; leading dimensions are flattened in order.

        Raises:
            SAEError: the last dimension is not `d_in`, or a value is not finite.
        """
        rows = self._rows(x)
        if rows.shape[0] == 0:
            return SparseCodes.empty(self.n_latents, self.b_dec)
        rows, scale, shift = INPUT_NORMS[self.config.input_norm](rows)
        chunks = torch.split(rows, self.chunk_rows(len(rows)))
        codes = SparseCodes.cat([self.encode_rows(self.encoder_input(chunk)) for chunk in chunks])
        return codes.normalised(scale, shift)

    @torch.no_grad()
    def decode(self, codes: SparseCodes) -> Tensor:
        """Reconstructions `[N, O]` of the codes alone, decoder bias included (a skip connection is not)."""
        out = decode_csr(codes.offsets, codes.latents, codes.values, self.W_dec) + self.b_dec
        return undo(out, codes.scale, codes.shift)

    def directions(self, latents: Tensor) -> Tensor:
        """Decoder rows `[n, O]` of some latents: what an edit of their codes adds."""
        return self.W_dec[latents]

    def encode_dense(self, x: Tensor) -> Tensor:
        """Codes as a dense `[..., F]` tensor; for small inputs only."""
        return self.encode(x).to_dense().reshape(*x.shape[:-1], self.n_latents)

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """Reconstruction of `[..., D]`, skip connection included: `[..., O]`."""
        out = self.decode(self.encode(x))
        if self.config.skip:
            out += self._rows(x) @ self.W_skip.T
        return out.reshape(*x.shape[:-1], self.config.width_out)

    def encoder_input(self, x: Tensor) -> Tensor:
        """What the encoder product reads of `[n, D]`: x - b_dec, or x."""
        return x - self.b_dec if self.config.apply_b_dec_to_input else x

    def preactivations(self, inputs: Tensor, out: Tensor | None = None) -> Tensor:
        """The one dense product, `[n, D] -> [n, F]`; in training in the dtype that the processor is fast in."""
        rows = self.encoder_rows
        bias = self.b_enc if "b_enc" in self.units else rows.new_zeros(self.n_latents)
        low = self._low_rows
        if low is None:
            return torch.addmm(bias, inputs, rows.T, out=out)
        product = inputs.to(low.dtype) @ low.T
        return torch.add(product, bias, out=out)

    @contextmanager
    def product_in(self, dtype: torch.dtype | None) -> Iterator[None]:
        """Take encoder products in another dtype, from one rounded copy of weights that must not change meanwhile."""
        self._low_rows = None if dtype is None else self.encoder_rows.detach().to(dtype)
        try:
            yield
        finally:
            self._low_rows = None

    def chunk_rows(self, n: int) -> int:
        """Rows of an encoder chunk of `n` rows: at most CHUNK_BYTES of pre-activations, in parts of equal size."""
        most = max(1, CHUNK_BYTES // (self.b_dec.element_size() * self.n_latents))
        return -(-n // -(-n // most)) if n else most

    # Training

    def initialise(self, seed: int) -> None:
        """Random unit decoder rows, the encoder half their transpose, zero biases."""
        generator = torch.Generator(device="cpu").manual_seed(seed)
        directions = torch.randn(self.n_latents, self.d_in, generator=generator)
        directions /= directions.norm(dim=1, keepdim=True)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.zero_()
            if not self.tied:
                # Half the tied encoder keeps the first reconstructions from overshooting on correlated directions.
                self.encoder.copy_(directions).mul_(0.5)
            if self.config.width_out != self.d_in:
                directions = torch.randn(self.n_latents, self.config.width_out, generator=generator)
                directions /= directions.norm(dim=1, keepdim=True)
            self.W_dec.copy_(directions)

    def initialise_from(self, target: Tensor) -> None:
        """What is read off the first batches `[n, O]`: the decoder bias is their mean."""
        with torch.no_grad():
            self.b_dec.copy_(target.mean(dim=0))

    def before_update(self) -> None:
        """Between gradient and optimiser: drop the part of each decoder gradient that unit length would undo."""
        grad = self.W_dec.grad
        if self.unit_decoder and grad is not None:
            # In parts, so that no product of the weights' size is ever allocated.
            for part, rows in zip(torch.split(grad, PART_ROWS), torch.split(self.W_dec, PART_ROWS), strict=True):
                part.addcmul_(rows, torch.linalg.vecdot(part, rows)[:, None], value=-1.0)

    def after_update(self) -> None:
        """After the optimiser: decoder rows back to unit length."""
        if self.unit_decoder:
            self.W_dec.div_(self.W_dec.norm(dim=1, keepdim=True).clamp_min_(1e-8))

    def rescale(self, scale: float, target_scale: float | None = None) -> None:
        """Fold input scales into the weights: trained on `scale * x`, it becomes a dictionary for `x`.

        Codes shrink by the target's scale (the input's own, but for transcoders) and the decoder keeps its norm.
        Holds for every rule that commutes with positive scaling once what is in `units` shrinks alike.
        """
        target_scale = scale if target_scale is None else target_scale
        ratio = scale / target_scale
        with torch.no_grad():
            for name in (*self.units, "b_dec"):
                getattr(self, name).div_(target_scale)
            if ratio != 1.0:
                self.encoder.mul_(ratio)
                if self.config.skip:
                    self.W_skip.mul_(ratio)

    def config_dict(self) -> dict[str, Any]:
        return asdict(self.config)

    def _rows(self, x: Tensor) -> Tensor:
        if x.ndim < 1 or x.shape[-1] != self.d_in:
            raise SAEError(f"activations have shape {tuple(x.shape)}; this SAE reads a last dimension of {self.d_in}")
        rows = x.reshape(-1, self.d_in).to(self.b_dec.dtype)
        if not torch.isfinite(rows).all():
            raise SAEError("activations hold NaN or infinity; check the subject model's dtype (try float32)")
        return rows
