import matplotlib
import pytest

from monai_dpmm.study.figures.sheet import (
    PALETTE,
    WIDTH,
    PanelSheet,
    new_figure,
    save_figure,
    short,
    write,
)


def test_figures_are_saved_as_pdf_with_letters_and_as_png(tmp_path):
    figure = new_figure(1.0)
    write(figure.add_axes((0, 0, 1, 1)), 0.5, 0.5, "costs $5_$")
    before = matplotlib.rcParams.copy()
    pdf, png = save_figure(figure, tmp_path / "new", "name")
    assert matplotlib.rcParams.copy() == before
    assert [pdf.name, png.name] == ["name.pdf", "name.png"]
    assert b"/FontFile2" in pdf.read_bytes()  # TrueType, which editors can edit
    first = pdf.read_bytes()
    save_figure(figure, tmp_path / "new", "name")
    assert pdf.read_bytes() == first
    assert sorted(p.name for p in pdf.parent.iterdir()) == ["name.pdf", "name.png"]


def test_a_failed_figure_leaves_the_earlier_one(tmp_path, monkeypatch):
    figure = new_figure(1.0)
    save_figure(figure, tmp_path, "name")
    before = (tmp_path / "name.png").read_bytes()

    def fail(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(figure, "savefig", fail)
    with pytest.raises(KeyboardInterrupt):
        save_figure(figure, tmp_path, "name")
    assert (tmp_path / "name.png").read_bytes() == before


def test_panels_of_a_sheet_lie_beside_each_other_within_it():
    sheet = PanelSheet(3, 4, 1.2)
    boxes = [sheet.panel(row, column).get_position() for row in range(3) for column in range(4)]
    assert min(box.x0 for box in boxes) > 0
    assert max(box.x1 for box in boxes) <= 1
    assert max(box.y1 for box in boxes) <= 1
    assert boxes[0].y0 > boxes[4].y1
    assert boxes[1].x0 > boxes[0].x1
    assert sheet.panel(0, 0) is sheet.panel(0, 0)
    assert sheet.figure.get_figwidth() == WIDTH


def test_long_names_keep_their_ends():
    assert short("short") == "short"
    assert short("a" * 30 + "_12", 10) == "…aaaaaa_12"


def test_the_palette_differs_in_lightness_for_the_colour_blind():
    rgb = [[int(color[i : i + 2], 16) for i in (1, 3, 5)] for color in PALETTE]
    assert len({tuple(c) for c in rgb}) == len(PALETTE) == 8
