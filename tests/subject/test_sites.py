"""Several hookpoints in one pass, and the gradient of the model's own loss at them."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from autointerp.collect.sites import counted_rows, gradient_site, width_at
from autointerp.collect.tokens import NO_DOCUMENT, TokenBlocks
from autointerp.errors import UserError
from autointerp.subject.hookpoints import editing, find
from autointerp.subject.load import SubjectModel, load_subject

HOOKPOINTS = ["layers.0", "layers.0.mlp:in", "layers.1.self_attn.o_proj:in"]


@pytest.fixture(scope="module")
def subject(world: Any) -> SubjectModel:
    """Blocks that say something: in the planted model they are nearly silent."""
    found = load_subject(str(world.model))
    torch.manual_seed(1)
    with torch.no_grad():
        for block in found.model.model.layers:
            for linear in (block.self_attn.q_proj, block.self_attn.o_proj, block.mlp.down_proj, block.mlp.up_proj):
                linear.weight.normal_(std=0.3)
    return found


@pytest.fixture(scope="module")
def tokens() -> Tensor:
    return torch.randint(2, 40, (2, 9), generator=torch.Generator().manual_seed(0))


def counted(*positions: int) -> Tensor:
    mask = torch.zeros(2, 9, dtype=torch.bool)
    mask[:, list(positions)] = True
    return mask


def loss_of(model: Any, tokens: Tensor, mask: Tensor) -> Tensor:
    """Written another way than the product's: from probabilities, position by position."""
    p = model(input_ids=tokens, use_cache=False).logits.softmax(dim=-1)
    rows, places = mask[:, 1:].nonzero(as_tuple=True)
    return -p[rows, places, tokens[rows, places + 1]].log().sum()


def in_double(model: Any) -> Any:
    """A copy in float64 throughout; its own norms would still compute in float32."""
    found = copy.deepcopy(model).double()
    for module in found.modules():
        if isinstance(module, LlamaRMSNorm):
            module.forward = partial(norm, module.weight, module.variance_epsilon)
    return found


def norm(weight: Tensor, epsilon: float, x: Tensor) -> Tensor:
    return weight * x * (x.square().mean(dim=-1, keepdim=True) + epsilon).rsqrt()


@pytest.mark.parametrize("hookpoint", HOOKPOINTS)
def test_gradients_are_those_of_autograd_and_of_finite_differences(
    subject: SubjectModel, tokens: Tensor, hookpoint: str
) -> None:
    mask = counted(2, 3, 5, 8)
    got = subject.gradients_at(tokens, hookpoint, mask).double()
    assert got.shape == (2, 9, width_at(subject, hookpoint))
    model = in_double(subject.model)
    kept: list[Tensor] = []

    def leaf(x: Tensor) -> Tensor:
        kept.append(x.detach().requires_grad_())
        return kept[-1]

    with editing(model, hookpoint, leaf):
        loss_of(model, tokens, mask).backward()
    exact = kept[0].grad
    assert exact is not None and float(exact.norm()) > 0.1
    assert float((got - exact).norm() / exact.norm()) < 1e-5
    # Central differences in float64 along random directions.
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        direction = torch.randn(exact.shape, generator=generator, dtype=torch.float64)
        ends = []
        for step in (1e-5 * direction, -1e-5 * direction):
            with torch.no_grad(), editing(model, hookpoint, lambda x, step=step: x + step):
                ends.append(float(loss_of(model, tokens, mask)))
        slope = (ends[0] - ends[1]) / 2e-5
        assert slope == pytest.approx(float((exact * direction).sum()), rel=1e-6)
        assert slope == pytest.approx(float((got * direction).sum()), rel=1e-4)
    assert not any(parameter.grad is not None for parameter in subject.model.parameters())


def test_only_predictions_of_counted_tokens_have_a_gradient(subject: SubjectModel, tokens: Tensor) -> None:
    gradient = subject.gradients_at(tokens, "layers.0", counted(5))
    reached = gradient.abs().amax(dim=(0, 2)) > 0
    assert reached.tolist() == [True] * 5 + [False] * 4, "what stands before the prediction, and nothing else"
    # Tokens that are not predicted and not read by a counted prediction can be anything.
    other = tokens.clone()
    other[:, 6:] = 3
    torch.testing.assert_close(subject.gradients_at(other, "layers.0", counted(5)), gradient, atol=1e-6, rtol=1e-5)
    assert not subject.gradients_at(tokens, "layers.0", counted()).any()
    assert not subject.gradients_at(tokens, "layers.0", counted(0)).any(), "nothing predicts the first token"
    parts = sum(subject.gradients_at(tokens, "layers.0", counted(i)) for i in (2, 5, 8))
    torch.testing.assert_close(parts, subject.gradients_at(tokens, "layers.0", counted(2, 5, 8)), atol=1e-5, rtol=1e-4)


def test_rows_are_those_of_the_positions_that_count(subject: SubjectModel, tokens: Tensor) -> None:
    owners = np.full((2, 9), NO_DOCUMENT, dtype=np.int32)
    owners[0, 2:7], owners[1, 4:6] = 0, 1
    blocks = TokenBlocks(tokens.numpy().astype(np.int32), owners)
    mask = torch.from_numpy(owners != NO_DOCUMENT)
    sites = ["layers.1", gradient_site("layers.0"), "layers.0"]
    rows = counted_rows(subject, blocks, slice(0, 2), sites)
    assert list(rows) == sites
    for site in ("layers.0", "layers.1"):
        torch.testing.assert_close(rows[site], subject.activations(tokens, site)[mask], atol=1e-5, rtol=1e-5)
    whole = subject.gradients_at(tokens, "layers.0", mask)[mask]
    torch.testing.assert_close(rows[gradient_site("layers.0")], whole, atol=1e-6, rtol=1e-4)
    nothing = counted_rows(subject, TokenBlocks(blocks.tokens, np.full_like(owners, NO_DOCUMENT)), slice(0, 2), sites)
    assert all(value.shape == (0, 64) for value in nothing.values())


def test_one_pass_for_all_hookpoints_up_to_the_deepest(subject: SubjectModel, tokens: Tensor) -> None:
    ran: list[str] = []
    names = ["layers.0", "layers.0.mlp", "layers.1.self_attn", "layers.1.mlp", "norm"]
    handles = [
        find(subject.model, name).register_forward_hook(lambda *_, name=name: ran.append(name)) for name in names
    ]
    sites = ["layers.1.self_attn.o_proj:in", "layers.0", "layers.0.mlp:in", "layers.0.mlp"]
    together = subject.activations_at(tokens, sites)
    for handle in handles:
        handle.remove()
    assert ran == ["layers.0.mlp", "layers.0"], "once each, and neither the rest of block 1 nor what follows it"
    for site in sites:
        assert torch.equal(together[site], subject.activations(tokens, site)), site


def test_a_module_that_is_never_run_is_refused(subject: SubjectModel) -> None:
    with pytest.raises(
        UserError, match=r"'layers' is not a module that model runs; name one inside it, e\.g\. layers\.0"
    ):
        width_at(subject, "layers")
