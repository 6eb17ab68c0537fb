"""A tree of concepts, and whether a dictionary keeps children apart from their parents (Costa et al. 2025,
arXiv 2506.03093, toy experiment of section 4).

Every token has one of 11 mutually exclusive parents (three with probability 0.2, eight with 0.05). The three have
three children each, of which a token has one (0.2 each) or none (0.4).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from sae.base import SparseAutoencoder

N_INTERNAL, N_LEAVES, N_CHILDREN = 3, 8, 3
N_PARENTS = N_INTERNAL + N_LEAVES
N_ATOMS = N_PARENTS + N_INTERNAL * N_CHILDREN
MEAN_L0 = 1.36
PARENT_OF = torch.arange(N_INTERNAL).repeat_interleave(N_CHILDREN)
"""Atom of each child's parent; child i is atom `N_PARENTS + i`."""


class Hierarchy(NamedTuple):
    atoms: Tensor
    """Orthonormal, `[20, 20]`."""
    codes: Tensor
    """`[n, 20]`; what is active is so by N(1.5, 0.25^2)."""
    x: Tensor
    """`[n, 20]`."""


def hierarchy(n: int, seed: int) -> Hierarchy:
    generator = torch.Generator().manual_seed(seed)
    atoms = torch.linalg.qr(torch.randn(N_ATOMS, N_ATOMS, generator=generator)).Q
    chances = torch.tensor([0.2] * N_INTERNAL + [0.05] * N_LEAVES)
    parents = torch.multinomial(chances, n, replacement=True, generator=generator)
    children = torch.multinomial(torch.tensor([0.2] * N_CHILDREN + [0.4]), n, replacement=True, generator=generator)
    active = torch.zeros(n, N_ATOMS, dtype=torch.bool)
    active[torch.arange(n), parents] = True
    rows = ((parents < N_INTERNAL) & (children < N_CHILDREN)).nonzero()[:, 0]
    active[rows, N_PARENTS + parents[rows] * N_CHILDREN + children[rows]] = True
    codes = (1.5 + 0.25 * torch.randn(n, N_ATOMS, generator=generator)) * active
    return Hierarchy(atoms, codes, codes @ atoms)


class Recovery(NamedTuple):
    cosines: Tensor
    """Of each atom with the latent that was matched to it, one to one, `[20]`."""
    absorption: float
    """Mean cosine of the children's latents with the true parent; 0 is ideal."""


def recovery(model: SparseAutoencoder, atoms: Tensor) -> Recovery:
    decoder = model.W_dec.detach() / model.W_dec.detach().norm(dim=1, keepdim=True)
    cosines = atoms @ decoder.T
    matched = torch.from_numpy(linear_sum_assignment(-cosines.abs().numpy())[1])
    own = cosines[torch.arange(N_ATOMS), matched]
    return Recovery(own, float(cosines[PARENT_OF, matched[N_PARENTS:]].mean()))
