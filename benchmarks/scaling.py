"""How the time of an EM step grows with patches N, components K and features D, as a figure.

    python benchmarks/scaling.py --out scaling.png
    python benchmarks/scaling.py --device cuda --out scaling.svg --json scaling.json

Around the paper's size (N = 12,288, K = 500, D = 384) one of the three is varied at a time. Step
and its four matrix products are timed in turn, as em_step.py does it; points are medians, and the
ratio is the median over the turns. At few features the step can be the faster one: it works on a
thousand patches at a time, whose log-densities stay in the cache, while a product writes all of
them. Needs matplotlib (the package's demo extra).
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
from pathlib import Path
from typing import Any

import matplotlib as mpl
import torch
from em_step import (
    COVARIANCES,
    clustered,
    device,
    environment,
    grid,
    in_turn,
    mixture,
    options,
    products,
    ratio,
)
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

INK, GREY, FAINT = "#222222", "#6E6E6E", "#DCDCDC"
STEP, PRODUCTS = "#0072B2", "#D55E00"  # Okabe and Ito's
PANELS = {"patches": "patches N", "components": "components K", "features": "features D"}
STYLE = {
    "font.family": "sans-serif",
    "font.sans-serif": ["Helvetica", "Arial", "DejaVu Sans"],
    "font.size": 9,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "svg.fonttype": "none",
}


def point(args: argparse.Namespace, name: str, value: int) -> dict[str, float]:
    """Times of step and products with one of N, K and D at a value, in milliseconds."""
    args = copy.copy(args)
    setattr(args, name, value)
    x = clustered(args.patches, args.features).to(args.device)
    model = mixture(x, args, steps=1)
    runs = {"products": products(x, args.components), "step": lambda: model.step(x)}
    times = in_turn(runs, args)
    result = {f"{run}_ms": 1e3 * statistics.median(times[run]) for run in runs}
    return {name: value} | result | {"ratio": ratio(times, "step", "products")}


def measured(args: argparse.Namespace) -> dict[str, list[dict[str, float]]]:
    """The points of each panel."""
    ranges = {name: getattr(args, f"{name}_range") for name in PANELS}
    return {name: [point(args, name, v) for v in values] for name, values in ranges.items()}


def draw_times(axes: Axes, name: str, points: list[dict[str, float]], paper: int) -> None:
    """Time against size, both logarithmic."""
    sizes = [p[name] for p in points]
    axes.axvline(paper, color=FAINT, linewidth=1, zorder=0)
    for key, colour, marker in (("products_ms", PRODUCTS, "s"), ("step_ms", STEP, "o")):
        times = [p[key] for p in points]
        axes.plot(sizes, times, color=colour, marker=marker, markersize=4, linewidth=1.6)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.tick_params(labelbottom=False)
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 3)))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(milliseconds))
    axes.grid(axis="y", color=FAINT, linewidth=0.5)
    place = axes.get_xaxis_transform()
    letter, at = PANELS[name][-1], {"va": "bottom", "ha": "left", "transform": place}
    axes.text(paper * 1.06, 0.015, f"{letter} = {paper:,}", color=GREY, fontsize=7.5, **at)


def draw_ratio(axes: Axes, name: str, points: list[dict[str, float]], paper: int) -> None:
    """Step over products against size."""
    sizes = [p[name] for p in points]
    axes.axvline(paper, color=FAINT, linewidth=1, zorder=0)
    axes.axhline(1, color=PRODUCTS, linewidth=1.6)
    ratios = [p["ratio"] for p in points]
    axes.plot(sizes, ratios, color=STEP, marker="o", markersize=4, linewidth=1.6)
    axes.set_xscale("log")
    axes.set_xticks(sizes, [short(size) for size in sizes])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel(PANELS[name])
    axes.grid(axis="y", color=FAINT, linewidth=0.5)


def short(size: float) -> str:
    """A size in few characters: 2,048 is 2k."""
    return f"{size:g}" if size % 1024 else f"{size / 1024:g}k"


def milliseconds(value: float, _: int) -> str:
    """A time with its unit."""
    return f"{value / 1000:g} s" if value >= 1000 else f"{value:g} ms"


def figure(result: dict[str, Any]) -> Figure:
    """Three panels of times, with the ratio to the products below each."""
    drawing = Figure(figsize=(7.5, 3.9), dpi=200, layout="constrained")
    axes = drawing.subplots(2, 3, sharex="col", sharey="row", height_ratios=(2.6, 1))
    for column, (name, points) in zip(axes.T, result["points"].items(), strict=True):
        draw_times(column[0], name, points, result[name])
        draw_ratio(column[1], name, points, result[name])
    top = max(2.0, *(p["ratio"] for points in result["points"].values() for p in points))
    axes[1, 0].set_ylim(0, 1.15 * top)
    axes[1, 0].set_ylabel("step / products")
    axes[0, 0].set_ylabel("time")
    drawing.align_ylabels()
    label_lines(axes[0, 0])
    drawing.suptitle(conditions(result), x=0.995, ha="right", fontsize=7.5, color=GREY)
    return drawing


def label_lines(axes: Axes) -> None:
    """Name the lines in their own colours, in the corner that growing times leave free."""
    notes = (("one EM step", STEP, 0.98), ("its four\nmatrix products", PRODUCTS, 0.89))
    for text, colour, height in notes:
        paper = {"facecolor": "white", "edgecolor": "none", "pad": 0.5}
        place = {"transform": axes.transAxes, "va": "top", "linespacing": 1.0}
        axes.text(0.04, height, text, color=colour, bbox=paper, **place)


def conditions(result: dict[str, Any]) -> str:
    """What was measured, and on what, in a line."""
    threads = result["threads"]
    cpu = f"{threads} CPU thread{'s' if threads > 1 else ''}"
    covariance = result["covariance"].replace("_", " ")
    return f"{covariance}, float32, {result.get('gpu', cpu)}, PyTorch {result['torch']}"


def table(result: dict[str, Any]) -> str:
    """The points, panel after panel."""
    blocks = []
    for name, points in result["points"].items():
        rows = [[name, "products ms", "step ms", "ratio"]]
        for p in points:
            times = [f"{p[key]:.2f}" for key in ("products_ms", "step_ms", "ratio")]
            rows.append([f"{p[name]:,}", *times])
        blocks.append(grid(rows))
    return "\n\n".join(blocks)


def parsed() -> argparse.Namespace:
    """Options of the command line."""
    parser = options("Figure of how the time of an EM step grows with N, K and D.")
    parser.add_argument("--device", type=device, default="cpu", help="cpu or cuda")
    parser.add_argument("--patches", type=int, default=12288, help="N, patches of the batch")
    parser.add_argument("--covariance", choices=COVARIANCES, default="diagonal")
    parser.add_argument("--repeats", type=int, default=9)
    ranges = {
        "patches": [1024 * 2**i for i in range(7)],
        "components": [32 * 2**i for i in range(7)],
        "features": [48 * 2**i for i in range(6)],
    }
    for name, values in ranges.items():
        parser.add_argument(f"--{name}-range", type=int, nargs="+", default=values)
    parser.add_argument("--out", type=Path, required=True, help="PNG, SVG or PDF to write")
    return parser.parse_args()


def main() -> None:
    """Measure, print the table, write figure and JSON."""
    args = parsed()
    torch.set_num_threads(args.threads)
    names = ("patches", "components", "features", "covariance", "repeats")
    result = {name: getattr(args, name) for name in names} | environment(args)
    result["points"] = measured(args)
    print(table(result))
    with mpl.rc_context(STYLE):
        figure(result).savefig(args.out)
    if args.json:
        args.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
