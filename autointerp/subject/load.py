"""Load a Hugging Face causal language model with its tokenizer, from a folder or a hub id."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from autointerp.errors import UserError
from autointerp.subject.hookpoints import Stop, base_model, editing, reading

WEIGHT_FILES = ("*.safetensors", "pytorch_model*.bin", "*.gguf")


class Pieces(dict[int, str]):
    """Texts of tokens, each decoded once."""

    def __init__(self, decode: Callable[[int], str]) -> None:
        self.decode = decode

    def __missing__(self, token: int) -> str:
        self[token] = text = self.decode(token)
        return text


def weights_sha(model: torch.nn.Module) -> str:
    """sha256 (16 hex digits) of names, shapes and a sample of every weight: tells models apart, not paths."""
    digest = hashlib.sha256()
    for name, weight in sorted(model.state_dict().items()):
        flat = weight.detach().flatten()
        digest.update(f"{name}{tuple(weight.shape)}".encode())
        digest.update(flat[:: max(1, flat.numel() // 64)].float().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


@dataclass
class SubjectModel:
    """A causal LM in evaluation mode and its tokenizer."""

    name: str
    model: Any
    tokenizer: Any
    random_seed: int | None = None
    """Seed of the weights of a model that was never trained: a control in the place of the trained one."""

    @property
    def null(self) -> bool:
        return self.random_seed is not None

    @property
    def label(self) -> str:
        """Name for tables: the hub id, or the folder's own name."""
        name = Path(self.name).name if Path(self.name).is_dir() else self.name
        return f"{name} (random weights)" if self.null else name

    @cached_property
    def fingerprint(self) -> str:
        return weights_sha(self.model)

    @property
    def device(self) -> torch.device:
        device: torch.device = self.model.device
        return device

    @cached_property
    def special_ids(self) -> frozenset[int]:
        return frozenset(int(i) for i in self.tokenizer.all_special_ids)

    @cached_property
    def textless_ids(self) -> frozenset[int]:
        """Tokens of no text, added ones too: a judge's chat template could take one for the end of the message."""
        added = self.tokenizer.added_tokens_decoder.items()
        return self.special_ids | {token for token, about in added if about.special}

    @cached_property
    def bos_id(self) -> int | None:
        """The token that this tokenizer itself puts before a text, if it does. It is never forced on a model."""
        ids = self.tokenizer("a")["input_ids"]
        bos = self.tokenizer.bos_token_id
        return int(bos) if bos is not None and ids and ids[0] == bos else None

    @cached_property
    def separator_id(self) -> int | None:
        """Put between packed documents."""
        return next((int(i) for i in (self.tokenizer.eos_token_id, self.tokenizer.bos_token_id) if i is not None), None)

    def activations(self, tokens: Tensor, hookpoint: str) -> Tensor:
        """Activations `[B, T, D]` (float32) at a hookpoint for unpadded tokens `[B, T]`; stops right after it."""
        return self.activations_at(tokens, [hookpoint])[hookpoint]

    @torch.inference_mode()
    def activations_at(self, tokens: Tensor, hookpoints: Sequence[str]) -> dict[str, Tensor]:
        """The same for several hookpoints in one pass, which stops after the deepest of them.

        Rows may be padded on the right: under causal attention nothing there reaches the tokens before it.
        """
        with reading(self.model, hookpoints, stop=True) as seen, suppress(Stop):
            base_model(self.model)(input_ids=tokens.to(self.device), use_cache=False)
        for name in hookpoints:
            if name not in seen:
                raise UserError(f"'{name}' is not a module that {self.label} runs; name one inside it, e.g. {name}.0")
        return {name: seen[name].float() for name in hookpoints}

    def gradients_at(self, tokens: Tensor, hookpoint: str, counted: Tensor) -> Tensor:
        """Gradient `[B, T, D]` (float32) of the next-token loss with respect to the activations at a hookpoint.

        The loss is the cross-entropy of the unmodified model, summed over the predictions of tokens `[B, T]`
        whose `counted` (bool) is set; positions that predict nothing have gradients of zero.
        """
        leaves: list[Tensor] = []

        def leaf(x: Tensor) -> Tensor:
            leaves.append(x.detach().requires_grad_())
            return leaves[-1]

        tokens = tokens.to(self.device)
        with torch.enable_grad(), editing(self.model, hookpoint, leaf):
            logits = self.model(input_ids=tokens, use_cache=False).logits[:, :-1].float()
            targets = tokens[:, 1:].masked_fill(~counted[:, 1:].to(self.device), -100)
            loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum")
            (gradient,) = torch.autograd.grad(loss, leaves[0])
        return gradient.float()

    def pieces(self, tokens: Sequence[int]) -> tuple[str, ...]:
        """The text of each token; joined they are the text.

        Tokens that hold only part of a character are decoded together: its text goes to the last of them.
        """
        alone = self.pieces_alone(tokens)
        if not any("\ufffd" in piece for piece in alone):
            return tuple(alone)
        pieces: list[str] = []
        start = 0
        for end in range(1, len(tokens) + 1):
            anchor, width = self._anchor
            text = self._decode([*anchor, *tokens[start:end]])[width:]
            if text.endswith("\ufffd") and end < len(tokens) and end - start < 8:
                pieces.append("")
                continue
            pieces.append(text)
            start = end
        return tuple(pieces)

    def pieces_alone(self, tokens: Sequence[int]) -> list[str]:
        """The text of each token by itself; part of a character is the replacement character."""
        return list(map(self._pieces.__getitem__, tokens))

    @cached_property
    def _pieces(self) -> Pieces:
        return Pieces(self._piece)

    def _piece(self, token: int) -> str:
        # One id per call: handing a list of ids to a batch decoder has merged them into one string in some releases.
        # Sentencepiece decoders drop the space of a text's first token, so every token is decoded behind another.
        anchor, width = self._anchor
        return self._decode([*anchor, token])[width:]

    @cached_property
    def _anchor(self) -> tuple[list[int], int]:
        ids = self.tokenizer("a", add_special_tokens=False)["input_ids"][:1]
        return ids, len(self._decode(ids))

    def _decode(self, ids: list[int]) -> str:
        text: str = self.tokenizer.decode(ids, clean_up_tokenization_spaces=False)
        return text


def load_subject(
    name: str, *, device: str = "cpu", dtype: str = "float32", random_seed: int | None = None
) -> SubjectModel:
    """Load a subject model; with `random_seed`, one of its shape whose weights are drawn anew, as before training.

    Raises:
        UserError: the folder does not exist, holds no weights, or the hub cannot be reached.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        if not any(next(folder.glob(pattern), None) for pattern in WEIGHT_FILES):
            raise UserError(
                f"no weights in '{name}': looked for {', '.join(WEIGHT_FILES)}; "
                "point --model at a folder written by save_pretrained, or at a hub id"
            )
        if not (folder / "config.json").is_file():
            raise UserError(f"no config.json in '{name}': it is not a Hugging Face model folder")
    elif name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise UserError(f"no model at '{name}': there is no such folder")
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
        how = {"dtype": getattr(torch, dtype), "attn_implementation": "sdpa"}
        if random_seed is None:
            model = AutoModelForCausalLM.from_pretrained(name, **how)
        else:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(random_seed)
                model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(name), **how)
    except (OSError, ValueError) as error:
        line = str(error).strip().split("\n")[0]
        raise UserError(
            f"cannot load model '{name}': {line} (a model that is not on this machine needs network access to its hub)"
        ) from error
    model = model.to(device).eval().requires_grad_(False)
    return SubjectModel(name=name, model=model, tokenizer=tokenizer, random_seed=random_seed)
