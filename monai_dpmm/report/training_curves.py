"""Training curves of a mixture as a figure, drawn by matplotlib objects alone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from monai_dpmm.errors import InputError
from monai_dpmm.report.panels import FONT
from monai_dpmm.report.scan_figure import require_matplotlib

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_CURVES = {
    "train_log_likelihood": ("training", "#0072b2", "-"),
    "val_log_likelihood": ("validation", "#d55e00", "--"),
}
_ALPHA = "\N{GREEK SMALL LETTER ALPHA}"
_SINGLES = {
    "concentration": (f"Concentration {_ALPHA}", _ALPHA),
    "components": ("Surviving components", "count"),
}

__all__ = ["training_figure"]


def training_figure(history: Mapping[str, Sequence[float | None]]) -> Figure:
    """Figure of the training curves, one small panel a quantity, the best epoch marked.

    Args:
        history: lists of one length: "epoch" and any of "train_log_likelihood" and
            "val_log_likelihood" (mean of a patch, in nats), "concentration" (α) and "components"
            (how many survive). None and NaN leave a gap; other keys are ignored. The best epoch
            has the highest validation log-likelihood.

    Raises:
        ValueError: where a key is missing, the lists differ in length, or nothing is finite.
        ImportError: without matplotlib.
    """
    require_matplotlib()
    from matplotlib.figure import Figure

    curves = _checked_history(history)
    epochs = curves.pop("epoch")
    groups = [[k for k in _CURVES if k in curves]] + [[k] for k in _SINGLES if k in curves]
    groups = [group for group in groups if group]
    figure = Figure(figsize=(0.4 + 3.5 * len(groups), 2.9), dpi=130, facecolor="white")
    best = _best_epoch(epochs, curves.get("val_log_likelihood"))
    for number, group in enumerate(groups):
        left = (0.85 + 3.5 * number) / figure.get_figwidth()
        axes = figure.add_axes((left, 0.2, 2.65 / figure.get_figwidth(), 0.67))
        _draw_curves(axes, epochs, {name: curves[name] for name in group}, best)
    return figure


def _checked_history(history: Mapping[str, Sequence[float | None]]) -> dict[str, np.ndarray]:
    known = ("epoch", *_CURVES, *_SINGLES)
    curves = {
        k: np.array([math.nan if v is None else v for v in history[k]], float)
        for k in known
        if k in history
    }
    if "epoch" not in curves or len(curves) < 2:
        raise InputError(
            f"history must have the key 'epoch' and one of {known[1:]}, got {sorted(history)}"
        )
    lengths = {k: len(v) for k, v in curves.items()}
    if len(set(lengths.values())) > 1 or not lengths["epoch"]:
        raise InputError(f"history must have lists of one length, at least 1, got {lengths}")
    if not all(np.isfinite(v).any() for v in curves.values()):
        raise InputError("history must have a finite value in every list")
    return curves


def _best_epoch(epochs: np.ndarray, likelihood: np.ndarray | None) -> float | None:
    return None if likelihood is None else float(epochs[np.nanargmax(likelihood)])


def _draw_curves(
    axes: Axes, epochs: np.ndarray, curves: Mapping[str, np.ndarray], best: float | None
) -> None:
    from matplotlib.ticker import MaxNLocator

    names: dict[str, Any] = {"fontfamily": FONT, "color": "#333a42"}
    title, unit = ("Log-likelihood", "nats per patch")
    for name, values in curves.items():
        text, color, style = _CURVES.get(name, ("", "#0072b2", "-"))
        title, unit = _SINGLES.get(name, (title, unit))
        axes.plot(epochs, values, style, color=color, linewidth=1.6, marker="o", ms=2.5, label=text)
    if best is not None:
        label = f"best epoch {best:g}"
        axes.axvline(best, color="#6b7480", linewidth=1, linestyle=":", label=label)
    axes.set_title(title, loc="left", fontsize=10, fontweight="bold", **names)
    axes.set_xlabel("epoch", fontsize=8.5, **names)
    axes.set_ylabel(unit, fontsize=8.5, **names)
    axes.spines[["top", "right"]].set_visible(False)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6, min_n_ticks=1))
    axes.tick_params(labelsize=8, labelfontfamily=FONT)
    axes.grid(axis="y", color="#e3e6ea", linewidth=0.7)
    if len(curves) > 1 or not {*curves} & {*_SINGLES}:
        axes.legend(fontsize=7.5, framealpha=1, edgecolor="none", borderpad=0.2)
