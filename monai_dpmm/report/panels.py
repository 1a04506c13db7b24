"""Panels of a subject's figure: what is drawn over one slice, in mm, on matplotlib axes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from monai_dpmm.report.display import Scan, colored_components, displayed_slice, scale_bar

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BACK, INK, MUTED = "#0e1116", "#f3f5f7", "#b4bcc6"
PREDICTED, LABEL = "#f0a800", "#6cc5ff"  # solid and dashed as well
FONT = "DejaVu Sans"  # ships with matplotlib: the same letters on every machine
HEAT_MAP = "inferno"
HEAT_ALPHA = 0.85

__all__ = [
    "HeatScale",
    "draw_components",
    "draw_contour",
    "draw_heat",
    "draw_mask",
    "draw_slice",
]


class HeatScale(NamedTuple):
    """Colour scale of the scores: clear below the threshold, then from violet to yellow."""

    low: float
    high: float
    threshold: float | None
    clipped: bool

    @property
    def start(self) -> float:
        """Score that the colours begin at: the threshold, else the low end."""
        return self.low if self.threshold is None else min(self.threshold, self.high)

    def alpha(self, scores: np.ndarray) -> np.ndarray:
        """Opacity: none below the threshold; without one, the more the higher the score."""
        if self.threshold is not None:
            return HEAT_ALPHA * (np.nan_to_num(scores, nan=-np.inf) >= self.threshold)
        ramp = (scores - self.low) / (self.high - self.low)
        return HEAT_ALPHA * np.nan_to_num(ramp.clip(0, 1)) ** 2

    def colors(self, shares: np.ndarray) -> np.ndarray:
        """Colours of shares of the way from `start` to `high`: (n,) -> (n, 4) in [0, 1].

        The map's own low end is black, which reads as no overlay.
        """
        from matplotlib import colormaps

        dark = 0.0 if self.threshold is None else 0.3
        return colormaps[HEAT_MAP](dark + (1 - dark) * np.asarray(shares, float))


def draw_slice(
    axes: Axes,
    scan: Scan,
    index: int,
    grey: tuple[float, float],
    *,
    describe: bool = False,
    points: float = 9.5,
) -> None:
    """Grey slice; where described, with the letters of its directions and a scale bar.

    Args:
        axes: to draw on.
        scan: whose slice is drawn.
        index: of the slice.
        grey: intensities shown black and white.
        describe: with letters and scale bar.
        points: size of the letters; a scale bar's are smaller.
    """
    picture = displayed_slice(scan.image, scan.axis, index)
    axes.imshow(
        np.nan_to_num(picture.astype(np.float32), nan=grey[0], posinf=grey[1], neginf=grey[0]),
        cmap="gray",
        vmin=grey[0],
        vmax=grey[1],
        interpolation="bilinear",
        **_placed(scan),
    )
    axes.autoscale(False)
    if describe and scan.letters:
        _write_directions(axes, scan.letters, points)
        _draw_scale_bar(axes, scan.extent, 0.8 * points)


def draw_heat(
    axes: Axes, scan: Scan, index: int, grey: tuple[float, float], scale: HeatScale
) -> None:
    """Slice under its scores, clear below the threshold."""
    from matplotlib.colors import ListedColormap

    draw_slice(axes, scan, index, grey)
    scores = displayed_slice(scan.anomaly, scan.axis, index).astype(np.float32)
    axes.imshow(
        np.nan_to_num(scores, nan=scale.low, posinf=scale.high, neginf=scale.low),
        cmap=ListedColormap(scale.colors(np.linspace(0, 1, 256))),
        vmin=scale.start,
        vmax=max(scale.high, scale.start + 1e-12),
        alpha=scale.alpha(scores),
        interpolation="bilinear",
        **_placed(scan),
    )


def draw_mask(axes: Axes, scan: Scan, index: int, grey: tuple[float, float]) -> None:
    """Slice with the outlines of the prediction and the label, a note where one has none."""
    draw_slice(axes, scan, index, grey)
    notes = []
    outlines = (("mask", scan.mask, PREDICTED), ("label", scan.label, LABEL))
    for name, volume, color in outlines:
        if volume is None:
            continue
        area = displayed_slice(volume, scan.axis, index) > 0
        if area.any():
            draw_contour(axes, area, scan.extent, color, name)
        else:
            notes.append(_whereabouts(name, volume, scan.axis))
    if notes:
        _write_note(axes, "\n".join(notes))


def _placed(scan: Scan) -> dict[str, Any]:
    """Arguments of imshow that put row 0 on top whatever the user's rcParams, in mm."""
    width, height = scan.extent
    return {"extent": (0, width, height, 0), "origin": "upper", "aspect": "equal"}


def _whereabouts(name: str, volume: np.ndarray, axis: int) -> str:
    """Why there is no contour: a lesion elsewhere must not read as no lesion."""
    areas = (volume > 0).sum(axis=tuple(i for i in range(3) if i != axis))
    where = f"largest in slice {int(areas.argmax())}" if areas.any() else "empty in the volume"
    return f"{name}: none here, {where}"


def draw_contour(
    axes: Axes,
    area: np.ndarray,
    extent: tuple[float, float],
    color: str,
    name: str,
    points: float = 1.5,
) -> None:
    """Outline of an area, closed where it touches the border, so many points wide."""
    from matplotlib.patheffects import Normal, Stroke

    steps = [extent[0] / area.shape[1], extent[1] / area.shape[0]]
    x, y = (
        (np.arange(-1, n + 1) + 0.5) * step for n, step in zip(area.shape[::-1], steps, strict=True)
    )
    style = "dashed" if name == "label" else "solid"
    padded = np.pad(area.astype(np.float32), 1)
    lines = axes.contour(x, y, padded, [0.5], colors=[color], linewidths=points, linestyles=[style])
    lines.set_label(name)
    lines.set_path_effects(
        [Stroke(linewidth=points + 1.3, foreground="black", alpha=0.7), Normal()]
    )


def draw_components(axes: Axes, scan: Scan, index: int, colors: np.ndarray | None = None) -> None:
    """Component map of a slice, how many there are noted below."""
    assert scan.components is not None
    picture = displayed_slice(scan.components, scan.axis, index)
    axes.imshow(colored_components(picture, colors), interpolation="nearest", **_placed(scan))
    found = np.unique(picture[picture >= 1]).size
    _write_note(axes, f"{found} prototype{'s' * (found != 1)} in this slice")


def _write(axes: Axes, x: float, y: float, text: str, **style: Any) -> None:
    """Text over an image, outlined so that it reads on black and on white."""
    from matplotlib.patheffects import withStroke

    base = {"ha": "center", "va": "center", "color": "white", "fontfamily": FONT, "usetex": False}
    effects = [withStroke(linewidth=2.2, foreground="black")]
    axes.text(x, y, text, transform=axes.transAxes, path_effects=effects, **{**base, **style})


def _write_note(axes: Axes, text: str) -> None:
    """Small text at the bottom of a panel, on its own dark ground."""
    ground = {"facecolor": BACK, "alpha": 0.82, "edgecolor": "none", "boxstyle": "round,pad=0.3"}
    style: dict[str, Any] = {"color": INK, "fontsize": 7.5, "fontfamily": FONT, "bbox": ground}
    style["usetex"] = False
    axes.text(0.5, 0.03, text, ha="center", va="bottom", transform=axes.transAxes, **style)


def _write_directions(axes: Axes, letters: str, points: float) -> None:
    places = ((0.04, 0.5), (0.96, 0.5), (0.5, 0.955), (0.5, 0.045))
    for letter, (x, y) in zip(letters, places, strict=True):
        _write(axes, x, y, letter, fontsize=points, fontweight="bold")


def _draw_scale_bar(axes: Axes, extent: tuple[float, float], points: float) -> None:
    from matplotlib.patheffects import withStroke

    length, (width, height) = scale_bar(extent[0]), extent
    x, y = 0.03 * width, 0.965 * height
    outline = [withStroke(linewidth=4, foreground="black")]
    style: dict[str, Any] = {"linewidth": 2, "solid_capstyle": "butt", "path_effects": outline}
    axes.plot([x, x + length], [y, y], color="white", label="scale bar", **style)
    _write(axes, 0.03, 0.055, f"{length:g} mm", ha="left", va="bottom", fontsize=points)
