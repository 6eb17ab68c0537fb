"""`autointerp train`: a grid of dictionaries in one pass of the subject model."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from autointerp.cli import options
from autointerp.cli._main import app
from autointerp.cli.commands import words
from autointerp.errors import UserError

if TYPE_CHECKING:
    from autointerp.config import RunSettings
    from autointerp.pipeline.evaluate import Figure


@app.command()
def train(
    model: options.Model = None,
    hookpoint: Annotated[
        str | None, typer.Option(help="Where to train, joined by commas: layers.9,layers.9.self_attn.o_proj:in.")
    ] = None,
    architecture: Annotated[
        str | None, typer.Option(help="Architectures, joined by commas; see `autointerp list saes`.")
    ] = None,
    expansion: Annotated[str | None, typer.Option(help="Latents per dimension, joined by commas: 8,16.")] = None,
    width: Annotated[str | None, typer.Option(help="Numbers of latents instead, joined by commas.")] = None,
    k: Annotated[str | None, typer.Option(help="Latents kept per token, joined by commas: 16,32,64.")] = None,
    seeds: Annotated[str | None, typer.Option(help="Seeds of the weights, joined by commas: 0,1,2.")] = None,
    target: Annotated[str | None, typer.Option(help="What a transcoder reconstructs, e.g. layers.9.mlp.")] = None,
    dataset: options.Dataset = None, text_column: options.TextColumn = None,
    mode: Annotated[str | None, typer.Option(help="packed, or dialogues: each alone in the chat template.")] = None,
    tokens: Annotated[int | None, typer.Option(help="Tokens to train on, before epochs.")] = None,
    context_length: options.ContextLength = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the activations.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Tokens per step.")] = None,
    lr: Annotated[float | None, typer.Option(help="Peak learning rate at 4,096 latents.")] = None,
    stream: Annotated[bool | None, typer.Option("--stream", help="Cache no activations; mix them in memory.")] = None,
    cache: Annotated[str | None, typer.Option(help="Folder of cached activations, kept for other runs.")] = None,
    track: Annotated[str | None, typer.Option(help="Also send metrics to wandb or trackio.")] = None,
    null: Annotated[
        str | None, typer.Option(help="random_model: train on a model of the same shape whose weights are random.")
    ] = None,
    out: options.Out = None, seed: options.Seed = None, device: options.Device = None, dtype: options.Dtype = None,
    config: options.Config = None, sets: options.Set = None, fresh: options.Fresh = False,
    quiet: options.Quiet = False, plain: options.Plain = False,
) -> None:  # fmt: skip
    """Train SAEs: every architecture x hookpoint x width x seed, all on the same batches.

    The subject model runs once and stops after the deepest hookpoint. Metrics are written step by step, the figures on
    held-out text at the end. Interrupt it at any time: the same command goes on where it was, to the same weights.

    Example: `autointerp train --model HuggingFaceTB/SmolLM2-135M-Instruct --hookpoint layers.9 --dataset text.jsonl
    --architecture topk,jumprelu --expansion 8,16 --tokens 10000000`. On several GPUs or processes:
    `torchrun --nproc-per-node 8 -m autointerp train ...`.
    """
    flags = {
        "subject.model": model, "train.hookpoints": words(hookpoint), "train.architectures": words(architecture),
        "train.expansions": _numbers("--expansion", expansion), "train.widths": _numbers("--width", width),
        "train.k": _numbers("--k", k), "train.seeds": _numbers("--seeds", seeds), "train.target": target,
        "data.dataset": dataset, "data.text_column": text_column, "data.mode": mode, "data.tokens": tokens,
        "data.context_length": context_length, "train.epochs": epochs, "train.batch_size": batch_size,
        "train.lr": lr, "train.stream": stream, "train.cache": cache, "train.track": track, "null": null, "out": out,
        "seed": seed,
        "subject.device": device, "subject.dtype": dtype,
    }  # fmt: skip
    from autointerp.config import resolve

    _train(resolve(flags, config=config, sets=sets), fresh=fresh, quiet=quiet, plain=plain)


def _train(settings: RunSettings, *, fresh: bool, quiet: bool, plain: bool) -> None:
    from autointerp.pipeline.run import Run
    from autointerp.pipeline.training_run import subject_to_train_on, train_run
    from autointerp.progress import Reporter
    from sae.world import World

    world = World.join(settings.subject.device)
    reporter = Reporter(plain=plain, quiet=quiet or not world.leads)
    subject = subject_to_train_on(settings, reporter, world)
    run = Run(Path(settings.out) if settings.out else Path("results") / "train", settings)
    trained = train_run(run, subject, reporter, world=world, fresh=fresh)
    if world.leads:
        folders = [one.folder for one in trained]
        _print(folders, [one.figures for one in trained])
        print(f"figures: {run.folder / 'sae_metrics.parquet'}; steps: metrics.jsonl beside each SAE")
        print(f"next: autointerp explain --sae {folders[0]}")
    world.leave()


def _print(folders: list[Path], figures: list[dict[str, Figure]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    # A figure without a value, e.g. FVU of text that is one token over and over, is not recorded.
    missing = (math.nan, math.nan, math.nan, 0)
    table = Table(title="on held-out text (95% intervals over contexts)", title_justify="left")
    for column in ("SAE", "FVU", "L0", "CE recovered", "KL", "dead", "dense"):
        table.add_column(column, justify="left" if column == "SAE" else "right", overflow="fold")
    for folder, found in zip(folders, figures, strict=True):
        cells = []
        for name, digits in (("fvu", 3), ("l0", 1), ("ce_recovered", 3), ("kl", 3)):
            value, low, high, _ = found.get(name, missing)
            cells.append(f"{value:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]")
        cells += [f"{found.get(name, missing)[0]:.1%}" for name in ("dead_share", "dense_share")]
        table.add_row(Text(str(folder)), *cells)
    console = Console()
    console.print(table) if console.is_terminal else Console(width=160).print(table)


def _numbers(flag: str, text: str | None) -> list[int] | None:
    parts = words(text)
    try:
        return None if parts is None else [int(part) for part in parts]
    except ValueError as error:
        raise UserError(f"{flag} wants whole numbers joined by commas, not '{text}'") from error
