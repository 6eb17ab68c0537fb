"""`autointerp export` and `import`: to and from the formats of other programs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, TypeVar

import typer

from autointerp.cli._main import app
from autointerp.errors import UserError

Kind = TypeVar("Kind")


@dataclass(frozen=True)
class Asked:
    """What the command line says; None where it says nothing."""

    run: Path | None
    out: Path
    sae: str | None
    model_id: str | None
    source_id: str | None
    creator_id: str | None
    method_name: str | None
    explainer_name: str | None
    activations: int | None
    push: str | None
    public: bool | None


@dataclass(frozen=True)
class Format:
    write: Callable[[Asked], None]
    takes: frozenset[str]
    """Fields of `Asked` that mean something to it, besides `out`."""


@app.command()
def export(
    to: Annotated[str, typer.Argument(help="neuronpedia, hub or saelens.", metavar="FORMAT")],
    run: Annotated[Path | None, typer.Argument(help="Run folder (neuronpedia, hub).")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder to write to.")] = None,
    sae: Annotated[
        str | None, typer.Option(help="neuronpedia: one of the run's SAEs, by its sae_id. saelens: an SAE's folder.")
    ] = None,
    model_id: Annotated[str | None, typer.Option(help="neuronpedia: the model's name there, e.g. gpt2-small.")] = None,
    source_id: Annotated[
        str | None, typer.Option(help="neuronpedia: layer and name of the source set, e.g. 6-res-jb.")
    ] = None,
    creator_id: Annotated[
        str | None, typer.Option(help="neuronpedia: id of the user to whom an importing instance ascribes the rows.")
    ] = None,
    method_name: Annotated[
        str | None, typer.Option(help="neuronpedia: name under which it has registered the explaining method.")
    ] = None,
    explainer_name: Annotated[
        str | None, typer.Option(help="neuronpedia: name under which it has registered the explaining model.")
    ] = None,
    activations: Annotated[
        int | None, typer.Option(help="neuronpedia: most windows of one latent, over all strengths. Default: all.")
    ] = None,
    push: Annotated[
        str | None, typer.Option(help="hub: upload as owner/name, with the token of HF_TOKEN or `hf auth login`.")
    ] = None,
    public: Annotated[bool | None, typer.Option("--public", help="hub: a new data set is public.")] = None,
) -> None:
    """Write a run for Neuronpedia or as a data set of the Hugging Face hub, or an SAE for SAELens.

    `autointerp export neuronpedia results/demo --out for-neuronpedia`; `autointerp export hub results/demo --out
    data-set`; `autointerp export saelens --sae PATH --out DIR`.
    """
    chosen = _one_of(FORMATS, to, "export")
    if out is None:
        raise UserError(f"nowhere to write to: name a folder with --out, as in `autointerp export {to} ... --out DIR`")
    asked = Asked(
        run, out, sae, model_id, source_id, creator_id, method_name, explainer_name, activations, push, public
    )
    for name in (field.name for field in fields(Asked)):
        if getattr(asked, name) is not None and name not in {*chosen.takes, "out"}:
            said = "a run folder" if name == "run" else f"--{name.replace('_', '-')}"
            raise UserError(
                f"`autointerp export {to}` takes no {said.removeprefix('a ')}; see `autointerp export --help`"
            )
    chosen.write(asked)


@app.command("import")
def import_(
    program: Annotated[str, typer.Argument(help="neuronpedia or delphi.", metavar="FORMAT")],
    path: Annotated[Path, typer.Argument(help="What it wrote: a source's folder, a folder of files, or one file.")],
    out: Annotated[Path, typer.Option(help="Run folder to make.")],
    source: Annotated[
        str | None, typer.Option(help="Only of this SAE: a layer of Neuronpedia's, a hookpoint of delphi's.")
    ] = None,
) -> None:
    """Make a run folder of another program's explanations, and of activations where there are any.

    `autointerp import neuronpedia v1/gpt2-small/6-res-jb --out results/theirs`, then `autointerp report
    results/theirs`; or score them on the SAE itself: `autointerp explain --sae PATH --explainer import --set
    'explain.options={path: results/theirs}'`.
    """
    from autointerp.exchange.importing import IMPORTERS

    counts = _one_of(IMPORTERS, program, "import")(path, out, source)
    untold = counts.pop("explanations without a text")
    print(", ".join(f"{n:,} {name}" for name, n in counts.items()) + f": {out}/*.parquet")
    if untold:
        print(f"{untold:,} of the explanations have no text")
    print(f"next: autointerp report {out}")


def _neuronpedia(asked: Asked) -> None:
    from autointerp.exchange.exporting import export_neuronpedia
    from autointerp.exchange.neuronpedia import Names

    names = Names(creator=asked.creator_id, method=asked.method_name, explainer=asked.explainer_name)
    results = export_neuronpedia(
        _run(asked, "neuronpedia"), asked.out, sae=asked.sae, model_id=asked.model_id, source_id=asked.source_id,
        names=names, activations=asked.activations,
    )  # fmt: skip
    for result in results:
        print(f"{result.source.sae_id}: {', '.join(f'{n:,} {what}' for what, n in result.written.items())}")
        print(f"  files:   {asked.out / result.files}")
        print(f"  uploads: {asked.out / result.uploads}" if result.written["upload requests"] else "  uploads: none")
        for reason, n in result.left_out.items():
            if n:
                print(f"  left out: {n:,} {reason}")
    if names.creator is None:
        print("creatorId and authorId are null: an instance that imports the files wants a user's id (--creator-id)")


def _hub(asked: Asked) -> None:
    from autointerp.exchange.hub import export_hub, push

    if asked.public and not asked.push:
        raise UserError("--public says how --push makes a data set; name one with --push owner/name")
    written = export_hub(_run(asked, "hub"), asked.out)
    print(f"{', '.join(written)}: {asked.out}")
    print(f'read them with datasets.load_dataset("{asked.out}", "{written[0]}")')
    if asked.push:
        print(push(asked.out, asked.push, public=bool(asked.public)))


def _saelens(asked: Asked) -> None:
    import sae as sae_package

    if asked.sae is None:
        raise UserError("no SAE: name its folder with --sae, as in `autointerp export saelens --sae PATH --out DIR`")
    try:
        loaded = sae_package.load(asked.sae)
        written = sae_package.save(loaded, asked.out, format="saelens")
    except sae_package.SAEError as error:
        raise UserError(str(error)) from error
    print(f"{loaded.architecture}, {loaded.n_latents:,} latents: {written}")


FORMATS: dict[str, Format] = {
    "neuronpedia": Format(
        _neuronpedia,
        frozenset(field.name for field in fields(Asked)) - {"push", "public"},
    ),
    "hub": Format(_hub, frozenset({"run", "push", "public"})),
    "saelens": Format(_saelens, frozenset({"sae"})),
}


def _run(asked: Asked, to: str) -> Path:
    if asked.run is None:
        raise UserError(f"no run: name its folder, as in `autointerp export {to} results/demo --out DIR`")
    return asked.run


def _one_of(known: Mapping[str, Kind], name: str, verb: str) -> Kind:
    if name not in known:
        raise UserError(f"cannot {verb} '{name}'; known are {', '.join(known)}")
    return known[name]
