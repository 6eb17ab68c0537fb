"""Collecting activations against its floor: the forward pass stopped at the hookpoint, the encoder product and top-k.

SmolLM2-135M-Instruct reads docstrings on the CPU and stops after layer 15, 32 contexts of 256 tokens at a time.
Ours is everything from the text file to the finished store, on the same tokens; the two take turns, and
CPU-seconds are compared. Memory is that of a process of its own for each number of tokens.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from _bench import AnonymousPeak, Figures, in_process, parser, peak_memory

from autointerp.collect.corpus import documents
from autointerp.collect.encode import collect_store
from autointerp.collect.tokenise import tokenise
from autointerp.collect.tokens import NO_DOCUMENT, TokenBlocks
from autointerp.config import DataSettings
from autointerp.pipeline.demo_model import demo_subject
from autointerp.store.reader import LatentStore
from autointerp.subject.load import SubjectModel, load_subject
from sae.architectures.topk import Config, TopK
from sae.largest import largest

LAYER, CONTEXT, BATCH, K = 15, 256, 32, 32


@dataclass(frozen=True)
class Size:
    widths: tuple[int, ...]
    contexts: int
    rounds: int
    memory: tuple[int, int]
    """Tokens of the two processes whose memory is compared."""
    documents: int


SIZES = {
    "full": Size((4608, 18432), 2 * BATCH, 3, (50_000, 200_000), 6000),
    "small": Size((1152,), 8, 1, (2_000, 4_000), 400),
}


class Stop(Exception):
    pass


def floor(subject: SubjectModel, sae: TopK, blocks: TokenBlocks) -> None:
    """What nobody can do without, written as plainly as it can be."""
    seen: list[torch.Tensor] = []

    def stop(module: torch.nn.Module, arguments: object, output: object) -> None:
        seen.append(output[0] if isinstance(output, tuple) else output)  # type: ignore[arg-type]
        raise Stop

    handle = subject.model.model.layers[LAYER].register_forward_hook(stop)
    W, b, b_dec = sae.encoder.detach(), sae.b_enc.detach(), sae.b_dec.detach()
    try:
        with torch.inference_mode():
            for begin in range(0, len(blocks.tokens), BATCH):
                span = slice(begin, begin + BATCH)
                tokens = torch.from_numpy(np.array(blocks.tokens[span])).long()
                with suppress(Stop):
                    subject.model.model(input_ids=tokens, use_cache=False)
                rows = seen.pop()[torch.from_numpy(np.array(blocks.documents[span] != NO_DOCUMENT))]
                # In chunks that stay near the cache: a single product is no faster, and top-k of it is slower.
                for chunk in torch.split(rows, sae.chunk_rows(len(rows))):
                    values, _ = largest(torch.addmm(b, chunk - b_dec, W.T), K)
                    values.relu_()
    finally:
        handle.remove()


def collected(subject: SubjectModel, sae: TopK, data: DataSettings) -> None:
    folder = Path(tempfile.mkdtemp(prefix="autointerp-bench-"))
    try:
        blocks = tokenise(subject, data, folder, seed=0, skip_documents=0)
        collect_store(subject, sae, blocks, f"layers.{LAYER}", folder, {}, batch_tokens=BATCH * CONTEXT)
        assert LatentStore.open(folder).n_activations > 0
    finally:
        shutil.rmtree(folder)


def dictionary(subject: SubjectModel, width: int) -> TopK:
    """Random directions about the mean of some activations."""
    sae = TopK(Config(d_in=int(subject.model.config.hidden_size), n_latents=width, k=K))
    sae.initialise(0)
    sae.b_dec.data.copy_(subject.activations(torch.arange(1000, 1256)[None], f"layers.{LAYER}")[0, 1:].mean(dim=0))
    return sae


def settings(folder: Path, n_tokens: int) -> DataSettings:
    return DataSettings(dataset=str(folder / "text.jsonl"), tokens=n_tokens, context_length=CONTEXT)


def write_text(folder: Path, n: int) -> None:
    lines = [json.dumps({"text": text}) for text in islice(documents("docstrings", seed=0), n)]
    (folder / "text.jsonl").write_text("\n".join(lines))


def cpu(run: Callable[[], object]) -> float:
    began = time.process_time()
    run()
    return time.process_time() - began


def measure_memory(folder: Path, n_tokens: int, width: int) -> None:
    subject = load_subject(str(demo_subject()))
    sae = dictionary(subject, width)
    before = peak_memory()
    with AnonymousPeak() as anonymous:
        collected(subject, sae, settings(folder, n_tokens))
    print(json.dumps({"before": before, "resident": peak_memory(), "memory": anonymous.peak}))


def main() -> None:
    made = parser(__doc__ or "")
    made.add_argument("--size", choices=SIZES, default="full", help="small: seconds instead of minutes")
    made.add_argument("--memory", nargs=3, metavar=("FOLDER", "TOKENS", "WIDTH"), help="one process's, as JSON")
    made.set_defaults(rounds=None)
    arguments = made.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.memory:
        measure_memory(Path(arguments.memory[0]), int(arguments.memory[1]), int(arguments.memory[2]))
        return
    size = SIZES[arguments.size]
    folder = Path(tempfile.mkdtemp(prefix="autointerp-bench-"))
    try:
        write_text(folder, size.documents)
        compare(arguments, size, folder)
    finally:
        shutil.rmtree(folder)


def compare(arguments: argparse.Namespace, size: Size, folder: Path) -> None:
    subject = load_subject(str(demo_subject()))
    data = settings(folder, size.contexts * CONTEXT)
    blocks = tokenise(subject, data, folder / "tokens", seed=0, skip_documents=0)
    figures = Figures(
        "collecting activations",
        setting={"subject": subject.label, "layer": LAYER, "batch": [BATCH, CONTEXT], "k": K,
                 "tokens a round": blocks.n_counted, "rounds": arguments.rounds or size.rounds},
    )  # fmt: skip
    # At a few batches, opening the text and loading libraries weigh more than the tokens.
    small = arguments.size == "small"
    for width in size.widths:
        sae = dictionary(subject, width)
        floor(subject, sae, blocks[: BATCH // 4])  # warm up
        pairs = [
            (cpu(partial(floor, subject, sae, blocks)), cpu(partial(collected, subject, sae, data)))
            for _ in range(arguments.rounds or size.rounds)
        ]
        for name, which in (("floor", 0), ("ours", 1)):
            speed = blocks.n_counted / statistics.median(pair[which] for pair in pairs)
            figures.add(f"{name} at {width}, tokens per CPU-second", speed)
        ratios = [ours / least for least, ours in pairs]
        spread = ", ".join(f"{ratio:.3f}" for ratio in ratios)
        figures.add(
            f"ours / floor at {width}, CPU-seconds", statistics.median(ratios), None if small else 1.15, note=spread
        )
    runs = [in_process(__file__, "--memory", folder, n, size.widths[0]) for n in size.memory]
    for n, run in zip(size.memory, runs, strict=True):
        figures.add(
            f"peak memory at {n:,} tokens, MB", run["memory"],
            note=f"anonymous; resident with mapped files {run['resident']:,.0f}, of which {run['before']:,.0f} before",
        )  # fmt: skip
    figures.add("peak memory, more / fewer tokens", runs[1]["memory"] / runs[0]["memory"], None if small else 1.1)
    figures.finish(arguments)


if __name__ == "__main__":
    main()
