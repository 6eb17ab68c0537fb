"""The engine against the bare official client: 10,000 chats at concurrency 64 to a server that takes 50 ms for each.

    python benchmarks/engine.py --check

The server is the fake one, in a process of its own. Three contestants are timed in the same run, each in a process of
its own: the official client in a loop, with its default transport and with its aiohttp transport; and the engine with
everything on: keys, reply cache on disk, budget, prices, order, accounting, units of work and their rows in a ledger.
Memory is looked at after a tenth of the requests and at the end: it must not grow with their number.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from _bench import Figures, in_process, parser

CONCURRENCY, LATENCY, PER_UNIT = 64, 0.05, 10
SYSTEM = "You judge whether short text windows fit a description of what a unit in a language model responds to. " * 3
PROMPT = "Explanation: names of the days of the week\n\n" + "The quick brown fox was seen on day {i} of the week. " * 12


@contextmanager
def server() -> Iterator[str]:
    """A fake server in a process of its own; its base URL."""
    command = [sys.executable, "-m", "autointerp.clients.fake_server", "--port", "0", "--model", "constant"]
    process = subprocess.Popen(
        [*command, "--latency", str(LATENCY), "--no-log"], stdout=subprocess.PIPE, text=True
    )  # fmt: skip
    try:
        assert process.stdout is not None
        yield process.stdout.readline().strip()
    finally:
        process.terminate()
        process.wait()


def memory() -> float:
    """Anonymous memory of this process, in MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("RssAnon")).split()[1]) / 1024


def bare(url: str, n: int, transport: str) -> dict[str, float]:
    """The official client in a loop."""
    import openai

    async def run() -> dict[str, float]:
        http = openai.DefaultAioHttpClient() if transport == "aiohttp" else None
        client = openai.AsyncOpenAI(api_key="x", base_url=url, timeout=120, http_client=http)

        async def one(i: int) -> None:
            answer = await client.chat.completions.create(
                model="constant",
                messages=[{"role": "system", "content": SYSTEM}, {"role": "user", "content": PROMPT.format(i=i)}],
                max_tokens=32,
                temperature=0.0,
            )
            assert answer.choices[0].message.content

        await one(-1)
        indices = iter(range(n))

        async def worker() -> None:
            for i in indices:
                await one(i)

        began, cpu = time.perf_counter(), time.process_time()
        await asyncio.gather(*(worker() for _ in range(CONCURRENCY)))
        took = {"wall": time.perf_counter() - began, "cpu": time.process_time() - cpu}
        await client.close()
        return took

    return asyncio.run(run())


def engine(url: str, n: int) -> dict[str, float]:
    """The same requests as units of ten, through everything."""
    from autointerp.clients.openai import OpenAIClient
    from autointerp.engine.account import Account
    from autointerp.engine.drive import Finished, Router, drive_all
    from autointerp.engine.ledger import Ledger, work_key
    from autointerp.engine.replies import open_cache
    from prompts.requests import Chat, ChatReply, Message

    def unit(first: int) -> Any:
        replies = yield [
            Chat((Message("system", SYSTEM), Message("user", PROMPT.format(i=i))), max_tokens=32)
            for i in range(first, min(n, first + PER_UNIT))
        ]
        assert all(isinstance(reply, ChatReply) for reply in replies), replies
        return len(replies)

    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder)
        account = Account(open_cache(run), own_prices={"constant": (0.15, 0.60)})
        account.begin("1000usd")
        client = OpenAIClient("constant", url, max_concurrency=CONCURRENCY)
        router = Router([client], account, stage="bench")
        ledger = Ledger(run, "bench")
        answered, memories = 0, [0.0]

        def on_done(key: str, finished: Finished) -> None:
            nonlocal answered
            answered += finished.result
            if answered >= n // 10 and memories == [0.0]:
                memories.append(memory())
            row = {"run_id": "bench", "stage": "bench", "latent": 0, "kind": "error", "message": "", "reply_sha": key}
            ledger.record(key, {"failures": [row]})

        async def drive() -> dict[str, float]:
            await router.ask([Chat((Message("user", "hello"),))], Finished(None))
            units = ((work_key("bench", first=i), lambda i=i: unit(i)) for i in range(0, n, PER_UNIT))
            began, cpu = time.perf_counter(), time.process_time()
            await drive_all(units, router, on_done)
            ledger.flush()
            took = {"wall": time.perf_counter() - began, "cpu": time.process_time() - cpu}
            await router.close()
            return took

        took = asyncio.run(drive())
        assert answered == n and len(account.cache) == n + 1
        assert account.budget is not None and account.budget.held == 0.0 and account.budget.spent > 0
        account.close()
        return {**took, "early": memories[-1], "late": memory()}


def main() -> None:
    arguments = parser(__doc__ or "")
    arguments.add_argument("--size", choices=["full", "small"], default="full")
    arguments.add_argument("--one", help=argparse.SUPPRESS)
    arguments.add_argument("--url", help=argparse.SUPPRESS)
    arguments.set_defaults(rounds=3)
    options = arguments.parse_args()
    n = 10_000 if options.size == "full" else 640
    if options.one:
        print(json.dumps(engine(options.url, n) if options.one == "engine" else bare(options.url, n, options.one)))
        return
    found: dict[str, list[dict[str, float]]] = {"default": [], "aiohttp": [], "engine": []}
    with server() as url:
        for round_ in range(options.rounds):
            for name in found:
                found[name].append(in_process(__file__, "--one", name, "--url", url, "--size", options.size))
                took = found[name][-1]
                print(f"round {round_}: {name:8} {took['wall']:.2f} s wall, {1000 * took['cpu'] / n:.2f} CPU-ms each")
    ideal = n * LATENCY / CONCURRENCY
    walls = {name: statistics.median(took["wall"] for took in some) for name, some in found.items()}
    cpus = {name: 1000 * statistics.median(took["cpu"] for took in some) / n for name, some in found.items()}
    setting = {"requests": n, "concurrency": CONCURRENCY, "latency": LATENCY, "rounds": options.rounds}
    figures = Figures("engine", setting=setting)
    for name in found:
        figures.add(f"{name}: wall / ideal", walls[name] / ideal)
        figures.add(f"{name}: CPU-ms per request", cpus[name])
    fastest = min("default", "aiohttp", key=lambda name: walls[name])
    small = options.size == "small"  # too few requests for a figure that means anything
    figures.add("engine / faster bare client, wall", walls["engine"] / walls[fastest], None if small else 1.1)
    figures.add("CPU-ms per request added to it", cpus["engine"] - cpus[fastest], None if small else 0.4, note=fastest)
    grown = [took["late"] - took["early"] for took in found["engine"]]
    figures.add("memory from a tenth to the end, MB more", statistics.median(grown), None if small else 16)
    figures.finish(options)


if __name__ == "__main__":
    main()
