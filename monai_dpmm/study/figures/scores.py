"""Figures of scores and of methods: curves, histograms with thresholds, quality against cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from monai_dpmm.errors import InputError
from monai_dpmm.metrics.score_histogram import ScoreHistogram
from monai_dpmm.network.thresholds import key_scores
from monai_dpmm.study.figures.sheet import (
    ANOMALOUS,
    HEALTHY,
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
_MARKERS = "osD^vP*Xp<>h"
_GRID = 2000  # places along each axis of a curve that are distinguished
_CHANCE = {"color": "#7f7f7f", "linestyle": ":", "linewidth": 0.9}
_POINT = {"linestyle": "none", "markeredgecolor": "white", "zorder": 3}

__all__ = ["curve_figure", "score_figure", "tradeoff_figure"]


def curve_figure(pool: ScoreHistogram, thresholds: Mapping[float, float]) -> Figure:
    """ROC and precision-recall curve of pooled pixels, the operating points marked.

    Args:
        pool: of healthy and anomalous pixels.
        thresholds: by the false-positive rate of patches that they were calibrated at.

    Raises:
        InputError: unless there are healthy and anomalous pixels.
    """
    scores, healthy, anomalous = _counts(pool)
    false, true = (np.r_[0, c[::-1].cumsum()] for c in (healthy, anomalous))
    fpr, recall = false / false[-1], true / true[-1]
    precision = true[1:] / (true + false)[1:]
    figure = new_figure(3.1)
    roc, pr = figure.subplots(1, 2)
    figure.subplots_adjust(left=0.075, right=0.985, bottom=0.15, top=0.9, wspace=0.24)
    _curve(roc, fpr, recall, f"AUROC {pool.auroc().value:.3f}")
    roc.plot((0, 1), (0, 1), label="chance", **_CHANCE)
    for dice in (0.2, 0.4, 0.6, 0.8):  # thin lines of equal Dice, named at their right ends
        x = np.linspace(dice / (2 - dice), 1, 100)
        y = dice * x / (2 * x - dice)
        pr.plot(x, y, color="#d5dae0", linewidth=0.8, zorder=1)
        style: dict[str, Any] = {"ha": "right", "color": "#8a949e", "fontsize": 6}
        write(pr, 0.985, y[-1] + 0.03, f"Dice {dice}", **style)
    curve = _curve(pr, recall[1:], precision, f"AUPR {pool.aupr().value:.3f}")
    prevalence = float(true[-1] / (true[-1] + false[-1]))
    chance = pr.axhline(prevalence, label=f"chance ({prevalence:.2g})", **_CHANCE)
    for number, (rate, threshold) in enumerate(sorted(thresholds.items())):
        n = int((scores > threshold).sum())
        style = {**_POINT, "color": ANOMALOUS, "markersize": 6.5}
        style["label"] = f"threshold at {100 * rate:.3g} %"
        roc.plot(fpr[n], recall[n], _MARKERS[number], **style)
        if n:
            pr.plot(recall[n], precision[n - 1], _MARKERS[number], **style)
    style_axes(roc, "ROC", "false-positive rate", "sensitivity")
    style_axes(pr, "Precision and recall", "recall", "precision")
    for axes in (roc, pr):
        axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), aspect="equal")
    roc.legend(fontsize=SMALL, loc="lower right")
    pr.legend(handles=[curve, chance], fontsize=SMALL, loc="upper right")
    return figure


def score_figure(pool: ScoreHistogram, thresholds: Mapping[float, float]) -> Figure:
    """Histograms of healthy and anomalous pixels, each of area 1, with the thresholds.

    Where more than a tenth of the healthy pixels have the lowest score, as background has, they
    are left out, and the figure says how many they are.
    """
    scores, healthy, anomalous = _counts(pool)
    lowest = float(healthy[0] / healthy.sum())
    kept = slice(1, None) if lowest > 0.1 and len(scores) > 1 else slice(None)
    ends = scores[kept][0], max(scores[-1], *thresholds.values())
    figure = new_figure(2.6)
    axes = figure.add_axes((0.085, 0.17, 0.9, 0.7))
    shown = (("healthy", healthy, HEALTHY, "-"), ("anomalous", anomalous, ANOMALOUS, "--"))
    for name, counts, color, style in shown:
        weights = counts[kept] / counts[kept].sum()
        heights, edges = np.histogram(scores[kept], _BARS, ends, weights=weights, density=True)
        axes.stairs(heights, edges, fill=True, color=color, alpha=0.25)
        text = f"{name} ({int(counts.sum()):,} pixels)"
        axes.stairs(heights, edges, color=color, linewidth=1.3, linestyle=style, label=text)
    axes.set_yscale("log")
    for number, (rate, threshold) in enumerate(sorted(thresholds.items(), reverse=True)):
        axes.axvline(threshold, color="black", linewidth=0.9, linestyle=(0, (4, 2)))
        place = ((threshold - ends[0]) / (ends[1] - ends[0]), 1.04)
        write(axes, *place, f" {100 * rate:.3g} % ", ha="left" if number else "right")
    style_axes(axes, "", "anomaly score", "density")
    axes.set_xlim(*ends)
    axes.legend(fontsize=SMALL, loc="upper right")
    text = "Scores of pixels; dashed: thresholds by the false-positive rate of healthy patches."
    if kept.start:
        text += f" Left out: {100 * lowest:.0f} % of the healthy pixels, background."
    write(axes, 0.0, 1.13, text, ha="left")
    return figure


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
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=20))
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


def _curve(axes: Axes, x: np.ndarray, y: np.ndarray, label: str) -> Line2D:
    """Curve without the points that no eye tells apart, which a PDF would keep all."""
    cells = np.stack([x, y], 1) * _GRID
    changed = np.abs(np.diff(np.round(cells), axis=0)).any(1)
    kept = np.r_[True, changed] | np.r_[changed, True]
    return axes.plot(x[kept], y[kept], color=HEALTHY, linewidth=1.6, label=label, zorder=2.5)[0]
