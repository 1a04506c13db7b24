"""Bootstrap intervals of an evaluation without its pixels: patients are drawn again, as weights.

A metric over all pixels is a function of how many of them have which score. A resample of patients
counts each image so many times, so its counts are a weighted sum of the images' counts: one matrix
product gives those of all resamples.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import torch
from torch import Tensor

from monai_dpmm.metrics.curves import aupr, aupro, auroc, dices
from monai_dpmm.metrics.score_histogram import ScoreHistogram, enough_bits, grouped_bins

__all__ = [
    "ImageHistograms",
    "drawn_counts",
    "group_numbers",
    "interval",
    "pixel_statistics",
    "ranking_statistics",
    "ratio_statistics",
]

MAX_BINS = 2**12
_TOGETHER = 64  # resamples in memory at once


class ImageHistograms:
    """Pixels of each image by score, on bins that all images share: what a bootstrap resamples.

    Bins are those of `ScoreHistogram`, so coarse that all images together have at most `max_bins`
    of them. An image keeps only the bins that it has pixels in, 40 bytes each: at most 160 kB with
    4096 bins, with which the metrics of a resample are exact to 1e-3.
    """

    def __init__(self, max_bins: int = MAX_BINS) -> None:
        self.max_bins = max_bins
        self.ignored_bits = 0
        self._keys = torch.zeros(0, dtype=torch.int64)
        # One tensor for all: small ones that live long would scatter over the heap.
        self._rows = torch.zeros(0, 5, dtype=torch.int64)
        self._lengths: list[int] = []

    @property
    def images(self) -> list[Tensor]:
        """Counts of each image, (B, 5) as in `ScoreHistogram.bins`: views, until the next `add`."""
        return list(self._rows[: sum(self._lengths)].split(self._lengths))

    def add(self, histogram: ScoreHistogram) -> None:
        """Keep the counts of an image, and make all fit."""
        before = self.ignored_bits
        self.ignored_bits = max(before, histogram.ignored_bits)
        bins = histogram.coarse(self.ignored_bits)
        known = self._keys >> (self.ignored_bits - before)
        keys = torch.cat([known, bins[:, 0] >> self.ignored_bits]).unique()
        more = enough_bits(keys, 0, self.max_bins)
        self._keys = (keys >> more).unique_consecutive()
        self.ignored_bits += more
        if self.ignored_bits > before:
            images = [grouped_bins(image, self.ignored_bits) for image in (*self.images, bins)]
            self._rows, self._lengths = torch.cat(images), [len(image) for image in images]
        else:
            self._append(bins)

    def _append(self, bins: Tensor) -> None:
        used = sum(self._lengths)
        if used + len(bins) > len(self._rows):
            grown = self._rows.new_empty(2 * (used + len(bins)), 5)
            grown[:used] = self._rows[:used]
            self._rows = grown
        self._rows[used : used + len(bins)] = bins
        self._lengths.append(len(bins))


def drawn_counts(groups: int, resamples: int, seed: int = 0) -> Tensor:
    """How often each group is drawn, as many draws as groups with replacement: (B, G), float32."""
    generator = torch.Generator().manual_seed(seed)
    draws = torch.randint(groups, (resamples, groups), generator=generator)
    return torch.zeros(resamples, groups).scatter_add_(1, draws, torch.ones(draws.shape))


def pixel_statistics(
    images: Sequence[Tensor],
    ignored_bits: int,
    weights: Tensor,
    *,
    max_bins: int = MAX_BINS,
    limit: float = 0.3,
) -> dict[str, Tensor]:
    """AUROC, AUPR, AUPRO and best Dice over all pixels of each resample: (B,) each.

    Args:
        images: counts of I images, of one or of several `ImageHistograms`.
        ignored_bits: the most of theirs.
        weights: how often each resample has each image, (B, I).
        max_bins: of all images together.
        limit: of the AUPRO's false-positive rate.

    Needs 12 bytes a bin and image, at most 50 kB an image, beside the counts.
    """
    counts, mixed = _dense(images, ignored_bits, max_bins)
    parts = [_curves((some @ counts).double(), mixed, limit) for some in weights.split(_TOGETHER)]
    names = ("auroc", "aupr", "aupro", "best_dice")
    return dict(zip(names, map(torch.cat, zip(*parts, strict=True)), strict=True))


def ranking_statistics(scores: Tensor, labels: Tensor, weights: Tensor) -> dict[str, Tensor]:
    """Exact AUROC and AUPR of image-level scores in each resample: (I,), (I,), (B, I) -> (B,).

    NaN where a resample has images of one class only.
    """
    values, places = scores.unique(return_inverse=True)
    zeros = weights.new_zeros(len(weights), len(values), dtype=torch.float64)
    anomalous = zeros.index_add(1, places, (weights * labels).double())
    healthy = zeros.index_add(1, places, (weights * ~labels).double())
    exact = torch.zeros(len(values), dtype=torch.bool)
    curves = {"auroc": auroc, "aupr": aupr}
    return {name: curve(healthy, anomalous, exact)[0] for name, curve in curves.items()}


def ratio_statistics(parts: Tensor, weights: Tensor) -> Tensor:
    """Ratios of what adds up over images, in each resample: (I, S, 2), (B, I) -> (B, S)."""
    above, below = torch.einsum("bi,isp->pbs", weights.double(), parts.double())
    return above / below  # 0 / 0 is NaN


def interval(values: Tensor, level: float = 0.95) -> tuple[float, float]:
    """Percentile interval of a statistic's resamples, those where it is NaN left out: (B,)."""
    tail = (1 - level) / 2
    low, high = values.double().nanquantile(torch.tensor([tail, 1 - tail], dtype=torch.float64))
    return float(low), float(high)


def group_numbers(groups: Sequence[Hashable]) -> Tensor:
    """Number of each item's group, in order of appearance: (I,) int64."""
    numbers = {group: number for number, group in enumerate(dict.fromkeys(groups))}
    return torch.tensor([numbers[group] for group in groups])


def _dense(images: Sequence[Tensor], bits: int, max_bins: int) -> tuple[Tensor, Tensor]:
    """Healthy and anomalous pixels and shares, (3, I, B) float32, and whether bins are mixed."""
    rows = torch.cat(list(images))
    pool = grouped_bins(rows, bits)
    bits = enough_bits(pool[:, 0], bits, max_bins)
    pool = grouped_bins(pool, bits)
    image = torch.arange(len(images)).repeat_interleave(torch.tensor(list(map(len, images))))
    bins = torch.searchsorted(pool[:, 0] >> bits, rows[:, 0] >> bits)
    dense = torch.zeros(3, len(images), len(pool))
    for of, counts in zip(dense, rows[:, 2:].unbind(1), strict=True):
        of.index_put_((image, bins), counts.float(), accumulate=True)
    return dense, pool[:, 0] != pool[:, 1]


def _curves(counts: Tensor, mixed: Tensor, limit: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    healthy, anomalous, coverage = counts.unbind(0)
    return (
        auroc(healthy, anomalous, mixed)[0],
        aupr(healthy, anomalous, mixed)[0],
        aupro(healthy, coverage, mixed, limit)[0],
        dices(healthy, anomalous).amax(-1),
    )
