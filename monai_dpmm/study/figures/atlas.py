"""The prototypes of a mixture, shown by the patches nearest to them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from monai_dpmm.errors import InputError
from monai_dpmm.study.figures.scenes import Frame, SlicePatches
from monai_dpmm.study.figures.style import PanelSheet, write

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_CONTEXT = 3.5  # patches on each side of the one in the middle

__all__ = ["Atlas", "Example", "atlas_figure"]


class Example(NamedTuple):
    """A patch with what is around it.

    Attributes:
        score: the lower, the nearer to the prototype.
        picture: (H, W) in [0, 1], the patch in the middle.
        patch: its height and width in pixels.
    """

    score: float
    picture: np.ndarray
    patch: tuple[float, float]


class Atlas:
    """The nearest patches of some components, from any number of scans in bounded memory.

    Args:
        components: indices of the components.
        examples: patches kept of each.
        scans: how many will be added; a scan gives at most its share of the examples, each from
            another slice.
    """

    def __init__(self, components: Iterable[int], examples: int, scans: int) -> None:
        self.examples: dict[int, list[Example]] = {int(k): [] for k in components}
        self.count = examples
        self.share = math.ceil(examples / scans)

    def add(self, frame: Frame, slices: Iterable[SlicePatches]) -> None:
        """Take the nearest patches of a scan."""
        found: dict[int, list[Example]] = {k: [] for k in self.examples}
        for patches in slices:
            for k, best in found.items():
                scores = np.where(patches.components == k, patches.scores, np.inf)
                place = np.unravel_index(int(scores.argmin()), scores.shape)
                worst = best[-1].score if len(best) == self.share else math.inf
                if scores[place] < worst:
                    example = _example(frame, patches, (int(place[0]), int(place[1])))
                    found[k] = _nearest([*best, example], self.share)
        for k, best in found.items():
            self.examples[k] = _nearest([*self.examples[k], *best], self.count)


def atlas_figure(atlas: Atlas, weights: np.ndarray, colors: np.ndarray) -> Figure:
    """Prototypes in rows, their nearest patches in columns, the nearest first.

    Args:
        atlas: of the components to show, in this order.
        weights: of all components, (K,).
        colors: of all prototypes, (K, 3), see `monai_dpmm.study.figures.prototype_colors`.

    Raises:
        ValueError: where no patch belongs to any of the components.
    """
    from matplotlib.patches import Rectangle

    shown = {k: examples for k, examples in atlas.examples.items() if examples}
    if not shown:
        raise InputError("atlas must hold patches, got none")
    blocks = 2 if len(shown) > 6 else 1
    rows = math.ceil(len(shown) / blocks)
    sheet = PanelSheet(rows, blocks * (atlas.count + 1), 1.0)
    for number, (k, examples) in enumerate(shown.items()):
        block, row = divmod(number, rows)
        label = sheet.panel(row, block * (atlas.count + 1))
        label.set(xlim=(0, 1), ylim=(0, 1))
        swatch = Rectangle((0.28, 0.55), 0.44, 0.3, facecolor=colors[k], edgecolor="black")
        label.add_patch(swatch)
        write(label, 0.5, 0.38, f"no. {k + 1}", fontsize=6)
        write(label, 0.5, 0.16, f"{100 * weights[k]:.2g} %", fontsize=6, color="#59636e")
        for column, example in enumerate(examples, 1):
            axes = sheet.panel(row, block * (atlas.count + 1) + column)
            axes.imshow(
                example.picture,
                cmap="gray",
                vmin=0,
                vmax=1,
                aspect="auto",
                interpolation="bilinear",
            )
            height, width = example.picture.shape
            h, w = example.patch
            corner = ((width - w) / 2 - 0.5, (height - h) / 2 - 0.5)
            axes.add_patch(Rectangle(corner, w, h, fill=False, edgecolor="#f0a800", linewidth=1))
    sheet.note(
        "Prototypes of the largest weights (below the colour: number and weight) and the patches"
        " nearest to them (outlined), the nearest first."
    )
    return sheet.figure


def _nearest(examples: list[Example], count: int) -> list[Example]:
    return sorted(examples, key=lambda example: example.score)[:count]


def _example(frame: Frame, patches: SlicePatches, place: tuple[int, int]) -> Example:
    """Patch (i, j) in the middle of its surroundings, black beyond the slice, the right way up."""
    cell = [n / g for n, g in zip(patches.pixels.shape, patches.scores.shape, strict=True)]
    reach = [math.ceil(_CONTEXT * side) for side in cell]
    middle = [round((i + 0.5) * side) for i, side in zip(place, cell, strict=True)]
    padded = np.pad(patches.pixels, [(r, r) for r in reach])
    crop = padded[tuple(slice(m, m + 2 * r) for m, r in zip(middle, reach, strict=True))]
    turned = frame.upright(np.zeros((2, 1))).shape == (1, 2)
    patch = (cell[1], cell[0]) if turned else (cell[0], cell[1])
    return Example(float(patches.scores[place]), frame.upright(crop).copy(), patch)
