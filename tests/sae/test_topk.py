"""TopK: its hand-written gradients against autograd, its codes against the dense rule, and what it learns."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from planted_features import best_cosines, planted, random_topk
from torch import Tensor

import sae.base
from sae import SAEError, TrainConfig, Trainer
from sae.architectures.topk import Config, TopK
from sae.metrics import Reconstruction
from sae.training import StepResult

NAMES = ("encoder", "b_enc", "W_dec", "b_dec")


def dense_topk(pre: Tensor, k: int) -> Tensor:
    """ReLU of the k largest of each row, as a dense tensor."""
    mask = torch.zeros_like(pre).scatter(1, pre.detach().topk(k, dim=1).indices, 1.0)
    return pre.relu() * mask


def reference(model: TopK, x: Tensor, dead: Tensor | None) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Figures and gradients of the documented loss by autograd on dense codes; shares no code with the step."""
    leaves = {name: getattr(model, name).detach().clone().requires_grad_() for name in NAMES}
    config = model.config
    pre = (x - leaves["b_dec"]) @ leaves["encoder"].T + leaves["b_enc"]
    error = dense_topk(pre, config.k) @ leaves["W_dec"] + leaves["b_dec"] - x
    fvu = error.square().sum() / (x - x.mean(dim=0)).square().sum()
    auxk = torch.zeros((), dtype=x.dtype)
    if dead is not None and len(dead) and config.auxk_alpha > 0:
        rows = slice(None, None, config.auxk_rows)
        residual = -error[rows].detach()
        codes = dense_topk(pre[rows][:, dead], min(model.d_in // 2, len(dead)))
        miss = codes @ leaves["W_dec"][dead] - residual
        auxk = miss.square().sum() / (residual - residual.mean(dim=0)).square().sum()
    loss = fvu + config.auxk_alpha * auxk
    loss.backward()
    grads = {name: leaf.grad for name, leaf in leaves.items() if leaf.grad is not None}
    return {"loss": loss.detach(), "fvu": fvu.detach(), "auxk": auxk.detach()}, grads


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


CASES: list[tuple[dict[str, Any], list[int] | None]] = [
    ({"k": 4}, None),
    ({"k": 4}, []),
    ({"k": 4}, [1, 5, 6, 30]),
    ({"k": 4, "auxk_rows": 1}, list(range(0, 40, 2))),
    ({"k": 4, "auxk_rows": 3, "auxk_alpha": 0.5}, list(range(40))),
    ({"k": 4, "auxk_alpha": 0.0}, [1, 5, 6, 30]),
    ({"k": 1}, [7]),
    ({"k": 40}, [0, 39]),  # more than are positive: ReLU cuts some of the chosen ones
]


@pytest.mark.parametrize(("settings", "dead"), CASES)
def test_gradients_equal_autograd(settings: dict[str, Any], dead: list[int] | None) -> None:
    model = random_topk(3, dtype=torch.float64, d_in=12, n_latents=40, **settings)
    x = torch.randn(50, 12, generator=torch.Generator().manual_seed(1), dtype=torch.float64) + 0.3
    indices = None if dead is None else torch.tensor(dead, dtype=torch.int64)
    figures, grads = reference(model, x, indices)
    result: StepResult = model.step(x, indices, chunk=16)
    for name, expected in grads.items():
        assert expected.abs().max() > 1e-6
        assert relative(getattr(model, name).grad, expected) < 1e-10, name
    for name, expected in figures.items():
        assert float(getattr(result, name)) == pytest.approx(float(expected), rel=1e-12), name
    uses_auxk = bool(dead) and model.config.auxk_alpha > 0
    assert (float(result.auxk) > 0) is uses_auxk


def test_the_aux_loss_reaches_dead_latents_only() -> None:
    """The AuxK share of the gradient is nil outside the dead rows, b_dec apart."""
    model = random_topk(3, dtype=torch.float64, d_in=12, n_latents=40, k=4)
    x = torch.randn(50, 12, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    dead = torch.tensor([2, 3, 17])
    model.step(x, None)
    plain = {name: getattr(model, name).grad.clone() for name in NAMES}
    model.step(x, dead)
    live = torch.ones(40, dtype=torch.bool)
    live[dead] = False
    for name in ("encoder", "b_enc", "W_dec"):
        extra = getattr(model, name).grad - plain[name]
        assert not extra[live].any() and extra[dead].abs().max() > 1e-6, name


def test_fired_and_active_counts() -> None:
    model = random_topk(4, dtype=torch.float64, d_in=12, n_latents=40, k=4)
    with torch.no_grad():
        model.b_enc += 10  # all positive, so that selected and non-zero are the same
    x = torch.randn(50, 12, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    result = model.step(x, None)
    dense = model.encode(x).to_dense()
    assert torch.equal(result.fired, (dense != 0).sum(dim=0))
    assert int(result.n_active) == 50 * 4


def test_a_latent_whose_code_is_zero_has_not_fired() -> None:
    model = random_topk(4, d_in=12, n_latents=40, k=40)
    with torch.no_grad():
        model.b_enc[:5] = -1000
    x = torch.randn(50, 12, generator=torch.Generator().manual_seed(2))
    assert not model.encode(x).to_dense()[:, :5].any()
    assert not model.step(x, None).fired[:5].any()


def test_codes_are_the_k_largest_and_at_most_k() -> None:
    x = torch.randn(200, 12, generator=torch.Generator().manual_seed(5))
    for k in (1, 3, 40):
        model = random_topk(5, d_in=12, n_latents=40, k=k)
        pre = (x - model.b_dec) @ model.encoder.T + model.b_enc
        dense = model.encode_dense(x)
        assert torch.allclose(dense, dense_topk(pre, k).detach(), atol=1e-5)
        assert (dense != 0).sum(dim=1).max() <= k
        with torch.no_grad():
            model.b_enc += 100
        assert (model.encode_dense(x) != 0).sum(dim=1).tolist() == [k] * 200


def test_encode_flattens_leading_dimensions_in_order() -> None:
    model = random_topk(6, d_in=12, n_latents=40, k=3)
    x = torch.randn(2, 5, 12, generator=torch.Generator().manual_seed(6))
    codes = model.encode(x)
    assert codes.n_rows == 10
    assert torch.equal(codes.to_dense(), model.encode(x.reshape(10, 12)).to_dense())
    assert model(x).shape == x.shape and model.encode_dense(x).shape == (2, 5, 40)
    assert torch.allclose(model(x)[1, 3], model(x[1, 3]), atol=1e-5)
    assert not torch.allclose(model(x)[1, 3], model(x[1, 2]), atol=0.1)
    empty = model.encode(torch.zeros(0, 12))
    assert (
        empty.n_rows == 0 and model.decode(empty).shape == (0, 12) and model(torch.zeros(3, 0, 12)).shape == (3, 0, 12)
    )


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_encode_refuses_what_is_not_finite(bad: float) -> None:
    model = random_topk(6, d_in=12, n_latents=40, k=3)
    x = torch.zeros(4, 12)
    model.encode(x)
    x[2, 7] = bad
    with pytest.raises(SAEError, match="NaN or infinity"):
        model.encode(x)


def test_encode_refuses_another_width() -> None:
    with pytest.raises(SAEError, match=r"\(4, 11\).*12"):
        random_topk(6, d_in=12, n_latents=40, k=3).encode(torch.zeros(4, 11))


@pytest.mark.parametrize("k", [0, 41, -1])
def test_k_has_to_fit(k: int) -> None:
    with pytest.raises(SAEError, match="between 1 and n_latents"):
        Config(d_in=12, n_latents=40, k=k)


def test_chunked_encode_equals_unchunked(monkeypatch: pytest.MonkeyPatch) -> None:
    model = random_topk(7, dtype=torch.float64, d_in=12, n_latents=40, k=3)
    x = torch.randn(23, 12, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    whole = model.encode(x)
    sizes: list[int] = []
    plain = TopK.encode_rows
    monkeypatch.setattr(TopK, "encode_rows", lambda self, rows: sizes.append(len(rows)) or plain(self, rows))
    monkeypatch.setattr(sae.base, "CHUNK_BYTES", 4 * 40 * 8)
    parts = model.encode(x)
    assert sizes == [4, 4, 4, 4, 4, 3]
    assert torch.equal(parts.offsets, whole.offsets)
    assert torch.allclose(parts.to_dense(), whole.to_dense(), rtol=1e-12)


def test_rescale_folds_the_input_scale_in() -> None:
    """A dictionary for `s * x`, folded, gives for `x` the codes and reconstructions divided by `s`."""
    scale = 0.037
    model = random_topk(8, dtype=torch.float64, d_in=12, n_latents=40, k=4)
    x = 20 * torch.randn(60, 12, generator=torch.Generator().manual_seed(8), dtype=torch.float64)
    codes, recon, decoder = model.encode(scale * x), model(scale * x), model.W_dec.detach().clone()
    model.rescale(scale)
    assert torch.allclose(model.encode(x).to_dense(), codes.to_dense() / scale, rtol=1e-9)
    assert torch.allclose(model(x), recon / scale, rtol=1e-9)
    assert torch.equal(model.W_dec, decoder)


def test_planted_features_are_found() -> None:
    directions, x = planted(8192)
    model = TopK(Config(d_in=32, n_latents=96, k=3))
    model.initialise(0)
    before = best_cosines(directions, model).mean()
    Trainer(model, x, TrainConfig(batch_size=512, epochs=12, dead_after=4096, warmup_steps=20)).run()
    found = best_cosines(directions, model)
    assert before < 0.7, "the start must not already be the answer"
    assert found.mean() > 0.97 and (found > 0.95).mean() > 0.9


class HalfDead(TopK):
    """Starts with two thirds of its latents pushed below the others, which alone cannot hold 64 features."""

    def initialise(self, seed: int) -> None:
        super().initialise(seed)
        with torch.no_grad():
            self.b_enc[:64] = -1.5


def test_auxk_revives_dead_latents_that_are_needed() -> None:
    """A latent that never fires gets no gradient but AuxK's; with it, it learns what the others leave over."""
    directions, x = planted(8192)
    dead, fvu, cosine = {}, {}, {}
    for alpha in (0.0, 1 / 32):
        model = HalfDead(Config(d_in=32, n_latents=96, k=3, auxk_alpha=alpha))
        Trainer(model, x, TrainConfig(batch_size=512, epochs=12, dead_after=2048, warmup_steps=20)).run()
        measured = Reconstruction(model)
        measured.add(torch.from_numpy(x))
        figures = measured.figures()
        dead[alpha], fvu[alpha] = figures["dead_share"], figures["fvu"]
        cosine[alpha] = best_cosines(directions, model).mean()
    assert dead[0.0] > 0.6, "without AuxK next to none comes back"
    assert dead[1 / 32] < 0.6 * dead[0.0]
    assert fvu[1 / 32] < 0.5 * fvu[0.0]
    assert cosine[1 / 32] > cosine[0.0] + 0.1
