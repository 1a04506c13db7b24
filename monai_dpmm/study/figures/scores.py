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
_GRID = 2000  # places along each axis of a curve that are told apart

__all__ = ["curve_figure", "score_figure", "tradeoff_figure"]


def curve_figure(pool: ScoreHistogram, thresholds: Mapping[float, float]) -> Figure:
    """ROC and precision-recall curve of pooled pixels, the operating points marked.

    Args:
        pool: of healthy and anomalous pixels.
        thresholds: by the false-positive rate of patches that they were calibrated at.

    Raises:
        ValueError: unless there are healthy and anomalous pixels.
    """
    scores, healthy, anomalous = _counts(pool)
    false, true = (np.r_[0, c[::-1].cumsum()] for c in (healthy, anomalous))
    fpr, recall = false / false[-1], true / true[-1]
    precision = true[1:] / (true + false)[1:]
    points = {
        rate: int((scores > threshold).sum()) for rate, threshold in sorted(thresholds.items())
    }
    figure = new_figure(3.1)
    roc, pr = figure.subplots(1, 2)
    figure.subplots_adjust(left=0.075, right=0.985, bottom=0.15, top=0.9, wspace=0.24)
    _curve(roc, fpr, recall, f"AUROC {pool.auroc().value:.3f}")
    roc.plot((0, 1), (0, 1), ":", color="#7f7f7f", linewidth=0.9, label="chance")
    _mark(roc, {rate: (fpr[n], recall[n]) for rate, n in points.items()})
    style_axes(roc, "ROC", "false-positive rate", "sensitivity")
    prevalence = float(true[-1] / (true[-1] + false[-1]))
    _draw_dice_lines(pr)
    curve = _curve(pr, recall[1:], precision, f"AUPR {pool.aupr().value:.3f}")
    label = f"chance ({prevalence:.2g})"
    chance = pr.axhline(prevalence, color="#7f7f7f", linestyle=":", linewidth=0.9, label=label)
    _mark(pr, {rate: (recall[n], precision[n - 1]) for rate, n in points.items() if n})
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
    for name, counts, color in (
        ("healthy", healthy, HEALTHY),
        ("anomalous", anomalous, ANOMALOUS),
    ):
        weights = counts[kept] / counts[kept].sum()
        heights, edges = np.histogram(scores[kept], _BARS, ends, weights=weights, density=True)
        axes.stairs(heights, edges, fill=True, color=color, alpha=0.25)
        text = f"{name} ({int(counts.sum()):,} pixels)"
        style = "-" if name == "healthy" else "--"
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
        ValueError: for no trials.
    """
    if not trials:
        raise InputError("trials must not be empty, got none")
    methods: dict[str, list[Mapping[str, Any]]] = {}
    for trial in trials:
        first = next(iter(trial["scores"].values()))
        methods.setdefault(trial["label"], []).append({**first, "prototypes": trial["prototypes"]})
    figure = new_figure(4.9)
    grid = figure.subplots(2, 2, sharex="col", sharey="row")
    figure.subplots_adjust(left=0.085, right=0.985, bottom=0.24, top=0.98, hspace=0.1, wspace=0.08)
    costs = (("milliseconds", "ms a slice, without the backbone"), ("megabytes", "peak memory, MB"))
    for row, metric in zip(grid, ("auroc", "aupr"), strict=True):
        for axes, (key, name) in zip(row, costs, strict=True):
            _draw_methods(axes, methods, key, metric)
            x = name if metric == "aupr" else ""
            y = f"pixel {metric.upper()}, %" if key == "milliseconds" else ""
            style_axes(axes, "", x, y)
    handles, labels = grid[0, 0].get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="lower center", ncols=4, fontsize=SMALL, frameon=False, columnspacing=1
    )
    return figure


def _draw_methods(
    axes: Axes, methods: Mapping[str, Sequence[Mapping[str, Any]]], cost: str, metric: str
) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    places = []
    for number, (label, trials) in enumerate(methods.items()):
        x = float(np.median([trial[cost] for trial in trials]))
        values = [100 * trial[metric] for trial in trials]
        y = float(np.mean(values))
        color = PALETTE[number % len(PALETTE)]
        axes.plot((x, x), (min(values), max(values)), color=color, linewidth=1.4, zorder=2)
        axes.plot(
            x,
            y,
            color=color,
            marker=_MARKERS[number % len(_MARKERS)],
            markersize=9 if number == 0 else 6.5,
            markeredgecolor="white",
            markeredgewidth=0.6,
            linestyle="none",
            label=label,
            zorder=3,
        )
        places.append((x, y))
    front = [p for p in sorted(places) if all(q[1] < p[1] or q[0] >= p[0] for q in places)]
    front = [p for p in front if not any(q[0] <= p[0] and q[1] > p[1] for q in places)]
    axes.plot(*zip(*front, strict=True), color="#9aa3ad", linewidth=0.8, zorder=1)
    axes.set_xscale("log")
    axes.margins(x=0.12, y=0.12)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=20))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _counts(pool: ScoreHistogram) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Lowest score of each bin, ascending, healthy and anomalous pixels: (B,) each."""
    bins = pool.bins
    scores = key_scores(bins[:, 0]).double().numpy()
    healthy, anomalous = bins[:, 2].double().numpy(), bins[:, 3].double().numpy()
    if not healthy.sum() or not anomalous.sum():
        raise InputError(
            f"pool must have healthy and anomalous pixels, got {int(healthy.sum())} and"
            f" {int(anomalous.sum())}"
        )
    return scores, healthy, anomalous


def _curve(axes: Axes, x: np.ndarray, y: np.ndarray, label: str) -> Line2D:
    """Curve without the points that no eye tells apart, which a PDF would keep all."""
    cells = np.stack([x, y], 1) * _GRID
    changed = np.abs(np.diff(np.round(cells), axis=0)).any(1)
    kept = np.r_[True, changed] | np.r_[changed, True]
    return axes.plot(x[kept], y[kept], color=HEALTHY, linewidth=1.6, label=label, zorder=2.5)[0]


def _mark(axes: Axes, points: Mapping[float, tuple[float, float]]) -> None:
    for number, (rate, (x, y)) in enumerate(points.items()):
        axes.plot(
            x,
            y,
            _MARKERS[number],
            color=ANOMALOUS,
            markeredgecolor="white",
            markersize=6.5,
            linestyle="none",
            label=f"threshold at {100 * rate:.3g} %",
            zorder=3,
        )


def _draw_dice_lines(axes: Axes) -> None:
    """Thin lines of equal Dice, 0.2 to 0.8, named at their right ends."""
    for dice in (0.2, 0.4, 0.6, 0.8):
        recall = np.linspace(dice / (2 - dice), 1, 100)
        precision = dice * recall / (2 * recall - dice)
        axes.plot(recall, precision, color="#d5dae0", linewidth=0.8, zorder=1)
        write(
            axes,
            0.985,
            precision[-1] + 0.03,
            f"Dice {dice}",
            ha="right",
            color="#8a949e",
            fontsize=6,
        )
