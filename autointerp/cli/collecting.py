"""`autointerp collect`: the latent stores of one or many SAEs, in one pass of the subject model."""

from __future__ import annotations

from typing import Annotated

import typer

from autointerp.cli import options
from autointerp.cli._main import app
from autointerp.errors import UserError


@app.command()
def collect(
    sae: Annotated[
        list[str] | None,
        typer.Option(help="SAE: a folder, a hub id, or neurons:32. Give it several times to read all in one pass."),
    ] = None,
    model: options.Model = None, hookpoint: options.Hookpoint = None, dataset: options.Dataset = None,
    text_column: options.TextColumn = None,
    mode: Annotated[str | None, typer.Option(help="packed, documents (each alone), or dialogues.")] = None,
    tokens: options.Tokens = None, context_length: options.ContextLength = None,
    batch_tokens: Annotated[int | None, typer.Option(help="Tokens per forward pass.")] = None,
    null: options.Null = None,
    shard: Annotated[
        str, typer.Option(help="This process's share, 0/4 to 3/4: one a GPU. All together are read as one store.")
    ] = "0/1",
    out: options.Out = None, seed: options.Seed = None, device: options.Device = None, dtype: options.Dtype = None,
    config: options.Config = None, sets: options.Set = None, fresh: options.Fresh = False,
    quiet: options.Quiet = False, plain: options.Plain = False,
) -> None:  # fmt: skip
    """Collect activations: run the subject model over text, stop after the deepest hookpoint, keep the sparse codes.

    `explain` does this by itself where there is no store; do it here for several SAEs in one pass, or on several GPUs:
    `autointerp collect --sae PATH --out results/mine --shard 0/2 --device cuda:0`, and 1/2 on cuda:1. Interrupt it at
    any time: the same command goes on where it was.
    """
    from autointerp.cli.commands import make_session
    from autointerp.pipeline.collection import collect as collect_stage
    from autointerp.pipeline.session import Session
    from autointerp.shards import Shard
    from autointerp.store.reader import LatentStore

    share = Shard.parse(shard)
    if fresh and not share.whole:
        raise UserError("--fresh would delete what the other shards collect; delete the folder, or name another --out")
    flags = {
        "sae": sae[0] if sae else None, "subject.model": model, "subject.hookpoint": hookpoint,
        "data.dataset": dataset, "data.text_column": text_column, "data.mode": mode, "data.tokens": tokens,
        "data.context_length": context_length, "data.batch_tokens": batch_tokens, "null": null, "out": out,
        "seed": seed, "subject.device": device, "subject.dtype": dtype,
    }  # fmt: skip
    first = make_session(flags, config=config, sets=sets, quiet=quiet, plain=plain)
    sessions = [Session(first.run, first.reporter, spec, first.models) for spec in sae or [str(first.settings.sae)]]
    for session in sessions:
        session.check()
    first.run.open(fresh=fresh)
    folders = collect_stage(sessions, share)
    first.run.merge(["usage"])
    first.run.close()
    for session, folder in zip(sessions, folders, strict=True):
        if share.whole:
            store = LatentStore.open(session.store_folder)
            print(f"{store.n_activations:,} activations on {store.n_tokens:,} tokens (L0 {store.l0:.1f}): {folder}")
        else:
            print(f"shard {share}: {folder}")
    print(f"next: autointerp explain --sae {sessions[0].settings.sae} --out {first.run.folder}")
