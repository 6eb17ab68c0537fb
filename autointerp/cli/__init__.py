"""The command line. Only typer is imported until a verb runs, so `--help` answers at once."""

from autointerp.cli._main import main as main
