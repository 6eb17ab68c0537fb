"""`autointerp run`: every stage of one YAML, for all its SAEs, controls, draws, explainers, judges and corpora."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from autointerp.cli import options
from autointerp.cli._main import app
from autointerp.errors import UserError


@app.command()
def run(
    config: options.Config = None, sae: options.Sae = None, model: options.Model = None,
    dataset: Annotated[str | None, typer.Option(help="Text; several are joined by commas, and crossed.")] = None,
    draws: Annotated[
        int | None, typer.Option(help="Repeat the sampling of windows this often, for the same latents.")
    ] = None,
    explainers: Annotated[str | None, typer.Option(help="Explainers, joined by commas, to cross.")] = None,
    scorer_llms: Annotated[str | None, typer.Option(help="Models that score, joined by commas, to cross.")] = None,
    method: Annotated[str | None, typer.Option(help="Scorers, joined by commas.")] = None,
    limit: options.Limit = None, budget: options.Budget = None, out: options.Out = None, seed: options.Seed = None,
    device: options.Device = None, sets: options.Set = None, fresh: options.Fresh = False,
    shard: Annotated[
        str, typer.Option(help="This process's share, 0/4 to 3/4, of the documents to collect and of the latents.")
    ] = "0/1",
    only: Annotated[str | None, typer.Option(help="One stage: train, collect, explain or score.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be run, and run nothing.")] = False,
    quiet: options.Quiet = False, plain: options.Plain = False,
) -> None:  # fmt: skip
    """All stages from one YAML: train, collect, explain, score, compare, report.

    The section `study` crosses: SAEs (those of the section `train` and those named), their controls, draws of the
    windows, explainers, judges, corpora. Every combination is a run of its own under `cells/`; their tables are united
    in the run folder. Interrupt it at any time: the same command goes on where it was.

    Example: `autointerp run --config study.yaml --out results/study`, or for one SAE, three draws of it:
    `autointerp run --sae PATH --dataset text.jsonl --explainers tokens --draws 3`.
    """
    from dotenv import load_dotenv

    from autointerp.cli.commands import words
    from autointerp.config import resolve
    from autointerp.jobs.element import element
    from autointerp.pipeline.cells import STAGES
    from autointerp.pipeline.names import run_folder
    from autointerp.pipeline.study import Study
    from autointerp.progress import Reporter
    from autointerp.shards import Shard

    load_dotenv(Path.cwd() / ".env")
    corpora, told, judges = words(dataset) or [], words(explainers) or [], words(scorer_llms) or []
    flags = {
        "sae": sae, "subject.model": model, "subject.device": device,
        "data.dataset": corpora[0] if corpora else None, "study.corpora": corpora if len(corpora) > 1 else None,
        "study.draws": draws,
        "explain.explainer": told[0] if told else None, "study.explainers": told if len(told) > 1 else None,
        "score.llm": judges[0] if judges else None, "study.judges": judges if len(judges) > 1 else None,
        "score.methods": words(method), "limit": limit, "budget": budget, "out": out, "seed": seed,
    }  # fmt: skip
    settings = resolve(flags, config=config, sets=sets)
    folder = run_folder(settings, config)
    study = Study(settings, folder, Reporter(plain=plain, quiet=quiet))
    study.check()
    if dry_run:
        for line in study.outline():
            print(line)
        return
    share = Shard.parse(shard)
    stages = STAGES if only is None else (only,)
    if only is not None and only not in STAGES:
        raise UserError(f"--only '{only}' is no stage: {', '.join(STAGES)}")
    with element(folder, only or "all", settings, share):
        cells = study(fresh=fresh, stages=stages, shard=share)
    if share.whole and "score" in stages:
        _finish(folder, len(cells))
    else:
        print(f"{only or 'all stages'}, shard {share}: done; when all shards are: autointerp merge {folder}")


@app.command()
def merge(
    run: Annotated[Path, typer.Argument(help="Folder of a run or study whose shards are done.")],
    partial: Annotated[bool, typer.Option("--partial", help="Unite what is there, though some is missing.")] = False,
    quiet: options.Quiet = False, plain: options.Plain = False,
) -> None:  # fmt: skip
    """Unite what shards have done: part files, replies and books; counts are verified.

    Nothing is asked of a language model.
    """
    from autointerp.config import resolve
    from autointerp.jobs.element import element
    from autointerp.pipeline.study import Study
    from autointerp.progress import Reporter

    if not (run / "config.yaml").is_file():
        raise UserError(f"no run in '{run}': config.yaml is missing")
    settings = resolve({"out": str(run)}, config=run / "config.yaml", environ={})
    with element(run, "merge", settings):
        cells = Study(settings, run, Reporter(plain=plain, quiet=quiet)).merge(partial=partial)
    _finish(run, len(cells))


def _finish(folder: Path, n_cells: int) -> None:
    from autointerp.cli.commands import print_results

    print_results(folder, n_cells)
    print(f"next:   autointerp compare {folder}")
