"""Drawing windows: CPU-milliseconds and memory per latent, for 40 windows to explain from and 100 + 100 to score on.

The store holds 500,000 tokens of docstrings as SmolLM2 tokenises them, and synthetic codes of 4,608 latents with the
spread of densities that SAEs have; `--store` takes a real one. Windows are whole: tokens, pieces, text, activations.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from pathlib import Path

import numpy as np
from _bench import Figures, in_process, parser, peak_memory
from _codes import Planted

from autointerp.collect.tokenise import tokenise
from autointerp.collect.tokens import NO_DOCUMENT, TokenBlocks
from autointerp.config import DataSettings, SamplingSettings
from autointerp.pipeline.demo_model import demo_subject
from autointerp.sampling.sampler import Sampler
from autointerp.store.reader import LatentStore
from autointerp.store.writer import StoreWriter
from autointerp.subject.load import SubjectModel, load_subject

SIZES = {"full": (500_000, 4608, (200, 2000)), "small": (60_000, 1024, (50, 500))}
DRAW = SamplingSettings(
    explain_activating=40, explain_random=0, score_activating=100, score_random=100, prompts=0
)  # fmt: skip
LIMIT = 3.0


def write_store(subject: SubjectModel, folder: Path, n_tokens: int, n_latents: int) -> None:
    data = DataSettings(dataset="docstrings", tokens=n_tokens)
    blocks = tokenise(subject, data, folder, seed=0, skip_documents=0)
    fill(blocks, folder, Planted(n_latents))


def fill(blocks: TokenBlocks, folder: Path, planted: Planted) -> None:
    writer = StoreWriter(folder, {"benchmark": "sample"}, planted.n_latents)
    rng = np.random.default_rng(0)
    width = blocks.tokens.shape[1]
    for begin in range(0, len(blocks.tokens), 64):
        span = slice(begin, min(begin + 64, len(blocks.tokens)))
        at = np.flatnonzero(blocks.documents[span] != NO_DOCUMENT) + begin * width
        writer.add(span, at, planted.codes(len(at), rng))
    writer.finalise()


def measure(folder: Path, n: int) -> None:
    """Draw records of `n` live latents, one after another, as explaining and scoring do."""
    subject = load_subject(str(demo_subject()))
    store = LatentStore.open(folder)
    began = time.process_time()
    sampler = Sampler(store, subject, DRAW, seed=0)
    setup = time.process_time() - began
    live = np.flatnonzero(sampler.window_counts() >= DRAW.min_windows)
    latents = np.random.default_rng(2).permutation(live)[:n].tolist()
    windows, began = 0, time.process_time()
    for latent in latents:
        record = sampler.record(latent)
        windows += len(record.explain) + len(record.score)
    seconds = time.process_time() - began
    print(json.dumps({
        "ms": 1000 * seconds / len(latents), "setup": setup, "memory": peak_memory(), "latents": len(latents),
        "windows": windows / len(latents),
    }))  # fmt: skip


def main() -> None:
    made = parser(__doc__ or "")
    made.add_argument("--size", choices=SIZES, default="full", help="small: seconds instead of minutes")
    made.add_argument("--store", type=Path, help="a finished latent store to draw from, of the demo's subject model")
    made.add_argument("--measure", nargs=2, metavar=("STORE", "LATENTS"), help="one process's figures, as JSON")
    arguments = made.parse_args()
    if arguments.measure:
        measure(Path(arguments.measure[0]), int(arguments.measure[1]))
        return
    n_tokens, n_latents, counts = SIZES[arguments.size]
    folder = Path(tempfile.mkdtemp(prefix="autointerp-bench-"))
    try:
        if arguments.store is None:
            write_store(load_subject(str(demo_subject())), folder, n_tokens, n_latents)
        where = arguments.store or folder
        store = LatentStore.open(where)
        few, many = (in_process(__file__, "--measure", where, count) for count in counts)
        figures = Figures(
            "drawing windows",
            setting={"tokens": store.n_tokens, "latents": store.n_latents, "activations": store.n_activations},
        )
        figures.add("once per store, CPU-s", many["setup"])
        figures.add("windows per latent", many["windows"])
        figures.add("CPU-ms per latent", many["ms"], LIMIT, note=f"{many['latents']:.0f} latents")
        figures.add("CPU-ms per latent, among the first", few["ms"], note=f"{few['latents']:.0f} latents")
        for run in (few, many):
            figures.add(f"peak memory after {run['latents']:.0f} latents, MB", run["memory"])
        figures.add("peak memory, many / few latents", many["memory"] / few["memory"], 1.1)
        figures.finish(arguments)
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
