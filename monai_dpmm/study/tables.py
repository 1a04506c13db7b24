"""Tables for the screen, Markdown and CSV: the same cells everywhere, also in LaTeX."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

__all__ = [
    *("Table", "as_csv", "as_markdown", "as_text", "csv_cell", "spread"),
]


_NUMBER = re.compile(r"[-+]?[\d.]+(e[-+]?\d+)?|-")


class Table(NamedTuple):
    """A table of texts.

    Attributes:
        name: of its CSV file.
        title: one line.
        columns: headers.
        rows: cells, as many a row as there are columns.
        note: sentences that stand below.
    """

    name: str
    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""


def as_text(table: Table) -> str:
    """Aligned columns for the screen."""
    return "\n".join([table.title, "", _tabulated(table, "simple"), *_note(table.note)])


def as_markdown(table: Table) -> str:
    """A heading, a GitHub table and the note."""
    return "\n".join([f"## {table.title}", "", _tabulated(table, "github"), *_note(table.note)])


def as_csv(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Comma-separated values, quoted where they must be, a line a row."""
    text = io.StringIO()
    lines = ([csv_cell(value) for value in row] for row in [columns, *rows])
    csv.writer(text, lineterminator="\n").writerows(lines)
    return text.getvalue()


def csv_cell(value: Any) -> Any:
    """A value as a spreadsheet may have it: text that it would run as a formula gets an apostrophe.

    Names of files are untrusted.
    """
    runs = isinstance(value, str) and value.startswith(tuple("=+-@\t\r"))
    return f"'{value}" if runs and not _NUMBER.fullmatch(value) else value


def spread(values: Sequence[float], digits: int = 2, scale: float = 1.0) -> str:
    """Mean and, of several values, their range: "1.50 (1.00-2.00)"; "-" where one is NaN."""
    if any(math.isnan(value) for value in values):
        return "-"
    numbers = [scale * value for value in values]
    mean = f"{sum(numbers) / len(numbers):.{digits}f}"
    if len(numbers) == 1:
        return mean
    return f"{mean} ({min(numbers):.{digits}f}-{max(numbers):.{digits}f})"


def _tabulated(table: Table, style: str) -> str:
    from tabulate import tabulate

    rows = [list(row) for row in table.rows]
    return tabulate(rows, list(table.columns), tablefmt=style, disable_numparse=True)


def _note(note: str) -> list[str]:
    return ["", note] if note else []
