"""The prototypes of a mixture, shown by the places of scans that are nearest to them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from monai_dpmm.errors import InputError
from monai_dpmm.report.display import Scan, displayed_slice
from monai_dpmm.report.panels import PREDICTED, draw_contour
from monai_dpmm.study.figures.sheet import PanelSheet, write

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from monai_dpmm.network.detector import AnomalyDetector

_SIDE = 7  # patches, of a picture
_SLICES = 24  # of a scan
_EXAMPLES = 8

__all__ = ["Atlas", "Example", "atlas_figure"]


class Example(NamedTuple):
    """A place that is near to a prototype, with what is around it.

    Attributes:
        score: the lower, the nearer to the prototype.
        picture: (H, W) in [0, 1], the place in the middle, black beyond the slice.
        area: where the prototype is the nearest one, (H, W).
    """

    score: float
    picture: np.ndarray
    area: np.ndarray


class Atlas:
    """The nearest places of some components, from any number of scans in bounded memory.

    Args:
        components: indices of the components.
        network: whose patches they are.
        scans: how many will be added; a scan gives at most its share of the examples, each from
            another slice.
    """

    def __init__(self, components: Iterable[int], network: AnomalyDetector, scans: int) -> None:
        self.examples: dict[int, list[Example]] = {int(k): [] for k in components}
        self.side = _SIDE * network.patch_size / network.image_size
        self.share = math.ceil(_EXAMPLES / scans)

    def add(self, scan: Scan) -> None:
        """Take the nearest places of a scan with component map, outside its lesions."""
        assert scan.components is not None
        components = scan.components if scan.label is None else scan.components * (scan.label == 0)
        slices, half = scan.image.shape[scan.axis], self.side * min(scan.extent) / 2
        found: dict[int, list[Example]] = {k: [] for k in self.examples}
        for index in range(0, slices, max(1, slices // _SLICES)):
            volumes = (scan.image, scan.anomaly, components)
            picture, scores, nearest = (displayed_slice(v, scan.axis, index) for v in volumes)
            for k in np.intersect1d(list(found), nearest - 1).astype(int):
                area = nearest == k + 1
                masked = np.where(area, scores, np.inf)
                place = np.unravel_index(int(masked.argmin()), masked.shape)
                crops = (_around(array, place, half, scan.extent) for array in (picture, area))
                found[k] = _best([*found[k], Example(float(masked[place]), *crops)], self.share)
        for k, examples in found.items():
            self.examples[k] = _best([*self.examples[k], *examples], _EXAMPLES)


def atlas_figure(atlas: Atlas, weights: np.ndarray, colors: np.ndarray) -> Figure:
    """Prototypes in rows, the places nearest to them in columns, the nearest first.

    Args:
        atlas: of the components to show, in this order.
        weights: of all components, (K,).
        colors: of all prototypes, (K, 3), see `monai_dpmm.report.prototype_colors`.

    Raises:
        InputError: where no place belongs to any of the components.
    """
    from matplotlib.patches import Rectangle

    shown = {k: examples for k, examples in atlas.examples.items() if examples}
    if not shown:
        raise InputError("atlas must hold places, got none")
    blocks = 2 if len(shown) > 6 else 1
    rows = math.ceil(len(shown) / blocks)
    sheet = PanelSheet(rows, blocks * (_EXAMPLES + 1), 1.0)
    for number, (k, examples) in enumerate(shown.items()):
        block, row = divmod(number, rows)
        label = sheet.panel(row, block * (_EXAMPLES + 1))
        label.set(xlim=(0, 1), ylim=(0, 1))
        swatch = Rectangle((0.28, 0.55), 0.44, 0.3, facecolor=colors[k], edgecolor="black")
        label.add_patch(swatch)
        write(label, 0.5, 0.38, f"no. {k + 1}", fontsize=6)
        write(label, 0.5, 0.16, f"{100 * weights[k]:.2g} %", fontsize=6, color="#59636e")
        for column, example in enumerate(examples, 1):
            axes = sheet.panel(row, block * (_EXAMPLES + 1) + column)
            style = {"cmap": "gray", "vmin": 0, "vmax": 1, "interpolation": "bilinear"}
            axes.imshow(example.picture, extent=(0, 1, 1, 0), aspect="auto", **style)
            draw_contour(axes, example.area, (1, 1), PREDICTED, "nearest", 0.8)
            axes.set(xlim=(0, 1), ylim=(1, 0))
    sheet.note(
        "Prototypes of the largest weights (number and weight below the colour) where they fit best"
        " outside lesions. Outlined: patches nearest to the prototype."
    )
    return sheet.figure


def _best(examples: list[Example], count: int) -> list[Example]:
    return sorted(examples, key=lambda example: example.score)[:count]


def _around(
    array: np.ndarray, place: tuple[np.intp, ...], half: float, extent: tuple[float, float]
) -> np.ndarray:
    """A square of twice `half` mm around a place of a slice of that extent, 0 beyond the slice."""
    sizes = (extent[1] / array.shape[0], extent[0] / array.shape[1])
    reach = [max(1, round(half / size)) for size in sizes]
    padded = np.pad(array, [(r, r) for r in reach])
    return padded[tuple(slice(p, p + 2 * r + 1) for p, r in zip(place, reach, strict=True))].copy()
