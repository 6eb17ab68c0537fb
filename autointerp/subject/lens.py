"""The logit lens of directions: which tokens they promote, through the final norm and the unembedding, and no block.

The vocabulary projection of Gur-Arieh et al. 2025 (arXiv 2501.08319), w = W_U norm(d). The model itself applies both:
its last block's output is replaced by the direction, so that every family does it in its own way.
"""

from __future__ import annotations

import math
import re
from contextlib import suppress
from itertools import product

import torch
from torch import Tensor, nn

from autointerp.errors import UserError
from autointerp.subject.hookpoints import BLOCK, INPUT, base_model, editing, find, resolve
from autointerp.subject.load import SubjectModel
from prompts.requests import Shift

SUBLAYERS = ("self_attn", "mlp")
WRITERS = ("self_attn.o_proj", "mlp.down_proj")
"""Their linear maps into the residual stream, as Llama calls them."""
POST_NORM = "post_feedforward_layernorm"
"""Families that have it (Gemma 2 and 3, OLMo 2) normalise what a sublayer writes."""


@torch.inference_mode()
def logit_lens(subject: SubjectModel, hookpoint: str, directions: Tensor) -> Tensor | None:
    """Change of the logits `[n, V]` by directions `[n, O]` at a hookpoint; None where these do not write into the
    residual stream.

    A direction has no length of its own here: it is the whole state, which the norm scales.
    """
    residual = residual_directions(subject.model, hookpoint, directions)
    last = [name for name, _ in base_model(subject.model).named_modules() if re.fullmatch(BLOCK, name)][-1:]
    if residual is None or not last:
        return None
    # The norm's epsilon should not see how long the decoder's rows happen to be.
    length = residual.norm(dim=-1, keepdim=True).clamp_min(1e-12)
    states = torch.cat([residual.new_zeros(1, residual.shape[1]), residual / length * math.sqrt(residual.shape[1])])
    tokens = torch.zeros(len(states), 1, dtype=torch.int64, device=subject.device)
    with editing(subject.model, last[0], lambda x: states[:, None].to(x)):
        logits: Tensor = subject.model(input_ids=tokens, use_cache=False).logits[:, -1].float()
    # What biases say, they say of nothing, too.
    return logits[1:] - logits[:1]


def largest(subject: SubjectModel, values: Tensor, n: int, sign: int = 1) -> tuple[Shift, ...]:
    """The `n` tokens of the largest `values` `[V]` above 0, times `sign`, among those that can be shown: no special
    ones, no parts of characters."""
    found: list[Shift] = []
    # Few tokens are passed over: a small multiple mostly suffices.
    for size in sorted({min(4 * n + 32, len(values)), len(values)}):
        top, tokens = values.topk(size)
        found = []
        for value, token in zip(top.tolist(), tokens.tolist(), strict=True):
            if len(found) == n or not value > 0:
                return tuple(found)
            (text,) = subject.pieces_alone([token])
            if text and "\ufffd" not in text and token not in subject.textless_ids:
                found.append(Shift(token, text, sign * value))
    return tuple(found)


def residual_directions(model: nn.Module, hookpoint: str, directions: Tensor) -> Tensor | None:
    """What directions `[n, O]` at a hookpoint add to the residual stream, `[n, D]`, or None where nothing linear says.

    Blocks read and write it. What attention and MLP put out is added to it, and what their last linear maps read goes
    through these first. Any other place feeds into something that is not linear.
    """
    real = resolve(model, hookpoint)
    if re.fullmatch(BLOCK, real.removesuffix(INPUT)):
        return directions
    block = re.match(rf"{BLOCK}(?=\.)", real)
    if block is None or hasattr(find(model, block[0]), POST_NORM):
        return None
    for name, end in product((*SUBLAYERS, *WRITERS), ("", INPUT)):
        with suppress(UserError):
            if resolve(model, f"{block[0]}.{name}{end}") != real:
                continue
            if not end:
                return directions
            if name in WRITERS:
                return _through(find(model, real), directions)
    return None


def _through(linear: nn.Module, directions: Tensor) -> Tensor:
    """Without the bias."""
    x = directions.to(next(linear.parameters()))
    written: Tensor = linear(x) - linear(torch.zeros_like(x))
    return written.to(directions.dtype)
