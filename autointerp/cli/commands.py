"""The verbs that run the pipeline. Each resolves its settings and calls one stage after another."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from autointerp.cli import options
from autointerp.cli._main import app
from autointerp.cli.costs import show_cost
from autointerp.errors import BudgetReached, ServerGone, TooManyFailures, UserError

Prepared = TypeVar("Prepared")

if TYPE_CHECKING:
    from autointerp.config import RunSettings
    from autointerp.pipeline.session import Session


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Run folder.")] = Path("results/demo"),
    seed: Annotated[int, typer.Option(help="Every random draw of the run derives from it.")] = 0,
    small: Annotated[bool, typer.Option("--small", help="A minute instead of ten: too little data for good figures.")]
    = False,
    fresh: options.Fresh = False,
    quiet: options.Quiet = False,
    plain: options.Plain = False,
) -> None:  # fmt: skip
    """The whole pipeline on a small real model: no network, no key, about ten minutes on two cores.

    Trains an SAE on SmolLM2-135M, collects its latents, explains and scores a sample of them, and writes tables and a
    page. Interrupt it at any time: the same command goes on where it was.
    """
    from autointerp.pipeline.demo import FULL, SMALL
    from autointerp.pipeline.demo import demo as run_demo
    from autointerp.progress import Reporter

    session = run_demo(out, SMALL if small else FULL, Reporter(plain=plain, quiet=quiet), seed=seed, fresh=fresh)
    _finish(session)


@app.command()
def explain(
    sae: options.Sae = None, model: options.Model = None, hookpoint: options.Hookpoint = None,
    dataset: options.Dataset = None, text_column: options.TextColumn = None, tokens: options.Tokens = None,
    context_length: options.ContextLength = None, latents: options.Latents = None, limit: options.Limit = None,
    explainer: options.Explainer = None, client: options.Client = None, llm: options.Llm = None,
    base_url: options.BaseUrl = None, max_concurrency: options.MaxConcurrency = None,
    embedder: options.Embedder = None, budget: options.Budget = None, batch: options.Batch = None,
    max_failed: options.MaxFailed = None, null: options.Null = None,
    out: options.Out = None, seed: options.Seed = None, device: options.Device = None, dtype: options.Dtype = None,
    config: options.Config = None, sets: options.Set = None, fresh: options.Fresh = False,
    retry_failed: options.RetryFailed = False, dry_run: options.DryRun = False, quiet: options.Quiet = False,
    plain: options.Plain = False,
) -> None:  # fmt: skip
    """Explain latents of an SAE. Collects its activations first when there is no store of them yet.

    With a server: `autointerp explain --sae PATH --dataset text.jsonl --llm MODEL --base-url http://127.0.0.1:8000/v1`.
    Without any language model: `--explainer tokens`.
    """
    flags = {
        "sae": sae, "subject.model": model, "subject.hookpoint": hookpoint, "data.dataset": dataset,
        "data.text_column": text_column, "data.tokens": tokens, "data.context_length": context_length,
        "latents": latents, "limit": limit, "explain.explainer": explainer, "explain.client": client,
        "explain.llm": llm, "explain.base_url": base_url, "explain.max_concurrency": max_concurrency,
        "score.embedder": embedder, "budget": budget, "batch": batch, "max_failed": max_failed, "null": null,
        "out": out, "seed": seed, "subject.device": device, "subject.dtype": dtype,
    }  # fmt: skip
    if dry_run:
        show_cost(flags, config=config, sets=sets, stages=("explain",), quiet=quiet, plain=plain)
        return
    from autointerp.pipeline.explain import explain as explain_stage
    from autointerp.pipeline.explain import prepare
    from autointerp.pipeline.lens import write_lens
    from autointerp.pipeline.metrics import write_sae_metrics

    with _open(flags, prepare, config=config, sets=sets, fresh=fresh, quiet=quiet, plain=plain) as (session, prepared):
        with _tables_of_what_is_there(session):
            explain_stage(session, prepared, retry_failed=retry_failed)
        write_sae_metrics(session)
        session.run.merge()
        write_lens(session)
        rows = session.run.rows("explain", "explanations")
        ok = int((rows["status"] == "ok").sum())
        print(f"{ok} of {len(rows)} latents explained: {session.run.folder / 'explanations.parquet'}")
        print_spending(session.run.folder)
        print(f"next: autointerp score --run {session.run.folder} --method surprisal,embedding,intervention")
        _allow(session, 1 - ok / len(rows), "explanations")


@app.command()
def score(
    run: options.RunFolder = None,
    method: Annotated[
        str | None, typer.Option(help="Scorers, joined by commas; see `autointerp list scorers`.")
    ] = None,
    sae: options.Sae = None, client: options.Client = None, scorer_llm: options.ScorerLlm = None,
    base_url: options.BaseUrl = None, max_concurrency: options.MaxConcurrency = None,
    embedder: options.Embedder = None, ci_halfwidth: options.CiHalfwidth = None, budget: options.Budget = None,
    batch: options.Batch = None, max_failed: options.MaxFailed = None, out: options.Out = None,
    device: options.Device = None, config: options.Config = None, sets: options.Set = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Score anew with these methods.")] = False,
    retry_failed: options.RetryFailed = False, dry_run: options.DryRun = False, quiet: options.Quiet = False,
    plain: options.Plain = False,
) -> None:  # fmt: skip
    """Score the explanations of a run, each next to its control: the explanation of another latent.

    Scorers that read likelihoods use the subject model, or the local model that --scorer-llm names; `detection` asks
    the chat model that --client and --scorer-llm name.
    """
    flags = {
        "out": run or out, "sae": sae, "score.methods": words(method), "score.client": client,
        "score.llm": scorer_llm, "score.base_url": base_url, "score.max_concurrency": max_concurrency,
        "score.embedder": embedder, "score.ci_halfwidth": ci_halfwidth, "budget": budget, "batch": batch,
        "max_failed": max_failed, "subject.device": device,
    }  # fmt: skip
    earlier = earlier_settings(run, out, sae)
    if dry_run:
        show_cost(flags, config=config, sets=sets, base=earlier, stages=("score",), quiet=quiet, plain=plain)
        return
    from autointerp.pipeline.score import prepare
    from autointerp.pipeline.score import score as score_stage

    with _open(flags, prepare, config=config, sets=sets, base=earlier, quiet=quiet, plain=plain) as (session, prepared):
        with _tables_of_what_is_there(session):
            score_stage(session, prepared, fresh=fresh, retry_failed=retry_failed)
        session.run.merge()
        _finish(session)


def earlier_settings(run: str | None, out: str | None, sae: str | None) -> dict[str, Any]:
    """Settings of the run that is scored."""
    import yaml

    from autointerp.pipeline.names import run_name

    folder = Path(run or out or (Path("results") / run_name(sae) if sae else ""))
    path = folder / "config.yaml"
    if not (run or out or sae):
        raise UserError("nothing to score: name a run with --run DIR, or an SAE with --sae PATH")
    if not path.is_file():
        raise UserError(
            f"no run in '{folder}': {path.name} is missing; make explanations first with "
            f"`autointerp explain --sae {sae or 'PATH'} --out {folder}`"
        )
    settings: dict[str, Any] = yaml.safe_load(path.read_text())
    # How it was scored before is no default for how it is scored now, and a budget is set by each command.
    for name in ("score", "budget", "batch"):
        settings.pop(name, None)
    return settings


def make_session(
    flags: Mapping[str, Any], *, config: Path | None, sets: list[str] | None, base: Mapping[str, Any] | None = None,
    quiet: bool = False, plain: bool = False,
) -> Session:  # fmt: skip
    """A session of the resolved settings. Nothing is loaded or written yet."""
    from dotenv import load_dotenv

    from autointerp.config import resolve
    from autointerp.pipeline.names import run_name
    from autointerp.pipeline.run import Run
    from autointerp.pipeline.session import Session
    from autointerp.progress import Reporter

    load_dotenv(Path.cwd() / ".env")
    settings: RunSettings = resolve(flags, config=config, sets=sets, base=base)
    if settings.sae is None:
        raise UserError("no SAE: name its folder with --sae (`autointerp demo` trains a small one)")
    out = Path(settings.out) if settings.out else Path("results") / run_name(settings.sae, settings.null)
    return Session(Run(out, settings), Reporter(plain=plain, quiet=quiet))


@contextmanager
def _open(
    flags: Mapping[str, Any], prepare: Callable[[Session], Prepared], *, fresh: bool = False, **how: Any
) -> Iterator[tuple[Session, Prepared]]:
    session = make_session(flags, **how)
    try:
        # Bad input is found before anything is written or removed.
        session.check()
        prepared = prepare(session)
        session.run.open(fresh=fresh)
        yield session, prepared
    finally:
        session.run.close()


@contextmanager
def _tables_of_what_is_there(session: Session) -> Iterator[None]:
    """A run that its budget or a lost server ends leaves tables of what it was paid for."""
    try:
        yield
    except (BudgetReached, ServerGone):
        session.run.merge()
        raise


def _allow(session: Session, failed: float, what: str) -> None:
    allowed = session.settings.max_failed
    if failed > allowed:
        raise TooManyFailures(
            f"{failed:.0%} of the {what} failed, more than max_failed allows ({allowed:.0%}); "
            f"see {session.run.folder / 'failures.parquet'}, and --retry-failed"
        )


def _finish(session: Session) -> None:
    """Print the summary, write the page, complain of too many failures."""
    from autointerp.tables.load import load_table

    print_results(session.run.folder)
    judged = load_table(session.run.folder, "judgements")
    if len(judged):
        _allow(session, float((judged["status"] != "ok").mean()), "judgements")


def print_results(folder: Path, n_cells: int = 1) -> None:
    """The summary, what was spent, and where tables and page are; the page is written."""
    from autointerp.cli.summary import print_summary
    from autointerp.report import build_report
    from autointerp.tables.load import load_scores

    print_summary(load_scores(folder))
    print_spending(folder)
    print(f"tables: {folder}/*.parquet" + (f", of {n_cells} runs in {folder}/cells" if n_cells > 1 else ""))
    print(f"page:   {build_report([folder])}")


def print_spending(folder: Path) -> None:
    from autointerp.cli.summary import spending
    from autointerp.tables.load import load_table

    if line := spending(load_table(folder, "usage")):
        print(line)


def words(text: str | None) -> list[str] | None:
    """What commas join."""
    return None if text is None else [word.strip() for word in text.split(",") if word.strip()]


@app.command("list")
def list_(
    kind: Annotated[str, typer.Argument(help="saes, scorers, explainers, prompts, clients or formats.")],
) -> None:
    """What is registered: built in, and from installed plugins."""
    from autointerp.cli.listing import print_list

    print_list(kind)


@app.command()
def doctor(
    sae: options.Sae = None, model: options.Model = None, hookpoint: options.Hookpoint = None,
    dataset: options.Dataset = None, text_column: options.TextColumn = None, device: options.Device = None,
    dtype: options.Dtype = None,
    store: Annotated[Path | None, typer.Option(help="Latent store to check, file by file.")] = None,
    online: Annotated[bool, typer.Option("--online", help="Also ask whether the hub answers and the keys are taken.")]
    = False,
) -> None:  # fmt: skip
    """Check the installation, and with --sae whether an SAE fits its model. The text pastes into an issue.

    Prints the names of API keys, never a key. Exits with 1 if anything is marked FAIL.
    """
    from autointerp.cli.doctor import doctor as examine

    code = examine(
        sae=sae, store=store, online=online, model=model, hookpoint=hookpoint, dataset=dataset,
        text_column=text_column, device=device or "cpu", dtype=dtype or "float32",
    )  # fmt: skip
    raise typer.Exit(code)
