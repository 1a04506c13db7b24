"""Tables as LaTeX: booktabs, numbers under their decimal points, never wider than the text."""

from __future__ import annotations

import re
from collections.abc import Sequence

from monai_dpmm.study.tables import Table

PREAMBLE = r"""% needs \usepackage{booktabs,graphicx,rotating}
\ifdefined\tableofnumbers\else\newsavebox{\tableofnumbers}\fi

"""
_NUMBER = re.compile(r"(?<![\d.])([+-]?)(\d[\d,]*)(\.\d+)?")
_BETWEEN = re.compile(r"[\s()-]*|\s*to\s*")  # what may stand beside the numbers of a cell
_NUMBERED = re.compile(r"^Table \d+: ")
_REFERENCE = re.compile(r"Table (\d+)")
_ESCAPED = str.maketrans(
    {c: rf"\{c}" for c in "&%$#_{}"}
    | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    | {"<": r"\textless{}", ">": r"\textgreater{}"}
)

__all__ = ["PREAMBLE", "as_latex"]


def as_latex(table: Table) -> str:
    r"""A float with caption, label and notes below, whose columns of numbers are aligned.

    Each number of a cell is filled up to the widest of its column by `\phantom`, so that ranges and
    thousands stand below each other, too, without a package for it. A table that is wider than the
    text is turned (`sidewaystable*` for `table*`), and scaled down where the page is not high
    enough, which LaTeX finds out by its own class and fonts. The number of a table is LaTeX's: one
    in the title goes, one in the notes becomes a reference.
    """
    columns = [_column([row[i] for row in table.rows]) for i in range(len(table.columns))]
    heads = [
        rf"\multicolumn{{1}}{{c}}{{{_escaped(head)}}}" if numbers else _escaped(head)
        for head, (_, numbers) in zip(table.columns, columns, strict=True)
    ]
    rows = zip(*(cells for cells, _ in columns), strict=True)
    title = _escaped(_NUMBERED.sub("", table.title))
    lines = [
        r"\begin{lrbox}{\tableofnumbers}\footnotesize\setlength{\tabcolsep}{4pt}%",
        rf"\begin{{tabular}}{{@{{}}{'l' * len(columns)}@{{}}}}",
        r"\toprule",
        *(" & ".join(heads) + r" \\", r"\midrule"),
        *(" & ".join(row) + r" \\" for row in rows),
        *(r"\bottomrule", r"\end{tabular}\end{lrbox}%"),
        r"\edef\kindoftable{\ifdim\wd\tableofnumbers>\textwidth sidewaystable*\else table*\fi}%",
        r"\expandafter\begin\expandafter{\kindoftable}",
        r"\centering",
        *(rf"\caption{{{title[:1].upper()}{title[1:]}}}", rf"\label{{tab:{table.name}}}"),
        r"\smallskip",
        r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}"
        r"{\usebox{\tableofnumbers}}",
        *_note(table.note),
        r"\expandafter\end\expandafter{\kindoftable}",
    ]
    return "\n".join(lines)


def _column(cells: Sequence[str]) -> tuple[list[str], bool]:
    """Cells of a column in LaTeX, and whether they are numbers: those are filled up."""
    numbers = [list(_NUMBER.finditer(cell)) for cell in cells]
    there = [cell for cell in cells if cell.strip(" -")]
    if not there or not all(map(_is_numbers, there)):
        return ["--" if cell == "-" else _escaped(cell) for cell in cells], False
    filled = []
    for cell, own in zip(cells, numbers, strict=True):
        text, end = "", 0
        for slot, number in enumerate(own):
            others = [of[slot].groups() for of in numbers if len(of) > slot]
            text += _between(cell[end : number.start()]) + _filled(number, others)
            end = number.end()
        filled.append(text + _between(cell[end:]))
    return filled, True


def _is_numbers(cell: str) -> bool:
    parts = _NUMBER.sub("\0", cell).split("\0")
    return len(parts) > 1 and all(_BETWEEN.fullmatch(part) for part in parts)


def _filled(number: re.Match[str], others: Sequence[tuple[str, ...]]) -> str:
    """A number filled up before its decimal point to the longest of its place in the column."""
    sign, whole, fraction = number[1], number[2], number[3] or ""
    longest = max((whole for _, whole, *_ in others), key=len)
    signed = any(sign for sign, *_ in others)
    missing = longest[: len(longest) - len(whole)]
    before = rf"\phantom{{{missing}}}" if missing else ""
    before += f"${sign}$" if sign else r"\phantom{$-$}" * signed
    return f"{before}{whole}{fraction}"


def _between(text: str) -> str:
    """What stands between numbers: a dash between them is long."""
    return text.replace("-", "--")


def _escaped(text: str) -> str:
    return text.translate(_ESCAPED)


def _note(note: str) -> list[str]:
    if not note:
        return []
    text = _REFERENCE.sub(r"Table~\\ref{tab:table\1}", _escaped(note))
    return [
        r"\par\smallskip",
        rf"\parbox{{\linewidth}}{{\footnotesize\raggedright {text}}}",
    ]
