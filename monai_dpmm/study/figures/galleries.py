"""Figures of many scans: prototypes over anatomy, and results from the best to the worst."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from monai_dpmm.errors import InputError
from monai_dpmm.report.display import Scan, displayed_slice, heat_range
from monai_dpmm.report.panels import (
    LABEL,
    PREDICTED,
    HeatScale,
    draw_contour,
    draw_heat,
    draw_slice,
)
from monai_dpmm.study.figures.sheet import PanelSheet, short, write

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_GREY = (0.0, 1.0)
_HEIGHTS = (0.35, 0.5, 0.65)  # of the slices that hold anything
_LINE = 0.9  # points
_ROWS = ("scan", "heat map", "mask")

__all__ = ["Case", "case_figure", "component_figure"]


class Case(NamedTuple):
    """A scan of one slice under two lines of text: which it is, and how well it was found."""

    title: str
    quality: str
    scan: Scan


def component_figure(scans: Sequence[tuple[str, Scan]], colors: np.ndarray) -> Figure:
    """Slices of several scans beside the prototypes of their patches, the paper's Fig. 2.

    Args:
        scans: names and scans with component maps; a volume fills a row, of pictures there are
            three in a row.
        colors: of the prototypes, (K, 3); a colour is the same prototype in all panels.

    Raises:
        ValueError: for no scans.
    """
    if not scans:
        raise InputError("scans must not be empty, got none")
    flat = any(scan.image.shape[scan.axis] < 3 for _, scan in scans)
    heights = _HEIGHTS[1:2] if flat else _HEIGHTS
    tiles = [(name, scan, i) for name, scan in scans for i in _slices(scan, heights)]
    rows = -(-len(tiles) // len(_HEIGHTS))
    sheet = PanelSheet(rows, 2 * len(_HEIGHTS), _shape([scan for _, scan in scans]))
    for number, (name, scan, index) in enumerate(tiles):
        row, column = divmod(number, len(_HEIGHTS))
        panels = [sheet.panel(row, 2 * column + side) for side in (0, 1)]
        draw_slice(panels[0], scan, index, _GREY, describe=number == 0, points=6)
        _draw_prototypes(panels[1], scan, index, colors)
        for axes in panels:
            _outline(axes, scan, index, "label")
        if flat:
            write(panels[1], 0.5, 0.04, short(name), color="white", fontsize=6)
        elif column == 0:
            sheet.name_row(row, short(name))
    sheet.note(
        "Each patch in the colour of its prototype, the same in all panels; similar colours are"
        " similar prototypes. Blue: lesion of the label."
    )
    return sheet.figure


def case_figure(cases: Sequence[Case], threshold: float) -> Figure:
    """Slice, scores and mask of cases, a column each, in the order that they are given in.

    Raises:
        InputError: for no cases.
    """
    if not cases:
        raise InputError("cases must not be empty, got none")
    scans = [case.scan for case in cases]
    ranges = [heat_range(scan.anomaly, threshold) for scan in scans]
    scale = HeatScale(min(r[0] for r in ranges), max(r[1] for r in ranges), threshold, False)
    sheet = PanelSheet(len(_ROWS), len(cases), _shape(scans), head=0.36, foot=0.55)
    for column, (title, quality, scan) in enumerate(cases):
        axes = [sheet.panel(row, column) for row in range(len(_ROWS))]
        draw_slice(axes[0], scan, 0, _GREY, describe=column == 0, points=6)
        draw_heat(axes[1], scan, 0, _GREY, scale)
        draw_slice(axes[2], scan, 0, _GREY)
        _outline(axes[0], scan, 0, "label")
        for name in ("mask", "label"):
            _outline(axes[2], scan, 0, name)
        for text, inches in ((title, 0.19), (quality, 0.07)):
            write(axes[0], 0.5, 1 + inches / sheet.height, text, fontsize=6)
    for row, name in enumerate(_ROWS):
        sheet.name_row(row, name)
    _draw_color_bar(sheet, scale)
    sheet.note(
        "Dashed blue: lesion of the label. Solid orange: mask. AUPR, Dice: of the whole scan."
    )
    return sheet.figure


def _shape(scans: Sequence[Scan]) -> float:
    """Height by width of a panel that any of the scans fits into."""
    return max(height for _, height in (scan.extent for scan in scans)) / max(
        width for width, _ in (scan.extent for scan in scans)
    )


def _draw_color_bar(sheet: PanelSheet, scale: HeatScale) -> None:
    """Colours of what is above the threshold; below it the slice is bare."""
    axes = sheet.place(4.8, 0.36, 1.9, 0.09)
    ramp = scale.colors(np.linspace(0, 1, 256))[None]
    ends = (scale.start, max(scale.high, scale.start + 1e-6))  # alike where nothing is marked
    axes.imshow(ramp, extent=(*ends, 0, 1), aspect="auto", interpolation="bilinear")
    axes.set(yticks=[], xticks=ends)
    axes.set_xticklabels([f"mask threshold {scale.start:.3g}", f"{scale.high:.2g}"])
    axes.get_xticklabels()[0].set_horizontalalignment("left")
    axes.tick_params(labelsize=6, length=2)


def _slices(scan: Scan, heights: Sequence[float]) -> list[int]:
    """Slices at heights between the first and the last that hold patches."""
    assert scan.components is not None
    planes = np.moveaxis(scan.components, scan.axis, 0).reshape(scan.image.shape[scan.axis], -1)
    there = np.flatnonzero((planes > 0).any(1))
    first, last = (there[0], there[-1]) if len(there) else (0, len(planes) - 1)
    return [round(first + height * (last - first)) for height in heights]


def _draw_prototypes(axes: Axes, scan: Scan, index: int, colors: np.ndarray) -> None:
    assert scan.components is not None
    picture = displayed_slice(scan.components, scan.axis, index).astype(int)
    table = np.concatenate([np.zeros((1, 3)), colors])
    width, height = scan.extent
    axes.imshow(
        table[picture], extent=(0, width, height, 0), origin="upper", interpolation="nearest"
    )
    axes.autoscale(False)


def _outline(axes: Axes, scan: Scan, index: int, name: str) -> None:
    volume, color = (scan.label, LABEL) if name == "label" else (scan.mask, PREDICTED)
    area = None if volume is None else displayed_slice(volume, scan.axis, index) > 0
    if area is not None and area.any():
        draw_contour(axes, area, scan.extent, color, name, _LINE)
