"""Held-out figures, on dictionaries whose figures are known: exact, silent, too small, and a transcoder."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from autointerp.collect.corpus import documents
from autointerp.collect.sites import counted_rows
from autointerp.collect.tokens import NO_DOCUMENT, TokenBlocks, pack
from autointerp.pipeline.evaluate import Figure, Placed, evaluate
from autointerp.pipeline.train import record, recorded
from autointerp.subject.hookpoints import editing
from autointerp.subject.load import SubjectModel, load_subject
from sae.architectures import relu, skip_transcoder, topk
from sae.base import SparseAutoencoder

SITE, IN, OUT = "layers.0", "layers.0.mlp:in", "layers.0.mlp"
N_BLOCKS = 6


@pytest.fixture(scope="module")
def subject(world: Any) -> SubjectModel:
    """The MLP and the heads say something, so that a splice in one place shows in another."""
    found = load_subject(str(world.model))
    torch.manual_seed(1)
    with torch.no_grad():
        for block in found.model.model.layers:
            for linear in (block.self_attn.o_proj, block.mlp.down_proj, block.mlp.up_proj):
                linear.weight.normal_(std=0.3)
    return found


@pytest.fixture(scope="module")
def blocks(world: Any, subject: SubjectModel) -> TokenBlocks:
    texts = documents(str(world.corpus), seed=0)
    return pack(subject, texts, n_tokens=24 * N_BLOCKS, context_length=24, skip_first=3)


def identity(factor: float = 1.0) -> SparseAutoencoder:
    """[I; -I] behind a ReLU: relu(x) - relu(-x) = x, times a factor."""
    model = relu.create({"d_in": 64, "n_latents": 128})
    with torch.no_grad():
        signs = torch.cat([torch.eye(64), -torch.eye(64)])
        model.encoder.copy_(signs)
        model.W_dec.copy_(factor * signs)
    return model


def silent() -> SparseAutoencoder:
    model = relu.create({"d_in": 64, "n_latents": 128})
    assert not any(bool(tensor.any()) for tensor in model.state_dict().values())
    return model


def values(figures: dict[str, Figure]) -> dict[str, float]:
    return {name: figure.value for name, figure in figures.items()}


def test_an_exact_dictionary_costs_nothing(subject: SubjectModel, blocks: TokenBlocks) -> None:
    figures = evaluate(subject, {"exact": Placed(identity(), SITE)}, blocks)["exact"]
    found = values(figures)
    assert found["fvu"] == pytest.approx(0, abs=1e-10)
    assert found["shrinkage"] == pytest.approx(1, abs=1e-6) and found["norm_ratio"] == pytest.approx(1, abs=1e-6)
    assert found["kl"] == pytest.approx(0, abs=1e-4) and found["ce_recovered"] == pytest.approx(1, abs=1e-4)
    assert found["ce_spliced"] == pytest.approx(found["ce"], abs=1e-5) and found["ce_zero"] > found["ce"] + 0.05
    assert found["l0"] == pytest.approx(64, abs=0.5), "one of each pair fires"
    assert figures["fvu"].n_tokens == blocks.n_counted
    assert figures["ce"].low < found["ce"] < figures["ce"].high
    # The model's own loss, from its own loss function.
    tokens = torch.from_numpy(blocks.tokens.astype(np.int64))
    labels = tokens.masked_fill(torch.from_numpy(blocks.documents == NO_DOCUMENT), -100)
    with torch.no_grad():
        assert found["ce"] == pytest.approx(float(subject.model(input_ids=tokens, labels=labels).loss), rel=1e-5)


def test_a_silent_dictionary_recovers_nothing(subject: SubjectModel, blocks: TokenBlocks) -> None:
    found = values(evaluate(subject, {"silent": Placed(silent(), SITE)}, blocks)["silent"])
    assert found["ce_spliced"] == pytest.approx(found["ce_zero"], abs=1e-6)
    assert found["ce_recovered"] == pytest.approx(0, abs=1e-6) and found["kl"] > 0.01
    assert found["fvu"] >= 1 and found["l0"] == 0 and found["norm_ratio"] == 0
    assert math.isnan(found["shrinkage"]) and found["dead_share"] == 1 and found["dense_share"] == 0


def test_shrunken_reconstructions_are_seen(subject: SubjectModel, blocks: TokenBlocks) -> None:
    found = values(evaluate(subject, {"small": Placed(identity(0.8), SITE)}, blocks, losses=False)["small"])
    assert found["shrinkage"] == pytest.approx(0.8, abs=1e-6) and found["norm_ratio"] == pytest.approx(0.8, abs=1e-6)
    x = rows(subject, blocks, SITE)
    variance = (x - x.mean(dim=0)).square().sum()
    assert found["fvu"] == pytest.approx(float((0.2 * x).square().sum() / variance), rel=1e-5)
    assert "ce" not in found


def rows(subject: SubjectModel, blocks: TokenBlocks, site: str) -> Tensor:
    return counted_rows(subject, blocks, slice(0, len(blocks.tokens)), [site])[site].double()


def test_figures_are_pooled_over_tokens_whatever_the_blocks(subject: SubjectModel, blocks: TokenBlocks) -> None:
    """Blocks of very unequal size: their mean of ratios would be another number."""
    model = topk.create({"d_in": 64, "n_latents": 96, "k": 2})
    model.initialise(0)
    owners = blocks.documents.copy()
    for i in range(1, N_BLOCKS):
        owners[i, : 23 - i] = NO_DOCUMENT  # i + 1 tokens count
    uneven = TokenBlocks(blocks.tokens, owners)
    found = values(evaluate(subject, {"one": Placed(model, SITE)}, uneven)["one"])
    x = rows(subject, uneven, SITE)
    error = model(x.float()).double() - x
    assert found["fvu"] == pytest.approx(float(error.square().sum() / (x - x.mean(dim=0)).square().sum()), rel=1e-5)
    alone = [
        values(evaluate(subject, {"one": Placed(model, SITE)}, TokenBlocks(blocks.tokens[i : i + 1], owners[i : i + 1]))["one"])
        for i in range(N_BLOCKS)
    ]  # fmt: skip
    assert abs(np.mean([one["fvu"] for one in alone if math.isfinite(one["fvu"])]) - found["fvu"]) > 1e-3
    n = [(owners[i, 1:] != NO_DOCUMENT).sum() for i in range(N_BLOCKS)]
    for name in ("ce", "ce_spliced", "ce_zero", "kl"):
        pooled = sum(one[name] * weight for one, weight in zip(alone, n, strict=True)) / sum(n)
        assert found[name] == pytest.approx(pooled, rel=1e-6), name
    # Blocks without a token that counts are passed over.
    owners = np.concatenate([owners, np.full_like(owners[:2], NO_DOCUMENT)])
    padded = TokenBlocks(np.concatenate([blocks.tokens, blocks.tokens[:2]]), owners)
    assert values(evaluate(subject, {"one": Placed(model, SITE)}, padded)["one"]) == found


def test_positions_that_count_for_nothing_are_not_spliced(subject: SubjectModel, blocks: TokenBlocks) -> None:
    """Only position 7 counts: what is spliced there shows in no prediction of token 7 itself."""
    owners = np.full_like(blocks.documents, NO_DOCUMENT)
    owners[:, 7] = 0
    only = TokenBlocks(blocks.tokens, owners)
    found = values(evaluate(subject, {"silent": Placed(silent(), SITE)}, only)["silent"])
    assert found["ce_spliced"] == pytest.approx(found["ce"], abs=1e-6) and found["kl"] == pytest.approx(0, abs=1e-6)
    # Positions 7 and 8 count, and the prediction of token 8 is made at 7: by hand.
    owners[:, 8] = 0
    both = TokenBlocks(blocks.tokens, owners)
    found = values(evaluate(subject, {"silent": Placed(silent(), SITE)}, both)["silent"])
    tokens = torch.from_numpy(blocks.tokens.astype(np.int64))

    def blank(x: Tensor) -> Tensor:
        return torch.cat([x[:, :7], torch.zeros_like(x[:, 7:9]), x[:, 9:]], dim=1)

    with torch.no_grad(), editing(subject.model, SITE, blank):
        log_p = subject.model(input_ids=tokens).logits.log_softmax(dim=-1)
    wanted = -torch.stack([log_p[:, i].gather(1, tokens[:, i + 1, None]) for i in (6, 7)]).mean()
    assert found["ce_spliced"] == pytest.approx(float(wanted), rel=1e-5) != pytest.approx(found["ce"], rel=1e-3)


def test_a_transcoder_is_measured_against_its_target(subject: SubjectModel, blocks: TokenBlocks) -> None:
    """Its skip connection is the least-squares map of the MLP's input to its output, and its latents are silent."""
    x, y = rows(subject, blocks, IN), rows(subject, blocks, OUT)
    model = skip_transcoder.create({"d_in": 64, "n_latents": 128, "d_out": 64, "k": 4})
    design = torch.cat([x, torch.ones(len(x), 1, dtype=torch.float64)], dim=1)
    solved = torch.linalg.lstsq(design, y, driver="gelsd").solution
    with torch.no_grad():
        model.W_skip.copy_(solved[:-1].T)
        model.b_dec.copy_(solved[-1])
    found = evaluate(subject, {"t": Placed(model, IN, OUT), "exact": Placed(identity(), OUT)}, blocks)
    residual = (design @ solved - y).square().sum() / (y - y.mean(dim=0)).square().sum()
    one, exact = values(found["t"]), values(found["exact"])
    assert 1e-3 < float(residual) < 0.9, "neither nothing nor everything is linear"
    assert one["fvu"] == pytest.approx(float(residual), rel=1e-3)
    # Both are spliced where they write, so the site blanked is the same, and what is exact costs nothing there.
    assert one["ce_zero"] == exact["ce_zero"] and exact["ce_recovered"] == pytest.approx(1, abs=1e-4)
    assert one["kl"] > 10 * abs(exact["kl"]) and one["ce_spliced"] != one["ce_zero"]
    recon = model(x.float())
    assert one["norm_ratio"] == pytest.approx(float(recon.double().norm(dim=1).sum() / y.norm(dim=1).sum()), rel=1e-4)


def test_figures_are_kept_with_the_dictionary(subject: SubjectModel, blocks: TokenBlocks) -> None:
    model = silent()
    figures = evaluate(subject, {"silent": Placed(model, SITE)}, blocks)["silent"]
    record(model, figures)
    back = recorded(model)
    assert set(figures) - set(back) == {"shrinkage"}, "what is no number is not recorded"
    for name, figure in back.items():
        assert figure.value == figures[name].value and figure.n_tokens == blocks.n_counted
        assert figure[1:3] == figures[name][1:3] or math.isnan(figures[name].low)
