"""Tables in the terminal: numbers are never cut, and what does not fit side by side is stacked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from autointerp.cli.doctor import printable

if TYPE_CHECKING:
    import pandas as pd
    from rich.console import Console

    from autointerp.tables.formats import Column

GAP = 2
LEAST = 12
"""Narrowest column of text; longer names are folded."""


def print_table(frame: pd.DataFrame, columns: Sequence[Column], title: str, console: Console) -> None:
    """As wide as it needs into a pipe; in a terminal that is too narrow for its numbers, a block for each row."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from autointerp.tables.formats import readable

    cells = [[printable(cell) for cell in row] for row in readable(frame, columns)]
    longest = [
        max([len(column.header), *(len(row[i]) for row in cells)]) for i, column in enumerate(columns)
    ]  # fmt: skip
    least = [size if column.number else min(size, LEAST) for size, column in zip(longest, columns, strict=True)]
    if console.is_terminal and sum(least) + GAP * len(least) > console.width:
        _stacked(cells, columns, title, console)
        return
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    for column, size, floor in zip(columns, longest, least, strict=True):
        table.add_column(
            column.header, justify="right" if column.number else "left", no_wrap=column.number, min_width=floor,
            overflow="fold", max_width=size,
        )  # fmt: skip
    for row in cells:
        table.add_row(*(escape(cell) for cell in row))
    if console.is_terminal:
        console.print(table)
        return
    wide = Console(width=max(len(title), sum(longest) + 3 * len(longest)) + 1, file=console.file)
    wide.print(table)


def _stacked(cells: Sequence[Sequence[str]], columns: Sequence[Column], title: str, console: Console) -> None:
    console.print(title, markup=False, highlight=False, style="italic")
    widest = max(len(column.header) for column in columns)
    for row in cells:
        console.print()
        for column, cell in zip(columns, row, strict=True):
            console.print(f"{column.header:<{widest}}  {cell}", markup=False, highlight=False, overflow="fold")
    console.print()
