"""Steering on a real SAE: how near the target KL it comes, and its CPU-seconds against bare forward passes.

Each latent's prompts are steered by `SteerClient.steer` in a call of its own, as a run does it. The bare passes are
written by hand and are just those that this call made, over as many rows of the same prompts: the prefill without the
last token, the one-token passes of the search (the clean one among them), and those of the generation with clean and
steered rows together. Their cache is cut back after each pass of the search and doubled once for the generation;
nothing is edited, hooked, compared, sampled or decoded to text, and the likeliest token comes next. Reading the
continuations is no part of either; `likelihood.py` measures that.

The SAE is a run's (`--run`), such as `results/demo`; without one, a TopK SAE is trained on docstrings first.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import _bench  # before torch: it sets how torch's threads wait
import numpy as np
import torch
from _bench import Figures
from numpy.typing import NDArray

import sae
from autointerp.collect.tokenise import tokenise
from autointerp.collect.tokens import NO_DOCUMENT
from autointerp.config import DataSettings, SamplingSettings
from autointerp.pipeline.demo_model import demo_subject
from autointerp.sampling.sampler import Sampler
from autointerp.store.reader import LatentStore
from autointerp.store.writer import StoreWriter
from autointerp.subject.load import SubjectModel, load_subject
from autointerp.subject.prefill import pad
from autointerp.subject.steer import SteerClient
from prompts.requests import Steer, SteerReply
from sae.architectures import topk
from sae.base import SparseAutoencoder
from sae.metrics import DENSE
from sae.trainer import TrainConfig, Trainer

HOOKPOINT = "layers.9"
TARGETS = (0.1, 0.33, 1.0)
NEW_TOKENS = 8


@dataclass(frozen=True)
class Size:
    """How much of everything. Latents are steered to the targets on a run's usual prompts, and timed on more."""

    reach: int = 100
    cost: int = 64
    prompts: int = 30
    prompt_tokens: int = 64
    tokens: int = 100_000
    n_latents: int = 2304
    epochs: int = 3


SIZES = {"full": Size(), "small": Size(2, 2, 4, 16, 4_000, 576, 1)}

Prompts = tuple[tuple[int, ...], ...]


def train(subject: SubjectModel, folder: Path, size: Size) -> SparseAutoencoder:
    """A TopK SAE of docstrings, and the store of what it does on the same ones."""
    blocks = tokenise(subject, DataSettings(dataset="docstrings", tokens=size.tokens), folder, seed=0, skip_documents=0)
    tokens = torch.from_numpy(np.array(blocks.tokens, dtype=np.int64))
    # The first positions of contexts are attention sinks, a hundred times as long as the others.
    counted = np.array(blocks.documents).reshape(-1) != NO_DOCUMENT
    x = torch.cat([subject.activations(part, HOOKPOINT).flatten(0, 1) for part in tokens.split(16)])
    x = x[torch.from_numpy(counted)]
    model = topk.create({"d_in": x.shape[1], "n_latents": size.n_latents, "k": 32})
    config = TrainConfig(batch_size=512, epochs=size.epochs, dead_after=50_000, warmup_steps=20)
    Trainer(model, x.numpy(), config).run()
    writer = StoreWriter(folder, {"benchmark": "intervention"}, size.n_latents)
    writer.add(slice(0, len(tokens)), np.flatnonzero(counted), model.encode(x))
    writer.finalise()
    return model


def draw(
    store: LatentStore, subject: SubjectModel, settings: SamplingSettings, n_latents: int, at_least: int
) -> dict[int, Prompts]:
    """Prompts of a seeded sample of live latents that have enough of them."""
    sampler = Sampler(store, subject, settings, seed=0)
    dense = store.n_fired / store.n_tokens > DENSE
    live: NDArray[np.int64] = np.flatnonzero((sampler.window_counts() >= settings.min_windows) & ~dense)
    found: dict[int, Prompts] = {}
    for latent in np.random.default_rng(1).permutation(live).tolist():
        prompts = tuple(window.tokens for window in sampler.record(latent).prompts)
        if len(prompts) >= at_least:
            found[latent] = prompts
        if len(found) == n_latents:
            break
    return found


def add_reach(figures: Figures, client: SteerClient, prompts: dict[int, Prompts]) -> None:
    """Whether the strength found has an effect within a tenth of each target's."""
    near, missed = dict.fromkeys(TARGETS, 0), []
    for number, (latent, mine) in enumerate(prompts.items()):
        say("steered to three targets", number)
        replies = client.steer_all([Steer(latent, mine, target, 1, 0) for target in TARGETS])
        for target, reply in zip(TARGETS, replies, strict=True):
            assert isinstance(reply, SteerReply)
            good = abs(reply.reached_kl - target) <= 0.1 * target
            assert good == reply.converged
            near[target] += good
            if not good:
                missed.append(f"latent {latent} at {target:g}: {reply.reached_kl:.4g}")
    for target, count in near.items():
        figures.add(f"share within 10% of KL {target:g}", count / len(prompts), 0.95, at_most=False)
    figures.setting |= {"latents": len(prompts), "missed": missed}


class Passes:
    """Shapes `[rows, tokens]` of the forward passes that a model makes while the block runs."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.shapes: list[tuple[int, int]] = []

    def __enter__(self) -> Passes:
        self._handle = self.model.register_forward_pre_hook(self._note, with_kwargs=True)
        return self

    def _note(self, module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        rows, tokens = kwargs["input_ids"].shape
        self.shapes.append((rows, tokens))

    def __exit__(self, *_: object) -> None:
        self._handle.remove()


@torch.inference_mode()
def bare(subject: SubjectModel, prompts: Prompts, n_search: int) -> None:
    """One prefill, `n_search` passes over the last token, and `NEW_TOKENS` passes over twice the rows."""
    tokens, mask = pad([prompt[:-1] for prompt in prompts], left=True, device=subject.device)
    last = torch.tensor([[prompt[-1]] for prompt in prompts])
    places = (mask.cumsum(dim=1) - 1).clamp(min=0)
    cache = subject.model(
        input_ids=tokens, attention_mask=mask, position_ids=places, use_cache=True, logits_to_keep=1
    ).past_key_values  # fmt: skip
    width, place = tokens.shape[1], mask.sum(dim=1, keepdim=True)
    mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
    for _ in range(n_search):
        subject.model(
            input_ids=last, attention_mask=mask, position_ids=place, past_key_values=cache, use_cache=True
        )  # fmt: skip
        cache.crop(width - cache.get_seq_length())
    cache.batch_repeat_interleave(2)
    step, mask, place = (part.repeat_interleave(2, dim=0) for part in (last, mask, place))
    for _ in range(NEW_TOKENS):
        logits = subject.model(
            input_ids=step, attention_mask=mask, position_ids=place, past_key_values=cache, use_cache=True
        ).logits  # fmt: skip
        step, place = logits[:, -1].argmax(dim=-1, keepdim=True), place + 1
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)


def say(what: str, number: int) -> None:
    """How far it is, now and then: the full size takes a quarter of an hour."""
    if number % 10 == 0:
        print(f"{number} latents {what}", file=sys.stderr)


def seconds(run: Callable[[], Any]) -> float:
    """CPU-seconds of all threads."""
    began = time.process_time()
    run()
    return time.process_time() - began


def add_cost(figures: Figures, client: SteerClient, prompts: dict[int, Prompts]) -> None:
    """Latent by latent in turns."""
    subject = client.subject
    ours: list[float] = []
    theirs: list[float] = []
    passes: list[int] = []
    for number, (latent, mine) in enumerate(prompts.items()):
        say("timed", number)
        request = Steer(latent, mine, 1.0, NEW_TOKENS, 0)
        if number == 0:
            client.steer(request)
            bare(subject, mine, 4)
        with Passes(subject.model) as made:
            ours.append(seconds(partial(client.steer, request)))
        n_search = len(made.shapes) - 1 - NEW_TOKENS
        expected = [(len(mine), max(map(len, mine)) - 1), *[(len(mine), 1)] * n_search]
        assert made.shapes == [*expected, *[(2 * len(mine), 1)] * NEW_TOKENS], "the bare passes would be others"
        theirs.append(seconds(partial(bare, subject, mine, n_search)))
        passes.append(n_search)
    figures.setting |= {"timed latents": len(prompts), "prompts": len(mine), "new tokens": NEW_TOKENS}
    figures.add("passes of a search", float(np.mean(passes)))
    figures.add("CPU-s per latent, steering", sum(ours) / len(ours))
    figures.add("CPU-s per latent, bare", sum(theirs) / len(theirs))
    figures.add("steering / bare, CPU-seconds", sum(ours) / sum(theirs), 1.5)


def measure(arguments: argparse.Namespace, folder: Path) -> Figures:
    size = SIZES[arguments.size]
    subject = load_subject(str(demo_subject()))
    figures = Figures("steering to a target KL")
    model: SparseAutoencoder
    if arguments.run is None:
        model, where = train(subject, folder, size), folder
    else:
        model, where = sae.load(arguments.run / "sae"), next((arguments.run / "store").rglob("manifest.json")).parent
    client = SteerClient(subject, model, model.metadata.hookpoint or HOOKPOINT)
    store = LatentStore.open(where)
    figures.setting |= {"SAE's latents": model.n_latents, "run": str(arguments.run or "trained here")}
    usual = SamplingSettings(min_windows=10 if arguments.size == "full" else 2)
    more = usual.model_copy(update={"prompts": size.prompts, "prompt_tokens": size.prompt_tokens})
    add_reach(figures, client, draw(store, subject, usual, size.reach, 2))
    add_cost(figures, client, draw(store, subject, more, size.cost, size.prompts))
    return figures


def main(argv: Sequence[str] | None = None) -> None:
    made = _bench.parser(__doc__ or "")
    made.add_argument("--size", choices=SIZES, default="full", help="small: seconds instead of minutes")
    made.add_argument("--run", type=Path, help="a run folder with an SAE and its store, e.g. results/demo")
    arguments = made.parse_args(argv)
    torch.set_num_threads(arguments.threads)
    folder = Path(tempfile.mkdtemp())
    try:
        figures = measure(arguments, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    figures.finish(arguments)


if __name__ == "__main__":
    main()
