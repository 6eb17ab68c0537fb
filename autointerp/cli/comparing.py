"""`autointerp compare`: tables across SAE variants, layers and runs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from autointerp.cli import options
from autointerp.cli._main import app

if TYPE_CHECKING:
    from rich.console import Console

    from autointerp.pipeline.comparison import Comparison


@app.command()
def compare(
    runs: Annotated[list[str], typer.Argument(help="Folders of runs or studies, or globs of such.")],
    by: Annotated[str, typer.Option(help="Columns that rows of the main table go by.")] = "variant,layer",
    method: Annotated[str | None, typer.Option(help="Only these methods, joined by commas.")] = None,
    metric: Annotated[str | None, typer.Option(help="These metrics. Default: the headline metric of each.")] = None,
    plan: Annotated[
        float | None, typer.Option(help="A difference of means, e.g. 0.03: how many latents and windows find it.")
    ] = None,
    allow_different: Annotated[
        str | None,
        typer.Option(help="What may differ between runs: judge, prompt, negatives, explainer, corpus, sampling."),
    ] = None,
    windows: Annotated[
        bool, typer.Option("--windows", help="Say what of an interval comes from windows and what from latents.")
    ] = False,
    similarity: Annotated[
        bool, typer.Option("--similarity", help="Also match the latents of SAEs of one variant: layers, seeds.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the tables. Default: comparison/ in the first run.")
    ] = None,
    seed: options.Seed = 0,
) -> None:
    """Which variant, which layer, which method? Means with intervals beside their controls, and tests of every pair.

    Prints the main table, the tests over all layers and what to beware of; writes all tables as parquet, CSV, markdown
    and LaTeX. It refuses to compare scores of other judges, prompts, negatives, explainers, corpora or sampling.
    """
    from rich.console import Console

    from autointerp.cli.commands import words
    from autointerp.cli.doctor import printable
    from autointerp.pipeline.compare import comparison

    found = comparison(
        runs, words(by) or [], methods=words(method) or [], metrics=words(metric) or [], plan=plan,
        allow_different=words(allow_different) or [], windows=windows, similarity=similarity, seed=seed or 0,
        say=lambda line: print(printable(line), file=sys.stderr, flush=True),
    )  # fmt: skip
    folder = out or found.folders[0] / "comparison"
    paths = found.write(folder)
    show(found, Console())
    print(f"{len(paths)} files: {folder}; all of it on one page: {paths[0]}")


def show(found: Comparison, console: Console) -> None:
    """Main table, tests over all layers, plan, findings and caveats."""
    from autointerp.cli.doctor import printable
    from autointerp.cli.tables import print_table
    from autointerp.pipeline.comparison import TABLES
    from autointerp.stats.contrasts import ALL

    print_table(found.main, found.columns("main"), TABLES["main"].title, console)
    tests = found.tests[found.tests["site"] == ALL]
    if len(tests):
        read = ("question", "method", "metric", "negatives", "a", "b", "shift", "p Holm", "verdict", "conclusion")
        columns = [column for column in found.columns("tests") if column.header in read]
        print_table(tests, columns, "Tests over all layers", console)
    for name in ("resolvable", "plan", "distance"):
        if len(found.frame(name)):
            print_table(found.frame(name), found.columns(name), TABLES[name].title, console)
    for sentence in found.findings:
        print(f"- {printable(sentence)}")
    for sentence in found.caveats:
        print(f"caveat: {printable(sentence)}")
