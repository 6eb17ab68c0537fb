"""`autointerp submit` and `autointerp status`: a run as batch jobs of Slurm, and how far it is."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from autointerp.cli import options
from autointerp.cli._main import app
from autointerp.errors import UserError

if TYPE_CHECKING:
    from autointerp.jobs.status import Status


@app.command()
def submit(
    config: Annotated[Path, typer.Argument(help="YAML file with settings; the section `slurm` says what to ask for.")],
    array: Annotated[int, typer.Option(min=1, help="Shares of collect, explain and score: elements of an array.")] = 1,
    out: options.Out = None, sets: options.Set = None,
    only: Annotated[
        str | None, typer.Option(help="One stage: train, collect, explain, score or merge.")
    ] = None,
    servers: Annotated[
        int, typer.Option(min=0, help='vLLM servers to start, for base_url "servers:"; they end with the run.')
    ] = 0,
    show: Annotated[bool, typer.Option("--print", help="Only show the scripts.")] = False,
) -> None:  # fmt: skip
    """Send a run to Slurm: train, collect, explain, score, merge, each stage after the one before it.

    Scripts, logs and job ids are in `slurm/` of the run folder. Send again at any time: what is finished, waits or runs
    is left alone; what failed, was killed or never ran is sent, also in another number of shares.

    Example: `autointerp submit study.yaml --array 32 --out results/study`, then `autointerp status results/study`.
    """
    from autointerp.config import resolve
    from autointerp.jobs.submit import submit as send
    from autointerp.jobs.submit import written
    from autointerp.pipeline.names import run_folder
    from autointerp.pipeline.study import Study
    from autointerp.progress import Reporter

    settings = resolve({"out": out}, config=config, sets=sets)
    folder = run_folder(settings, config).absolute()
    # What every element would stumble over is said now.
    Study(settings, folder, Reporter(quiet=True)).check()
    if show:
        text = written(folder, settings, array, only=only, servers=servers)
        print(text or f"complete: nothing to send for {folder}")
        return
    sent, said = send(folder, settings, array, only=only, servers=servers)
    for line in said:
        print(line)
    for job in sent:
        some = f" {len(job.indices)} of {job.count}" if job.count > 1 else ""
        after = f", {' '.join(job.depends)}" if job.depends else ""
        print(f"sent {job.stage}{some}: job {job.job}{after}")
    if not sent:
        print(f"nothing to send for {folder}" if said else f"complete: nothing to send for {folder}")
    print(f"next: autointerp status {folder}")


@app.command()
def status(
    run: Annotated[Path, typer.Argument(help="Run folder.")],
    watch: Annotated[bool, typer.Option("--watch", help="Again and again, until all is done.")] = False,
    every: Annotated[float, typer.Option(min=1, help="Seconds between two looks with --watch.")] = 15.0,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:  # fmt: skip
    """How far a run is: shares done, running, pending and failed, speed, time left, spending.

    From the files of the run folder, checked against squeue where Slurm is there. Nothing is written.
    """
    from autointerp.jobs.status import status as look
    from autointerp.jobs.submit import settings_of

    if watch and as_json:
        raise UserError("--watch is for people, and --json for programs: give one of them")
    while True:
        found = look(run.absolute(), settings_of(run))
        if as_json:
            print(json.dumps(found.as_dict(), indent=2))
            return
        _print(found, clear=watch)
        if not watch or all(one.count("done") == len(one.elements) for one in found.stages):
            return
        time.sleep(every)


def _print(found: Status, *, clear: bool) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from autointerp.jobs.status import STATES
    from autointerp.progress import clock

    shown = [state for state in STATES if any(one.count(state) for one in found.stages)]
    table = Table(title=found.run, title_justify="left")
    for column in ("stage", "shards", *shown, "units", "per s", "left"):
        table.add_column(column, justify="left" if column == "stage" else "right")
    for one in found.stages:
        units, speed, left = one.units, one.per_second, one.eta_seconds
        table.add_row(
            one.stage, str(len(one.elements)), *[str(one.count(state) or "") for state in shown],
            f"{units.done:,}/{'?' if units.of is None else f'{units.of:,}'}",
            "" if speed is None else f"{speed:.3g}", "" if left is None else clock(left),
        )  # fmt: skip
    console = Console()
    if clear:
        console.clear()
    wide = console if console.is_terminal else Console(width=160)
    wide.print(table)
    for one in found.stages:
        for element in one.elements:
            if element.state not in ("done", "pending", "not sent"):
                code = "" if element.code is None else f" (code {element.code})"
                where = " ".join(part for part in (element.job, element.host) if part)
                line = f"{one.stage} {element.index}/{len(one.elements)} {element.state}{code}"
                wide.print(Text(f"{line}{f' [{where}]' if where else ''}: {element.said or 'no word'}"))
    calls, tokens = (
        sum(row[name] for row in found.spent for name in names)
        for names in (("calls",), ("prompt_tokens", "completion_tokens"))
    )
    prices = [row["price"] for row in found.spent]
    price = "price unknown" if None in prices else f"{sum(prices):.4f} USD"
    running = f"; {found.unread} reply caches are being written" if found.unread else ""
    wide.print(f"spent: {calls:,} calls, {tokens:,} tokens, {price}{running}")
    if found.slurm != "here":
        wide.print(Text(f"Slurm was not asked: {found.slurm}"))
