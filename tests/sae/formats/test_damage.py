"""Whatever is wrong with a file ends in one line that says what was found. Nothing in a file is ever run."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import BY_FOLDER, FIXTURES, GEMMA, GEMMA_2, GOODFIRE, LLAMA, QWEN, R1, copy, rewrite
from safetensors.torch import load_file, save_file

import sae
from sae import SAEError
from sae.base import SAEMetadata
from sae.formats._tensors import read_weights
from sae.formats.native import ARCHITECTURES

ONE_OF_EACH = [
    "saelens_jumprelu", "saelens_gated", "saelens_jumprelu_skip_transcoder", "saelens_matching_pursuit",
    "sparsify_skip_transcoder/layers.0", "dictionary_learning_standard/trainer_0",
    "dictionary_learning_batchtopk/trainer_0", "dictionary_learning_gated/trainer_0", GEMMA, GEMMA_2, LLAMA, R1,
    QWEN, GOODFIRE, "openai_topk",
]  # fmt: skip
# A count that the config repeats, an output bias that some files go without, counters of training.
NOT_NEEDED = {"k", "decoder.bias", "stats_last_nonzero", "latents_activation_frequency", "latents_mean_square"}
NO_LATENTS_TO_MISS = {"saelens_matching_pursuit"}

pytestmark = pytest.mark.filterwarnings("ignore:.*does not hold the scale")


def refused(place: Path, said: str = ".") -> str:
    with pytest.raises(SAEError, match=said) as raised:
        sae.load(place)
    message = str(raised.value)
    assert "\n" not in message and str(place.parent) in message, message
    return message


def tensors_of(folder: str) -> list[str]:
    held = read_weights(FIXTURES / folder / BY_FOLDER[folder].weights)
    return sorted(name for name, value in held.items() if isinstance(value, torch.Tensor) and name not in NOT_NEEDED)


EACH_TENSOR = pytest.mark.parametrize(
    ("folder", "name"), [pytest.param(f, n, id=f"{f.split('/')[0]}-{n}") for f in ONE_OF_EACH for n in tensors_of(f)]
)


def taller(tensor: torch.Tensor) -> torch.Tensor:
    return torch.cat([tensor.reshape(-1)[:1], tensor]) if tensor.ndim < 2 else torch.cat([tensor[:1], tensor])


def nan(tensor: torch.Tensor) -> torch.Tensor:
    changed = tensor.clone(memory_format=torch.contiguous_format)
    changed.view(-1)[-1] = torch.nan
    return changed


@EACH_TENSOR
@pytest.mark.parametrize("do", ["missing", "too long", "NaN"])
def test_a_wrong_tensor(folder: str, name: str, do: str, tmp_path: Path) -> None:
    place = copy(folder, tmp_path)

    def change(held: dict[str, Any]) -> dict[str, Any]:
        if do == "missing":
            return {key: value for key, value in held.items() if key != name}
        return {**held, name: taller(held[name].reshape(1) if held[name].ndim == 0 else held[name])
                if do == "too long" else nan(held[name])}  # fmt: skip

    rewrite(place / BY_FOLDER[folder].weights, change)
    said = {
        "missing": r"holds no|no SAE at|says skip_connection|could be",
        "too long": "shape|says|instead of",
        "NaN": "NaN",
    }[do]
    refused(place, said)


@pytest.mark.parametrize("folder", ONE_OF_EACH)
def test_an_unknown_tensor(folder: str, tmp_path: Path) -> None:
    place = copy(folder, tmp_path)
    rewrite(place / BY_FOLDER[folder].weights, lambda held: {**held, "mystery": torch.zeros(3)})
    assert "mystery" in refused(place)


@pytest.mark.parametrize("folder", ONE_OF_EACH)
@pytest.mark.parametrize("share", [0.0, 0.3, 0.98])
def test_a_truncated_file(folder: str, share: float, tmp_path: Path) -> None:
    place = copy(folder, tmp_path)
    path = place / BY_FOLDER[folder].weights
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    refused(place, "truncated|damaged")


@pytest.mark.parametrize("folder", ONE_OF_EACH)
def test_a_placeholder_of_git_lfs_and_a_web_page(folder: str, tmp_path: Path) -> None:
    place = copy(folder, tmp_path)
    path = place / BY_FOLDER[folder].weights
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12\n")
    refused(place, "git lfs pull")
    path.write_text("<!doctype html><html><body>404</body></html>")
    refused(place, "damaged")


@pytest.mark.parametrize("folder", [f for f in ONE_OF_EACH if BY_FOLDER[f].weights not in ("ae.pt",)
                                    and BY_FOLDER[f].format in ("saelens", "sparsify", "llama_scope", "openmoss")])  # fmt: skip
def test_no_weights_at_all(folder: str, tmp_path: Path) -> None:
    place = copy(folder, tmp_path)
    (place / BY_FOLDER[folder].weights).unlink()
    refused(place, f"holds no {Path(BY_FOLDER[folder].weights).name}: the checkpoint is incomplete")


class Code:
    """Unpickling it would make a file."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return Path.touch, (self.trace,)


@pytest.mark.parametrize("folder", ["dictionary_learning_topk/trainer_0", QWEN, GOODFIRE, "openai_topk"])
@pytest.mark.parametrize("plain", [False, True])
def test_a_pickle_with_code_in_it_is_not_run(folder: str, plain: bool, tmp_path: Path) -> None:
    place = copy(folder, tmp_path)
    path = place / BY_FOLDER[folder].weights
    held = {**torch.load(path, weights_only=True), "more": Code(tmp_path / "was_run")}
    if plain:
        path.write_bytes(pickle.dumps(held))
    else:
        torch.save(held, path)
    refused(place, "damaged" if plain else "can run code: it is not opened; ask for it as safetensors")
    refused(path, "damaged" if plain else "can run code")
    assert not (tmp_path / "was_run").exists()


def test_an_archive_with_objects_in_it_is_not_opened(tmp_path: Path) -> None:
    place = copy(GEMMA, tmp_path)
    with np.load(place / "params.npz") as archive:
        held = {name: archive[name] for name in archive.files}
    np.savez(place / "params.npz", **{**held, "threshold": np.array([Code(tmp_path / "was_run")], dtype=object)})
    refused(place, "something else than plain arrays .*it is not opened")
    assert not (tmp_path / "was_run").exists()


def test_a_list_is_no_state_dict(tmp_path: Path) -> None:
    torch.save([torch.zeros(3)], tmp_path / "autoencoder.pt")
    refused(tmp_path, "holds no tensors by name but a list")


@pytest.mark.parametrize("config", ['{"model_type": "llama", "d_model": 16}', "[1, 2]", "{", "", "\xff"])
def test_a_config_of_another_program(config: str, tmp_path: Path) -> None:
    place = copy("saelens_topk", tmp_path)
    (place / "cfg.json").write_text(config, encoding="latin-1")
    refused(
        place, r"no SAE at .*looked for .*cfg\.json \+ sae_weights\.safetensors \(SAELens\).*; found cfg\.json, sae"
    )


def configured(folder: str, file: str, tmp_path: Path, **changes: Any) -> Path:
    place = copy(folder, tmp_path)
    config = json.loads((place / file).read_text())
    config.update(changes)
    (place / file).write_text(json.dumps({name: value for name, value in config.items() if value is not ...}))
    return place


WRONG_CONFIGS: list[tuple[str, str, dict[str, Any], str]] = [
    ("saelens_topk", "cfg.json", {"architecture": "temporal"}, "architecture 'temporal' are not read"),
    ("saelens_topk", "cfg.json", {"architecture": ["topk"]}, "are not read"),
    ("saelens_topk", "cfg.json", {"d_in": "16"}, "'d_in' is '16' and no int"),
    ("saelens_topk", "cfg.json", {"d_in": True}, "'d_in' is True and no int"),
    ("saelens_topk", "cfg.json", {"d_in": 17}, "'b_dec' has shape"),
    ("saelens_topk", "cfg.json", {"d_sae": 65}, "says 65 latents"),
    ("saelens_topk", "cfg.json", {"k": ...}, "has no 'k'"),
    ("saelens_topk", "cfg.json", {"k": 0}, "k has to lie between 1 and"),
    ("saelens_topk", "cfg.json", {"k": 65}, "k has to lie between 1 and n_latents"),
    ("saelens_topk", "cfg.json", {"normalize_activations": "covariance_whitening"}, "save it with SAELens"),
    ("saelens_topk", "cfg.json", {"activation_fn_str": "tanh-relu"}, "tanh-relu' are not read"),
    ("sparsify_topk/layers.0", "cfg.json", {"activation": "relu"}, "activation 'relu' is not known"),
    ("sparsify_topk/layers.0", "cfg.json", {"signed": True}, "signed SAE"),
    ("sparsify_topk/layers.0", "cfg.json", {"num_latents": 32}, "says 32 latents"),
    ("sparsify_topk/layers.0", "cfg.json", {"skip_connection": True}, "holds no W_skip"),
    ("sparsify_skip_transcoder/layers.0", "cfg.json", {"skip_connection": False}, "holds a W_skip"),
    ("dictionary_learning_topk/trainer_0", "config.json", {"trainer": {"dict_class": "CrossCoder"}}, "class 'CrossCoder'"),
    ("dictionary_learning_topk/trainer_0", "config.json", {"trainer": {"dict_class": "GatedAutoEncoder"}}, "holds no 'gate_bias'"),
    ("dictionary_learning_topk/trainer_0", "config.json", {"trainer": ...}, "could be AutoEncoderTopK or BatchTopKSAE"),
    ("dictionary_learning_standard/trainer_0", "config.json", {"trainer": {"dict_size": 32}}, "says dict_size 32"),
    (LLAMA, "hyperparams.json", {"act_fn": "relu"}, "act_fn 'relu'"),
    (LLAMA, "hyperparams.json", {"dataset_average_activation_norm": ...}, "gives no mean activation length"),
    (LLAMA, "hyperparams.json", {"dataset_average_activation_norm": {"in": 0}}, "has to be positive"),
    (R1, "config.json", {"sae_type": "crosscoder"}, "sae_type 'crosscoder'"),
    (R1, "config.json", {"act_fn": "batchtopk"}, "no rule per token"),
    (R1, "config.json", {"norm_activation": "batch-wise"}, "depends on the batch"),
    (GEMMA_2, "config.json", {"architecture": "topk"}, "architecture 'topk' is not read"),
]  # fmt: skip


@pytest.mark.parametrize(("folder", "file", "changes", "said"), WRONG_CONFIGS, ids=lambda v: str(v)[:40])
def test_a_config_that_does_not_fit(folder: str, file: str, changes: dict[str, Any], said: str, tmp_path: Path) -> None:
    refused(configured(folder, file, tmp_path, **changes), said)


def test_activations_of_openai_that_are_not_known(tmp_path: Path) -> None:
    for changes in ({"activation": "JumpReLU"}, {"activation_state_dict": {}},
                    {"activation_state_dict": {"k": 4, "postact_fn": "Identity"}}):  # fmt: skip
        place = copy("openai_topk", tmp_path / str(changes))
        rewrite(place / "autoencoder.pt", lambda held, changes=changes: {**held, **changes})  # type: ignore[misc]
        refused(place, "its activation .* is not read")


def test_a_cross_layer_transcoder_is_refused(tmp_path: Path) -> None:
    place = copy(GEMMA_2, tmp_path)
    rewrite(place / "params.safetensors", lambda held: {**held, "w_dec": held["w_dec"][:, None].repeat(1, 3, 1)})
    refused(place, "cross-layer transcoder")


def test_scaling_factors_of_old_files(tmp_path: Path) -> None:
    place = copy("saelens_standard", tmp_path)
    sha = sae.content_sha(sae.load(place))
    rewrite(place / "sae_weights.safetensors", lambda held: {**held, "scaling_factor": torch.ones(64)})
    assert sae.content_sha(sae.load(place)) == sha
    rewrite(place / "sae_weights.safetensors", lambda held: {**held, "scaling_factor": torch.full((64,), 1.1)})
    refused(place, "fold it into W_dec")


def test_two_formats_in_one_folder(tmp_path: Path) -> None:
    place = copy("saelens_topk", tmp_path)
    ours = sae.load(place)
    sae.save(ours, tmp_path / "ours")
    for path in (tmp_path / "ours").iterdir():
        path.rename(place / path.name)
    refused(place, r"looks like several formats at once \(native, saelens\); split the folder")


@pytest.mark.parametrize("folder", [GEMMA, GEMMA_2, QWEN])
def test_a_square_matrix_is_refused_where_the_orientation_is_not_certain(folder: str, tmp_path: Path) -> None:
    place = copy(folder, tmp_path)
    rewrite(
        place / BY_FOLDER[folder].weights,
        lambda held: {name: (t[:16] if t.ndim < 2 else t[:16, :16]).clone() for name, t in held.items()},
    )
    refused(place, r"is square \(16 x 16\), so nothing says which side is the latents")


def test_a_square_matrix_is_read_where_the_format_says_which_side_is_which(tmp_path: Path) -> None:
    model = ARCHITECTURES["relu"].create({"d_in": 8, "n_latents": 8}, SAEMetadata())
    with torch.no_grad():
        for i, parameter in enumerate(model.parameters()):
            parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(i)))
    for place, format_ in ((tmp_path / "a", "saelens"),):
        assert torch.equal(sae.load(sae.save(model, place, format_)).encoder, model.encoder)
    linear = {"encoder_linear.weight": model.encoder, "encoder_linear.bias": model.b_enc,
              "decoder_linear.weight": model.W_dec.T, "decoder_linear.bias": model.b_dec}  # fmt: skip
    torch.save({name: tensor.detach().clone() for name, tensor in linear.items()}, tmp_path / "x.pth")
    read = sae.load(tmp_path / "x.pth")
    assert torch.equal(read.encoder, model.encoder) and torch.equal(read.W_dec, model.W_dec)


@pytest.mark.parametrize("folder", [GEMMA, QWEN, "saelens_jumprelu", "sparsify_topk/layers.0"])
def test_matrices_stored_the_other_way_are_turned(folder: str, tmp_path: Path) -> None:
    expected = sae.content_sha(sae.load(FIXTURES / folder))
    place = copy(folder, tmp_path)
    rewrite(
        place / BY_FOLDER[folder].weights,
        lambda held: {name: t.T.contiguous() if t.ndim == 2 else t for name, t in held.items()},
    )
    assert sae.content_sha(sae.load(place)) == expected


def test_no_k_in_any_name(tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "layer0.sae.pt").write_bytes((FIXTURES / QWEN / "layer0.sae.pt").read_bytes())
    refused(tmp_path / "here", r"does not say its k; Qwen's repositories have it in their names")


def test_files_of_old_torch_are_read(tmp_path: Path) -> None:
    held = torch.load(FIXTURES / "openai_topk" / "autoencoder.pt", weights_only=True)
    torch.save(held, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    assert sae.content_sha(sae.load(tmp_path)) == sae.content_sha(sae.load(FIXTURES / "openai_topk"))


def test_settings_that_openai_writes_twice_are_no_tensors(tmp_path: Path) -> None:
    place = copy("openai_topk", tmp_path)
    rewrite(place / "autoencoder.pt", lambda held: {**held, "activation.k": 4, "activation.postact_fn": "ReLU"})
    assert sae.content_sha(sae.load(place)) == sae.content_sha(sae.load(FIXTURES / "openai_topk"))


def test_weights_without_a_config_are_named(tmp_path: Path) -> None:
    save_file({"b_enc": torch.zeros(4)}, tmp_path / "model.safetensors")
    refused(tmp_path, "found model.safetensors")
    assert "and in model.safetensors b_enc" in refused(tmp_path / "model.safetensors")
    assert load_file(tmp_path / "model.safetensors").keys() == {"b_enc"}
