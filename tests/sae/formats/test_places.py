"""Where an SAE is looked for: a file, a folder, what lies below it, the hub."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from checkpoints import BY_FOLDER, FIXTURES, GEMMA, LLAMA, QWEN

import sae
from sae import SAEError
from sae.files import find
from sae.formats._hub import HubId, parse


def test_the_one_checkpoint_below_a_folder_is_meant(tmp_path: Path) -> None:
    shutil.copytree(FIXTURES / GEMMA, tmp_path / "a" / GEMMA)
    (tmp_path / "a" / "logs").mkdir()
    (tmp_path / "a" / "notes.txt").write_text("x")
    assert find(tmp_path) == (tmp_path / "a" / GEMMA, "gemma_scope")
    assert sae.load(tmp_path).n_latents == 64


def test_several_checkpoints_below_a_folder_are_listed(tmp_path: Path) -> None:
    for layer in range(12):
        shutil.copytree(FIXTURES / "sparsify_topk" / "layers.0", tmp_path / f"layers.{layer}")
    with pytest.raises(
        SAEError,
        match=r"holds several SAEs: layers\.0, layers\.1, layers\.10, .* and 4 more; name one$",
    ):
        sae.load(tmp_path)
    assert sae.load(tmp_path / "layers.3").metadata.hookpoint == "layers.3"


def test_several_lone_files_in_a_folder_are_listed(tmp_path: Path) -> None:
    place = tmp_path / QWEN
    shutil.copytree(FIXTURES / QWEN, place)
    shutil.copy(place / "layer0.sae.pt", place / "layer1.sae.pt")
    with pytest.raises(SAEError, match=r"holds several SAEs: layer0\.sae\.pt, layer1\.sae\.pt; name one"):
        sae.load(place)
    assert sae.load(place / "layer1.sae.pt").metadata.hookpoint == "layers.1"


def test_a_folder_that_is_a_checkpoint_is_not_searched_further() -> None:
    assert (FIXTURES / "saelens_topk" / "training").is_dir()
    assert find(FIXTURES / "saelens_topk").path == FIXTURES / "saelens_topk"


def test_hidden_folders_and_other_files_are_passed_over(tmp_path: Path) -> None:
    shutil.copytree(FIXTURES / "saelens_topk", tmp_path / ".cache" / "it")
    with pytest.raises(SAEError, match=r"found \.cache"):
        sae.load(tmp_path)
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(SAEError, match=r"looked for .*found notes\.txt$"):
        sae.load(tmp_path / "notes.txt")


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("owner/repo", HubId("owner/repo", "")),
        ("hf://owner/repo/", HubId("owner/repo", "")),
        ("google/gemma-scope-2b-pt-res/layer_0/width_16k/average_l0_105", HubId("google/gemma-scope-2b-pt-res", "layer_0/width_16k/average_l0_105")),
        ("owner/repo/layer0.sae.pt", HubId("owner/repo", "layer0.sae.pt")),
        ("alone", None), ("/absolute/path", None), ("./owner/repo", None), ("../owner/repo", None),
        ("~/owner/repo", None), ("owner/repo/../../etc", None), ("owner//repo", None), ("C:\\owner\\repo", None),
        ("", None), ("https://huggingface.co/owner/repo", None),
    ],
)  # fmt: skip
def test_what_can_be_a_hub_id(path: str, expected: HubId | None) -> None:
    assert parse(path) == expected


class Hub:
    """A hub that is a folder here; it notes what was asked of it."""

    def __init__(self, root: Path, online: bool = True) -> None:
        self.root, self.online = root, online
        self.fetched: list[str] = []

    def list_repo_files(self, repo_id: str) -> list[str]:
        if not self.online or not (self.root / repo_id).is_dir():
            raise OSError(f"cannot reach the hub for {repo_id}\nmore detail")
        base = self.root / repo_id
        return sorted(path.relative_to(base).as_posix() for path in base.rglob("*") if path.is_file())

    def snapshot_download(
        self, repo_id: str, *, allow_patterns: list[str] | None = None, local_files_only: bool = False
    ) -> str:
        cache = self.root / "cache" / f"models--{repo_id.replace('/', '--')}" / "snapshots" / "0"
        if local_files_only:
            if not cache.is_dir():
                raise FileNotFoundError("not in the cache")
            return str(cache)
        for name in huggingface_hub.utils.filter_repo_objects(
            self.list_repo_files(repo_id), allow_patterns=allow_patterns
        ):
            self.fetched.append(name)
            (cache / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(self.root / repo_id / name, cache / name)
        return str(cache)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    hub = Hub(tmp_path / "hub")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: hub)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", hub.snapshot_download)
    return hub


def put(hub: Hub, repo: str, inside: str, fixture: str) -> None:
    ignored = shutil.ignore_patterns("io.safetensors", "training")
    shutil.copytree(FIXTURES / fixture, hub.root / repo / inside, ignore=ignored, dirs_exist_ok=True)


def test_only_the_asked_folder_is_downloaded(hub: Hub) -> None:
    for l0 in (5, 10):
        put(hub, "google/gemma-scope-2b-pt-res", f"layer_0/width_16k/average_l0_{l0}", GEMMA)
    model = sae.load("google/gemma-scope-2b-pt-res/layer_0/width_16k/average_l0_10")
    assert hub.fetched == ["layer_0/width_16k/average_l0_10/params.npz"]
    assert (model.metadata.model, model.metadata.hookpoint) == ("google/gemma-2-2b", "layers.0")
    hub.fetched.clear()
    with pytest.raises(SAEError, match=r"holds several SAEs: layer_0/width_16k/average_l0_10, .*_5; name one"):
        sae.load("hf://google/gemma-scope-2b-pt-res/layer_0")
    assert hub.fetched == []


def test_one_of_many_files_is_downloaded_and_its_name_says_k(hub: Hub) -> None:
    put(hub, "Qwen/SAE-Res-Qwen3-1.7B-Base-W32K-L0_4", "", QWEN)
    first = hub.root / "Qwen" / "SAE-Res-Qwen3-1.7B-Base-W32K-L0_4" / "layer0.sae.pt"
    shutil.copy(first, first.with_name("layer1.sae.pt"))
    with pytest.raises(SAEError, match=r"several SAEs: layer0\.sae\.pt, layer1\.sae\.pt; name one"):
        sae.load("Qwen/SAE-Res-Qwen3-1.7B-Base-W32K-L0_4")
    model = sae.load("Qwen/SAE-Res-Qwen3-1.7B-Base-W32K-L0_4/layer1.sae.pt")
    assert hub.fetched == ["layer1.sae.pt"]
    assert model.config_dict()["k"] == 4 and model.metadata.hookpoint == "layers.1"


def test_what_lies_beside_and_above_comes_with_it(hub: Hub) -> None:
    put(hub, "fnlp/Llama3_1-8B-Base-LXR-8x", "Llama3_1-8B-Base-L0R-8x", LLAMA)
    put(hub, "owner/run", "layers.0", "sparsify_topk/layers.0")
    put(hub, "owner/run", "layers.1", "sparsify_topk/layers.0")
    (hub.root / "owner" / "run" / "config.json").write_text('{"sae": {"k": 4}, "model": "some/model"}')
    put(hub, "owner/saelens", "", "saelens_topk")
    put(hub, "owner/dl", "trainer_0", "dictionary_learning_topk/trainer_0")
    for state in ("optimizer_0.pt", "state.pt", "trainer_state.pt"):
        (hub.root / "owner" / "saelens" / state).write_bytes(b"large")
    assert sae.load("fnlp/Llama3_1-8B-Base-LXR-8x/Llama3_1-8B-Base-L0R-8x").metadata.model == "meta-llama/Llama-3.1-8B"
    assert sae.load("fnlp/Llama3_1-8B-Base-LXR-8x").architecture == "jumprelu"
    assert sae.load("owner/run/layers.1").metadata.model == "some/model"
    hub.fetched.clear()
    assert sae.load("owner/saelens").architecture == "topk"
    assert sorted(hub.fetched) == ["cfg.json", "sae_weights.safetensors"]
    assert sae.load("owner/dl").architecture == "topk"


def test_a_local_path_goes_first(hub: Hub) -> None:
    put(hub, "owner/repo", "", "saelens_topk")
    shutil.copytree(FIXTURES / "saelens_gated", Path("owner/repo"))
    assert sae.load("owner/repo").architecture == "gated" and hub.fetched == []


def test_offline_uses_what_was_downloaded_and_says_so_otherwise(hub: Hub) -> None:
    put(hub, "owner/repo", "it", "saelens_topk")
    assert sae.load("owner/repo/it").architecture == "topk"
    hub.online = False
    assert sae.load("owner/repo/it").architecture == "topk"
    for path in ("owner/repo/other", "owner/unknown"):
        with pytest.raises(
            SAEError,
            match=rf"no SAE at '{path}': there is no such folder here, and the hub could not be reached or has no such "
            r"repository \(cannot reach the hub for [\w/]+\)$",
        ):
            sae.load(path)


def test_a_repository_without_weights(hub: Hub) -> None:
    (hub.root / "owner" / "repo").mkdir(parents=True)
    (hub.root / "owner" / "repo" / "README.md").write_text("x")
    with pytest.raises(SAEError, match="that repository holds no weights there"):
        sae.load("owner/repo")


def test_a_name_with_signs_of_patterns_is_taken_literally(hub: Hub) -> None:
    put(hub, "owner/repo", "a", "saelens_topk")
    for name in ("layer[0].json", "layer0.json"):
        (hub.root / "owner" / "repo" / "a" / name).write_text("{}")
    sae.load("owner/repo/a")
    assert "a/layer[0].json" in hub.fetched


def test_without_the_hub_client_the_line_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(SAEError, match=r"looking on the hub needs `pip install huggingface_hub`"):
        sae.load("owner/repo")


def test_local_loading_imports_no_hub_client() -> None:
    code = (
        "import sys, sae\n"
        f"sae.load({str(FIXTURES / 'saelens_topk')!r})\n"
        "print([m for m in sys.modules if m.startswith(('huggingface_hub', 'transformers', 'sae_lens'))])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and done.stdout.strip() == "[]", done.stderr


def test_every_fixture_is_found_by_its_weight_file_alone_or_with_its_config(tmp_path: Path) -> None:
    """A weight file that says everything can be moved anywhere; one that does not asks for its config."""
    alone: dict[str, Any] = {}
    for folder, fixture in BY_FOLDER.items():
        place = tmp_path / folder / "alone"
        place.mkdir(parents=True)
        weights = FIXTURES / folder / fixture.weights
        shutil.copy(weights, place / weights.name)
        try:
            alone.setdefault(fixture.format, set()).add(sae.load(place / weights.name).architecture)
        except SAEError as error:
            alone.setdefault(fixture.format, set()).add("could be" in str(error) or "no SAE at" in str(error))
    assert alone == {
        "saelens": {True}, "sparsify": {True}, "llama_scope": {True}, "openmoss": {True},
        "gemma_scope": {"jumprelu"}, "gemma_scope_2": {"jumprelu"}, "qwen_scope": {"topk"}, "goodfire": {"relu"},
        "openai": {"topk", "relu"}, "dictionary_learning": {True, "relu", "gated", "matryoshka"},
    }  # fmt: skip
