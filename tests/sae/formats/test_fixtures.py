"""Each format against what the program that owns it computes from the same files."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
from checkpoints import ALL, BY_FOLDER, FIXTURES, LLAMA, R1, Fixture, copy, recorded, rewrite
from torch import Tensor

import sae
from sae.base import SparseAutoencoder
from sae.files import FORMATS, find

EACH = pytest.mark.parametrize("fixture", ALL, ids=[fixture.folder.split("/training")[0].split("/")[0] + (
    "-training" if fixture.folder.endswith("/training") else "") for fixture in ALL])  # fmt: skip
BF16 = {"saelens_standard_bf16", "saelens_standard_bf16/training"}
# What its forward() returns is the reconstruction from 4k latents, of which its encode() and decode() know nothing.
FORWARD_IS_ANOTHER = {"sparsify_multitopk/layers.0"}


def load(place: Path) -> SparseAutoencoder:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*does not hold the scale")
        return sae.load(place)


@EACH
def test_it_computes_what_its_owner_computes(fixture: Fixture) -> None:
    io = recorded(fixture.folder)
    model = load(FIXTURES / fixture.folder)
    assert model.architecture == fixture.architecture and not model.training
    assert all(tensor.dtype == torch.float32 for tensor in model.state_dict().values())
    # The owner's bfloat16 arithmetic is off by three digits; ours is float32 on the same weights.
    close = {"atol": 1e-2, "rtol": 1e-2} if fixture.folder in BF16 else {"atol": 1e-5, "rtol": 1e-5}
    codes = model.encode(io["x"])
    torch.testing.assert_close(codes.to_dense(), io["encode"], **close)
    torch.testing.assert_close(model.decode(codes), io["decode"], **close)
    if "forward" in io and fixture.folder not in FORWARD_IS_ANOTHER:
        torch.testing.assert_close(model(io["x"]), io["forward"], **close)
    if model.config.skip:
        assert not torch.allclose(model(io["x"]), io["decode"], atol=0.1), "the skip connection adds something"


@EACH
def test_it_is_recognised_as_one_format_by_its_content(fixture: Fixture, tmp_path: Path) -> None:
    folder = FIXTURES / fixture.folder
    assert find(folder).format == fixture.format
    assert find(folder / fixture.weights).format == fixture.format
    place = copy(fixture.folder, tmp_path)
    assert find(place.rename(place.parent / "of_another_name")).format == fixture.format


def test_every_format_has_a_fixture() -> None:
    assert {fixture.format for fixture in ALL} | {"native"} == set(FORMATS.names)


@pytest.mark.parametrize("folder", sorted({fixture.folder for fixture in ALL} - {R1}))
def test_loading_through_the_file_the_folder_and_from_above_is_the_same(folder: str, tmp_path: Path) -> None:
    place = copy(folder, tmp_path)
    sha = sae.content_sha(load(place))
    assert sae.content_sha(load(place / BY_FOLDER[folder].weights)) == sha
    assert sae.content_sha(load(tmp_path)) == sha


def test_half_precision_comes_in_float32_and_double_stays(tmp_path: Path) -> None:
    assert load(FIXTURES / LLAMA).W_dec.dtype == torch.float32  # a bfloat16 file
    place = copy("saelens_gated", tmp_path)
    rewrite(place / "sae_weights.safetensors", lambda held: {name: tensor.double() for name, tensor in held.items()})
    assert all(tensor.dtype == torch.float64 for tensor in load(place).state_dict().values())


def test_other_leading_dimensions_give_the_same_codes() -> None:
    io = recorded("saelens_standard_layernorm")
    model = load(FIXTURES / "saelens_standard_layernorm")
    codes = model.encode(io["x"].reshape(4, 8, 16))
    torch.testing.assert_close(codes.to_dense(), io["encode"])
    torch.testing.assert_close(model.decode(codes), io["decode"])


def test_metadata_is_kept_and_translated() -> None:
    def told(folder: str) -> tuple[str | None, str | None]:
        metadata = load(FIXTURES / folder).metadata
        return metadata.model, metadata.hookpoint

    by_content = {
        "saelens_standard": ("gpt2", "h.0"),
        "saelens_transcoder": (None, None),
        "sparsify_topk/layers.0": (None, "layers.0"),
        "dictionary_learning_topk/trainer_0": ("gpt2", "h.0"),
        "google__gemma-scope-2b-pt-res/layer_0/width_16k/average_l0_4": ("google/gemma-2-2b", "layers.0"),
        "google__gemma-scope-2-270m-pt/resid_post/layer_0_width_16k_l0_small": ("google/gemma-3-270m", "layers.0"),
        LLAMA: ("meta-llama/Llama-3.1-8B", "layers.0"),
        R1: (None, "layers.0"),
        "Qwen__SAE-Res-Qwen3-1.7B-Base-W32K-L0_4": ("Qwen/Qwen3-1.7B-Base", "layers.0"),
        "Goodfire__Llama-3.1-8B-Instruct-SAE-l19": ("meta-llama/Llama-3.1-8B-Instruct", "layers.19"),
        "openai_topk": (None, None),
    }
    assert {folder: told(folder) for folder in by_content} == by_content
    saelens = load(FIXTURES / "saelens_standard").metadata
    assert saelens.context_length == 128 and saelens.metrics == {"l0": pytest.approx(19.836, abs=1e-3), "dead_share": 0}
    assert saelens.extra["source"]["hook_name"] == "blocks.0.hook_resid_post" and saelens.extra["format"] == "saelens"
    assert load(FIXTURES / LLAMA).metadata.normalization == {"kind": "mean_length", "scale": 1.6, "target_scale": 1.6}


def test_a_scale_that_the_file_does_not_give_is_said_and_can_be_folded() -> None:
    with pytest.warns(UserWarning, match=r"does not hold the scale: call sae\.rescale\(sqrt\(d_in\) / mean length"):
        model = sae.load(FIXTURES / R1)
    assert model.metadata.normalization == {"kind": "mean_length", "scale": None}
    x: Tensor = recorded(R1)["x"]
    expected = model.encode(0.5 * x).to_dense()
    model.rescale(0.5)
    torch.testing.assert_close(model.encode(x).to_dense(), expected / 0.5)
