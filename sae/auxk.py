"""AuxK: latents that have not fired for long reconstruct what the others left over (Gao et al. 2024, 2.4 and A.2).

Costs what the dead columns cost, on every n-th row of the batch; its gradient reaches dead latents only.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sae.base import SparseAutoencoder
from sae.sparse import Pairs
from sae.training import Gradients, StepContext, add_encoder_gradients


def add_auxk(
    model: SparseAutoencoder,
    gradients: Gradients,
    inputs: Tensor,
    residual: Tensor,
    context: StepContext,
    *,
    alpha: float,
    signed: bool = False,
    weights: Tensor | None = None,
) -> Tensor:
    """`|ehat - e|^2 / |e - mean(e)|^2` of rows of the residual e `[n, O]`; adds alpha times its gradient.

    `ehat` decodes, without bias, the d_in/2 largest activations among `context.dead` (by size if `signed`);
    `weights` [dead] scale them for the choice alone. The residual is a constant to it.
    """
    dead = context.dead
    if dead is None or dead.numel() == 0 or alpha == 0:
        return inputs.new_zeros(())
    k = max(1, min(model.d_in // 2, dead.numel()))
    bias = model.b_enc[dead] if "b_enc" in model.units else inputs.new_zeros(dead.numel())
    pre = torch.addmm(bias, inputs, model.encoder_rows[dead].T)
    rank = pre.abs() if signed else pre
    if weights is not None:
        rank = rank * weights
    chosen = rank.topk(k, dim=1, sorted=False).indices
    kept = pre.gather(1, chosen)
    values = (kept if signed else kept.relu_()).reshape(-1)
    pairs = Pairs.of_topk(dead[chosen], model.n_latents)
    recon = pairs.decode(values, model.W_dec)
    count = context.total(residual.new_tensor([float(len(residual))]))
    mean = context.total(residual.sum(dim=0)) / count
    scale = context.total((residual - mean).square().sum()).clamp_min(1e-12)
    miss = recon - residual
    grad_out = miss * (2.0 * alpha / scale)
    grad_pre = pairs.pull(grad_out, model.W_dec) * (values != 0)
    add_encoder_gradients(model, gradients, pairs, grad_pre, inputs)
    gradients.add("W_dec", pairs.sum_rows(values, grad_out))
    return miss.square().sum() / scale
