"""What readers fold and convert, against the same arithmetic written out."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import FIXTURES, GEMMA, GEMMA_2, LLAMA, R1, copy, recorded, rewrite
from safetensors.torch import load_file, save_file
from torch import Tensor

import sae


def configure(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def jump(pre: Tensor, threshold: Tensor | float) -> Tensor:
    return pre.relu() * (pre > threshold)


def test_a_backup_of_dictionary_learning_comes_back_to_raw_units(tmp_path: Path) -> None:
    """Its state dict is that of the run, whose activations were divided by norm_factor."""
    place = copy("dictionary_learning_batchtopk_normalized/trainer_0", tmp_path)
    config = json.loads((place / "config.json").read_text())["trainer"]
    units = {"encoder.bias", "b_dec", "threshold"}

    def in_progress(held: dict[str, Any]) -> dict[str, Any]:
        state = {name: tensor / 2.5 if name in units else tensor for name, tensor in held.items()}
        return {"step": 100, "ae": state, "optimizer": {"state": {}}, "config": config, "norm_factor": 2.5}

    rewrite(place / "ae.pt", in_progress)
    (place / "config.json").unlink()
    io = recorded("dictionary_learning_batchtopk_normalized/trainer_0")
    model = sae.load(place)
    torch.testing.assert_close(model.encode(io["x"]).to_dense(), io["encode"], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(model(io["x"]), io["decode"], atol=1e-5, rtol=1e-5)
    assert model.metadata.normalization == {"kind": "root_mean_square", "scale": 0.4}


def test_a_backup_without_normalisation_is_taken_as_it_is(tmp_path: Path) -> None:
    place = copy("dictionary_learning_topk/trainer_0", tmp_path)
    sha = sae.content_sha(sae.load(place))
    rewrite(place / "ae.pt", lambda held: {"step": 7, "ae": held, "optimizer": {}, "config": {}, "norm_factor": None})
    assert sae.content_sha(sae.load(place)) == sha


def test_checkpoints_of_dictionary_learning_find_the_config_above(tmp_path: Path) -> None:
    place = copy("dictionary_learning_batchtopk/trainer_0", tmp_path)
    sha = sae.content_sha(sae.load(place))
    (place / "checkpoints").mkdir()
    (place / "ae.pt").rename(place / "checkpoints" / "ae_100.pt")
    for path in (place / "checkpoints" / "ae_100.pt", place / "checkpoints", place, tmp_path):
        assert sae.content_sha(sae.load(path)) == sha


def test_a_batchtopk_threshold_that_was_never_set_is_a_relu(tmp_path: Path) -> None:
    place = copy("dictionary_learning_batchtopk/trainer_0", tmp_path)
    rewrite(place / "ae.pt", lambda held: {**held, "threshold": torch.tensor(-1.0)})
    held = torch.load(place / "ae.pt", weights_only=True)
    x = recorded("dictionary_learning_batchtopk/trainer_0")["x"]
    expected = ((x - held["b_dec"]) @ held["encoder.weight"].T + held["encoder.bias"]).relu()
    torch.testing.assert_close(sae.load(place).encode(x).to_dense(), expected)


def test_the_legacy_class_of_dictionary_learning_and_deepseek_r1_names(tmp_path: Path) -> None:
    held = torch.load(FIXTURES / "dictionary_learning_standard" / "trainer_0" / "ae.pt", weights_only=True)
    held["decoder.bias"] = held.pop("bias")
    torch.save(held, tmp_path / "ae.pt")
    x = recorded("dictionary_learning_standard/trainer_0")["x"]
    expected = (x @ held["encoder.weight"].T + held["encoder.bias"]).relu()
    alone = sae.load(tmp_path)
    (tmp_path / "config.json").write_text('{"trainer": {"dict_class": "AutoEncoderNew", "lm_name": "m"}}')
    with_config = sae.load(tmp_path)
    assert (alone.metadata.extra["format"], with_config.metadata.extra["format"]) == ("goodfire", "dictionary_learning")
    for model in (alone, with_config):
        torch.testing.assert_close(model.encode(x).to_dense(), expected)
        torch.testing.assert_close(model(x), expected @ held["decoder.weight"].T + held["decoder.bias"])


@pytest.mark.parametrize("rescale", [False, True])
@pytest.mark.parametrize("architecture", ["standard", "topk", "batchtopk", "matching_pursuit"])
def test_scales_that_saelens_has_not_folded_yet(architecture: str, rescale: bool, tmp_path: Path) -> None:
    """A checkpoint during training: weights for scaled activations, the scale in a file of its own."""
    scale = 1.7
    place = tmp_path / "during"
    shutil.copytree(FIXTURES / f"saelens_{architecture}" / "training", place)
    plain = sae.load(place)
    configure(place / "cfg.json", normalize_activations="expected_average_only_in")
    if architecture in ("topk", "batchtopk"):
        configure(place / "cfg.json", rescale_acts_by_decoder_norm=rescale)
    (place / "activation_scaler.json").write_text(json.dumps({"scaling_factor": scale}))
    x = recorded(f"saelens_{architecture}")["x"]
    raw = load_file(place / "sae_weights.safetensors")
    model = sae.load(place)
    assert model.metadata.normalization == {"kind": "mean_length", "scale": scale}
    if architecture == "matching_pursuit":
        # Codes of SAELens' fold are those of the unscaled activations, since the dictionary is its own encoder.
        plain.b_dec.data /= scale
        plain.get_buffer("residual_threshold").div_(scale)
        torch.testing.assert_close(model.encode(x).to_dense(), plain.encode(x).to_dense())
        torch.testing.assert_close(model(x), plain(x))
        return
    pre = (scale * x - raw["b_dec"]) @ raw["W_enc"] + raw["b_enc"]
    lengths = raw["W_dec"].norm(dim=1) if rescale and architecture != "standard" else torch.ones(64)
    if architecture == "standard":
        codes = pre.relu()
    elif architecture == "topk":
        weighed = pre * lengths
        codes = torch.zeros_like(pre).scatter(1, weighed.topk(4).indices, weighed.topk(4).values.relu())
    else:
        codes = jump(pre * lengths, raw["topk_threshold"].float())
    out = ((codes / lengths) @ raw["W_dec"] + raw["b_dec"]) / scale
    # The scale goes into W_dec first, so that lengths and with them the codes shrink by it.
    shrunk = codes / scale if rescale and architecture != "standard" else codes
    torch.testing.assert_close(model.encode(x).to_dense(), shrunk, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(model(x), out, atol=1e-5, rtol=1e-5)


def test_without_the_scale_saelens_files_say_that_it_is_missing(tmp_path: Path) -> None:
    place = copy("saelens_standard", tmp_path)
    configure(place / "cfg.json", normalize_activations="expected_average_only_in")
    with pytest.warns(UserWarning, match="does not hold the scale"):
        assert sae.load(place).metadata.normalization == {"kind": "mean_length", "scale": None}


def test_saelens_before_version_6(tmp_path: Path) -> None:
    """Flat keys, old names, the kind of SAE said by its activation function."""
    io = recorded("saelens_topk_norescale")
    place = copy("saelens_topk_norescale", tmp_path)
    old = {
        "architecture": "standard", "d_in": 16, "d_sae": 64, "dtype": "float32", "model_name": "gemma-2-2b",
        "hook_point": "blocks.3.attn.hook_z", "hook_point_layer": 3, "activation_fn_str": "topk",
        "activation_fn_kwargs": {"k": 4}, "normalize_activations": False, "context_size": 64, "prepend_bos": True,
        "dataset_path": "some/text", "finetuning_scaling_factor": False,
    }  # fmt: skip
    (place / "cfg.json").write_text(json.dumps(old))
    model = sae.load(place)
    torch.testing.assert_close(model.encode(io["x"]).to_dense(), io["encode"])
    metadata = model.metadata
    assert (metadata.model, metadata.hookpoint) == ("google/gemma-2-2b", "layers.3.self_attn.o_proj:in")
    assert (metadata.dataset, metadata.context_length) == ("some/text", 64)
    assert metadata.extra["source"]["hook_name"] == "blocks.3.attn.hook_z"
    jumping = copy("saelens_jumprelu", tmp_path)
    sha = sae.content_sha(sae.load(jumping))
    rewrite(
        jumping / "sae_weights.safetensors",
        lambda held: {**{n: t for n, t in held.items() if n != "threshold"}, "log_threshold": held["threshold"].log()},
    )
    expected, found = sae.load(FIXTURES / "saelens_jumprelu"), sae.load(jumping)
    torch.testing.assert_close(found.get_parameter("threshold"), expected.get_parameter("threshold"))
    assert sha == sae.content_sha(expected)


def test_matching_pursuit_that_leaves_b_dec_out(tmp_path: Path) -> None:
    place = copy("saelens_matching_pursuit", tmp_path)
    configure(place / "cfg.json", apply_b_dec_to_input=False, max_iterations=None)
    model = sae.load(place)
    assert not model.b_dec.any() and model.config_dict()["k"] == 16


def test_embeddings_of_gemma_are_read_in_units_of_the_table(tmp_path: Path) -> None:
    place = tmp_path / "google--gemma-scope-2b-pt-res" / "embedding" / "width_4k" / "average_l0_6"
    shutil.copytree(FIXTURES / GEMMA, place)
    x = recorded(GEMMA)["x"]
    plain, model = sae.load(FIXTURES / GEMMA), sae.load(place)
    torch.testing.assert_close(model.encode(4 * x).to_dense(), plain.encode(x).to_dense(), atol=1e-5, rtol=1e-5)
    assert torch.equal(model.W_dec, 4 * plain.W_dec)
    assert (model.metadata.model, model.metadata.hookpoint) == ("google/gemma-2-2b", "embed_tokens")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("google/gemma-scope-9b-it-res/layer_20", ("google/gemma-2-9b-it", "layers.20", None)),
        ("google/gemma-scope-2b-pt-mlp/layer_5", ("google/gemma-2-2b", "layers.5.post_feedforward_layernorm", None)),
        ("models--google--gemma-scope-2b-pt-att/snapshots/0/layer_7", ("google/gemma-2-2b", "layers.7.self_attn.o_proj:in", None)),
        ("google/gemma-scope-2b-pt-transcoders/layer_3", ("google/gemma-2-2b", "blocks.3.ln2.hook_normalized", "layers.3.post_feedforward_layernorm")),
        ("somewhere/else", (None, None, None)),
    ],
)  # fmt: skip
def test_names_of_gemma_scope(name: str, expected: tuple[Any, ...], tmp_path: Path) -> None:
    shutil.copytree(FIXTURES / GEMMA, tmp_path / name)
    metadata = sae.load(tmp_path / name).metadata
    assert (metadata.model, metadata.hookpoint, metadata.target_hookpoint) == expected


def test_skip_transcoders_of_gemma_scope_2(tmp_path: Path) -> None:
    place = copy(GEMMA_2, tmp_path)
    affine = torch.randn(16, 12, generator=torch.Generator().manual_seed(0))
    rewrite(
        place / "params.safetensors",
        lambda held: {**held, "w_dec": held["w_dec"][:, :12], "b_dec": held["b_dec"][:12], "affine_skip_connection": affine},
    )  # fmt: skip
    configure(
        place / "config.json", affine_connection=True, model_name="gemma-v3-1b-pt",
        hf_hook_point_in="model.layers.4.pre_feedforward_layernorm.output",
        hf_hook_point_out="model.layers.4.post_feedforward_layernorm.output",
    )  # fmt: skip
    io, model = recorded(GEMMA_2), sae.load(place)
    expected = io["decode"][:, :12] + io["x"] @ affine
    torch.testing.assert_close(model(io["x"]), expected, atol=1e-5, rtol=1e-5)
    assert (model.metadata.model, model.metadata.hookpoint, model.metadata.target_hookpoint) == (
        "google/gemma-3-1b-pt", "layers.4.pre_feedforward_layernorm", "layers.4.post_feedforward_layernorm",
    )  # fmt: skip


def test_llama_scope_without_a_scale(tmp_path: Path) -> None:
    place = copy(LLAMA, tmp_path)
    configure(place / "hyperparams.json", norm_activation="inference")
    held = {name: t.float() for name, t in load_file(place / "checkpoints" / "final.safetensors").items()}
    x = recorded(LLAMA)["x"]
    expected = jump(x @ held["encoder.weight"].T + held["encoder.bias"], 0.35)
    torch.testing.assert_close(sae.load(place).encode(x).to_dense(), expected)


def openmoss(tmp_path: Path, newer: bool, extra: dict[str, Tensor], **config: Any) -> tuple[Path, dict[str, Tensor]]:
    """A file of OpenMOSS with decoder rows of many lengths, by its older or newer names."""
    place = tmp_path / "it"
    place.mkdir()
    raw = {name: t.clone() for name, t in load_file(FIXTURES / R1 / "sae_weights.safetensors").items()}
    raw["decoder.weight"] *= torch.linspace(0.5, 2, 64)
    names = {"encoder.weight": "W_E", "encoder.bias": "b_E", "decoder.weight": "W_D", "decoder.bias": "b_D",
             "log_jumprelu_threshold": "activation_function.log_jumprelu_threshold"}  # fmt: skip
    held = {names[name]: t.T.contiguous() if t.ndim == 2 else t for name, t in raw.items()} if newer else raw
    save_file(held | extra, place / "sae_weights.safetensors")
    basis = {"sae_type": "sae", "d_model": 16, "expansion_factor": 4, "hook_point_in": "blocks.3.hook_resid_post",
             "hook_point_out": "blocks.3.hook_resid_post", "act_fn": "jumprelu", "norm_activation": "dataset-wise"}  # fmt: skip
    (place / "config.json").write_text(json.dumps(basis | config))
    return place, raw


@pytest.mark.parametrize("newer", [False, True])
@pytest.mark.parametrize("weighed", [False, True])
@pytest.mark.parametrize("out", [2.5, 5.0])
def test_openmoss_with_its_scales_and_decoder_lengths(newer: bool, weighed: bool, out: float, tmp_path: Path) -> None:
    hooks = {"hook_point_out": "blocks.3.hook_mlp_out"} if out != 2.5 else {}
    prefix = "dataset_average_activation_norm.blocks.3."
    lengths = {f"{prefix}hook_resid_post": torch.tensor(2.5)} | (
        {f"{prefix}hook_mlp_out": torch.tensor(out)} if hooks else {}
    )
    place, raw = openmoss(tmp_path, newer, lengths, sparsity_include_decoder_norm=weighed, **hooks)
    x, model = recorded(R1)["x"], sae.load(place)
    scale, target_scale = math.sqrt(16) / 2.5, math.sqrt(16) / out
    pre = scale * x @ raw["encoder.weight"].T + raw["encoder.bias"]
    weight = raw["decoder.weight"].norm(dim=0) if weighed else torch.ones(64)
    codes = jump(pre * weight, raw["log_jumprelu_threshold"].exp()) / weight
    assert not weighed or (codes > 0).sum() != (jump(pre, raw["log_jumprelu_threshold"].exp()) > 0).sum()
    torch.testing.assert_close(model.encode(x).to_dense(), codes, atol=1e-5, rtol=1e-5)
    expected = (codes @ raw["decoder.weight"].T + raw["decoder.bias"]) / target_scale
    torch.testing.assert_close(model(x), expected, atol=1e-5, rtol=1e-5)
    assert model.metadata.target_hookpoint == ("layers.3.mlp" if hooks else None)
    assert model.metadata.normalization == pytest.approx(
        {"kind": "mean_length", "scale": scale, "target_scale": target_scale}
    )


def test_openmoss_of_other_kinds(tmp_path: Path) -> None:
    place, raw = openmoss(tmp_path, True, {}, act_fn="topk", top_k=4, norm_activation="token-wise",
                          sparsity_include_decoder_norm=True)  # fmt: skip
    x, model = recorded(R1)["x"], sae.load(place)
    rows = x * 4 / x.norm(dim=1, keepdim=True)
    lengths = raw["decoder.weight"].norm(dim=0)
    pre = (rows @ raw["encoder.weight"].T + raw["encoder.bias"]) * lengths
    top = pre.relu().topk(4)
    codes = torch.zeros_like(pre).scatter(1, top.indices, top.values)
    torch.testing.assert_close(model.encode(x).to_dense(), codes, atol=1e-5, rtol=1e-5)
    out = (codes / lengths) @ raw["decoder.weight"].T + raw["decoder.bias"]
    torch.testing.assert_close(model(x), out * x.norm(dim=1, keepdim=True) / 4, atol=1e-5, rtol=1e-5)
    (place / "lm_config.json").write_text('{"model_name": "some/model"}')
    configure(place / "config.json", act_fn="relu", norm_activation="inference")
    model = sae.load(place)
    expected = (x @ raw["encoder.weight"].T + raw["encoder.bias"]).relu()
    torch.testing.assert_close(model.encode(x).to_dense(), expected)
    assert model.metadata.model == "some/model"


def test_the_run_of_sparsify_above_says_model_and_data(tmp_path: Path) -> None:
    run = tmp_path / "checkpoints" / "run"
    shutil.copytree(FIXTURES / "sparsify_topk" / "layers.0", run / "layers.3.mlp" / "seed0")
    (run / "config.json").write_text('{"sae": {"k": 4}, "model": "some/model", "dataset": "some/text", "ctx_len": 256}')
    metadata = sae.load(run / "layers.3.mlp" / "seed0").metadata
    assert (metadata.model, metadata.hookpoint, metadata.dataset, metadata.context_length) == (
        "some/model", "layers.3.mlp", "some/text", 256,
    )  # fmt: skip


def test_tensors_that_share_memory_in_a_file_of_sparsify(tmp_path: Path) -> None:
    place = copy("sparsify_topk/layers.0", tmp_path)
    held = load_file(place / "sae.safetensors")
    without = {name: tensor for name, tensor in held.items() if name != "W_dec"}
    save_file(without, place / "sae.safetensors", metadata={"W_dec": "encoder.weight", "format": "pt"})
    model = sae.load(place)
    assert torch.equal(model.W_dec, held["encoder.weight"]) and torch.equal(model.encoder, held["encoder.weight"])
    assert model.W_dec.data_ptr() != model.encoder.data_ptr()
