"""How figures for a publication look: sizes, colours that the colour-blind tell apart, files."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from monai_dpmm.files import atomic_write
from monai_dpmm.report.panels import FONT
from monai_dpmm.report.scan_figure import require_matplotlib

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 7.0  # inches, two columns of a page
PALETTE = (  # Okabe and Ito's, without the yellow, which is faint on paper
    *("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#7f7f7f"),
)
HEALTHY, LESION = PALETTE[0], PALETTE[1]
SMALL = 7.0  # points
_MARGIN, _GAP = 0.2, 0.04  # inches on the left, for the names of rows, and between panels
_FORMATS = {"pdf": {"CreationDate": None}, "png": {}}

__all__ = [
    *("LESION", "HEALTHY", "PALETTE", "SMALL", "WIDTH", "PanelSheet", "new_figure"),
    *("save_figure", "short", "style_axes", "write"),
]


def new_figure(height: float, width: float = WIDTH) -> Figure:
    """White figure of a size in inches, without pyplot.

    Raises:
        ImportError: without matplotlib.
    """
    require_matplotlib()
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=200, facecolor="white")


def style_axes(axes: Axes, title: str, x: str, y: str) -> None:
    """Title, names of the axes, and nothing that is not needed."""
    axes.set_title(title, loc="left", fontsize=8.5, fontweight="bold", fontfamily=FONT)
    axes.set_xlabel(x, fontsize=7.5, fontfamily=FONT)
    axes.set_ylabel(y, fontsize=7.5, fontfamily=FONT)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=SMALL, labelfontfamily=FONT)
    axes.grid(color="#e3e6ea", linewidth=0.5)
    axes.set_axisbelow(True)


def write(axes: Axes, x: float, y: float, text: str, **style: Any) -> None:
    """Small text at a place in fractions of the axes; names of files may hold dollars."""
    base = {"fontsize": SMALL, "ha": "center", "va": "center", "fontfamily": FONT}
    plain: dict[str, Any] = {"parse_math": False, "usetex": False, "transform": axes.transAxes}
    axes.text(x, y, text, **{**base, **style, **plain})


def short(name: str, letters: int = 24) -> str:
    """A name of at most so many letters, its end kept, which tells files apart."""
    return name if len(name) <= letters else f"…{name[1 - letters :]}"


class PanelSheet:
    """White sheet of panels of one size, as wide as a page; lengths in inches.

    Args:
        rows: of panels.
        columns: of panels.
        shape: height of a panel by its width.
        head: above the panels.
        foot: below them.
    """

    def __init__(
        self, rows: int, columns: int, shape: float, *, head: float = 0.06, foot: float = 0.3
    ) -> None:
        self.side = (WIDTH - _MARGIN - 0.03) / columns - _GAP
        self.height = self.side * min(max(shape, 0.4), 1.6)
        self.rows, self.foot = rows, foot
        self.figure = new_figure(head + foot + rows * (self.height + _GAP))
        self._panels: dict[tuple[int, int], Axes] = {}

    def panel(self, row: int, column: int) -> Axes:
        """Axes of a panel, the same ones each time."""
        if (row, column) not in self._panels:
            x = _MARGIN + column * (self.side + _GAP)
            y = self.foot + (self.rows - 1 - row) * (self.height + _GAP)
            self._panels[row, column] = self.place(x, y, self.side, self.height)
            self._panels[row, column].set_axis_off()
        return self._panels[row, column]

    def place(self, x: float, y: float, width: float, height: float) -> Axes:
        """Axes at a place in inches from the lower left corner."""
        w, h = self.figure.get_size_inches()
        return self.figure.add_axes((x / w, y / h, width / w, height / h))

    def name_row(self, row: int, name: str) -> None:
        """A name beside the first panel of a row."""
        write(self.panel(row, 0), -0.09 / self.side, 0.5, name, rotation=90)

    def note(self, text: str) -> None:
        """A line at the foot."""
        h = self.figure.get_figheight()
        x, y = _MARGIN / WIDTH, 0.12 / h
        self.figure.text(x, y, text, fontsize=6.5, va="center", fontfamily=FONT, color="#333a42")


def save_figure(figure: Figure, folder: str | Path, name: str) -> list[Path]:
    """Paths of a figure as PDF, with letters as letters, and as PNG."""
    from matplotlib import rc_context

    paths = []
    Path(folder).mkdir(parents=True, exist_ok=True)
    for suffix, metadata in _FORMATS.items():
        path = Path(folder) / f"{name}.{suffix}"
        letters = rc_context({"pdf.fonttype": 42})
        with atomic_write(path) as partial, warnings.catch_warnings(), letters:
            warnings.filterwarnings("ignore", "Glyph .* missing from font")
            figure.savefig(partial, format=suffix, metadata=metadata)
        paths.append(path)
    return paths
