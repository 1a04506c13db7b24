"""Time, memory and error of the pixel metrics of constant memory, beside torchmetrics' exact ones.

    python benchmarks/streaming_metrics.py
    python benchmarks/streaming_metrics.py --compare 20000000 --rate 0.001 --json FILE

Images of normal scores, 1 % of whose pixels are anomalous and shifted by two deviations, are drawn
one after the other. All pixels are counted in a histogram, as an evaluation does it: one histogram
an image, whose AUROC, AUPR and best Dice are computed, all merged into one. On the first images
(--compare) both ways are timed on the same pixels: ratio is torchmetrics' time for the AUROC and
the AUPR of all these pixels at once over that of the histogram, the time of drawing taken off, and
the errors are the differences of the results. Memory is the highest resident set during the call
above the one before it, sampled every millisecond, and left out where /proc does not tell it.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from em_step import STATM, peak, table
from torch import Tensor

from monai_dpmm.metrics import pixel_metrics
from monai_dpmm.streaming import MAX_BINS, ScoreHistogram


def images(pixels: int, args: argparse.Namespace) -> Iterator[tuple[Tensor, Tensor]]:
    """Scores and labels of image after image, of so many pixels together: (P,), (P,) bool."""
    generator = torch.Generator().manual_seed(0)
    for start in range(0, pixels, args.image):
        size = min(args.image, pixels - start)
        labels = torch.rand(size, generator=generator) < args.rate
        yield torch.randn(size, generator=generator) + 2 * labels, labels


def counted(pixels: int, args: argparse.Namespace) -> tuple[ScoreHistogram, float]:
    """Histogram of all images, and the seconds that it took without drawing them."""
    pool, seconds = ScoreHistogram(args.max_bins), 0.0
    for scores, labels in images(pixels, args):
        start = time.perf_counter()
        own = ScoreHistogram(args.max_bins)
        own.update(scores, labels)
        _ = own.auroc(), own.aupr(), own.best_dice()
        pool.merge(own)
        seconds += time.perf_counter() - start
    start = time.perf_counter()
    _ = pool.auroc(), pool.aupr(), pool.best_dice()
    return pool, seconds + time.perf_counter() - start


def highest_memory(run: Callable[[], object]) -> float | None:
    """MB above those before the call, or None where the system does not tell."""
    if STATM.exists():
        return peak(run)
    run()
    return None


def whole(args: argparse.Namespace) -> dict[str, object]:
    """Time and memory of a histogram of all pixels, and what it says of its error."""
    found: list[tuple[ScoreHistogram, float]] = []
    memory = highest_memory(lambda: found.append(counted(args.pixels, args)))
    pool, seconds = found[0]
    return {
        "seconds": seconds,
        "million_pixels_per_second": args.pixels / seconds / 1e6,
        "memory_mb": memory,
        "bins": len(pool.bins),
        "auroc": pool.auroc().value,
        "auroc_error": pool.auroc().error,
        "aupr": pool.aupr().value,
        "aupr_error": pool.aupr().error,
    }


def compared(args: argparse.Namespace) -> dict[str, object]:
    """Both ways on the first pixels: times, their ratio, torchmetrics' memory, the differences."""
    pool, seconds = counted(args.compare, args)
    scores, labels = map(torch.cat, zip(*images(args.compare, args), strict=True))
    start = time.perf_counter()
    exact: dict[str, float] = {}
    memory = highest_memory(lambda: exact.update(pixel_metrics(scores, labels)))
    theirs = time.perf_counter() - start
    return {
        "compared_seconds": seconds,
        "torchmetrics_seconds": theirs,
        "ratio": theirs / seconds,
        "torchmetrics_memory_mb": memory,
        "torchmetrics_bytes_per_pixel": None if memory is None else memory * 1e6 / args.compare,
        "auroc_difference": abs(pool.auroc().value - exact["auroc"]),
        "aupr_difference": abs(pool.aupr().value - exact["aupr"]),
    }


def parsed() -> argparse.Namespace:
    """Options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pixels", type=int, default=200_000_000, help="counted in all")
    parser.add_argument("--compare", type=int, default=10_000_000, help="given to torchmetrics too")
    parser.add_argument("--image", type=int, default=240 * 240, help="pixels of one image")
    parser.add_argument("--rate", type=float, default=0.01, help="of anomalous pixels, from 0 to 1")
    parser.add_argument("--max-bins", type=int, default=MAX_BINS)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, help="file to write the result to")
    return parser.parse_args()


def main() -> None:
    """Measure, print the table, write the JSON."""
    args = parsed()
    torch.set_num_threads(args.threads)
    names = ("pixels", "compare", "image", "rate", "max_bins", "threads")
    result = {name: getattr(args, name) for name in names}
    result |= {"torch": torch.__version__} | whole(args) | compared(args)
    print(table(result))
    if args.json:
        args.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
