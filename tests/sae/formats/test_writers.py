"""SAEs of ours in other programs' formats: what comes back, what is refused, what a failure leaves."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import FIXTURES
from safetensors.torch import load_file
from written import SAELENS, SPARSIFY, TRANSCODER, inputs, make

import sae
from sae import SAEError, SAEMetadata
from sae.base import SparseAutoencoder
from sae.formats import _folders


def alike(model: SparseAutoencoder, read: SparseAutoencoder) -> None:
    x = inputs()
    codes, expected = read.encode(x), model.encode(x)
    assert 0 < expected.latents.numel() < 30 * 40, "the case tells apart"
    torch.testing.assert_close(codes.to_dense(), expected.to_dense(), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(read.decode(codes), model.decode(expected), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(read(x), model(x), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("architecture", "config", "unit", "theirs"), SAELENS)
def test_saelens_and_back(architecture: str, config: dict[str, Any], unit: bool, theirs: str, tmp_path: Path) -> None:
    metadata = SAEMetadata(model="google/gemma-2-2b", hookpoint="layers.9.mlp", skip_first=4, context_length=128,
                           metrics={"l0": 5.0, "fvu": 0.2}, seed=7, extra={"note": "é"})  # fmt: skip
    model = make(architecture, config, unit, metadata)
    folder = sae.save(model, tmp_path / "it", "saelens")
    written = json.loads((folder / "cfg.json").read_text())
    assert written["architecture"] == theirs and written["metadata"]["sae_lens_version"] >= "6.0.0"
    assert (written["d_in"], written["d_sae"], written["dtype"]) == (12, 40, "float32")
    assert written["metadata"]["hf_hook_name"] == "model.layers.9.mlp" and written["metadata"]["seqpos_slice"] == [
        4,
        None,
    ]
    if theirs in ("topk", "abstopk"):
        assert written["rescale_acts_by_decoder_norm"] == unit
    assert sorted(path.name for path in folder.iterdir()) == ["cfg.json", "sae_weights.safetensors"]
    read = sae.load(folder)
    alike(model, read)
    assert read.metadata == metadata


def test_hooks_of_transformer_lens_are_written(tmp_path: Path) -> None:
    model = make("relu", TRANSCODER, metadata=SAEMetadata(model="some/llama", hookpoint="layers.3.self_attn.o_proj:in",
                                                          target_hookpoint="layers.3.mlp"))  # fmt: skip
    config = json.loads((sae.save(model, tmp_path, "saelens") / "cfg.json").read_text())
    assert config["metadata"]["hook_name"] == "blocks.3.attn.hook_z" and config["reshape_activations"] == "hook_z"
    assert config["metadata"]["hook_name_out"] == "blocks.3.hook_mlp_out"


def test_a_batchtopk_sae_says_what_it_was(tmp_path: Path) -> None:
    model = make("matryoshka", {"k": 5, "group_sizes": (8, 12, 20)})
    folder = sae.save(model, tmp_path, "saelens")
    metadata = json.loads((folder / "cfg.json").read_text())["metadata"]
    assert metadata["training_architecture"] == "matryoshka_batchtopk"
    assert metadata["training_architecture_details"] == {"k": 5, "matryoshka_widths": [8, 20, 40]}
    held = load_file(folder / "sae_weights.safetensors")
    assert torch.equal(held["threshold"], torch.full((40,), 0.3))
    model.threshold.fill_(-1)
    held = load_file(sae.save(model, tmp_path, "saelens") / "sae_weights.safetensors")
    assert not held["threshold"].any(), "a threshold that was never set is a plain ReLU"


@pytest.mark.parametrize(("architecture", "config"), SPARSIFY)
def test_sparsify_and_back(architecture: str, config: dict[str, Any], tmp_path: Path) -> None:
    metadata = SAEMetadata(model="m", hookpoint="layers.9", seed=7)
    model = make(architecture, config, metadata=metadata)
    folder = sae.save(model, tmp_path / "layers.9", "sparsify")
    written = json.loads((folder / "cfg.json").read_text())
    assert written["num_latents"] == 40 and written["k"] == 5
    assert written["transcode"] == (not model.config.apply_b_dec_to_input)
    read = sae.load(folder)
    alike(model, read)
    assert read.metadata == metadata and read.architecture == {"gradient": "topk"}.get(architecture, architecture)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("format_", ["saelens", "sparsify"])
def test_dtypes_are_written_as_they_are(dtype: torch.dtype, format_: str, tmp_path: Path) -> None:
    model = make("topk", {"k": 5}).to(dtype)
    folder = sae.save(model, tmp_path, format_)
    held = load_file(next(folder.glob("*.safetensors")))
    assert {tensor.dtype for tensor in held.values()} == {dtype}
    torch.testing.assert_close(sae.load(folder).W_dec, model.W_dec.to(torch.promote_types(dtype, torch.float32)))


REFUSED: list[tuple[str, str, dict[str, Any], str]] = [
    ("saelens", "top_afa", {}, "SAELens has no architecture for a top_afa SAE"),
    ("saelens", "groupmax", {"k": 5}, "SAELens has no architecture for a groupmax SAE"),
    ("saelens", "transcoder", {"k": 5}, "SAELens has no architecture for a transcoder SAE"),
    ("saelens", "topk", {"k": 5, "skip": True}, "transcoders are ReLU or JumpReLU.*save it as native or sparsify"),
    ("saelens", "gated", TRANSCODER, "transcoders are ReLU or JumpReLU"),
    ("sparsify", "relu", {}, "top-k and group-max SAEs only, not relu"),
    ("sparsify", "transcoder", {"k": 5, "d_out": 9}, "outputs as wide as their inputs.*d_out 9 for d_in 12"),
    ("sparsify", "topk", {"k": 5, "input_norm": "layer_norm"}, "do not normalise inputs"),
    ("openai", "topk", {"k": 5}, r"are read, but not written \(written are native, saelens, sparsify\)"),
    ("safetensor", "topk", {"k": 5}, "unknown SAE format 'safetensor'"),
]


@pytest.mark.parametrize(("format_", "architecture", "config", "said"), REFUSED)
def test_what_a_format_cannot_say_is_refused(
    format_: str, architecture: str, config: dict[str, Any], said: str, tmp_path: Path
) -> None:
    with pytest.raises(SAEError, match=said) as raised:
        sae.save(make(architecture, config), tmp_path / "it", format_)
    assert "\n" not in str(raised.value) and not (tmp_path / "it").exists()


def test_a_gba_sae_that_fires_below_zero_is_refused(tmp_path: Path) -> None:
    model = make("gba", {})
    with torch.no_grad():
        model.b_enc[3] = 0.1
    with pytest.raises(SAEError, match="silent below zero"):
        sae.save(model, tmp_path, "saelens")


def test_every_sae_that_was_read_can_be_written_and_read_again(tmp_path: Path) -> None:
    for i, folder in enumerate(("openai_topk", "saelens_standard_layernorm", "dictionary_learning_matryoshka_batchtopk",
                                "saelens_batchtopk/training", "saelens_matching_pursuit")):  # fmt: skip
        model = sae.load(FIXTURES / folder)
        x = torch.randn(20, 16, generator=torch.Generator().manual_seed(0))
        read = sae.load(sae.save(model, tmp_path / str(i), "saelens"))
        torch.testing.assert_close(read(x), model(x), atol=1e-5, rtol=1e-5)
        again = sae.load(sae.save(model, tmp_path / f"{i}-ours"))
        assert sae.content_sha(again) == sae.content_sha(model) and again.metadata == model.metadata


@pytest.mark.parametrize("format_", ["native", "saelens", "sparsify"])
@pytest.mark.parametrize("when", ["weights", "config", "the first rename", "the second rename"])
def test_a_failure_while_writing_leaves_the_old_sae_or_none(
    format_: str, when: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = make("topk", {"k": 5}), make("topk", {"k": 6})
    sae.save(old, tmp_path, format_)
    full = OSError(errno.ENOSPC, "No space left on device")
    renames = {"n": 0}
    replace = Path.replace

    def fail(*_: Any, **__: Any) -> None:
        raise full

    def counted(self: Path, target: Path) -> Path:
        renames["n"] += 1
        if renames["n"] == (1 if "first" in when else 2):
            raise full
        return replace(self, target)

    with monkeypatch.context() as patch:
        if when == "weights":
            patch.setattr(_folders, "save_file", fail)
        elif when == "config":
            patch.setattr(Path, "write_text", fail)
        else:
            patch.setattr(Path, "replace", counted)
        with pytest.raises(SAEError, match=r"cannot write an SAE to .*No space left on device"):
            sae.save(new, tmp_path, format_)
    assert not list(tmp_path.glob("*.tmp"))
    if when in ("weights", "config"):
        assert sae.load(tmp_path).config_dict()["k"] == 5
    else:
        with pytest.raises(SAEError, match="no SAE at"):
            sae.load(tmp_path)
    sae.save(new, tmp_path, format_)
    assert sae.load(tmp_path).config_dict()["k"] == 6


def test_nothing_is_written_over_another_format_a_file_or_from_broken_weights(tmp_path: Path) -> None:
    model = make("topk", {"k": 5})
    sae.save(model, tmp_path / "it", "saelens")
    with pytest.raises(SAEError, match="already holds an SAE of the format saelens; name another folder"):
        sae.save(model, tmp_path / "it")
    (tmp_path / "file").write_text("")
    with pytest.raises(SAEError, match="it is a file; name a folder"):
        sae.save(model, tmp_path / "file")
    with torch.no_grad():
        model.b_enc[0] = torch.nan
    with pytest.raises(SAEError, match="b_enc holds NaN or infinity, so this SAE is not written"):
        sae.save(model, tmp_path / "new")
    assert not (tmp_path / "new").exists()
