"""Figures of scores and of methods: curves, histograms with thresholds, quality against cost."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from monai_dpmm.errors import InputError
from monai_dpmm.metrics.froc import Froc
from monai_dpmm.metrics.score_histogram import ScoreHistogram
from monai_dpmm.network.thresholds import key_scores
from monai_dpmm.study.figures.sheet import (
    HEALTHY,
    LESION,
    PALETTE,
    SMALL,
    new_figure,
    style_axes,
    write,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

_BARS = 90
_MARKERS = "osD^vPXp<>hd"
_GRID = 2000  # places along each axis of a curve that are distinguished
_CHANCE = {"color": "#7f7f7f", "linestyle": ":", "linewidth": 0.9}
_POINT = {"linestyle": "none", "markeredgecolor": "white", "zorder": 3}

__all__ = ["OperatingPoint", "curve_figure", "score_figure", "tradeoff_figure"]


class OperatingPoint(NamedTuple):
    """A threshold with its name, and where it lies on a FROC curve, NaN where that is not known."""

    name: str
    threshold: float
    false_findings: float = math.nan  # a scan
    sensitivity: float = math.nan  # share of the lesions


def curve_figure(
    pool: ScoreHistogram, points: Sequence[OperatingPoint], froc: Froc | None = None
) -> Figure:
    """ROC, precision and recall of pooled pixels, and FROC curve of lesions, with operating points.

    The false-positive rate and the false findings a scan have logarithmic axes, since operating
    points lie near 0.

    Args:
        pool: of healthy and anomalous pixels.
        points: to mark.
        froc: of the scans; None leaves its panel out, as for pictures.

    Raises:
        InputError: unless there are healthy and anomalous pixels.
    """
    scores, healthy, anomalous = _counts(pool)
    false, true = (np.r_[0, c[::-1].cumsum()] for c in (healthy, anomalous))
    fpr, recall = false / false[-1], true / true[-1]
    precision = true[1:] / (true + false)[1:]
    figure = new_figure(2.75 if froc else 3.3)
    panels = figure.subplots(1, 3 if froc else 2)
    figure.subplots_adjust(left=0.065, right=0.985, bottom=0.165, top=0.9, wspace=0.3)
    roc, pr = panels[:2]
    numbers = [int((scores > point.threshold).sum()) for point in points]
    lowest = _decade([fpr[n] for n in numbers], 1e-3)
    _curve(roc, fpr, recall, f"AUROC {pool.auroc().value:.3f}", lowest)
    chance = np.geomspace(lowest, 1, 100)
    roc.plot(chance, chance, label="chance", **_CHANCE)
    _draw_equal_dice(pr)
    curve = _curve(pr, recall[1:], precision, f"AUPR {pool.aupr().value:.3f}")
    prevalence = float(true[-1] / (true[-1] + false[-1]))
    by_chance = pr.axhline(prevalence, label=f"chance ({prevalence:.2g})", **_CHANCE)
    if froc:
        _draw_froc(panels[2], froc, points)
    for number, (point, n) in enumerate(zip(points, numbers, strict=True)):
        style = {**_POINT, "color": LESION, "markersize": 6, "label": point.name}
        marker = _MARKERS[number]
        roc.plot(max(fpr[n], lowest), recall[n], marker, **style)
        if n:
            pr.plot(recall[n], precision[n - 1], marker, **style)
        if froc:
            panels[2].plot(point.false_findings, point.sensitivity, marker, **style)
    style_axes(roc, "ROC of pixels", "false-positive rate", "sensitivity")
    style_axes(pr, "Precision and recall of pixels", "recall", "precision")
    roc.set(xscale="log", xlim=(lowest * 0.95, 1.1))
    pr.set(xlim=(-0.01, 1.01))
    for axes in panels:
        axes.set(ylim=(-0.01, 1.03), box_aspect=1)
    roc.legend(fontsize=6, loc="lower right" if lowest > 1e-4 else "upper left")
    pr.legend(handles=[curve, by_chance], fontsize=6, loc="upper right")
    return figure


def _draw_equal_dice(axes: Axes) -> None:
    """Thin lines of equal Dice, named at their right ends."""
    for dice in (0.2, 0.4, 0.6, 0.8):
        x = np.linspace(dice / (2 - dice), 1, 100)
        y = dice * x / (2 * x - dice)
        axes.plot(x, y, color="#d5dae0", linewidth=0.8, zorder=1)
        style: dict[str, Any] = {"ha": "right", "color": "#8a949e", "fontsize": 5.5}
        write(axes, 0.985, y[-1] + 0.03, f"Dice {dice}", **style)


def _draw_froc(axes: Axes, froc: Froc, points: Sequence[OperatingPoint]) -> None:
    """Steps of lesion sensitivity from the fewest false findings that are shown to the most."""
    false, sensitivity = froc.false_positives.numpy(), froc.sensitivity.numpy()
    marked = [p.false_findings for p in points if math.isfinite(p.false_findings)]
    low = _decade(marked, 0.1)
    high = 1.5 * max([*marked, *false, 8.0])
    shown = false > low
    x = np.r_[low, false[shown], high]
    y = np.r_[froc.sensitivity_at(low), sensitivity[shown], froc.sensitivity_at(high)]
    axes.plot(
        *(x, y),
        drawstyle="steps-post",
        color=HEALTHY,
        linewidth=1.6,
        label=f"mean at 1/8 to 8: {froc.mean_sensitivity():.2f}",
    )
    style_axes(axes, "FROC of lesions", "false findings a scan", "lesions found")
    axes.set(xscale="log", xlim=(low, high))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.legend(handles=axes.lines[:1], fontsize=6, loc="upper left")


def _decade(values: Sequence[float], highest: float) -> float:
    """The power of ten at or below the positive values, no more than `highest`."""
    return float(10 ** math.floor(math.log10(min([v for v in values if v > 0] + [highest]))))


def score_figure(pool: ScoreHistogram, points: Sequence[OperatingPoint]) -> Figure:
    """Histograms of the pixels of healthy tissue and of lesions, each of area 1, with thresholds.

    Where more than a tenth of the healthy pixels have the lowest score, as background has, they
    are left out, and the figure says how many they are.
    """
    scores, healthy, anomalous = _counts(pool)
    lowest = float(healthy[0] / healthy.sum())
    kept = slice(1, None) if lowest > 0.1 and len(scores) > 1 else slice(None)
    ends = scores[kept][0], max([scores[-1], *(point.threshold for point in points)])
    figure = new_figure(2.7)
    axes = figure.add_axes((0.085, 0.22, 0.9, 0.64))
    shown = (("healthy", healthy, HEALTHY, "-"), ("lesions", anomalous, LESION, "--"))
    for name, counts, color, style in shown:
        weights = counts[kept] / counts[kept].sum()
        heights, edges = np.histogram(scores[kept], _BARS, ends, weights=weights, density=True)
        axes.stairs(heights, edges, fill=True, color=color, alpha=0.25)
        text = f"{name} ({int(counts.sum()):,} pixels)"
        axes.stairs(heights, edges, color=color, linewidth=1.3, linestyle=style, label=text)
    axes.set_yscale("log")
    for point, row in _rows(points, ends):
        axes.axvline(point.threshold, color="black", linewidth=0.9, linestyle=(0, (4, 2)))
        place = (point.threshold - ends[0]) / (ends[1] - ends[0])
        write(axes, place, 1.05 + 0.085 * row, _short(point), fontsize=6)
    style_axes(axes, "", "anomaly score", "density")
    axes.set_xlim(*ends)
    axes.legend(fontsize=SMALL, loc="upper right")
    text = "Dashed: the mask's threshold, and those that so many healthy patches exceed."
    if kept.start:
        text += f" Left out: {100 * lowest:.0f} % of the healthy pixels, background."
    write(axes, 0.0, -0.27, text, ha="left", fontsize=6)
    return figure


def _rows(
    points: Sequence[OperatingPoint], ends: tuple[float, float]
) -> list[tuple[OperatingPoint, int]]:
    """Points from left to right, each with the row of its name, so that no two names meet."""
    rows: list[tuple[OperatingPoint, int]] = []
    right: list[float] = []  # ends of the names of each row, in shares of the axis
    for point in sorted(points, key=lambda point: point.threshold):
        middle = (point.threshold - ends[0]) / (ends[1] - ends[0])
        half = 0.006 * len(_short(point))
        row = next((r for r, end in enumerate(right) if end < middle - half), len(right))
        right[row : row + 1] = [middle + half]
        rows.append((point, row))
    return rows


def _short(point: OperatingPoint) -> str:
    return point.name.partition(" of ")[0]


def tradeoff_figure(trials: Sequence[Mapping[str, Any]]) -> Figure:
    """Quality against time and memory of every method, the paper's Fig. 3.

    A marker is the mean over the seeds, its bar their range; a line joins the methods that no
    other beats in both.

    Args:
        trials: records of `monai_dpmm.study.comparison.compare`.

    Raises:
        InputError: for no trials.
    """
    if not trials:
        raise InputError("trials must not be empty, got none")
    methods: dict[str, list[Mapping[str, Any]]] = {}
    for trial in trials:
        methods.setdefault(trial["label"], []).append(next(iter(trial["scores"].values())))
    figure = new_figure(4.9)
    grid = figure.subplots(2, 2, sharex="col", sharey="row")
    figure.subplots_adjust(left=0.085, right=0.985, bottom=0.24, top=0.98, hspace=0.1, wspace=0.08)
    costs = {"milliseconds": "ms a slice, without the backbone", "megabytes": "peak memory, MB"}
    for row, metric in zip(grid, ("auroc", "aupr"), strict=True):
        for axes, (cost, name) in zip(row, costs.items(), strict=True):
            _draw_methods(axes, methods, cost, metric)
            y = f"pixel {metric.upper()}, %" if cost == "milliseconds" else ""
            style_axes(axes, "", name if metric == "aupr" else "", y)
    shown = grid[0, 0].get_legend_handles_labels()
    style = {"fontsize": SMALL, "frameon": False, "columnspacing": 1}
    figure.legend(*shown, loc="lower center", ncols=4, **style)
    return figure


def _draw_methods(
    axes: Axes, methods: Mapping[str, Sequence[Mapping[str, Any]]], cost: str, metric: str
) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    places = []
    for number, (label, found) in enumerate(methods.items()):
        x = float(np.median([one[cost] for one in found]))
        values = [100 * one[metric] for one in found]
        y = float(np.mean(values))
        color, marker = PALETTE[number % len(PALETTE)], _MARKERS[number % len(_MARKERS)]
        axes.plot((x, x), (min(values), max(values)), color=color, linewidth=1.4, zorder=2)
        style = {**_POINT, "color": color, "markeredgewidth": 0.6, "label": label}
        axes.plot(x, y, marker, markersize=6.5 if number else 9, **style)
        places.append((x, y))
    best = -np.inf
    front = []
    for x, y in sorted(places, key=lambda place: (place[0], -place[1])):
        if y > best:
            front.append((x, best := y))
    axes.plot(*zip(*front, strict=True), color="#9aa3ad", linewidth=0.8, zorder=1)
    axes.set_xscale("log")
    axes.margins(x=0.12, y=0.12)
    wide = max(x for x, _ in places) > 300 * min(x for x, _ in places)
    axes.xaxis.set_major_locator(LogLocator(subs=(1,) if wide else (1, 2, 5), numticks=20))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _counts(pool: ScoreHistogram) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Lowest score of each bin, ascending, healthy and anomalous pixels: (B,) each."""
    keys, _, healthy, anomalous, _ = pool.bins.unbind(1)
    if not healthy.sum() or not anomalous.sum():
        raise InputError(
            f"pool must have healthy and anomalous pixels, got {int(healthy.sum())} and"
            f" {int(anomalous.sum())}"
        )
    scores = key_scores(keys).double().numpy()
    return scores, healthy.double().numpy(), anomalous.double().numpy()


def _curve(axes: Axes, x: np.ndarray, y: np.ndarray, label: str, lowest: float = 0.0) -> Line2D:
    """Curve without the points that no eye tells apart, which a PDF would keep all.

    Args:
        axes: to draw on.
        x: ascending or descending, in [0, 1].
        y: in [0, 1].
        label: in the legend.
        lowest: end of a logarithmic axis, 0 of a linear one.
    """
    seen = [x, y]
    if lowest:
        seen.append(np.log10(np.maximum(x, lowest)) / abs(math.log10(lowest)))
    cells = np.stack(seen, 1) * _GRID
    changed = np.abs(np.diff(np.round(cells), axis=0)).any(1)
    kept = np.r_[True, changed] | np.r_[changed, True]
    return axes.plot(x[kept], y[kept], color=HEALTHY, linewidth=1.6, label=label, zorder=2.5)[0]
