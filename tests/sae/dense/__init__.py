"""What each architecture learns from, said with dense tensors and left to autograd.

One module per architecture, by its name; it shares no code with the step that it checks.

    CASES: list[dict]            settings to test, besides d_in=12 and n_latents=40
    loss(p, batch, model, context) -> scalar    `p`: parameters by name; buffers and settings are the model's

and where needed

    CONTEXT: dict                fields of the StepContext (step, n_steps)
    prepare(model, generator)    make random parameters and buffers valid (positive thresholds, ...)
    NO_GRADIENT: set[str]        parameters that training moves otherwise
    BATCH_WIDE = True            training chooses over the whole of one process' batch
    TRAINS_AS_IT_INFERS = False  training keeps other codes than `encode` does
    PROCESSES: list[dict]        the cases in which two processes give the result of one, if not all
    PLANTED: dict                settings for training on planted features (d_in=32, n_latents=96, 3 active)
    TRAINING: dict               arguments of `planted_features.train` for that
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

Parameters = dict[str, Tensor]


def encoder_input(p: Parameters, batch: Any, model: Any) -> Tensor:
    return batch.x - p["b_dec"] if model.config.apply_b_dec_to_input else batch.x


def preactivations(p: Parameters, batch: Any, model: Any) -> Tensor:
    """`[B, F]` of the whole batch."""
    out = encoder_input(p, batch, model) @ p["encoder"].T
    return out + p["b_enc"] if "b_enc" in p else out


def reconstruct(p: Parameters, codes: Tensor, batch: Any) -> Tensor:
    out = codes @ p["W_dec"] + p["b_dec"]
    return out + batch.x @ p["W_skip"].T if "W_skip" in p else out


def squared(p: Parameters, codes: Tensor, batch: Any) -> Tensor:
    """Squared error of the batch, summed."""
    target = batch.x if batch.target is None else batch.target
    return (reconstruct(p, codes, batch) - target).square().sum()


def variance(batch: Any) -> Tensor:
    target = batch.x if batch.target is None else batch.target
    return (target - target.mean(dim=0)).square().sum()


def largest(values: Tensor, k: int) -> Tensor:
    """Mask of the k largest of each row."""
    return values.new_zeros(values.shape).scatter(1, values.detach().topk(k, dim=1).indices, 1.0)


def auxk(
    p: Parameters, codes: Tensor, pre: Tensor, batch: Any, model: Any, dead: Tensor | None,
    *, signed: bool = False, weights: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """AuxK's ratio (0 without dead latents); the residual is a constant."""
    if dead is None or len(dead) == 0 or model.config.auxk_alpha == 0:
        return pre.new_zeros(())
    target = batch.x if batch.target is None else batch.target
    every = slice(None, None, model.config.auxk_rows)
    residual = (target - reconstruct(p, codes, batch))[every].detach()
    own = pre[every][:, dead]
    rank = own.abs() if signed else own
    mask = largest(rank if weights is None else rank * weights, min(max(1, model.d_in // 2), len(dead)))
    miss = ((own if signed else own.relu()) * mask) @ p["W_dec"][dead] - residual
    return miss.square().sum() / (residual - residual.mean(dim=0)).square().sum()


def fvu_and_auxk(
    p: Parameters, codes: Tensor, pre: Tensor, batch: Any, model: Any, context: Any, *, signed: bool = False
) -> Tensor:
    """The loss of the TopK family: squared error over variance and its share of AuxK."""
    aux = auxk(p, codes, pre, batch, model, context.dead, signed=signed)
    return squared(p, codes, batch) / variance(batch) + model.config.auxk_alpha * aux
