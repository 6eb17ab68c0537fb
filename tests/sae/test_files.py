"""Checkpoints: bit-for-bit round trips, and an error of its own for every way a folder can be wrong."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from planted_features import random_model, random_topk
from safetensors.torch import load_file, save_file

import sae
from sae import SAEError, SAEMetadata
from sae.architectures.topk import TopK
from sae.registry import Registry, UnknownName


def make(seed: int = 0, **metadata: Any) -> TopK:
    model = random_topk(seed, d_in=6, n_latents=10, k=2, auxk_alpha=0.1)
    model.metadata = SAEMetadata(**metadata)
    return model


def edit(folder: Path, **changes: Any) -> None:
    info = json.loads((folder / "sae.json").read_text())
    (folder / "sae.json").write_text(json.dumps({**info, **changes}))


def test_round_trip_bit_for_bit(tmp_path: Path) -> None:
    model = make(
        model="some/model", hookpoint="layers.9", n_tokens=5, seed=3, normalization={"kind": "x", "scale": 0.1},
        metrics={"fvu": 0.1 + 0.2}, extra={"note": "é"},
    )  # fmt: skip
    assert sae.save(model, tmp_path / "deep" / "folder") == tmp_path / "deep" / "folder"
    read = sae.load(tmp_path / "deep" / "folder")
    assert isinstance(read, TopK) and not read.training
    assert read.config == model.config and read.metadata == model.metadata
    for name, tensor in model.state_dict().items():
        assert torch.equal(read.state_dict()[name], tensor), name
    x = torch.randn(20, 6, generator=torch.Generator().manual_seed(0))
    assert torch.equal(read(x), model(x)) and sae.content_sha(read) == sae.content_sha(model)
    assert sorted(p.name for p in (tmp_path / "deep" / "folder").iterdir()) == ["sae.json", "weights.safetensors"]


def test_unknown_metadata_is_kept(tmp_path: Path) -> None:
    sae.save(make(model="m", extra={"old": 1}), tmp_path)
    info = json.loads((tmp_path / "sae.json").read_text())
    edit(tmp_path, metadata={**info["metadata"], "licence": "MIT", "nested": {"a": [1, None]}})
    read = sae.load(tmp_path)
    assert (
        read.metadata.extra == {"old": 1, "licence": "MIT", "nested": {"a": [1, None]}} and read.metadata.model == "m"
    )
    sae.save(read, tmp_path / "again")
    assert sae.load(tmp_path / "again").metadata == read.metadata


def truncate(folder: Path) -> None:
    whole = (folder / "weights.safetensors").read_bytes()
    (folder / "weights.safetensors").write_bytes(whole[: len(whole) - 7])


def foreign_shapes(folder: Path) -> None:
    tensors = {
        "encoder": torch.zeros(10, 6),
        "b_enc": torch.zeros(10),
        "W_dec": torch.zeros(10, 7),
        "bias": torch.zeros(6),
    }
    save_file(tensors, folder / "weights.safetensors")


DAMAGE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no weights": (lambda f: (f / "weights.safetensors").unlink(), r"holds sae\.json but no weights\.safetensors"),
    "truncated": (truncate, r"weights\.safetensors is truncated or damaged"),
    "empty weights": (lambda f: (f / "weights.safetensors").write_bytes(b""), "truncated or damaged"),
    "foreign shapes": (
        foreign_shapes,
        r"does not fit sae\.json: W_dec: \(10, 7\) instead of \(10, 6\), b_dec: None.*bias: \(6,\) instead of None",
    ),
    "newer": (lambda f: edit(f, version=2), "has version 2; this release reads up to 1: upgrade"),
    "architecture": (lambda f: edit(f, architecture="topkk"), "unknown SAE architecture 'topkk'; did you mean 'topk'"),
    "setting": (lambda f: edit(f, config={"d_in": 6, "n_latents": 10, "kk": 2}), "describes no SAE we know.*kk"),
    "k": (lambda f: edit(f, config={"d_in": 6, "n_latents": 10, "k": 11}), "k has to lie between 1 and n_latents"),
    "width": (lambda f: edit(f, config={"d_in": 0, "n_latents": 10, "k": 2}), "have to be positive, not 0, 0 and 10"),
    "no config": (
        lambda f: (f / "sae.json").unlink(),
        r"looked for .*sae\.json \+ .*found weights\.safetensors \(and in weights\.safetensors W_dec, b_dec",
    ),
    "size": (
        lambda f: edit(f, config={"d_in": 6, "n_latents": 10**14, "k": 2}),
        r"sae\.json describes no SAE we know: .*alloc",
    ),
    "half a config": (lambda f: (f / "sae.json").write_text('{"format": "autoin'), r"looked for .*; found sae\.json"),
    "another's config": (lambda f: (f / "sae.json").write_text("[1]"), r"looked for .*; found sae\.json"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_every_damage_has_its_message(tmp_path: Path, damage: str) -> None:
    sae.save(make(), tmp_path)
    sae.load(tmp_path)
    do, said = DAMAGE[damage]
    do(tmp_path)
    with pytest.raises(SAEError, match=said):
        sae.load(tmp_path)


def test_its_weight_file_stands_for_the_folder(tmp_path: Path) -> None:
    sae.save(make(), tmp_path)
    assert sae.content_sha(sae.load(tmp_path / "weights.safetensors")) == sae.content_sha(make())
    assert sae.content_sha(sae.load(tmp_path / "sae.json")) == sae.content_sha(make())


def test_what_cannot_be_read_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(SAEError, match=r"it cannot be read \(.*Permission denied\)"):
        sae.load(tmp_path)


def test_nowhere_and_nothing(tmp_path: Path) -> None:
    with pytest.raises(
        SAEError, match=r"no SAE at '.*nowhere': there is no such folder \(a folder should hold .*sae\.json \+"
    ):
        sae.load(tmp_path / "nowhere")
    with pytest.raises(SAEError, match="found nothing"):
        sae.load(tmp_path)


@pytest.mark.parametrize(
    "changes",
    [{"version": "two"}, {"metadata": None}, {"metadata": {"extra": 1}}, {"config": [1]}, {"architecture": None}],
)
def test_a_config_with_values_of_wrong_type_is_an_sae_error(tmp_path: Path, changes: dict[str, Any]) -> None:
    sae.save(make(), tmp_path)
    edit(tmp_path, **changes)
    with pytest.raises(SAEError):
        sae.load(tmp_path)


def test_a_failed_save_leaves_the_old_sae_or_none(tmp_path: Path) -> None:
    old = make(0, model="old")
    sae.save(old, tmp_path)
    with pytest.raises(TypeError):
        sae.save(make(1, model="new", metrics={"fvu": object()}), tmp_path)  # a value that JSON does not know
    try:
        read = sae.load(tmp_path)
    except SAEError:
        return
    assert read.metadata.model == "old" and sae.content_sha(read) == sae.content_sha(old)


def test_content_sha_is_of_the_content(tmp_path: Path) -> None:
    sha = sae.content_sha(make(0))
    assert sha == sae.content_sha(make(0, model="metadata is no content")) and len(sha) == 16
    shas = {sha, sae.content_sha(make(1))}
    for name in ("encoder", "b_enc", "W_dec", "b_dec"):
        model = make(0)
        with torch.no_grad():
            getattr(model, name).view(-1)[3] += 1e-6
        shas.add(sae.content_sha(model))
    shas.add(sae.content_sha(random_topk(0, d_in=6, n_latents=10, k=3, auxk_alpha=0.1)))
    assert len(shas) == 7


def test_content_sha_is_of_dtypes_and_shapes_too() -> None:
    model = make(0)
    shas = {sae.content_sha(model)}
    fine = make(0).double()
    shas.add(sae.content_sha(fine))
    with torch.no_grad():
        fine.encoder[0, 0] += 1e-12  # less than float32 can tell
    shas.add(sae.content_sha(fine))
    shas.add(sae.content_sha(make(0).to(torch.bfloat16)))
    with torch.no_grad():
        model.b_enc[0] = 0.0
        shas.add(sae.content_sha(model))
        model.b_enc[0] = -0.0
        shas.add(sae.content_sha(model))
    assert len(shas) == 6
    turned = make(0)
    turned.W_dec = torch.nn.Parameter(turned.W_dec.reshape(6, 10).detach())
    assert sae.content_sha(turned) != sae.content_sha(make(0))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_dtypes_are_kept(tmp_path: Path, dtype: torch.dtype) -> None:
    model = random_model("batchtopk", d_in=6, n_latents=10, k=2, dtype=dtype)
    model.threshold = torch.tensor(0.123456789012345, dtype=torch.float64)  # one that is finer than the rest
    read = sae.load(sae.save(model, tmp_path))
    assert {name: t.dtype for name, t in read.state_dict().items()} == {
        name: torch.float64 if name == "threshold" else dtype for name in model.state_dict()
    }
    assert all(torch.equal(read.state_dict()[name], tensor) for name, tensor in model.state_dict().items())
    assert sae.content_sha(read) == sae.content_sha(model)
    assert all(parameter.requires_grad for parameter in read.parameters())


def test_tuples_of_a_config_come_back_as_tuples(tmp_path: Path) -> None:
    model = random_model("matryoshka", d_in=6, n_latents=10, k=2, group_sizes=(2, 3, 5), weights=(0.5, 0.25, 0.25))
    sae.save(model, tmp_path)
    assert json.loads((tmp_path / "sae.json").read_text())["config"]["group_sizes"] == [2, 3, 5]
    read = sae.load(tmp_path)
    assert read.config == model.config and read.config_dict()["group_sizes"] == (2, 3, 5)
    assert sae.content_sha(read) == sae.content_sha(model)


def test_weights_with_nan_are_refused(tmp_path: Path) -> None:
    sae.save(make(), tmp_path)
    held = load_file(tmp_path / "weights.safetensors")
    held["W_dec"][2, 3] = torch.nan
    save_file(held, tmp_path / "weights.safetensors")
    with pytest.raises(SAEError, match=r"does not fit sae\.json: W_dec holds NaN or infinity"):
        sae.load(tmp_path)


def test_importing_sae_needs_neither_transformers_nor_pandas(tmp_path: Path) -> None:
    sae.save(make(), tmp_path)
    code = (
        "import sys, sae\n"
        "assert 'torch' not in sys.modules\n"
        "sae.Trainer, sae.TrainConfig, sae.SparseCodes\n"
        f"assert sae.load({str(tmp_path)!r}).n_latents == 10\n"
        "print(sorted(m for m in sys.modules if m.split('.')[0] in ('transformers', 'pandas', 'datasets', 'pydantic',\n"
        "    'autointerp', 'scoring', 'prompts')))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


def test_sae_lists_what_it_has() -> None:
    assert all(getattr(sae, name) for name in sae.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'Trianer'"):
        _ = sae.Trianer


def test_an_unknown_name_lists_the_known_ones() -> None:
    registry = Registry("SAE architecture", "sae.architectures", "autointerp.no-such-group")
    assert "topk" in registry and registry.names == sorted(registry.names) and registry["topk"].create
    with pytest.raises(
        UnknownName, match=r"unknown SAE architecture 'topc'; did you mean 'topk'\? \(known: .*topk.*\)"
    ):
        registry["topc"]
    with pytest.raises(UnknownName) as raised:
        registry["zzzz"]
    assert "did you mean" not in str(raised.value) and "topk" in str(raised.value)
    assert "Gao" in registry.describe("topk")
    assert "topk" not in Registry("x", "sae.architectures", "g", exclude=frozenset({"topk"}))
