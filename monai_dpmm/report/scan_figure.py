"""Figure of one subject, drawn by matplotlib objects alone: no pyplot, no global state."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from monai_dpmm.errors import InputError, MissingPackageError
from monai_dpmm.report.display import (
    PLANES,
    Scan,
    fullest_slice,
    grey_range,
    heat_range,
    peak_slices,
)
from monai_dpmm.report.panels import (
    BACK,
    FONT,
    INK,
    LABEL,
    MUTED,
    PREDICTED,
    HeatScale,
    draw_components,
    draw_heat,
    draw_mask,
    draw_slice,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_PANEL, _GAP, _LEFT, _HEAD, _FOOT = 2.5, 0.07, 0.34, 0.74, 0.62  # inches

__all__ = ["heat_scale", "require_matplotlib", "subject_figure"]


def subject_figure(
    image: np.ndarray,
    anomaly: np.ndarray,
    *,
    mask: np.ndarray | None = None,
    components: np.ndarray | None = None,
    label: np.ndarray | None = None,
    threshold: float | None = None,
    axis: int = 2,
    index: int | None = None,
    slices: int = 1,
    spacing: Sequence[float] = (1, 1, 1),
    heat: tuple[float, float] | None = None,
    component_colors: np.ndarray | None = None,
    title: str = "",
) -> Figure:
    """Figure of one subject: slice | heat overlay | mask contours | component map, a row a slice.

    Arrays are (X, Y, Z) with axes towards Right, Anterior, Superior, all of one shape, or
    (X, Y, 1); they are shown in radiological convention. A 2D array (X, Y) is a picture without
    directions: first axis to the right, second axis down. The panels of what is None are left out.
    The slice is the one with the largest mask; without a mask, the one whose highest 1 %
    of scores have the largest mean, see `peak_slices`. Where it hardly shows the label, a row with
    the label's largest slice follows.

    Args:
        image: intensities, any units.
        anomaly: scores, larger is more anomalous; NaN is left transparent.
        mask: the prediction, solid contour where above 0.
        components: number (from 1) of the mixture component of each voxel, 0 for none.
        label: the reference, dashed contour where above 0; it has no say in the first slices.
        threshold: score marked on the colour bar, from which on the overlay is fully opaque.
        axis: spatial axis that the slices are perpendicular to.
        index: slice to show first instead of the highest.
        slices: rows; further ones show the next highest slices that lie well apart.
        spacing: voxel size in mm.
        heat: scores at the ends of the colour scale (default `heat_range`); give the same to
            several figures to compare them.
        component_colors: of all components, (K, 3) in [0, 1], similar ones for similar components;
            None for a colour by number.
        title: first line of the figure.

    Raises:
        ValueError: naming the argument, for arrays of other shapes, without finite values or not
            of real numbers, and for what is out of range.
        ImportError: without matplotlib.
    """
    require_matplotlib()
    scan = Scan.of(image, anomaly, mask, components, label, axis, spacing)
    first = fullest_slice(scan.mask, scan.axis) if index is None else index
    rows = peak_slices(scan.anomaly, scan.axis, slices, first)
    rows += _lesion_row(scan, rows) if index is None else []
    scale = heat_scale(scan.anomaly, heat, threshold)
    sheet = _Sheet(scan, rows)
    sheet.write_head(title)
    grey = grey_range(scan.image)
    for row, place in enumerate(rows):
        draw_slice(sheet.panel("slice", row), scan, place, grey, describe=True)
        draw_heat(sheet.panel("anomaly", row), scan, place, grey, scale)
        if "mask" in sheet.columns:
            draw_mask(sheet.panel("mask", row), scan, place, grey)
        if "components" in sheet.columns:
            draw_components(sheet.panel("components", row), scan, place, component_colors)
    similar = component_colors is not None
    _write_feet(sheet, scan, grey, scale, similar)
    return sheet.figure


def _lesion_row(scan: Scan, rows: Sequence[int]) -> list[int]:
    """The slice of the largest lesion of the label, where no row shows half as much of it."""
    index = fullest_slice(scan.label, scan.axis)
    if index is None or scan.label is None:
        return []
    areas = (scan.label > 0).sum(axis=tuple(i for i in range(3) if i != scan.axis))
    return [] if areas[list(rows)].max() >= areas[index] / 2 else [index]


def require_matplotlib() -> None:
    """Raise an ImportError that says what to install where matplotlib is missing."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise MissingPackageError("figures need matplotlib: pip install matplotlib") from error


def heat_scale(
    anomaly: np.ndarray, heat: tuple[float, float] | None, threshold: float | None
) -> HeatScale:
    """Colour scale of scores: the ends that are given, else `heat_range`.

    Raises:
        ValueError: for a threshold that is not finite, or ends that are not (low, high).
    """
    if threshold is not None and not math.isfinite(threshold):
        raise InputError(f"threshold must be finite, got {threshold}")
    low, high = heat or heat_range(anomaly, threshold)
    if not low < high:
        raise InputError(f"heat must be (low, high) with low < high, got {heat}")
    return HeatScale(low, high, threshold, bool(np.nanmax(anomaly) > high))


class _Sheet:
    """Dark sheet of panels of equal size, its places given in inches."""

    def __init__(self, scan: Scan, rows: Sequence[int]) -> None:
        from matplotlib.figure import Figure

        self.rows = rows
        self.scan = scan
        self.columns = ["slice", "anomaly"]
        self.columns += ["mask"] * (scan.mask is not None or scan.label is not None)
        self.columns += ["components"] * (scan.components is not None)
        self.height = _PANEL * min(max(scan.extent[1] / scan.extent[0], 0.4), 1.4)
        width = _LEFT + len(self.columns) * (_PANEL + _GAP) + 0.05
        size = (width, _HEAD + _FOOT + len(rows) * (self.height + _GAP))
        self.figure: Figure = Figure(
            figsize=size, dpi=125 if len(rows) == 1 else 86, facecolor=BACK
        )

    def place(
        self, x: float, y: float, width: float, height: float
    ) -> tuple[float, float, float, float]:
        """Figure fractions of a box in inches from the lower left corner."""
        w, h = self.figure.get_size_inches()
        return x / w, y / h, width / w, height / h

    def left(self, column: str) -> float:
        """Inches from the left of a column."""
        return _LEFT + self.columns.index(column) * (_PANEL + _GAP)

    def panel(self, column: str, row: int) -> Axes:
        """Axes of one panel in mm, origin in the upper left corner."""
        y = _FOOT + (len(self.rows) - 1 - row) * (self.height + _GAP) + _GAP
        box = self.place(self.left(column), y, _PANEL, self.height)
        axes = self.figure.add_axes(box, label=f"{column} {self.rows[row]}")
        axes.set_axis_off()
        return axes

    def write(self, x: float, y: float, text: str, **style: Any) -> None:
        """Text at a place in inches; file names may hold dollars, so no mathematics is parsed."""
        base = {"color": INK, "fontsize": 8.5, "va": "center", "fontfamily": FONT}
        x, y, _, _ = self.place(x, y, 0, 0)
        self.figure.text(x, y, text, **{**base, **style, "parse_math": False, "usetex": False})

    def write_head(self, title: str) -> None:
        """Title, names of the columns and of the rows."""
        top = self.figure.get_figheight()
        names = {"slice": "Scan", "anomaly": "Anomaly score", "mask": _contours(self.scan)}
        names["components"] = "Prototypes"
        limit = int(10 * len(self.columns) * _PANEL)  # letters of this size that fit
        title = title if len(title) <= limit else f"{title[: limit - 1]}…"
        self.write(_LEFT, top - 0.25, title, fontsize=11, fontweight="bold")
        for column in self.columns:
            self.write(self.left(column), top - 0.60, names[column], color=MUTED)
        plane = PLANES[self.scan.axis] if self.scan.letters else ""
        total = self.scan.anomaly.shape[self.scan.axis]
        for row, index in enumerate(self.rows if plane else ()):
            y = _FOOT + (len(self.rows) - 0.5 - row) * (self.height + _GAP) + _GAP / 2
            text = f"{plane} slice {index}" + f" (0 to {total - 1})" * (total > 1)
            self.write(0.2, y, text, rotation=90, ha="center", color=MUTED)


def _contours(scan: Scan) -> str:
    names = {"mask": scan.mask is not None, "lesion of the label": scan.label is not None}
    return " and ".join(name for name, there in names.items() if there).capitalize()


def _write_feet(
    sheet: _Sheet, scan: Scan, grey: tuple[float, float], scale: HeatScale, similar: bool
) -> None:
    small: dict[str, Any] = {"color": MUTED, "fontsize": 7.5}
    sheet.write(_LEFT, 0.44, f"grey levels {_range(*grey)}", **small)
    if scan.letters:
        sheet.write(_LEFT, 0.26, "radiological convention", **small)
    _draw_color_bar(sheet, scale)
    if "mask" in sheet.columns:
        _draw_key(sheet, scan)
    if "components" in sheet.columns:
        x = sheet.left("components")
        first = "similar colours: similar prototypes," if similar else "one colour per prototype,"
        sheet.write(x, 0.44, first, **small)
        sheet.write(x, 0.26, "the same in every figure", **small)


def _draw_color_bar(sheet: _Sheet, scale: HeatScale) -> None:
    """Colour bar of the heat overlay, empty below the threshold, which is marked above it."""
    from matplotlib.colors import ListedColormap
    from matplotlib.patheffects import withStroke

    left, width = sheet.left("anomaly"), _PANEL - 0.12
    axes = sheet.figure.add_axes(sheet.place(left, 0.30, width, 0.12), label="color bar")
    ramp = np.linspace(0, 1, 256)[None]
    colors = ListedColormap(scale.colors(ramp[0]))
    above = scale.high - scale.start or scale.high - scale.low  # of a map without a finding
    bar_low = max(scale.low, scale.start - 0.3 * above)
    ends = (scale.start, max(scale.high, scale.start + 1e-12), 0, 1)
    axes.imshow(ramp, colors, extent=ends, aspect="auto", interpolation="bilinear")
    axes.set(xticks=[], yticks=[], xlim=(bar_low, scale.high), ylim=(0, 1), facecolor=BACK)
    for spine in axes.spines.values():
        spine.set(color=MUTED, linewidth=0.5)
    small: dict[str, Any] = {"fontsize": 7.5, "color": MUTED}
    low, high = _range(bar_low, scale.high).split(" to ")
    sheet.write(left, 0.18, low, **small)
    sheet.write(left + width, 0.18, "≥ " * scale.clipped + high, ha="right", **small)
    if scale.threshold is not None and bar_low <= scale.threshold <= scale.high:
        line = axes.axvline(scale.threshold, color="white", linewidth=1.6, label="threshold")
        line.set_path_effects([withStroke(linewidth=3.2, foreground="black")])
        x = (scale.threshold - bar_low) / (scale.high - bar_low)
        text = f"mask threshold {scale.threshold:.3g}"
        x = min(max(x * width, 0.45), width - 0.45)
        sheet.write(left + x, 0.52, text, ha="center", fontsize=7.5)


def _range(low: float, high: float) -> str:
    """Two numbers to three digits of their distance: 1e-45 to 0.914 is "0 to 0.914"."""
    digits = 2 - math.floor(math.log10(high - low))
    return " to ".join(f"{round(x, digits) + 0.0:.6g}" for x in (low, high))


def _draw_key(sheet: _Sheet, scan: Scan) -> None:
    """Lines of the contours and their names."""
    from matplotlib.lines import Line2D

    x = sheet.left("mask")
    entries = (("mask", scan.mask, PREDICTED), ("label", scan.label, LABEL))
    for name, volume, color in entries:
        if volume is not None:
            ends = sheet.place(x, 0.44, 0.34, 0)
            places = ([ends[0], ends[0] + ends[2]], [ends[1], ends[1]])
            line = Line2D(*places, color=color, linewidth=1.6, label=name)
            line.set_linestyle("--" if name == "label" else "-")
            sheet.figure.add_artist(line)
            sheet.write(x + 0.42, 0.44, name, fontsize=7.5, color=MUTED)
            x += 1.15
