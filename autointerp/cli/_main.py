"""Entry point: errors that a user can mend become one line and an exit code, never a traceback."""

from __future__ import annotations

import importlib
import importlib.util
import os
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import NoReturn

import typer

from autointerp.errors import AutointerpError

app = typer.Typer(
    name="autointerp",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help="""Say in plain language what the latents of a sparse autoencoder mean, and how far that can be trusted.

    Start with `autointerp demo`: the whole pipeline on a small real model, no network and no key. Then, for an SAE of
    your own: `autointerp explain --sae PATH`, `autointerp score --run DIR`, `autointerp report DIR`.
    """,
)

OURS = ("sae", "scoring", "prompts")
VERBS = ("collecting", "commands", "comparing", "costs", "exporting", "running", "showing", "submitting", "training")
"""Modules of this package that register verbs."""
TOLD_TO_END = (signal.SIGTERM, signal.SIGUSR1)
"""Flush and end: what batch systems send before they kill."""


@app.callback(invoke_without_command=True)
def root(
    context: typer.Context,
    version: bool = typer.Option(False, "--version", help="Print the version and end."),
) -> None:
    if version:
        from autointerp import __version__

        typer.echo(__version__)
        raise typer.Exit
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


def shadowed() -> list[str]:
    """Packages of ours that Python would take from somewhere else, e.g. a `scoring.py` in the user's folder."""
    here = Path(__file__).resolve().parents[2]
    wrong = []
    for name in OURS:
        spec = importlib.util.find_spec(name)
        origin = Path(spec.origin).resolve() if spec and spec.origin else None
        if origin is None or origin != here / name / "__init__.py":
            wrong.append(f"'{name}' is {origin or 'not installed'}")
    return wrong


def main() -> NoReturn:
    for verbs in VERBS:
        importlib.import_module(f"autointerp.cli.{verbs}")

    # Spinning threads of two libraries on the same cores cost more than they save.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    for number in TOLD_TO_END:
        signal.signal(number, _interrupt)
    if wrong := shadowed():
        _stop(
            f"a file of yours hides a package of autointerp: {'; '.join(wrong)}; run from another folder or rename it",
            2,
        )
    try:
        app(standalone_mode=True)
    except AutointerpError as error:
        _stop(str(error), error.exit_code)
    except SystemExit as end:
        if end.code == 130:  # typer's own code for Ctrl-C, which it does not explain
            _stop("interrupted; run the same command again to continue", 130, kind="note")
        raise
    except OSError as error:
        if error.errno not in {28, 122}:  # no space, quota
            raise
        _stop(f"the disk is full ({error.filename or 'no file named'}): free some space and run the same command", 1)
    sys.exit(0)


def _interrupt(signum: int, frame: FrameType | None) -> None:
    # A batch system may tell the shell and its children, each of which passes it on: once is enough to flush.
    for number in TOLD_TO_END:
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


def _stop(message: str, code: int, kind: str = "error") -> NoReturn:
    line = " ".join(message.split())
    # Names of files and models may hold control characters, which a terminal would obey.
    safe = "".join(c if c.isprintable() else "\ufffd" for c in line)
    print(f"{kind}: {safe}", file=sys.stderr)
    sys.exit(code)
