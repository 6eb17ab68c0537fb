"""`autointerp list KIND`: what is registered, built in and from plugins. A member that is broken is shown as such."""

from __future__ import annotations

import ast
import dataclasses
import difflib
import inspect
import sys
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from types import ModuleType
from typing import TYPE_CHECKING, Any

from autointerp.cli.doctor import printable
from autointerp.errors import UserError

if TYPE_CHECKING:
    from rich.console import Console

    from sae.registry import Registry

ALL = "(all)"
"""Stands where the name of a member would, above what all of them share."""

NARROW = 72
"""Columns. A table of four columns is unreadable below; entries are then stacked."""

WINDOWS = {
    "explain": "windows to explain from",
    "score": "activating and other windows",
    "prompts": "contexts up to the latent's first activation",
}
"""What `WINDOWS` of a scorer means."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One row: cells by column, and the options that are listed under it as (name, default, meaning)."""

    cells: dict[str, str]
    options: list[tuple[str, str, str]] = field(default_factory=list)


def print_list(kind: str, console: Console | None = None) -> None:
    """Print what is registered under `kind`.

    Raises:
        UserError: there is no such kind, or two plugins claim one name.
    """
    if kind not in KINDS:
        close = difflib.get_close_matches(kind, KINDS, n=1)
        hint = f"; did you mean '{close[0]}'?" if close else ""
        raise UserError(f"nothing of the kind '{kind}' is listed{hint} (known: {', '.join(KINDS)})")
    entries = KINDS[kind]()
    if console is None:
        from rich.console import Console

        console = Console()
    if console.is_terminal and console.width >= NARROW:
        _table(entries, console)
    else:
        # Pipes get one line per entry, whatever its length; narrow terminals get it folded.
        _plain(entries, console.width if console.is_terminal else None)


def saes() -> list[Entry]:
    from autointerp.registries import SAES
    from sae.base import SAEConfig

    shared = config_fields(SAEConfig)

    def own(module: ModuleType) -> list[tuple[str, str, str]]:
        """Fields that only this architecture has, and those whose default it changes."""
        defaults = {(name, default) for name, default, _ in shared}
        return [option for option in config_fields(getattr(module, "Config", None)) if option[:2] not in defaults]

    every = Entry(
        cells={"name": ALL, "what": "What every architecture takes, unless it says otherwise."}, options=shared
    )
    return [every, *_members(SAES, lambda module: {}, own)]


def scorers() -> list[Entry]:
    from autointerp.registries import SCORERS

    def cells(module: ModuleType) -> dict[str, str]:
        windows = str(module.WINDOWS)
        return {"version": str(module.VERSION), "needs": _needs(module), "windows": WINDOWS.get(windows, windows)}

    return _members(SCORERS, cells)


def explainers() -> list[Entry]:
    from autointerp.registries import EXPLAINERS

    return _members(EXPLAINERS, lambda module: {"needs": _needs(module)})


def clients() -> list[Entry]:
    from autointerp.registries import CLIENTS

    return _members(CLIENTS, lambda module: {})


def formats() -> list[Entry]:
    from sae.files import FORMATS

    def cells(module: ModuleType) -> dict[str, str]:
        return {"looks for": str(module.LOOKS_FOR), "can": "read, write" if hasattr(module, "write") else "read"}

    return _members(FORMATS, cells)


def prompts() -> list[Entry]:
    from prompts.render import names, sha

    return [Entry(cells={"name": name, "sha": sha(name)}) for name in names()]


KINDS: dict[str, Callable[[], list[Entry]]] = {
    "saes": saes, "scorers": scorers, "explainers": explainers, "prompts": prompts, "clients": clients,
    "formats": formats,
}  # fmt: skip


def _members(
    registry: Registry,
    cells: Callable[[ModuleType], Mapping[str, str]],
    options: Callable[[ModuleType], list[tuple[str, str, str]]] = lambda module: [],
) -> list[Entry]:
    from sae.registry import UnknownName

    try:
        names = registry.names
    except UnknownName as error:
        raise UserError(str(error)) from error
    entries = []
    for name in names:
        try:
            module = registry[name]
            what = registry.describe(name) or "(no description)"
            entries.append(Entry(cells={"name": name, **cells(module), "what": what}, options=options(module)))
        except (Exception, SystemExit) as error:  # a plugin may fail in any way, even end the program
            message = printable(str(error)) or "no message"
            entries.append(Entry(cells={"name": name, "what": f"CANNOT BE USED: {type(error).__name__}: {message}"}))
    return entries


def _needs(module: ModuleType) -> str:
    """Request kinds, e.g. `Likelihood, Steer`."""
    return ", ".join(sorted(kind.__name__ for kind in module.NEEDS)) or "nothing"


def config_fields(config: Any) -> list[tuple[str, str, str]]:
    """Name, default and docstring of each field of a dataclass, inherited ones included."""
    if not (inspect.isclass(config) and dataclasses.is_dataclass(config)):
        return []
    docs: dict[str, str] = {}
    for base in reversed(config.__mro__):
        docs |= _field_docs(base)
    return [(f.name, _default(f), docs.get(f.name, "")) for f in dataclasses.fields(config)]


def _default(f: dataclasses.Field[Any]) -> str:
    if f.default is not dataclasses.MISSING:
        return f"{f.default:.4g}" if isinstance(f.default, float) else repr(f.default)
    return repr(f.default_factory()) if f.default_factory is not dataclasses.MISSING else "required"


def _field_docs(base: type) -> dict[str, str]:
    """The string below each field. Python does not keep it, so it is read from the source where there is one."""
    try:
        (definition,) = ast.parse(textwrap.dedent(inspect.getsource(base))).body
    except (OSError, TypeError, SyntaxError, ValueError):
        return {}
    found = {}
    body = definition.body if isinstance(definition, ast.ClassDef) else []
    for line, below in pairwise(body):
        if not (isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name)):
            continue
        if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant) and isinstance(below.value.value, str):
            found[line.target.id] = " ".join(below.value.value.split())
    return found


def _columns(entries: Sequence[Entry]) -> list[str]:
    """Every column once; those of broken members are fewer, so the first entry alone does not tell."""
    names = dict.fromkeys(name for entry in entries for name in entry.cells)
    what = [name for name in names if name == "what"]
    return [name for name in names if name != "what"] + what


def _table(entries: Sequence[Entry], console: Console) -> None:
    from rich.table import Table
    from rich.text import Text

    columns = _columns(entries)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in columns:
        table.add_column(name, overflow="fold", no_wrap=name == "name")
    for entry in entries:
        table.add_row(*(Text(printable(entry.cells.get(name, ""))) for name in columns))
    console.print(table)
    for entry in entries:
        if not entry.options:
            continue
        table = Table(
            title=Text(f"\nconfig of {printable(entry.cells['name'])}"), title_justify="left", box=None, pad_edge=False,
            header_style="bold",
        )  # fmt: skip
        for name in ("field", "default", "what"):
            table.add_column(name, overflow="fold")
        for option in entry.options:
            table.add_row(*(Text(printable(cell)) for cell in option))
        console.print(table)


def _plain(entries: Sequence[Entry], width: int | None) -> None:
    for entry in entries:
        cells = {name: printable(value) for name, value in entry.cells.items()}
        what = cells.pop("what", "")
        extra = [f"{name}: {value}" for name, value in cells.items() if name != "name"]
        _lines(": ".join(filter(None, [cells["name"], "; ".join(filter(None, [what.rstrip("."), *extra]))])), 0, width)
        for name, default, meaning in entry.options:
            _lines(printable(f"{name} = {default}" if default != "required" else f"{name} (required)")
                   + (f": {printable(meaning)}" if meaning else ""), 2, width)  # fmt: skip


def _lines(text: str, indent: int, width: int | None) -> None:
    lead = " " * indent
    lines = [text] if width is None else textwrap.wrap(text, max(12, width - indent - 2))
    encoding = sys.stdout.encoding or "utf-8"
    for i, line in enumerate(lines):
        shown = lead + ("  " if i else "") + line
        print(shown.encode(encoding, "backslashreplace").decode(encoding))
