"""aux_zipf: AuxK for all latents that fire far less than their rank lets expect, the dead among them. Experimental.

Ayonrinde (2024, arXiv 2411.02124) describes an auxiliary loss that extends AuxK to dying latents; its formula is not
known to us, and what follows is our construction. Where the under-used are the dead, it is AuxK.
"""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from sae.auxk import add_auxk
from sae.base import SparseAutoencoder
from sae.training import Gradients, StepContext


def under_used(densities: Tensor, expected: Tensor, tau: float) -> tuple[Tensor, Tensor]:
    """Indices and weights in the choice, 1 at a density of 0 and 0 at `tau` times the expected one, both `[n]`.

    Negative densities have not been measured yet. Waits for the device, as the number is not known before.
    """
    limit = tau * expected
    indices = ((densities >= 0) & (densities < limit)).nonzero()[:, 0]
    return indices, 1 - densities[indices] / limit[indices]


def add_aux_zipf(
    model: SparseAutoencoder,
    gradients: Gradients,
    inputs: Tensor,
    residual: Tensor,
    context: StepContext,
    *,
    densities: Tensor,
    expected: Tensor,
    tau: float,
    alpha: float,
) -> Tensor:
    """AuxK of the under-used (see `add_auxk`), who are chosen by weighted activation; adds alpha times its gradient."""
    indices, weights = under_used(densities, expected, tau)
    among = replace(context, dead=indices)
    return add_auxk(model, gradients, inputs, residual, among, alpha=alpha, weights=weights.to(inputs.dtype))
