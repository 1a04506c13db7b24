"""Time, memory and error of the pixel metrics of constant memory, beside torchmetrics' exact ones.

    python benchmarks/streaming_metrics.py
    python benchmarks/streaming_metrics.py --compare 20000000 --rate 0.001 --json FILE

Images of normal scores, 1 % of whose pixels are anomalous and shifted by two deviations, are drawn
one after the other; the anomalous pixels are regions of one to a hundred. All pixels are counted in
a histogram, as an evaluation does it: one histogram an image, whose AUROC, AUPR, AUPRO and best
Dice are computed, all merged into one, and one of few bins an image kept for the bootstrap. The
intervals are then computed from these (--resamples). On the first images (--compare) both ways are
timed on the same pixels: ratio is torchmetrics' time for the AUROC and the AUPR of all these pixels
at once over that of the histogram, which does all the above but the bootstrap, the time of drawing
taken off, and the errors are the differences of the results; that of the AUPRO is from a bin for
each different score. Memory is the highest resident set during the call
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

from monai_dpmm.metrics.anomaly_metrics import pixel_metrics
from monai_dpmm.metrics.bootstrap import ImageHistograms, drawn_counts, interval, pixel_statistics
from monai_dpmm.metrics.score_histogram import MAX_BINS, ScoreHistogram


def images(pixels: int, args: argparse.Namespace) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Scores, labels and regions of image after image, of so many pixels together: (P,) each."""
    generator = torch.Generator().manual_seed(0)
    for start in range(0, pixels, args.image):
        size = min(args.image, pixels - start)
        lengths = torch.randint(1, 101, (size,), generator=generator)
        runs = torch.arange(1, size + 1).repeat_interleave(lengths)[:size]
        regions = runs * (torch.rand(size + 1, generator=generator) < args.rate)[runs]
        labels = regions > 0
        yield torch.randn(size, generator=generator) + 2 * labels, labels, regions


def curves(histogram: ScoreHistogram) -> tuple[object, ...]:
    """All that an evaluation takes from a histogram."""
    return histogram.auroc(), histogram.aupr(), histogram.aupro(), histogram.best_dice()


def counted(
    pixels: int, args: argparse.Namespace, kept: ImageHistograms | None = None
) -> tuple[ScoreHistogram, float]:
    """Histogram of all images, and the seconds that it took without drawing them."""
    pool, seconds = ScoreHistogram(args.max_bins), 0.0
    for some in images(pixels, args):
        start = time.perf_counter()
        own = ScoreHistogram(args.max_bins)
        own.update(*some)
        curves(own)
        pool.merge(own)
        if kept is not None:
            kept.add(own)
        seconds += time.perf_counter() - start
    start = time.perf_counter()
    curves(pool)
    return pool, seconds + time.perf_counter() - start


def bootstrapped(kept: ImageHistograms, resamples: int) -> tuple[dict[str, float], float]:
    """Widths of the intervals by metric, and the seconds they took."""
    start = time.perf_counter()
    weights = drawn_counts(len(kept.images), resamples)
    values = pixel_statistics(kept.images, kept.ignored_bits, weights)
    low_high = {name: interval(of) for name, of in values.items()}
    widths = {f"{name}_interval": high - low for name, (low, high) in low_high.items()}
    return widths, time.perf_counter() - start


def highest_memory(run: Callable[[], object]) -> float | None:
    """MB above those before the call, or None where the system does not tell."""
    if STATM.exists():
        return peak(run)
    run()
    return None


def whole(args: argparse.Namespace) -> dict[str, object]:
    """Time and memory of a histogram of all pixels, and what it says of its error."""
    found: list[tuple[ScoreHistogram, float]] = []
    kept = ImageHistograms()
    memory = highest_memory(lambda: found.append(counted(args.pixels, args, kept)))
    pool, seconds = found[0]
    widths, bootstrap_seconds = bootstrapped(kept, args.resamples)
    return {
        "seconds": seconds,
        "million_pixels_per_second": args.pixels / seconds / 1e6,
        "memory_mb": memory,
        "bins": len(pool.bins),
        "auroc": pool.auroc().value,
        "auroc_error": pool.auroc().error,
        "aupr": pool.aupr().value,
        "aupr_error": pool.aupr().error,
        "aupro": pool.aupro().value,
        "aupro_error": pool.aupro().error,
        "kept_mb": sum(image.nbytes for image in kept.images) / 1e6,
        "bootstrap_seconds": bootstrap_seconds,
        **widths,
    }


def compared(args: argparse.Namespace) -> dict[str, object]:
    """Both ways on the first pixels: times, their ratio, torchmetrics' memory, the differences."""
    pool, seconds = counted(args.compare, args)
    scores, labels, _ = map(torch.cat, zip(*images(args.compare, args), strict=True))
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
        "aupro_difference": abs(pool.aupro().value - exact_aupro(args)),
    }


def exact_aupro(args: argparse.Namespace) -> float:
    """AUPRO of the first pixels, a bin for each different score."""
    pool = ScoreHistogram(None)
    for some in images(args.compare, args):
        own = ScoreHistogram(None)
        own.update(*some)
        pool.merge(own)
    return pool.aupro().value


def parsed() -> argparse.Namespace:
    """Options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pixels", type=int, default=200_000_000, help="counted in all")
    parser.add_argument("--compare", type=int, default=10_000_000, help="given to torchmetrics too")
    parser.add_argument("--image", type=int, default=240 * 240, help="pixels of one image")
    parser.add_argument("--rate", type=float, default=0.01, help="of anomalous pixels, from 0 to 1")
    parser.add_argument("--resamples", type=int, default=1000, help="of the bootstrap")
    parser.add_argument("--max-bins", type=int, default=MAX_BINS)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, help="file to write the result to")
    return parser.parse_args()


def main() -> None:
    """Measure, print the table, write the JSON."""
    args = parsed()
    torch.set_num_threads(args.threads)
    names = ("pixels", "compare", "image", "rate", "resamples", "max_bins", "threads")
    result = {name: getattr(args, name) for name in names}
    result |= {"torch": torch.__version__} | whole(args) | compared(args)
    print(table(result))
    if args.json:
        args.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
