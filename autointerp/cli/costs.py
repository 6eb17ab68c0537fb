"""`autointerp cost`, and `--dry-run`: what a job would take, before anything is spent."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from autointerp.cli import options
from autointerp.cli._main import app
from autointerp.errors import UserError

if TYPE_CHECKING:
    from autointerp.pipeline.cost import Estimate, StageCost


@app.command()
def cost(
    sae: options.Sae = None, run: options.RunFolder = None, model: options.Model = None,
    hookpoint: options.Hookpoint = None, dataset: options.Dataset = None, text_column: options.TextColumn = None,
    tokens: options.Tokens = None, context_length: options.ContextLength = None, latents: options.Latents = None,
    limit: options.Limit = None, explainer: options.Explainer = None,
    method: Annotated[
        str | None, typer.Option(help="Scorers, joined by commas; none: --method ''.")
    ] = None,
    client: options.Client = None, llm: options.Llm = None, scorer_llm: options.ScorerLlm = None,
    base_url: options.BaseUrl = None, embedder: options.Embedder = None, batch: options.Batch = None,
    speed: Annotated[
        str | None,
        typer.Option(help="Prompt and completion tokens a second of your own server's GPU, e.g. 8000,1200: gives its "
                     "hours."),
    ] = None,
    cluster: Annotated[
        str | None,
        typer.Option(help="Say what fits, e.g. 8xH100,hours=24,tokens_per_second=5000; speeds that are not given are "
                     "assumed, and said to be."),
    ] = None,
    write: Annotated[Path | None, typer.Option("--json", help="Also write the figures here.")] = None,
    out: options.Out = None, seed: options.Seed = None, device: options.Device = None, dtype: options.Dtype = None,
    config: options.Config = None, sets: options.Set = None, quiet: options.Quiet = False, plain: options.Plain = False,
) -> None:  # fmt: skip
    """What a job would take: calls, tokens, price, time and disk, per stage. Nothing is asked and nothing is spent.

    Every prompt of a sample of latents is rendered and counted. Without a latent store of the run a small pilot is
    collected first, into a folder that is thrown away.
    """
    from autointerp.cli.commands import earlier_settings

    flags = {
        "sae": sae, "subject.model": model, "subject.hookpoint": hookpoint, "data.dataset": dataset,
        "data.text_column": text_column, "data.tokens": tokens, "data.context_length": context_length,
        "latents": latents, "limit": limit, "explain.explainer": explainer,
        "score.methods": method.split(",") if method else None, "explain.client": client, "score.client": client,
        "explain.llm": llm, "score.llm": scorer_llm or llm, "explain.base_url": base_url, "score.base_url": base_url,
        "score.embedder": embedder, "batch": batch, "out": run or out, "seed": seed, "subject.device": device,
        "subject.dtype": dtype,
    }  # fmt: skip
    stages = ("explain",) if method == "" else ("explain", "score")
    base = earlier_settings(run, None, None) if run else None
    show_cost(flags, config=config, sets=sets, base=base, stages=stages, quiet=quiet, plain=plain, speed=speed,
              write=write, cluster=cluster)  # fmt: skip


def show_cost(
    flags: Mapping[str, Any], *, config: Path | None, sets: list[str] | None, stages: Iterable[str],
    base: Mapping[str, Any] | None = None, quiet: bool = False, plain: bool = False, speed: str | None = None,
    write: Path | None = None, cluster: str | None = None,
) -> None:  # fmt: skip
    """Estimate and print.

    Raises:
        UserError: bad input, as the job itself would find it.
    """
    from autointerp.cli.commands import make_session
    from autointerp.cli.doctor import printable
    from autointerp.pipeline.cluster import Cluster, fits
    from autointerp.pipeline.cost import estimate

    speeds, machines = _speeds(speed), Cluster.parse(cluster) if cluster is not None else None
    session = make_session(flags, config=config, sets=sets, base=base, quiet=quiet, plain=plain)
    session.check()
    found = estimate(session, stages)
    _print(found, speeds)
    for line in fits(found.stages, machines) if machines is not None else ():
        print(printable(line))
    if write is not None:
        from autointerp.files import write_json

        stages_ = [{**dataclasses.asdict(stage), "gpu_hours": gpu_hours(stage, speeds)} for stage in found.stages]
        write_json(write, {"stages": stages_, "notes": found.notes})


def gpu_hours(stage: StageCost, speeds: tuple[float, float] | None) -> float | None:
    """Of an own server, or of vLLM in this process, at the speeds given; None without, and for smaller models here."""
    from autointerp.pipeline.cost import HERE

    if speeds is None or stage.asks == HERE:
        return None
    return (stage.prompt_tokens / speeds[0] + stage.completion_tokens[1] / speeds[1]) / 3600


def _print(found: Estimate, speeds: tuple[float, float] | None) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from autointerp.cli.doctor import printable
    from autointerp.progress import clock

    table = Table(title="what this job would take", title_justify="left")
    for name in ("stage", "asks", "calls", "prompt tokens", "answer tokens", "price, USD", "time", "disk"):
        table.add_column(name, justify="left" if name in {"stage", "asks"} else "right")
    for stage in found.stages:
        low, likely, high = stage.completion_tokens
        hours = gpu_hours(stage, speeds)
        told = clock(stage.seconds) if stage.seconds is not None else f"{hours:.1f} GPU-h" if hours else ""
        table.add_row(
            stage.stage, escape(printable(stage.asks)), f"{stage.calls:,}", f"{stage.prompt_tokens:,}",
            f"{likely:,}" + (f" ({low:,} to {high:,})" if high > low else ""), _price(stage), told,
            f"{stage.disk / 1e6:,.0f} MB" if stage.disk else "",
        )  # fmt: skip
    Console(width=140).print(table)
    paid = [stage for stage in found.stages if not stage.free]
    tokens = sum(stage.prompt_tokens + stage.completion_tokens[1] for stage in paid)
    prices = [stage.price for stage in paid]
    if not paid:
        print("nothing is asked of a server: no price")
    elif None in prices:
        print(f"price unknown, {tokens:,} tokens: give one with --set 'prices={{MODEL: [prompt, completion]}}'")
    else:
        least, mostly, most = (sum(price[i] for price in prices if price is not None) for i in range(3))
        print(f"about ${mostly:,.2f} (${least:,.2f} to ${most:,.2f}) for {tokens:,} tokens; cap it with --budget")
    for note in found.notes:
        print(f"note: {printable(note)}")


def _price(stage: StageCost) -> str:
    if stage.free:
        return "0"
    if stage.price is None:
        return "unknown"
    low, likely, high = stage.price
    return f"{likely:,.2f} ({low:,.2f} to {high:,.2f})"


def _speeds(text: str | None) -> tuple[float, float] | None:
    if text is None:
        return None
    try:
        prompt, completion = (float(part) for part in text.split(","))
    except ValueError:
        prompt = completion = 0.0
    if prompt <= 0 or completion <= 0:
        raise UserError(f"--speed wants two numbers, prompt and completion tokens a second, not '{text}'")
    return prompt, completion
