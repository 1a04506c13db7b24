"""Tables in LaTeX: what is escaped, how numbers line up, that nothing is wider than the page."""

import re
import shutil
import subprocess

import pytest

from monai_dpmm.study.latex import PREAMBLE, as_latex
from monai_dpmm.study.tables import Table

TABLE = Table("one", "Costs & gains", ("method", "100 %"), [["a_b", "1"], ["c, d", "2"]], "Note.")
RANGES = ["97.25 (97.14-97.37)", "98.00", "4.84 (3.27-6.34)", "-"]
SIGNED = ["-0.6 to +1.9", "-19.3 to -4.1", "", "+0.1 to +12.5"]
COUNTS = ["600", "109,261", "11,009-13,224", "1"]


def cells(column):
    """The column of a table as LaTeX has it."""
    rows = [["m", cell] for cell in column]
    body = as_latex(Table("one", "Title", ("method", "x"), rows))
    body = body.partition("\\midrule\n")[2].partition("\n\\bottomrule")[0]
    return [line.removeprefix("m & ").removesuffix(r" \\") for line in body.splitlines()]


def printed(cell, filling):
    """A cell as it is seen, what only takes room as another letter."""
    cell = re.sub(r"\\phantom\{([^}]*)\}", lambda m: filling * len(m[1].replace("$", "")), cell)
    return cell.replace("$", "").replace("--", "-")


def test_what_means_something_to_latex_is_escaped():
    text = as_latex(TABLE)
    assert r"\caption{Costs \& gains}" in text
    assert r"a\_b" in text
    assert r"100 \%" in text
    odd = as_latex(TABLE._replace(title=r"\input{x} ~^ $5 #1 <>"))
    assert r"\caption{\textbackslash{}input\{x\} \textasciitilde{}\textasciicircum{} \$5" in odd


def test_latex_numbers_the_tables_itself():
    text = as_latex(TABLE._replace(title="Table 3: quality", note="As in Table 1."))
    assert r"\caption{Quality}" in text
    assert r"As in Table~\ref{tab:table1}." in text


@pytest.mark.parametrize("column", [RANGES, SIGNED, COUNTS])
def test_filling_changes_no_number(column):
    assert [printed(cell, "") for cell in cells(column)] == column


@pytest.mark.parametrize("column", [RANGES, SIGNED, COUNTS[:2]])
def test_every_number_of_a_column_has_its_point_in_one_place(column):
    seen = [printed(cell, "_") for cell in cells(column)]
    ends = [[m.end(1) for m in re.finditer(r"(\d[\d,]*)(\.\d+)?", cell)] for cell in seen]
    for slot in range(max(map(len, ends))):
        assert len({own[slot] for own in ends if len(own) > slot}) == 1


def test_words_are_left_as_they_are():
    assert cells(["PatchCore, 10 %", "k-means"]) == [r"PatchCore, 10 \%", "k-means"]


@pytest.mark.parametrize("options", ["", "[twocolumn]"])
def test_no_table_is_wider_than_the_text(options, tmp_path):
    if shutil.which("pdflatex") is None:
        pytest.skip("there is no pdflatex, which sets the tables")
    wide = Table("wide", "Wide", [f"column {i}" for i in range(14)], [RANGES[:1] * 14] * 3, "N.")
    tables = "\n\n".join(map(as_latex, [TABLE, wide, TABLE._replace(name="three")]))
    (tmp_path / "tables.tex").write_text(PREAMBLE + tables)
    (tmp_path / "paper.tex").write_text(
        rf"\documentclass{options}{{article}}"
        r"\usepackage{booktabs,graphicx,rotating}\begin{document}\input{tables}\end{document}"
    )
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "paper.tex"]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout
    assert "Overfull" not in ended.stdout
