"""Training on a real subject model: four SAEs in one pass against one, and replay from the cache against the bare step.

SmolLM2-135M-Instruct reads docstrings on the CPU and stops after layer 15. Both contestants of a ratio
take turns, a few steps each, so that whatever else the machine does hits both alike.
"""

from __future__ import annotations

import shutil
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from _bench import Figures, interleaved, parser, ratio

from autointerp.collect.cache import cached_rows
from autointerp.collect.stream import activation_stream
from autointerp.collect.tokenise import blocks_of
from autointerp.collect.tokens import TokenBlocks
from autointerp.config import DataSettings
from autointerp.pipeline.demo_model import demo_subject
from autointerp.subject.load import SubjectModel, load_subject
from sae.architectures.topk import Config, TopK
from sae.learner import LearnConfig, Learner, Reads
from sae.mixing import MixingBuffer
from sae.sources import Replay, Source

HOOKPOINT, WIDTH, K, BATCH = "layers.15", 4608, 32, 4096
TURN = 4
"""Steps that a contestant takes before the other's turn."""
BUFFER = 6
"""Batches in the mixing buffer; small, so that its filling is spread over the run."""


def learners(n: int, n_steps: int, d_in: int) -> list[Learner]:
    made = []
    for seed in range(n):
        model = TopK(Config(d_in=d_in, n_latents=WIDTH, k=K))
        config = LearnConfig(batch_size=BATCH, seed=seed)
        made.append(Learner(model, config, n_steps, reads=Reads(HOOKPOINT)))
    return made


class Contestant:
    """Some learners on a source of their own, advanced a few steps at a time."""

    def __init__(self, source: Source, n: int, d_in: int) -> None:
        self.source, self.step, self.seconds = source, 0, 0.0
        self.learners: Sequence[Learner] = learners(n, source.n_steps, d_in)

    def turn(self, steps: int) -> None:
        began = time.perf_counter()
        if self.step == 0:
            sample = self.source.sample()
            for one in self.learners:
                one.begin(sample)
        for _ in range(min(steps, self.source.n_steps - self.step)):
            rows = self.source.batch(self.step)
            for one in self.learners:
                result = one.learn(rows)
                if one.step_done % one.config.log_every == 0:
                    one.report(result)
            self.step += 1
        self.seconds += time.perf_counter() - began


def one_pass(subject: SubjectModel, blocks: TokenBlocks, n: int, d_in: int) -> Contestant:
    stream, n_rows = activation_stream(subject, blocks, [HOOKPOINT])
    source = MixingBuffer(stream, n_steps=n_rows // BATCH, capacity=BUFFER * BATCH, batch_size=BATCH, seed=0)
    return Contestant(source, n, d_in)


def streaming(subject: SubjectModel, blocks: TokenBlocks, d_in: int) -> tuple[float, float, float]:
    """Seconds of four over seconds of one, and the tokens per second of each."""
    one, four = one_pass(subject, blocks, 1, d_in), one_pass(subject, blocks, 4, d_in)
    while four.step < four.source.n_steps:
        one.turn(TURN)
        four.turn(TURN)
    tokens = one.source.n_steps * BATCH
    return four.seconds / one.seconds, tokens / one.seconds, tokens / four.seconds


def replay(subject: SubjectModel, blocks: TokenBlocks, d_in: int, rounds: int) -> tuple[float, float, float]:
    """Speed of steps on batches from the cache over that of bare steps, and the tokens per second of each."""
    folder = Path(tempfile.mkdtemp(prefix="autointerp-bench-"))
    try:
        rows = cached_rows(subject, blocks, [HOOKPOINT], folder, seed=0)
        source = Replay(rows, batch_size=BATCH, epochs=10**6, seed=0, block=64)
        fed, bare = learners(2, 10**6, d_in)
        sample = source.sample()
        fed.begin(sample)
        bare.begin(sample)
        batch = {HOOKPOINT: source.batch(0)[HOOKPOINT].float()}

        def from_cache() -> None:
            fed.learn(source.batch(fed.step_done))

        seconds = interleaved({"cache": from_cache, "bare": lambda: bare.learn(batch)}, rounds)
        return (
            ratio(seconds, "bare", "cache"),
            BATCH / statistics.median(seconds["cache"]),
            BATCH / statistics.median(seconds["bare"]),
        )
    finally:
        shutil.rmtree(folder)


def main() -> None:
    made = parser(__doc__ or "")
    made.add_argument("--tokens", type=int, default=200_000, help="tokens to stream; each contestant reads all of them")
    made.set_defaults(rounds=25)
    arguments = made.parse_args()
    torch.set_num_threads(arguments.threads)
    subject = load_subject(str(demo_subject()))
    d_in = int(subject.model.config.hidden_size)
    data = DataSettings(dataset="docstrings", tokens=arguments.tokens)
    blocks = blocks_of(subject, data, seed=0, skip_documents=0)
    figures = Figures(
        "training end to end",
        setting={"subject": subject.label, "hookpoint": HOOKPOINT, "tokens": blocks.n_counted, "width": WIDTH, "k": K,
                 "batch": BATCH, "threads": arguments.threads},
    )  # fmt: skip
    some = TokenBlocks(
        blocks.tokens[: max(17, len(blocks.tokens) // 8)], blocks.documents[: max(17, len(blocks.tokens) // 8)]
    )
    share, cached, bare = replay(subject, some, d_in, arguments.rounds)
    cost, one, four = streaming(subject, blocks, d_in)
    figures.add("one SAE, streaming, tokens/s", one)
    figures.add("four SAEs, streaming, tokens/s", four)
    figures.add("four SAEs in one pass / one", cost, 1.3)
    figures.add("bare step, tokens/s", bare)
    figures.add("replay from the cache, tokens/s", cached)
    figures.add("replay / bare step", share, 0.9, at_most=False)
    figures.finish(arguments)


if __name__ == "__main__":
    main()
