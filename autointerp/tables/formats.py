"""A table as parquet, CSV, markdown and LaTeX. The first two hold all columns, the others what one reads.

Names of models, folders and SAEs are anybody's text: in markdown and LaTeX it is shown, and never obeyed.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from autointerp.files import replacing, write_text
from autointerp.tables.parts import clean

NULL = "–"


@dataclass(frozen=True)
class Column:
    """A column to read: `header`, and the columns of the frame that it is made of, value first, then two bounds."""

    header: str
    parts: tuple[str, ...]
    show: Callable[[Any], str] | None = None
    """How a value is written; default: by its type."""

    @property
    def number(self) -> bool:
        return self.show is not text


def text(value: Any) -> str:
    return NULL if missing(value) else str(value)


def share(value: Any) -> str:
    return NULL if missing(value) else f"{100 * value:.1f}%"


def probability(value: Any) -> str:
    return NULL if missing(value) else f"{value:.4f}" if value >= 0.0001 else "<0.0001"


def price(value: Any) -> str:
    return NULL if missing(value) else f"{value:,.4f}"


def missing(value: Any) -> bool:
    return value is None or value is pd.NA or (isinstance(value, float) and math.isnan(value))


def shown(value: Any) -> str:
    """A number with three decimals; whole ones whole."""
    if missing(value):
        return NULL
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if float(value).is_integer():
        return f"{int(value):,}"
    # What would read as 0 and is not.
    return f"{value:.1g}" if abs(value) < 0.0005 else f"{value:,.3f}"


def readable(frame: pd.DataFrame, columns: Sequence[Column]) -> list[list[str]]:
    """Cells of the columns, all text: a value with bounds is `0.645 [0.604, 0.690]`."""
    rows = []
    for record in frame.to_dict("records"):
        cells = []
        for column in columns:
            values = [record.get(part) for part in column.parts]
            one = [(column.show or shown)(value) for value in values]
            bounds = len(one) == 3 and not any(missing(value) for value in values)
            cells.append(f"{one[0]} [{one[1]}, {one[2]}]" if bounds else one[0])
        rows.append(cells)
    return rows


def markdown(frame: pd.DataFrame, columns: Sequence[Column]) -> str:
    head = [plain_markdown(column.header) for column in columns]
    rule = ["---:" if column.number else "---" for column in columns]
    body = [[plain_markdown(cell) for cell in row] for row in readable(frame, columns)]
    return "".join(f"| {' | '.join(row)} |\n" for row in [head, rule, *body])


def latex(frame: pd.DataFrame, columns: Sequence[Column], caption: str) -> str:
    """A `tabular` with the rules of booktabs; the caption is a comment, for it has its own place in a paper."""
    aligned = "".join("r" if column.number else "l" for column in columns)
    rows = [" & ".join(plain_latex(cell) for cell in row) + r" \\" for row in readable(frame, columns)]
    head = " & ".join(plain_latex(column.header) for column in columns) + r" \\"
    told = " ".join(caption.split())
    lines = [
        f"% {told}", r"% \usepackage{booktabs}", rf"\begin{{tabular}}{{{aligned}}}", r"\toprule", head, r"\midrule",
        *rows, r"\bottomrule", r"\end{tabular}",
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def write(folder: Path, name: str, frame: pd.DataFrame, columns: Sequence[Column], caption: str) -> list[Path]:
    """`name`.parquet, .csv, .md and .tex; the paths."""
    paths = [folder / f"{name}.{ending}" for ending in ("parquet", "csv", "md", "tex")]
    tidy = _tidy(frame)
    with replacing(paths[0]) as temporary:
        pq.write_table(pa.Table.from_pandas(tidy, preserve_index=False), temporary, compression="zstd")
    write_text(paths[1], tidy.to_csv(index=False))
    write_text(paths[2], markdown(frame, columns))
    write_text(paths[3], latex(frame, columns, caption))
    return paths


def _tidy(frame: pd.DataFrame) -> pd.DataFrame:
    """Columns of one type each, and text that UTF-8 can hold."""
    columns: dict[str, Any] = {}
    for name in frame.columns:
        column = frame[name]
        if column.dtype == object:
            kept = [value for value in column if not missing(value)]
            whole = all(isinstance(value, int | float) and not isinstance(value, bool) for value in kept)
            if whole and kept:
                column = column.map(lambda value: math.nan if missing(value) else float(value)).astype(float)
            else:
                cells = [None if missing(value) else clean({"cell": str(value)})["cell"] for value in column]
                column = pd.Series(cells, index=frame.index, dtype="string")
        columns[str(name)] = column
    return pd.DataFrame(columns)


MARKDOWN = re.compile(r"[\\`*|$~]|^#|!(?=\[)|\](?=[(\[:])|(?<![^\W_])_|_(?![^\W_])")
"""What would be markup where it stands: underscores between letters and plain brackets are none."""
ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}
LATEX: Mapping[str, str] = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "_": r"\_", "%": r"\%",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", '"': r"\textquotedbl{}", "`": r"\textasciigrave{}", "–": "--", "±": r"$\pm$",
}  # fmt: skip
NEGATIVE = re.compile(r"(?<![\w.-])-(?=[\d.])")


def plain_markdown(cell: str) -> str:
    line = MARKDOWN.sub(lambda found: "\\" + found.group(), _line(cell))
    return "".join(ENTITIES.get(character, character) for character in line)


def plain_latex(cell: str) -> str:
    line = NEGATIVE.sub("\u2212", _line(cell))
    return "".join("$-$" if character == "\u2212" else LATEX.get(character, character) for character in line)


def _line(cell: str) -> str:
    """One line without control characters."""
    line = " ".join(cell.split())
    return "".join(c if c.isprintable() else "\ufffd" for c in line)
