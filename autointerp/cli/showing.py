"""The verbs that show what is in run folders: `report` as a page, `show` one latent in the terminal."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from autointerp.cli._main import app
from autointerp.errors import UserError

RESULTS = Path("results")
WIDTH = 110
"""Columns of what is written into a file."""


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(help="Run folders, or a study's folder.")],
    out: Annotated[Path | None, typer.Option(help="Folder of the page. Default: report/ in the first run.")] = None,
) -> None:
    """A static page of one or several runs; it opens from the disk, without a server or a network."""
    from autointerp.report import build_report

    print(build_report(runs, out))


@app.command()
def show(
    latent: Annotated[int, typer.Argument(help="Number of the latent.", min=0)],
    run: Annotated[Path | None, typer.Option(help="Run folder. Default: the one under results/ scored last.")] = None,
    sae: Annotated[str | None, typer.Option(help="Which SAE, where several have it: its id, or a part.")] = None,
) -> None:  # fmt: skip
    """The card of one latent in the terminal: explanations, scores beside controls, activations, windows, steered text.

    Tokens on which the latent fires are underlined, or stand in «brackets» where the output is no terminal.
    """
    from rich.console import Console

    from autointerp.report.terminal import find, print_card

    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=WIDTH)
    if run is None:
        run = newest_run()
        console.print(f"run: {run}", style="dim", markup=False)
    print_card(find(run, latent, sae), console)


def newest_run(results: Path = RESULTS) -> Path:
    """The folder under `results` whose scores were written last."""
    scored = sorted(results.glob("*/scores.parquet"), key=lambda path: (path.stat().st_mtime, path))
    if not scored:
        raise UserError(f"no run under {results}/ has scores; name one with --run DIR, or run `autointerp demo`")
    return scored[-1].parent
