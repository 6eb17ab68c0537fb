"""Names of places in a model: TransformerLens' and other programs' to ours, and back.

Ours are module paths of the Hugging Face model without the leading `model.`, with `:in` for a module's input. What
a family of models calls its modules is listed here; a name that is not understood is kept as it is.
"""

from __future__ import annotations

import re
from typing import NamedTuple


class Family(NamedTuple):
    """Modules of a block by TransformerLens' site name; a None is a place that is no module's input or output."""

    pattern: str
    """Of the model's name, in lower case."""
    prefix: str
    """Attribute of the causal language model that holds the base model."""
    blocks: str
    embedding: str
    sites: dict[str, str | None]


_LLAMA: dict[str, str | None] = {
    "hook_resid_post": "",
    "hook_resid_pre": ":in",
    "hook_resid_mid": "post_attention_layernorm:in",
    "hook_mlp_out": "mlp",
    "hook_attn_out": "self_attn",
    "attn.hook_z": "self_attn.o_proj:in",
    "mlp.hook_post": "mlp.down_proj:in",
}
_LAYERS = "layers"
FAMILIES = (
    Family(
        r"gpt-?2|distilgpt2", "transformer", "h", "wte",
        _LLAMA | {"hook_resid_mid": "ln_2:in", "hook_attn_out": "attn", "attn.hook_z": "attn.c_proj:in",
                  "mlp.hook_post": "mlp.c_proj:in"},
    ),
    Family(
        r"pythia|gpt-neox", "gpt_neox", _LAYERS, "embed_in",
        _LLAMA | {"hook_resid_mid": None, "hook_attn_out": "attention", "attn.hook_z": "attention.dense:in",
                  "mlp.hook_post": "mlp.dense_4h_to_h:in"},
    ),
    # Gemma 2 and 3 normalise what a sublayer adds, and TransformerLens' hooks see it after that.
    Family(
        r"gemma-?[23]-", "model", _LAYERS, "embed_tokens",
        _LLAMA | {"hook_resid_mid": "pre_feedforward_layernorm:in", "hook_mlp_out": "post_feedforward_layernorm",
                  "hook_attn_out": "post_attention_layernorm"},
    ),
    Family(r"", "model", _LAYERS, "embed_tokens", _LLAMA),
)  # fmt: skip

OWNERS = {"gemma-": "google/", "pythia-": "EleutherAI/", "Llama-": "meta-llama/", "Qwen": "Qwen/"}


def family(model: str | None) -> Family:
    name = (model or "").lower()
    return next(family for family in FAMILIES if re.search(family.pattern, name))


def model_id(model: str | None) -> str | None:
    """A hub id for TransformerLens' short names where the owner is plain; otherwise the name itself."""
    if model == "gpt2-small":
        return "gpt2"
    if model and "/" not in model:
        return next((owner + model for start, owner in OWNERS.items() if model.startswith(start)), model)
    return model or None


def hookpoint_of(name: str | None, model: str | None = None) -> str | None:
    """`blocks.9.hook_resid_post` and `model.layers.9.output` are `layers.9`."""
    if not name:
        return None
    modules = family(model)
    if name == "hook_embed":
        return modules.embedding
    found = re.fullmatch(r"blocks\.(\d+)\.(.+)", name)
    if found:
        module = modules.sites.get(found.group(2))
        return name if module is None else _join(modules.blocks, found.group(1), module)
    return _without_prefix(name)


def transformer_lens_name(hookpoint: str | None, model: str | None = None) -> str | None:
    """The hook whose activations a hookpoint has; the hookpoint itself where there is none."""
    modules = family(model)
    if hookpoint == modules.embedding:
        return "hook_embed"
    found = re.match(rf"{modules.blocks}\.(\d+)", hookpoint or "")
    for site, module in modules.sites.items():
        if found and module is not None and hookpoint == _join(modules.blocks, found.group(1), module):
            return f"blocks.{found.group(1)}.{site}"
    return hookpoint


def hugging_face_name(hookpoint: str, model: str | None = None) -> str:
    """A path from the causal language model on."""
    return f"{family(model).prefix}.{hookpoint}"


def _join(blocks: str, index: str, module: str) -> str:
    return f"{blocks}.{index}{module}" if module.startswith(":") or not module else f"{blocks}.{index}.{module}"


def _without_prefix(name: str) -> str:
    for prefix in ("model.", "transformer.", "gpt_neox."):
        name = name.removeprefix(prefix)
    return f"{name.removesuffix('.input')}:in" if name.endswith(".input") else name.removesuffix(".output")
