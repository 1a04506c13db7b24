"""The same cells on screen, in Markdown, LaTeX and CSV."""

import csv
import json
import math

import pytest

from monai_dpmm.study.paper_tables import write_tables
from monai_dpmm.study.tables import (
    Table,
    as_csv,
    as_markdown,
    as_text,
    spread,
)

TABLE = Table("one", "Costs & gains", ("method", "100 %"), [["a_b", "1"], ["c, d", "2"]], "Note.")


def test_text():
    lines = as_text(TABLE).splitlines()
    assert lines[0] == "Costs & gains"
    assert [line.split() for line in lines[4:6]] == [["a_b", "1"], ["c,", "d", "2"]]
    assert lines[-1] == "Note."


def test_markdown():
    lines = as_markdown(TABLE).splitlines()
    assert lines[0] == "## Costs & gains"
    assert [c.strip() for c in lines[2].split("|")[1:-1]] == ["method", "100 %"]
    assert [c.strip() for c in lines[5].split("|")[1:-1]] == ["c, d", "2"]


def test_csv_reads_back():
    read = list(csv.reader(as_csv(TABLE.columns, TABLE.rows).splitlines()))
    assert read == [list(TABLE.columns), *TABLE.rows]


@pytest.mark.parametrize(
    ("values", "options", "text"),
    [
        ([1.0, 2.0, 1.5], {}, "1.50 (1.00-2.00)"),
        ([0.98765], {"scale": 100}, "98.77"),
        ([3.2, 3.4], {"digits": 0}, "3 (3-3)"),
        ([math.nan, 1.0], {}, "-"),
    ],
)
def test_spread(values, options, text):
    assert spread(values, **options) == text


def test_files(tmp_path):
    records = [{"method": "a", "auroc": 0.5}, {"method": "b", "auroc": math.nan}]
    tables = [TABLE, TABLE._replace(name="two")]
    write_tables(tmp_path / "new", tables, records, {"trials": records})
    names = {path.name for path in (tmp_path / "new").iterdir()}
    expected = {"tables.md", "tables.tex", "one.csv", "two.csv", "runs.csv", "comparison.json"}
    assert names == expected
    result = json.loads((tmp_path / "new" / "comparison.json").read_text())
    assert result["trials"][1]["auroc"] is None
    assert (tmp_path / "new" / "runs.csv").read_text() == "method,auroc\na,0.5\nb,nan\n"
    assert (tmp_path / "new" / "tables.md").read_text().count("## Costs") == 2
