"""Prompt tokens that explaining, detection and fuzzing take for one latent, and what stopping early saves.

Prompts are rendered as a run renders them, chat template included, counted with SmolLM2's tokenizer by a judge in this
process, and summed by the engine. The line is half of what delphi 0.1.3 takes with its defaults (measured with the same
tokenizer: 2.7k tokens to explain, 16.9k for detection and 19.6k for fuzzing on 50 + 50 windows), scaled to the same
number of windows. What a prefix cache would have is counted in whole blocks of 16 tokens, as vLLM keeps them.

Stopping (`--ci-halfwidth 0.1`) is tried with judges that are right with a known probability. Coverage and windows are
also enumerated: exactly, over all courses that the answers can take.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from _bench import Figures, parser
from numpy.typing import NDArray
from scipy import stats
from separability import plant

from autointerp.clients._fake_prompts import find_windows
from autointerp.config import SamplingSettings
from autointerp.engine.drive import Router, drive
from autointerp.explain import default
from autointerp.pipeline.demo_model import demo_subject
from autointerp.sampling.sampler import Sampler
from autointerp.store.reader import LatentStore
from autointerp.subject.load import load_subject
from autointerp.types import Asking, Client, LatentRecord
from prompts.requests import Chat, ChatReply, Reply, Request, Usage
from scoring import detection, fuzzing
from scoring.decoys import mark
from scoring.intervals import rate_interval
from scoring.stopping import PLANNED_Z, PlannedStop, rounds
from scoring.types import Subject

DELPHI = {"explain": 2_700, "detection": 16_900, "fuzzing": 19_600}
"""Prompt tokens of a latent with 50 + 50 windows."""
DELPHI_WINDOWS = 100
EXPLANATION = "words of measurement and the numbers that stand before them in technical documentation"
BLOCK = 16
HALF_WIDTH = 0.1
SIZES = {"full": (24, 500_000, 2_000), "small": (4, 250_000, 200)}
"""Latents, tokens of the planted store, simulated latents."""

Floats = NDArray[np.float64]


class Counter(Client):
    """A judge that counts, and knows the right answer by what it is shown; right with probability `rate`."""

    name, model, concurrency = "counter", "smollm2", 1
    supports: frozenset[type] = frozenset({Chat})

    def __init__(self, tokenizer: Any, truth: Mapping[str, bool], rate: float, seed: int) -> None:
        self.tokenizer, self.truth, self.rate = tokenizer, truth, rate
        self.rng = np.random.default_rng(seed)
        self.blocks: set[tuple[int, ...]] = set()

    async def answer(self, requests: Sequence[Request]) -> list[Reply]:
        return [self.one(request) for request in requests if isinstance(request, Chat)]

    async def close(self) -> None:
        return None

    def one(self, request: Chat) -> ChatReply:
        messages = [{"role": message.role, "content": message.content} for message in request.messages]
        tokens = self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)["input_ids"]
        prefixes = [tuple(tokens[:end]) for end in range(BLOCK, len(tokens) + 1, BLOCK)]
        cached = BLOCK * sum(prefix in self.blocks for prefix in prefixes)
        self.blocks.update(prefixes)
        if "answers" not in (request.schema or {}).get("properties", {}):
            text = json.dumps({"explanation": EXPLANATION})
        else:
            shown = find_windows(request.messages[-1].content)
            text = json.dumps({"answers": [int(self.truth[w] is (self.rng.random() < self.rate)) for w in shown]})
        return ChatReply(text, Usage(len(tokens), len(text) // 3, cached))


@dataclass(frozen=True)
class Spent:
    prompt: int
    cached: int
    windows: int


def asked(asking: Callable[[], Asking], client: Counter) -> Spent:
    finished = asyncio.run(drive(asking(), Router([client])))
    outcome = finished.result[0] if isinstance(finished.result, list) else None
    return Spent(finished.usage.prompt_tokens, finished.usage.cached_tokens, len(outcome.judgements) if outcome else 0)


def truth_of(record: LatentRecord, config: fuzzing.Config, frequency: Mapping[int, float]) -> dict[str, bool]:
    """Whether yes is right, by what is shown."""
    fuzz = fuzzing.fuzz_set(record.score, config, frequency)
    known = {window.text: window.activating for window in record.score}
    known |= {mark(window, places): True for window, places in fuzz.positives}
    known |= {mark(decoy.window, decoy.places): False for _, decoy in fuzz.decoys}
    return {text.replace("</window", "<\\/window"): label for text, label in known.items()}


def one_latent(
    record: LatentRecord, tokenizer: Any, frequency: Mapping[int, float], rate: float, halfwidth: float | None
) -> dict[str, Spent]:
    """What each stage asks of one latent."""
    detect = detection.Config(windows=100, ci_halfwidth=halfwidth)
    fuzz = fuzzing.Config(windows=100, ci_halfwidth=halfwidth)
    client = Counter(tokenizer, truth_of(record, fuzz, frequency), rate, seed=record.latent)
    who = [Subject(record.latent, EXPLANATION)]
    return {
        "explain": asked(lambda: default.explain(record, default.Config()), client),
        "detection": asked(lambda: detection.score(who, record.score, detect), client),
        "fuzzing": asked(lambda: fuzzing.score(who, record.score, fuzz, frequency=frequency), client),
    }


def enumerated(rates: tuple[float, float], n_pairs: int = 100) -> tuple[float, float]:
    """Coverage and mean windows of `PlannedStop`, summed over all numbers of right answers at every look."""
    first, *steps = rounds(n_pairs)
    alive = np.outer(*(stats.binom.pmf(np.arange(first + 1), first, rate) for rate in rates))
    truth, covered, cost, n = sum(rates) / 2, 0.0, 0.0, first
    for step in [*steps, 0]:
        share = np.arange(n + 1) / n
        bounds = np.array([rate_interval(hits, n, PLANNED_Z) for hits in range(n + 1)])
        down, up = (
            np.hypot.outer(share - bounds[:, 0], share - bounds[:, 0]) / 2,
            np.hypot.outer(bounds[:, 1] - share, bounds[:, 1] - share) / 2,
        )
        middle = np.add.outer(share, share) / 2
        low, high = np.maximum(0, middle - down), np.minimum(1, middle + up)
        ends = (high - low <= 2 * HALF_WIDTH + 1e-9) | (step == 0)
        here = np.where(ends, alive, 0.0)
        covered += float(here[(low <= truth + 1e-12) & (truth <= high + 1e-12)].sum())
        cost += 2 * n * float(here.sum())
        alive, n = np.where(ends, 0.0, alive), n + step
        for axis, rate in enumerate(rates):
            more = stats.binom.pmf(np.arange(step + 1), step, rate)
            alive = np.apply_along_axis(np.convolve, axis, alive, more)
    return covered, cost


def simulated(rate: float, n_latents: int) -> tuple[float, float]:
    """The same by simulation, through the rule itself."""
    rng = np.random.default_rng(int(1000 * rate))
    held = cost = 0.0
    for _ in range(n_latents):
        rows, rule = rng.random((100, 2)) < rate, PlannedStop(HALF_WIDTH)
        for size in rounds(100):
            rule.update([(bool(a), bool(b)) for a, b in rows[rule.n : rule.n + size]])
            if rule.narrow:
                break
        held += rule.low <= rate <= rule.high
        cost += 2 * rule.n
    return held / n_latents, cost / n_latents


def report(figures: Figures, spent: list[dict[str, Spent]], early: dict[float, list[dict[str, Spent]]]) -> None:
    def mean(rows: list[dict[str, Spent]], stages: Sequence[str], field: str = "prompt") -> float:
        return float(np.mean([sum(getattr(row[stage], field) for stage in stages) for row in rows]))

    stages = tuple(DELPHI)
    for stage in stages:
        n = mean(spent, [stage], "windows")
        figures.add(f"{stage}, prompt tokens", mean(spent, [stage]), note=f"windows: {n:.0f}" if n else "")
    allowed = [
        sum(DELPHI[s] * (1 if s == "explain" else row[s].windows / DELPHI_WINDOWS) for s in stages) for row in spent
    ]
    total, cached = mean(spent, stages), mean(spent, stages, "cached")
    figures.add("all / delphi's for as many windows", total / float(np.mean(allowed)), 0.5)
    figures.add("not in a prefix cache / delphi's", (total - cached) / float(np.mean(allowed)), 0.3)
    judging = ("detection", "fuzzing")
    for rate, rows in early.items():
        name = f"stopped early at an accuracy of {rate:g}"
        figures.add(f"{name}, tokens / without", mean(rows, judging) / mean(spent, judging), 0.5)
        figures.add(f"{name}, windows", mean(rows, judging, "windows"))


def stopping(figures: Figures, n_latents: int) -> None:
    for rate in (0.5, 0.9):
        coverage, cost = enumerated((rate, rate))
        note = f"windows: {cost:.0f} of 200"
        figures.add(f"coverage at {rate:g}, enumerated", coverage, 0.95, at_most=False, note=note)
        coverage, cost = simulated(rate, n_latents)
        note = f"windows: {cost:.0f} of 200"
        # From fewer latents a share is too rough to be held against a line.
        limit = 0.95 if n_latents >= 2000 else None
        figures.add(f"coverage at {rate:g}, {n_latents:,} latents", coverage, limit, at_most=False, note=note)
    grid = [(p / 20, q / 20) for p in range(10, 20) for q in range(1, 20) if q <= p]
    found = [enumerated(rates)[0] for rates in grid]
    figures.add("coverage over all pairs of rates, mean", float(np.mean(found)), 0.95, at_most=False)
    worst = int(np.argmin(found))
    where = f"at {grid[worst][0]:g} and {grid[worst][1]:g}"
    figures.add("coverage over all pairs of rates, least", found[worst], note=where)


def main() -> None:
    made = parser(__doc__ or "")
    made.add_argument("--size", choices=SIZES, default="full", help="small: seconds instead of minutes")
    made.add_argument("--run", type=Path, help="the folder of a run with a finished store (default: a planted one)")
    arguments = made.parse_args()
    n_latents, n_tokens, n_simulated = SIZES[arguments.size]
    # So that 100 + 100 are judged by fuzzing too: some of its decoys are activating windows with other marks, and the
    # others are the best matching third of the rest.
    draw = SamplingSettings(explain_random=0, prompts=0, score_activating=140, score_random=200)
    folder = Path(tempfile.mkdtemp(prefix="autointerp-bench-"))
    try:
        subject = load_subject(str(demo_subject()))
        if arguments.run is None:
            plant(subject, folder, n_tokens)
        where = folder if arguments.run is None else next((arguments.run / "store").rglob("manifest.json")).parent
        sampler = Sampler(LatentStore.open(where), subject, draw, seed=0)
        counts = np.bincount(np.asarray(sampler.store.tokens).reshape(-1))
        frequency = dict(enumerate((counts / counts.sum()).tolist()))
        rich = np.flatnonzero(sampler.window_counts() >= 140)
        latents = np.random.default_rng(3).permutation(rich)[:n_latents].tolist()
        records = [sampler.record(latent) for latent in latents]
        figures = Figures(
            "tokens of explaining and judging one latent",
            setting={"latents": len(records), "store": "planted" if arguments.run is None else str(arguments.run)},
        )
        spent = [one_latent(record, subject.tokenizer, frequency, 0.9, None) for record in records]
        early = {
            rate: [one_latent(record, subject.tokenizer, frequency, rate, HALF_WIDTH) for record in records]
            for rate in (0.9, 0.5)
        }
        report(figures, spent, early)
        stopping(figures, n_simulated)
        figures.finish(arguments)
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
