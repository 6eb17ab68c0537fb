"""What holds for every registered architecture. Its loss is stated anew, densely, in `dense/<architecture>.py`."""

from __future__ import annotations

import copy
import importlib
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from planted_features import fvu, mean_l0, planted, randomise, scaled, train
from torch import Tensor
from watch import Watch

import sae.base
import sae.training
from sae import SAEError, load, save
from sae.base import SparseAutoencoder
from sae.formats.native import ARCHITECTURES
from sae.training import Batch, StepContext, StepResult

TOLERANCE = 1e-9
SHAPE = {"d_in": 12, "n_latents": 40}
# A transcoder of another width with a skip connection, where the architecture can be one.
TRANSCODER = {"d_out": 9, "skip": True, "apply_b_dec_to_input": False}
DEAD = torch.tensor([1, 5, 6, 30])
# One without a dense statement is a failure of its own, not of the collection of all the others.
STATED = {path.stem for path in (Path(__file__).parent / "dense").glob("*.py")} - {"__init__"}
UNTRAINED = {"neurons"}
"""Have no loss, hence nothing to state; they have tests of their own."""
NAMES = [name for name in ARCHITECTURES.names if name in STATED]
FIXED_COUNT = ["abstopk", "gradient", "groupmax", "skip_transcoder", "topk", "transcoder"]


def dense(name: str) -> Any:
    return importlib.import_module(f"dense.{name}")


def cases(attribute: str = "CASES") -> list[Any]:
    found = []
    for name in NAMES:
        module = dense(name)
        given = getattr(module, attribute, module.CASES)
        found += [pytest.param(name, case, id=f"{name}-{i}") for i, case in enumerate(given)]
    return found


def build(name: str, settings: dict[str, Any], seed: int = 3) -> SparseAutoencoder:
    """Random float64 weights; skips what the architecture refuses to be."""
    try:
        model = ARCHITECTURES[name].create({**SHAPE, **settings})
    except SAEError as refused:
        if "d_out" not in settings:
            raise
        pytest.skip(f"{name} cannot be a transcoder: {refused}")
    randomise(model.double(), seed)
    if hasattr(dense(name), "prepare"):
        with torch.no_grad():
            dense(name).prepare(model, torch.Generator().manual_seed(seed))
    return model


def make_batch(model: SparseAutoencoder, n: int = 50) -> Batch:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(n, model.d_in, generator=generator, dtype=torch.float64) + 0.3
    gradient = 0.5 * torch.randn(n, model.d_in, generator=generator, dtype=torch.float64)
    other = model.config.width_out != model.d_in
    target = 2 * torch.randn(n, model.config.width_out, generator=generator, dtype=torch.float64) if other else None
    return Batch(x, target, gradient)


def make_context(name: str, n: int, dead: Tensor | None = None) -> StepContext:
    return StepContext(**{"n_rows": n, "dead": dead, **getattr(dense(name), "CONTEXT", {})})


def autograd(
    name: str, model: SparseAutoencoder, batch: Batch, context: StepContext
) -> tuple[Tensor, dict[str, Tensor]]:
    """The dense loss and its gradients; zeros for what it does not depend on."""
    leaves = {key: value.detach().clone().requires_grad_() for key, value in model.named_parameters()}
    loss: Tensor = dense(name).loss(leaves, batch, copy.deepcopy(model), context)
    grads = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True, materialize_grads=True)
    return loss.detach(), dict(zip(leaves, grads, strict=True))


def gradients(model: SparseAutoencoder) -> dict[str, Tensor]:
    return {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in model.named_parameters()}


def assert_close(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert set(found) == set(expected)
    for name, wanted in expected.items():
        scale = max(float(wanted.abs().max()), 1e-12)
        assert float((found[name] - wanted).abs().max()) < TOLERANCE * scale, name


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seven rows an encoder chunk, few pairs at a time: sums over several parts, the last one smaller."""
    monkeypatch.setattr(sae.base, "CHUNK_BYTES", 7 * 40 * 8)
    monkeypatch.setattr(sae.training, "SLAB_PAIRS", 2 * 40)


def test_every_architecture_is_stated_densely() -> None:
    assert set(ARCHITECTURES.names) - UNTRAINED == STATED
    assert all(dense(name).CASES for name in NAMES)


@pytest.mark.parametrize("dead", [None, DEAD], ids=["alive", "dead"])
@pytest.mark.parametrize("output", [{}, TRANSCODER], ids=["itself", "transcoder"])
@pytest.mark.parametrize(("name", "case"), cases())
@pytest.mark.usefixtures("small_chunks")
def test_gradients_and_loss_equal_autograd_of_the_dense_loss(
    name: str, case: dict[str, Any], output: dict[str, Any], dead: Tensor | None
) -> None:
    model = build(name, {**case, **output})
    batch = make_batch(model)
    context = make_context(name, 50, dead)
    loss, expected = autograd(name, model, batch, context)
    result: StepResult = model.step(batch, context)
    assert_close(gradients(model), expected)
    assert float(result.loss) == pytest.approx(float(loss), rel=1e-10)
    assert float(result.fvu) > 0
    assert result.fired.dtype == torch.int64 and result.fired.shape == (40,) and result.fired.max() <= 50
    assert int(result.n_active) == int(result.fired.sum()) > 0
    if getattr(dense(name), "TRAINS_AS_IT_INFERS", True):
        assert torch.equal(result.fired, (model.encode_dense(batch.x) != 0).sum(dim=0))
        assert float(result.fvu) == pytest.approx(fvu(model, batch.x, batch.target), rel=1e-10)


@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_is_trained_by_some_case(name: str) -> None:
    """So that the comparison above is never one of nothing with nothing."""
    untrained: set[str] = set()
    for case in dense(name).CASES:
        for output in ({}, TRANSCODER):
            try:
                model = build(name, {**case, **output})
            except pytest.skip.Exception:
                continue
            batch = make_batch(model)
            untrained |= {parameter for parameter, _ in model.named_parameters()}
            untrained -= getattr(dense(name), "NO_GRADIENT", set())
            _, grads = autograd(name, model, batch, make_context(name, 50, DEAD))
            untrained -= {parameter for parameter, grad in grads.items() if grad.abs().max() > 1e-6}
            if not untrained:
                return
    assert not untrained


class Together:
    """Sums and maxima over threads that stand for processes."""

    def __init__(self, n: int) -> None:
        self.barrier, self.shares = threading.Barrier(n, timeout=30), [torch.zeros(())] * n

    def total(self, rank: int) -> Callable[[Tensor], Tensor]:
        return lambda share: self._gather(rank, share).sum(dim=0)

    def largest(self, rank: int) -> Callable[[Tensor], Tensor]:
        return lambda share: self._gather(rank, share).amax(dim=0)

    def _gather(self, rank: int, share: Tensor) -> Tensor:
        self.shares[rank] = share.clone()
        self.barrier.wait()
        out = torch.stack(self.shares)
        self.barrier.wait()
        return out


@pytest.mark.parametrize(("name", "case"), cases("PROCESSES"))
@pytest.mark.usefixtures("small_chunks")
def test_two_processes_give_the_result_of_one(name: str, case: dict[str, Any]) -> None:
    model = build(name, case)
    batch = make_batch(model, 96)
    if getattr(dense(name), "BATCH_WIDE", False):  # equal halves: a choice within each is the choice over both
        batch = Batch(*(None if field is None else torch.cat([field[:48], field[:48]]) for field in batch))
    context = make_context(name, 96, DEAD)
    halves = [Batch(*(None if f is None else f[i : i + 48] for f in batch)) for i in (0, 48)]
    models, together, results = [copy.deepcopy(model) for _ in halves], Together(2), {}

    def run(rank: int) -> None:
        joined = replace(context, total=together.total(rank), largest=together.largest(rank))
        results[rank] = models[rank].step(halves[rank], joined)

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    whole = model.step(batch, context)
    assert_close(
        {key: sum(gradients(one)[key] for one in models) for key in gradients(model)},  # type: ignore[misc]
        gradients(model),
    )
    for field in ("loss", "fvu", "fired", "n_active"):
        assert torch.allclose(sum(getattr(results[rank], field) for rank in range(2)), getattr(whole, field)), field
    for key, buffer in model.named_buffers():
        first, second = (dict(one.named_buffers())[key] for one in models)
        assert torch.equal(first, second) and torch.allclose(first, buffer, rtol=1e-9), key


def watched(name: str, n: int) -> Watch:
    settings = {**dense(name).CASES[0], "n_latents": 380}
    model = build(name, settings)
    batch = make_batch(model, n)
    context = make_context(name, n, DEAD)
    with Watch() as watch:
        model.step(batch, context)
    return watch


@pytest.mark.parametrize("name", NAMES)
def test_no_step_builds_a_tensor_of_batch_times_latents(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sae.base, "CHUNK_BYTES", 4 * 380 * 8)
    monkeypatch.setattr(sae.training, "SLAB_PAIRS", 4 * 380)
    sizes = watched(name, 61).sizes
    assert [size for size in sizes if 3.8 * 380 <= size <= 4 * 380], "it did go through chunks of four rows' size"
    assert not [size for size in sizes if size and size % (61 * 380) == 0]


@pytest.mark.parametrize("name", FIXED_COUNT)
def test_steps_of_a_fixed_count_never_wait_for_the_device(name: str) -> None:
    assert not watched(name, 20).waits


def test_the_watch_sees_waiting_steps() -> None:
    assert "nonzero" in watched("relu", 20).waits
    with Watch() as watch:
        values = torch.arange(4.0)
        values[values > 1]
        float(values[0])
        values[torch.tensor([0, 2])]
    assert watch.waits == {"index", "_local_scalar_dense"}


@pytest.mark.parametrize("output", [{}, TRANSCODER], ids=["itself", "transcoder"])
@pytest.mark.parametrize("name", NAMES)
def test_encode_takes_any_leading_dimensions(name: str, output: dict[str, Any]) -> None:
    model = build(name, {**dense(name).CASES[0], **output})
    x = torch.randn(2, 5, 12, generator=torch.Generator().manual_seed(6), dtype=torch.float64)
    codes, width = model.encode(x), model.config.width_out
    assert codes.n_rows == 10 and codes.n_latents == 40 and codes.values.ne(0).all()
    assert torch.equal(codes.to_dense(), model.encode(x.reshape(10, 12)).to_dense())
    assert model(x).shape == (2, 5, width) and model.encode_dense(x).shape == (2, 5, 40)
    assert torch.equal(model.encode_dense(x).reshape(10, 40), codes.to_dense())
    empty = model.encode(torch.zeros(0, 12))
    assert empty.n_rows == 0 and model.decode(empty).shape == (0, width)
    assert model(torch.zeros(3, 0, 12)).shape == (3, 0, width)


@pytest.mark.parametrize("name", NAMES)
def test_a_code_depends_on_its_token_alone(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build(name, dense(name).CASES[0])
    x = torch.randn(23, 12, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    whole = model.encode_dense(x)
    assert whole.any()
    monkeypatch.setattr(sae.base, "CHUNK_BYTES", 4 * 40 * 8)
    assert torch.allclose(model.encode_dense(x), whole, rtol=1e-10, atol=1e-12)
    one_by_one = torch.stack([model.encode_dense(row) for row in x])
    assert torch.allclose(one_by_one, whole, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_encode_refuses_what_it_cannot_read(name: str) -> None:
    model = build(name, dense(name).CASES[0])
    model.encode(torch.zeros(4, 12))
    for bad in (float("nan"), float("inf"), float("-inf")):
        x = torch.zeros(4, 12)
        x[2, 7] = bad
        with pytest.raises(SAEError, match="NaN or infinity"):
            model.encode(x)
    with pytest.raises(SAEError, match=r"\(4, 11\).*12"):
        model.encode(torch.zeros(4, 11))


@pytest.mark.parametrize("output", [{}, TRANSCODER], ids=["itself", "transcoder"])
@pytest.mark.parametrize("name", NAMES)
def test_what_is_saved_is_what_is_loaded(name: str, output: dict[str, Any], tmp_path: Path) -> None:
    model = build(name, {**dense(name).CASES[0], **output}).float()
    batch = make_batch(model)
    model.step(Batch(*(None if field is None else field.float() for field in batch)), make_context(name, 50))
    loaded = load(save(model, tmp_path / "sae"))
    assert type(loaded) is type(model) and loaded.config == model.config
    assert set(loaded.state_dict()) == set(model.state_dict())
    for key, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], tensor) and loaded.state_dict()[key].dtype == tensor.dtype, key
    assert torch.equal(loaded.encode_dense(batch.x), model.encode_dense(batch.x))
    assert torch.equal(loaded(batch.x), model(batch.x))


@pytest.mark.parametrize("output", [{}, TRANSCODER], ids=["itself", "transcoder"])
@pytest.mark.parametrize("name", NAMES)
def test_rescale_folds_the_input_scales_in(name: str, output: dict[str, Any]) -> None:
    """A dictionary for `s * x`, folded, gives for `x` the codes and reconstructions divided by the scale of its output."""
    model = build(name, {**dense(name).CASES[0], **output})
    scale, target_scale = 0.037, 0.21 if output else 0.037
    x = 20 * torch.randn(60, 12, generator=torch.Generator().manual_seed(8), dtype=torch.float64)
    codes, recon, decoder = model.encode_dense(scale * x), model(scale * x), model.W_dec.detach().clone()
    model.rescale(scale, target_scale)
    assert codes.any()
    assert torch.allclose(model.encode_dense(x), codes / target_scale, rtol=1e-9)
    assert torch.allclose(model(x), recon / target_scale, rtol=1e-9)
    assert torch.equal(model.W_dec, decoder)


@pytest.mark.parametrize("name", NAMES)
def test_training_lowers_the_loss_and_inference_is_as_sparse(name: str) -> None:
    module = dense(name)
    model = ARCHITECTURES[name].create({"d_in": 32, "n_latents": 96, **getattr(module, "PLANTED", {})})
    x = scaled(planted(8192 + 2048)[1], model)
    gradient = torch.from_numpy(np.random.default_rng(5).normal(size=(8192, 32)).astype(np.float32))
    results = train(model, x[:8192], gradient=gradient, **getattr(module, "TRAINING", {}))
    losses = torch.stack([result.loss for result in results])
    assert losses.isfinite().all()
    assert losses[-10:].mean() < 0.7 * losses[:5].mean()
    codes = model.encode(x[8192:])
    assert codes.latents.numel() / 2048 == pytest.approx(mean_l0(results, last=20), rel=0.1)
    if model.unit_decoder:
        assert torch.allclose(model.W_dec.norm(dim=1), torch.ones(96), atol=1e-5)
