"""AbsTopK: the proximal step it is, signs kept, and one latent for both poles of an axis."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import torch
from planted_features import best_cosines, fvu, random_model, recovery, scaled, train
from torch import Tensor

from sae.formats.native import ARCHITECTURES
from sae.training import Batch, StepContext


def keep(architecture: str, u: Tensor, k: int) -> Tensor:
    """The codes of an SAE whose pre-activations are `u` [n, P] themselves."""
    model = ARCHITECTURES[architecture].create({"d_in": u.shape[1], "n_latents": u.shape[1], "k": k})
    with torch.no_grad():
        model.encoder.copy_(torch.eye(u.shape[1]))
    return torch.as_tensor(model.encode_dense(u))


def test_it_is_the_nearest_code_of_k_entries() -> None:
    """By brute force over supports; TopK is the nearest that is not negative besides."""
    u = torch.randn(40, 6, generator=torch.Generator().manual_seed(0))
    for architecture, bounded in (("abstopk", u), ("topk", u.relu())):
        candidates = []
        for support in combinations(range(6), 2):
            z = torch.zeros_like(u)
            z[:, support] = bounded[:, support]
            candidates.append(z)
        distances = torch.stack([(u - z).square().sum(dim=1) for z in candidates])
        found = keep(architecture, u, 2)
        assert torch.allclose((u - found).square().sum(dim=1), distances.amin(dim=0), atol=1e-6), architecture


def test_signs_are_kept_and_k_is_exact() -> None:
    u = torch.randn(60, 20, generator=torch.Generator().manual_seed(1))
    z = keep("abstopk", u, 5)
    assert ((z != 0).sum(dim=1) == 5).all() and (z < 0).any() and (z > 0).any()
    assert torch.equal(z[z != 0], u[z != 0])
    assert torch.equal(keep("abstopk", -u, 5), -z)
    assert torch.equal(keep("abstopk", u.abs(), 5), keep("topk", u.abs(), 5))
    assert ((u - z).norm(dim=1) <= (u - keep("topk", u, 5)).norm(dim=1)).all()


def test_negative_codes_count_as_firing() -> None:
    model = random_model("abstopk", 4, d_in=12, n_latents=40, k=4)
    x = torch.randn(50, 12, generator=torch.Generator().manual_seed(2))
    result = model.step(Batch(x), StepContext())
    dense = model.encode_dense(x)
    assert ((dense < 0).any(dim=0) & ~(dense > 0).any(dim=0)).any(), "some latents are negative only"
    assert torch.equal(result.fired, (dense != 0).sum(dim=0)) and int(result.n_active) == 200


def signed_atoms(n: int) -> tuple[Tensor, Tensor]:
    """Orthonormal atoms `[32, 64]`, and rows that sum four of them with coefficients of either sign."""
    rng = np.random.default_rng(0)
    atoms = np.linalg.qr(rng.normal(size=(64, 32)))[0].T
    chosen = np.argsort(rng.random((n, 32)), axis=1)[:, :4]
    codes = np.zeros((n, 32))
    np.put_along_axis(codes, chosen, rng.uniform(1, 1.5, (n, 4)) * rng.choice([-1, 1], (n, 4)), axis=1)
    return torch.from_numpy(atoms).float(), torch.from_numpy(codes @ atoms).float()


def test_one_signed_latent_holds_both_poles_where_topk_needs_two() -> None:
    atoms, raw = signed_atoms(6144)
    left, cosine = {}, {}
    for architecture, width in (("abstopk", 32), ("topk", 32), ("topk", 64)):
        model = ARCHITECTURES[architecture].create({"d_in": 64, "n_latents": width, "k": 4})
        x = scaled(raw, model)
        train(model, x[:4096], steps=600, batch_size=256, dead_after=2048)
        left[architecture, width] = fvu(model, x[4096:])
        cosine[architecture, width] = best_cosines(atoms.numpy(), model, signed=True).mean()
    assert left["abstopk", 32] < 0.02 and cosine["abstopk", 32] > 0.95
    assert left["topk", 32] > 0.2
    assert left["topk", 64] < 0.5 * left["topk", 32], "twice the latents have room for the other pole"


def test_planted_features_are_found() -> None:
    before, after = recovery("abstopk", k=3)
    assert before < 0.75 and after > 0.9
