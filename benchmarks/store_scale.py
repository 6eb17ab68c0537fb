"""The latent store at scale: memory, disk, time and the reading of single latents, at three sizes.

Codes are synthetic (131,072 latents, k = 32, 10 million tokens), so that what is measured is the store. Each
size is written and finished in a process of its own, and read after its pages have left the cache.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from pathlib import Path

import numpy as np
from _bench import Figures, in_process, parser, peak_memory
from _codes import Planted

from autointerp.files import ArrayWriter
from autointerp.store import layout
from autointerp.store.reader import LatentStore
from autointerp.store.writer import StoreWriter

CONTEXT, BATCH = 256, 32
SIZES = {"full": (131_072, (640_000, 2_500_000, 10_000_000)), "small": (16_384, (80_000, 160_000, 320_000))}
READS = 300


def write(folder: Path, n_tokens: int, planted: Planted) -> dict[str, float]:
    """CPU-seconds of writing parts and of finishing, without those of making the codes."""
    n_blocks = n_tokens // CONTEXT
    rng = np.random.default_rng(0)
    for name in (layout.TOKENS, layout.DOCUMENTS):
        with ArrayWriter(folder / name, np.int32, (n_blocks, CONTEXT)) as array:
            for begin in range(0, n_blocks, 1024):
                array.append(rng.integers(0, 50_000, (min(1024, n_blocks - begin), CONTEXT), dtype=np.int32))
    writer = StoreWriter(folder, {"benchmark": "store_scale"}, planted.n_latents)
    adding = 0.0
    for begin in range(0, n_blocks, BATCH):
        span = slice(begin, min(begin + BATCH, n_blocks))
        at = np.arange(span.start * CONTEXT, span.stop * CONTEXT)
        codes = planted.codes(len(at), rng)
        began = time.process_time()
        writer.add(span, at, codes)
        adding += time.process_time() - began
    before, began, wall = peak_memory(), time.process_time(), time.perf_counter()
    writer.finalise()
    return {
        "adding": adding, "finishing": time.process_time() - began, "wall": time.perf_counter() - wall,
        "memory_adding": before, "memory": peak_memory(), "activations": n_blocks * CONTEXT * planted.k,
        "bytes": sum(path.stat().st_size for path in folder.iterdir()),
    }  # fmt: skip


def read(folder: Path, n_latents: int) -> dict[str, float]:
    """Milliseconds for one random latent, its pages on the disk and then in memory."""
    for path in folder.glob("*.npy"):
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    store = LatentStore.open(folder)
    latents = np.random.default_rng(1).integers(0, n_latents, READS).tolist()
    found = {}
    for name in ("cold", "warm"):
        taken = []
        for latent in latents:
            began = time.perf_counter()
            positions, values = store.of(latent)
            float(values.sum()) + int(positions.sum())
            taken.append(1000 * (time.perf_counter() - began))
        found[f"{name}_median"], found[f"{name}_worst"] = float(np.median(taken)), max(taken)
    return found


def measure(n_tokens: int, n_latents: int) -> None:
    folder = Path(tempfile.mkdtemp(prefix="autointerp-bench-"))
    try:
        print(json.dumps(write(folder, n_tokens, Planted(n_latents)) | read(folder, n_latents)))
    finally:
        shutil.rmtree(folder)


def main() -> None:
    made = parser(__doc__ or "")
    made.add_argument("--size", choices=SIZES, default="full", help="small: seconds instead of minutes")
    made.add_argument("--measure", type=int, nargs=2, metavar=("TOKENS", "LATENTS"), help="one size, as JSON")
    arguments = made.parse_args()
    if arguments.measure:
        measure(*arguments.measure)
        return
    n_latents, sizes = SIZES[arguments.size]
    figures = Figures("the latent store at scale", setting={"latents": n_latents, "k": Planted(n_latents).k})
    runs = [in_process(__file__, "--measure", n_tokens, n_latents) for n_tokens in sizes]
    for run in runs:
        millions = run["activations"] / 1e6
        figures.add(
            f"{millions:,.1f}M activations: finishing, CPU-s per million", run["finishing"] / millions,
            note=f"{run['wall']:.1f} s wall; adding {run['adding'] / millions:.3f} CPU-s per million; "
            f"memory {run['memory_adding']:,.0f} MB while adding, {run['memory']:,.0f} MB in all",
        )  # fmt: skip
    last, middle = runs[-1], runs[-2]

    def per_activation(run: dict[str, float], name: str) -> float:
        return run[name] / run["activations"]

    for what in ("adding", "finishing"):
        figures.add(
            f"{what}: time per activation, largest / middle size",
            per_activation(last, what) / per_activation(middle, what), 1.3,
        )  # fmt: skip
    figures.add("memory: largest / middle size", last["memory"] / middle["memory"], 1.3)
    figures.add("memory at the largest size, GB", last["memory"] / 1000, 2.0)
    figures.add("bytes on disk per activation", last["bytes"] / last["activations"], 8.5)
    figures.add("reading a random latent from the disk, ms (median)", last["cold_median"], 5.0,
                note=f"worst of {READS}: {last['cold_worst']:.2f}")  # fmt: skip
    figures.add("reading it again, ms (median)", last["warm_median"], note=f"worst: {last['warm_worst']:.2f}")
    figures.finish(arguments)


if __name__ == "__main__":
    main()
