"""`autointerp doctor`: what it finds, how it ends, and that no key is ever in its text."""

from __future__ import annotations

import json
import math
import os
import random
import re
import shutil
import subprocess
import sys
import threading
from collections import namedtuple
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import autointerp.cli.commands  # noqa: F401  (registers the verbs)
import sae as sae_package
from autointerp.cli import doctor
from autointerp.cli._main import app
from autointerp.files import write_array
from autointerp.pipeline.health import Line
from autointerp.shards import WHOLE, Shard
from autointerp.store import layout
from autointerp.store.writer import StoreWriter
from prompts import render
from sae.architectures import topk
from sae.base import SAEMetadata
from sae.codes import SparseCodes

SECRET = "sk-recognisable-5417-value"
REPOSITORY = Path(__file__).resolve().parents[2]
WORDS = [f"word{i}" for i in range(60)]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder, a cache and an environment of the test's own."""
    folder = tmp_path / "cwd"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("AUTOINTERP_CACHE", str(tmp_path / "cache"))
    for name in (*doctor.KEYS, "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    return folder


def run(*arguments: str | Path) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["doctor", *map(str, arguments)])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.output
    return result.exit_code, result.output


def levels(output: str, part: str) -> list[str]:
    """Levels of the lines that contain `part`."""
    return [line.split()[0] for line in output.splitlines() if part in line and not line.startswith(" ")]


# --- without an SAE -------------------------------------------------------------------------------------------------


def test_a_sound_installation_has_no_failure() -> None:
    code, output = run()
    assert code == 0
    body = [line for line in output.splitlines()[:-1] if not line.startswith("[")]
    assert all(re.match(r"(ok   |warn |FAIL |     ->) ", line) for line in body)
    for part in ("Python 3", "autointerp-toolkit", "torch 2", "CUDA", "threads", "Slurm", "prompt lock kept"):
        assert levels(output, part), part
    assert re.fullmatch(r"\d+ ok, \d+ warn, 0 FAIL", output.splitlines()[-1])


def test_every_warning_and_failure_has_a_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")(10**10, 9 * 10**9, 10**9)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    monkeypatch.setattr(doctor, "DEMO_PARTS", ("no_such_part",))
    monkeypatch.setattr(doctor, "PACKAGES", ("no-such-package",))
    monkeypatch.setattr(doctor, "shadowed", lambda: ["'scoring' is /home/me/scoring.py"])
    monkeypatch.setattr(render, "check_lock", lambda: ["detection.v1 was changed after release"])
    code, output = run()
    assert code == 1
    assert levels(output, "1.0 GB free") == ["warn", "warn"]
    assert levels(output, "no_such_part") == ["warn"]
    for part in ("no-such-package", "/home/me/scoring.py", "detection.v1"):
        assert levels(output, part) == ["FAIL"], part
    lines = output.splitlines()
    found = [below for line, below in pairwise(lines) if line[:5] in {"warn ", "FAIL "}]
    assert len(found) == 6 and all(below.startswith("      -> ") for below in found)


def test_a_check_that_breaks_leaves_the_others_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> Iterator[Line]:
        yield Line("ok", "before")
        raise RuntimeError("out of luck")

    monkeypatch.setattr(doctor, "machine", broken)
    code, output = run()
    assert code == 1
    assert levels(output, "RuntimeError: out of luck") == ["FAIL"]
    assert levels(output, "prompt lock kept") == ["ok"]


def test_vllm_and_the_openai_sdk_are_not_imported() -> None:
    code = (
        "import sys; sys.argv = ['autointerp', 'doctor']\nfrom autointerp.cli import main\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code\n"
        "print(sorted({'vllm', 'openai', 'transformers', 'pandas'} & set(sys.modules)))"
    )
    done = python("-c", code)
    assert done.stdout.splitlines()[-1] == "[]", done.stderr


# --- keys -----------------------------------------------------------------------------------------------------------


def test_no_key_is_printed(monkeypatch: pytest.MonkeyPatch, elsewhere: Path) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    (elsewhere / ".env").write_text(f"HF_TOKEN={SECRET}-in-file\nANTHROPIC_API_KEY=\n")
    code, output = run()
    assert code == 0
    assert "OPENAI_API_KEY: set\n" in output
    assert "HF_TOKEN: set (in .env)\n" in output
    assert "ANTHROPIC_API_KEY: not set\n" in output and "OPENROUTER_API_KEY: not set\n" in output
    assert "5417" not in output and str(len(SECRET)) + " char" not in output
    assert "HF_TOKEN" not in os.environ


def test_an_error_that_quotes_a_key_is_cut(monkeypatch: pytest.MonkeyPatch, elsewhere: Path) -> None:
    (elsewhere / ".env").write_text(f"OPENROUTER_API_KEY='{SECRET}'\n")
    monkeypatch.setattr(render, "check_lock", lambda: [f"server says: {SECRET} is wrong"])
    _, output = run()
    assert "server says: [key] is wrong" in output and SECRET not in output


def test_an_empty_variable_hides_the_file(monkeypatch: pytest.MonkeyPatch, elsewhere: Path) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "")
    (elsewhere / ".env").write_text(f"OPENAI_API_KEY={SECRET}\n")
    _, output = run()
    assert levels(output, "OPENAI_API_KEY: not set (empty in the environment") == ["warn"]
    assert SECRET not in output


def test_a_dotenv_file_that_is_no_text(elsewhere: Path) -> None:
    (elsewhere / ".env").write_bytes(b"OPENAI_API_KEY=\xff\xfe" + SECRET.encode())
    code, output = run()
    assert code == 0
    assert levels(output, "cannot be read (UnicodeDecodeError)") == ["warn"]
    assert SECRET not in output


class Refusing(BaseHTTPRequestHandler):
    seen: ClassVar[list[tuple[str, str | None]]] = []
    code: ClassVar[int] = 401
    headers_out: ClassVar[dict[str, str]] = {}

    def do_GET(self) -> None:
        self.seen.append((self.path, self.headers.get("Authorization")))
        self.send_response(self.code)
        for name, value in self.headers_out.items():
            self.send_header(name, value)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: Any) -> None: ...


@pytest.fixture
def server() -> Iterator[str]:
    Refusing.seen.clear()
    with HTTPServer(("127.0.0.1", 0), Refusing) as http:
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{http.server_port}"
        http.shutdown()
        thread.join()


@pytest.mark.parametrize(("code", "level"), [(200, "ok"), (401, "FAIL"), (307, "warn"), (500, "warn")])
def test_keys_are_tried_with_online_only(code: int, level: str, server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Refusing, "code", code)
    monkeypatch.setattr(Refusing, "headers_out", {"Location": f"{server}/elsewhere"} if code == 307 else {})
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    monkeypatch.setenv("OPENAI_BASE_URL", f"{server}/v1")
    run()
    assert not Refusing.seen
    keys = doctor.Keys(Path(".env"))
    asked = doctor._asked
    monkeypatch.setattr(
        doctor, "_asked", lambda url, *rest: asked(url.replace("https://huggingface.co", server), *rest)
    )
    lines = list(doctor.online_lines(keys))
    # The redirect is not followed, so the key has gone to the one address only.
    assert Refusing.seen == [("/api/models?limit=1", None), ("/v1/models", f"Bearer {SECRET}")]
    assert lines[1].level == level and SECRET not in lines[1].text + lines[1].remedy


def test_an_address_that_is_not_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    line = doctor._asked("http://127.0.0.1:9/v1/models", {"Authorization": SECRET + "\nx"}, "OPENAI_API_KEY")
    assert line.level == "warn" and SECRET not in line.text
    assert doctor._asked("file:///etc/passwd", {}, "OPENAI_API_KEY").level == "FAIL"


# --- as a process ---------------------------------------------------------------------------------------------------


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "PYTHONUTF8": "1"}
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, env=environment, check=False, timeout=120
    )


def test_a_file_that_hides_a_package_ends_every_verb(elsewhere: Path) -> None:
    (elsewhere / "scoring.py").write_text("raise SystemExit('imported')\n")
    done = python("-m", "autointerp", "doctor")
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.count("\n") == 1 and "scoring.py" in done.stderr and "rename" in done.stderr


# --- a store --------------------------------------------------------------------------------------------------------


N_CONTEXTS = 6


def begin(folder: Path, shard: Shard = WHOLE) -> StoreWriter:
    """A store of six contexts, or of a shard of so many, whose parts are two contexts each."""
    tokens = np.arange(16 * N_CONTEXTS, dtype=np.int32).reshape(N_CONTEXTS, 16)
    write_array(folder / layout.TOKENS, tokens)
    write_array(folder / layout.DOCUMENTS, np.zeros_like(tokens))
    return StoreWriter(
        folder, {"model": "tiny", "hookpoint": "layers.0"}, n_latents=4, shard=shard,
        first_block=N_CONTEXTS * shard.index, part_bytes=2**30, part_seconds=math.inf,
    )  # fmt: skip


def collected(writer: StoreWriter, n: int = N_CONTEXTS) -> StoreWriter:
    """With its first `n` contexts on the disk, a part for two of them."""
    for first in range(0, n, 2):
        dense = torch.rand(32, 4, generator=torch.Generator().manual_seed(first)).sub(0.5).relu()
        writer.add(slice(first, first + 2), np.arange(32) + 16 * first, SparseCodes.from_dense(dense))
        writer.flush()
    return writer


@pytest.fixture
def store(tmp_path: Path) -> Path:
    folder = tmp_path / "store"
    collected(begin(folder)).finalise()
    return folder


def test_a_whole_store(store: Path) -> None:
    code, output = run("--store", store)
    assert code == 0
    assert levels(output, "4 latents over 96 tokens") == ["ok"] and levels(output, "model=tiny") == ["ok"]


@pytest.mark.parametrize("name", layout.ARRAYS)
def test_a_flipped_byte_is_found(store: Path, name: str) -> None:
    content = bytearray((store / name).read_bytes())
    content[-1] ^= 1
    (store / name).write_bytes(bytes(content))
    code, output = run("--store", store)
    assert code == 1
    assert levels(output, f"{name}'") == ["FAIL"]


@pytest.mark.parametrize("manifest", [None, "{", "{}", '{"version": 1}', "[]"])
def test_a_manifest_that_is_none(store: Path, manifest: str | None) -> None:
    path = store / layout.MANIFEST
    path.unlink() if manifest is None else path.write_text(manifest)
    code, output = run("--store", store)
    assert code == 1
    assert "FAIL" in output.split("[store]")[1].splitlines()[1]


def store_lines(output: str) -> list[str]:
    return output.split("[store]\n")[1].splitlines()[:-1]


def test_a_half_written_store_says_how_far_it_is(tmp_path: Path) -> None:
    folder = tmp_path / "store"
    for n in (0, 4, 6):
        shutil.rmtree(folder, ignore_errors=True)
        collected(begin(folder), n)
        code, output = run("--store", folder)
        assert code == 0
        assert store_lines(output) == [
            f"warn  '{folder}': unfinished, {n} of 6 contexts collected",
            "      -> run the command that collected it again: it goes on from there",
        ]
    # Killed before there were any tokens.
    shutil.rmtree(folder)
    folder.mkdir()
    (folder / layout.IDENTITY).write_text("{}")
    code, output = run("--store", folder)
    assert code == 0 and levels(output, "unfinished, no contexts yet collected") == ["warn"]


def test_looking_changes_nothing(tmp_path: Path) -> None:
    collected(begin(tmp_path / "store"), 4)
    parts = tmp_path / "store" / layout.PARTS
    flipped(next(parts.iterdir()))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert run("--store", tmp_path / "store")[0] == 1
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def flipped(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("damage", ["flipped", "cut off", "garbage"])
def test_damaged_parts_are_failures(tmp_path: Path, damage: str) -> None:
    folder = tmp_path / "store"
    collected(begin(folder), 4)
    path = sorted((folder / layout.PARTS).iterdir())[1]
    if damage == "flipped":
        flipped(path)
    else:
        path.write_bytes(path.read_bytes()[:-9] if damage == "cut off" else b"garbage" * 50)
    code, output = run("--store", folder)
    assert code == 1
    assert levels(output, path.name) == ["FAIL"] and levels(output, "unfinished, 2 of 6 contexts collected") == ["warn"]
    failed = next(i for i, line in enumerate(store_lines(output)) if line.startswith("FAIL"))
    assert "sets the part aside and collects its contexts anew" in store_lines(output)[failed + 1]


def test_tokens_of_a_half_written_store_that_are_cut_off(tmp_path: Path) -> None:
    folder = tmp_path / "store"
    collected(begin(folder), 4)
    path = folder / layout.TOKENS
    path.write_bytes(path.read_bytes()[:-9])
    code, output = run("--store", folder)
    assert code == 1 and levels(output, f"'{path}' is damaged") == ["FAIL"]


def test_a_sharded_store_says_which_shards_are_missing(tmp_path: Path) -> None:
    folder = tmp_path / "store"
    shards = [Shard(i, 4) for i in range(4)]
    collected(begin(layout.shard_folder(folder, shards[0]), shards[0])).finalise()
    collected(begin(layout.shard_folder(folder, shards[2]), shards[2]), 4)
    code, output = run("--store", folder)
    assert code == 0
    assert [line[:5].strip() for line in store_lines(output)] == ["ok", "warn", "", "warn", "", "warn", ""]
    assert levels(output, "shard-0-of-4': finished, every file as it was written") == ["ok"]
    assert levels(output, "shard 1/4 is missing") == levels(output, "shard 3/4 is missing") == ["warn"]
    assert levels(output, "shard-2-of-4': unfinished, 4 of 6 contexts collected") == ["warn"]
    assert "-> run `autointerp collect --shard 3/4` with the settings of the others" in output
    flipped(folder / "shard-0-of-4" / layout.VALUES)
    code, output = run("--store", folder)
    assert code == 1 and levels(output, f"{layout.VALUES}' is damaged") == ["FAIL"]
    begin(folder / "shard-0-of-2", Shard(0, 2))
    code, output = run("--store", folder)
    assert code == 1 and levels(output, "shards of several divisions (of 2, of 4)") == ["FAIL"]


def test_all_shards(tmp_path: Path) -> None:
    for shard in (Shard(0, 2), Shard(1, 2)):
        collected(begin(layout.shard_folder(tmp_path / "store", shard), shard)).finalise()
    code, output = run("--store", tmp_path / "store")
    assert code == 0 and levels(output, "4 latents over 192 tokens, every file as it was written") == ["ok"]


def test_parts_that_a_kill_left_over(store: Path) -> None:
    (store / layout.PARTS).mkdir()
    code, output = run("--store", store)
    assert code == 0 and levels(output, f"{layout.PARTS}' was left over by a kill") == ["warn"]


def test_no_store(tmp_path: Path) -> None:
    for folder in (tmp_path / "nowhere", tmp_path):
        code, output = run("--store", folder)
        assert code == 1 and levels(output, "no finished latent store in") == ["FAIL"]


# --- an SAE ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama of two layers over a vocabulary of whole words."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("subject")
    words = ["<unk>", "<eos>", *WORDS]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", eos_token="<eos>").save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(words), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=256, bos_token_id=None, eos_token_id=1,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = random.Random(0)
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("\n\n".join(" ".join(rng.choices(WORDS, k=40)) for _ in range(60)))
    return path


@pytest.fixture(scope="module")
def figures(subject: Path, text: Path) -> dict[str, float]:
    """FVU and L0 of the test's SAE on all of the text, from the model's own hidden states."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(subject), AutoModelForCausalLM.from_pretrained(subject)
    ids = torch.tensor(tokenizer(text.read_text())["input_ids"][: 256 * 9]).reshape(9, 256)
    with torch.no_grad():
        x = model(ids, output_hidden_states=True).hidden_states[1][:, 1:].reshape(-1, 32).double()
    dictionary = dictionary_of().requires_grad_(False)
    dense = dictionary.encode_dense(x.float()).double()
    error = (dense @ dictionary.W_dec.double() - x).square().sum()
    return {
        "fvu": float(error / (x - x.mean(dim=0)).square().sum()),
        "l0": float((dense != 0).sum(dim=1).double().mean()),
    }


def dictionary_of(**metadata: Any) -> topk.TopK:
    dictionary = topk.create({"d_in": 32, "n_latents": 64, "k": 12}, SAEMetadata(**metadata))
    dictionary.initialise(seed=1)
    return dictionary


def saved(folder: Path, **metadata: Any) -> Path:
    return sae_package.save(dictionary_of(**metadata), folder)


def test_an_sae_with_the_figures_it_records(
    tmp_path: Path, subject: Path, text: Path, figures: dict[str, float]
) -> None:
    path = saved(tmp_path / "sae", model=str(subject), hookpoint="layers.0", dataset=str(text), metrics=figures)
    code, output = run("--sae", path)
    assert code == 0, output
    for part in ("architecture topk, format native, width 64", "k = 12", "hookpoint=layers.0", "FVU ", "L0 1"):
        assert set(levels(output, part)) == {"ok"}, part
    shown = float(re.search(r"FVU ([\d.]+) ", output)[1])  # type: ignore[index]
    assert shown == pytest.approx(figures["fvu"], rel=0.1)


@pytest.mark.parametrize(("name", "factor"), [("fvu", 0.5), ("fvu", 2.0), ("l0", 0.5), ("l0", 1.5)])
def test_wrong_figures_fail_and_name_their_causes(
    tmp_path: Path, subject: Path, text: Path, figures: dict[str, float], name: str, factor: float
) -> None:
    wrong = {**figures, name: figures[name] * factor}
    path = saved(tmp_path / "sae", model=str(subject), hookpoint="layers.0", dataset=str(text), metrics=wrong)
    code, output = run("--sae", path)
    assert code == 1
    lines = output.splitlines()
    (failed,) = [i for i, line in enumerate(lines) if line.startswith("FAIL")]
    assert name.upper() in lines[failed] and "recorded" in lines[failed]
    assert "likely causes" in lines[failed + 1] and "hookpoint" in lines[failed + 1]


def test_without_recorded_figures_a_poor_fvu_is_a_warning(
    tmp_path: Path, subject: Path, text: Path, figures: dict[str, float]
) -> None:
    path = saved(tmp_path / "sae")
    code, output = run("--sae", path, "--model", subject, "--hookpoint", "layers.0", "--dataset", text)
    assert code == 0
    assert levels(output, "FVU ") == ["warn" if figures["fvu"] > 0.5 else "ok"]
    assert levels(output, "metadata: none") == ["warn"]


def test_text_that_training_used_up_is_used_again(tmp_path: Path, subject: Path, text: Path) -> None:
    about = {"model": str(subject), "hookpoint": "layers.0", "dataset": str(text), "extra": {"n_documents": 60}}
    code, output = run("--sae", saved(tmp_path / "sae", **about))
    assert code == 0, output
    assert levels(output, "FVU ") and levels(output, "text ") == ["ok"]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"model": "/no/such/model"}, "no model at"),
        ({"model": None}, "names no subject model"),
        ({"hookpoint": None}, "names no hookpoint"),
        ({"hookpoint": "layers.7"}, "no hookpoint 'layers.7'"),
        ({"hookpoint": "layers.0.mlp.down_proj:in"}, "reads a last dimension of 32"),
        ({"dataset": "/no/such/text.txt"}, "no data set at"),
    ],
)
def test_what_cannot_be_loaded_is_one_line(
    tmp_path: Path, subject: Path, text: Path, change: dict[str, Any], expected: str
) -> None:
    about = {"model": str(subject), "hookpoint": "layers.0", "dataset": str(text), **change}
    code, output = run("--sae", saved(tmp_path / "sae", **about))
    assert code == 1
    assert levels(output, expected) == ["FAIL"]
    assert "Traceback" not in output


def test_damaged_weights(tmp_path: Path) -> None:
    path = saved(tmp_path / "sae")
    (path / "weights.safetensors").write_bytes(b"\0" * 100)
    code, output = run("--sae", path)
    assert code == 1
    assert levels(output, "truncated or damaged") == ["FAIL"]


def test_metadata_of_other_types_than_expected(tmp_path: Path, subject: Path, text: Path) -> None:
    path = saved(tmp_path / "sae", model=str(subject), hookpoint="layers.0", dataset=str(text))
    info = json.loads((path / "sae.json").read_text())
    info["metadata"] |= {"metrics": {"fvu": "0.1", "l0": None}, "extra": {"n_documents": "many"}}
    (path / "sae.json").write_text(json.dumps(info))
    code, output = run("--sae", path)
    assert code == 0 and "the metadata records none" in output


def test_control_characters_do_not_reach_the_terminal(tmp_path: Path) -> None:
    for path in (saved(tmp_path / "s\x1b[31mae"), tmp_path / "no\x1b]0;title\x07ne"):
        _, output = run("--sae", path)
        assert "\x1b" not in output and "\x07" not in output and "\\x1b" in output
