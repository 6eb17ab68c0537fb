"""How faithful dictionaries are on held-out text: reconstruction, and what splicing them in does to the model.

Every figure is a ratio of sums over tokens, never a mean of ratios; its interval comes from resampling
blocks of text. Dictionaries of the same hookpoint share the forward passes that are not their own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from autointerp.collect.tokens import NO_DOCUMENT, TokenBlocks
from autointerp.seeds import generator
from autointerp.subject.hookpoints import editing
from autointerp.subject.load import SubjectModel
from sae.base import SparseAutoencoder
from sae.metrics import divide, ratios, shares, token_sums

DRAWS = 500

Sums = dict[str, NDArray[np.float64]]
"""Per block: sums over its counted tokens, `[blocks]` or `[blocks, O]`."""


class Figure(NamedTuple):
    """A value with its interval, and the tokens it was taken on."""

    value: float
    low: float
    high: float
    n_tokens: int


@dataclass(frozen=True, slots=True)
class Placed:
    """A dictionary, where it reads, and where what it reconstructs stands (None: the same place)."""

    sae: SparseAutoencoder
    hookpoint: str
    target: str | None = None

    @property
    def writes(self) -> str:
        return self.target or self.hookpoint


def evaluate(
    subject: SubjectModel,
    placed: Mapping[str, Placed],
    blocks: TokenBlocks,
    *,
    losses: bool = True,
    on_block: Callable[[int], None] | None = None,
) -> dict[str, dict[str, Figure]]:
    """Figures of each dictionary on these blocks.

    `fvu`, `l0`, `shrinkage` (E|xhat|^2 / E x.xhat, Rajamanoharan et al. 2024, eq. 10; 1 = unbiased), `norm_ratio`
    (E|xhat| / E|x|), `dead_share` and `dense_share` (of these tokens); with `losses` also, in nats per predicted
    token, `ce` (of the unmodified model), `ce_spliced`, `ce_zero` (the site zeroed), `kl` (unmodified || spliced)
    and `ce_recovered` = (ce_zero - ce_spliced) / (ce_zero - ce). Positions that count for nothing are not spliced.
    """
    tallies = {name: _Tally(one) for name, one in placed.items()}
    for index in range(len(blocks.tokens)):
        tokens = torch.from_numpy(np.array(blocks.tokens[index : index + 1])).long()
        keep = torch.from_numpy(np.array(blocks.documents[index : index + 1] != NO_DOCUMENT))
        if not bool(keep.any()):
            continue
        _measure_block(subject, placed, tallies, tokens, keep, losses)
        if on_block:
            on_block(index + 1)
    return {name: tally.figures() for name, tally in tallies.items()}


def _measure_block(
    subject: SubjectModel,
    placed: Mapping[str, Placed],
    tallies: Mapping[str, _Tally],
    tokens: Tensor,
    keep: Tensor,
    losses: bool,
) -> None:
    sites = sorted({site for one in placed.values() for site in (one.hookpoint, one.writes)})
    found = subject.activations_at(tokens, sites)
    clean = _log_probs(subject, tokens) if losses else None
    zeroed: dict[str, float] = {}
    for name, one in placed.items():
        x, y = found[one.hookpoint][0], found[one.writes][0]
        mask = keep[0].to(x.device)
        sums = tallies[name].reconstruction(x[mask].cpu(), y[mask].cpu())
        if clean is not None:
            if one.writes not in zeroed:
                nothing = torch.zeros_like(y)
                zeroed[one.writes] = _loss(_spliced(subject, tokens, keep, one.writes, nothing), tokens, keep)
            recon = y.clone()
            recon[mask] = one.sae(x[mask].to(one.sae.b_dec.device)).to(y)
            spliced = _spliced(subject, tokens, keep, one.writes, recon)
            predicts = _predicts(keep)
            sums |= {
                "ce": _loss(clean, tokens, keep),
                "ce_spliced": _loss(spliced, tokens, keep),
                "ce_zero": zeroed[one.writes],
                "kl": float(((clean.exp() * (clean - spliced)).sum(dim=-1)[0] * predicts).sum()),
                "predicted": float(predicts.sum()),
            }
        tallies[name].add(sums)


@torch.inference_mode()
def _log_probs(subject: SubjectModel, tokens: Tensor) -> Tensor:
    """log p of every next token, float32 `[1, T - 1, V]`."""
    logits = subject.model(input_ids=tokens.to(subject.device), use_cache=False).logits[:, :-1]
    log_probs: Tensor = logits.float().log_softmax(dim=-1).cpu()
    return log_probs


def _spliced(subject: SubjectModel, tokens: Tensor, keep: Tensor, site: str, values: Tensor) -> Tensor:
    """log p with the activations of the counted positions at a site replaced by `values` `[T, O]`."""

    def edit(x: Tensor) -> Tensor:
        return torch.where(keep.to(x.device)[:, :, None], values.to(x)[None], x)

    with editing(subject.model, site, edit):
        return _log_probs(subject, tokens)


def _predicts(keep: Tensor) -> Tensor:
    """Which of the T - 1 predictions are of tokens that count."""
    return keep[0, 1:].float()


def _loss(log_probs: Tensor, tokens: Tensor, keep: Tensor) -> float:
    picked = log_probs.gather(-1, tokens[:, 1:, None])[0, :, 0]
    return float(-(picked * _predicts(keep)).sum())


@dataclass
class _Tally:
    """One dictionary's sums, block by block."""

    placed: Placed
    rows: list[dict[str, Any]] = field(default_factory=list)
    fired: Tensor | None = None

    def reconstruction(self, x: Tensor, y: Tensor) -> dict[str, Any]:
        sums, fired = token_sums(self.placed.sae, x, y)
        self.fired = fired if self.fired is None else self.fired + fired
        return {name: value.numpy() for name, value in sums.items()}

    def add(self, sums: dict[str, Any]) -> None:
        self.rows.append(sums)

    def figures(self) -> dict[str, Figure]:
        if not self.rows or self.fired is None:
            return {}
        sums: Sums = {name: np.array([row[name] for row in self.rows], dtype=np.float64) for name in self.rows[0]}
        n_blocks, n_tokens = len(self.rows), int(sums["n"].sum())
        rng = generator(0, "evaluate")
        draws = [_ratios(sums, rng.integers(0, n_blocks, n_blocks)) for _ in range(DRAWS)]
        found = {}
        for name, value in _ratios(sums, np.arange(n_blocks)).items():
            low, high = np.quantile([draw[name] for draw in draws], [0.025, 0.975])
            found[name] = Figure(value, float(low), float(high), n_tokens)
        for name, share in shares(self.fired, n_tokens).items():
            found[name] = Figure(share, float("nan"), float("nan"), n_tokens)
        return found


def _ratios(sums: Sums, pick: NDArray[Any]) -> dict[str, float]:
    """Every figure from the sums of the picked blocks."""
    of = {name: values[pick].sum(axis=0) for name, values in sums.items()}
    found = ratios(of)
    if "ce" in of:
        found |= {name: divide(of[name], of["predicted"]) for name in ("ce", "ce_spliced", "ce_zero", "kl")}
        found["ce_recovered"] = divide(of["ce_zero"] - of["ce_spliced"], of["ce_zero"] - of["ce"])
    return found
