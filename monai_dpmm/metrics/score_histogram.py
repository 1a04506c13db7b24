"""Pixel metrics of any number of pixels in constant memory: a histogram of scores by class.

A bin holds the scores whose float32 numbers agree in their leading bits, read as integers in the
order of the scores. So bins need no range: they are as fine, relative to the score, at 1e-30 as at
1e30, and only those that hold a score are kept. Every score has a bin of its own until there are
more than `max_bins`; then as few trailing bits are ignored as it takes. How many these are follows
from the scores alone: in whatever order pixels come, and in however many histograms they are
counted, the sum is the same, bit for bit.

What binning can cost is known, too: counts and distinct scores of a bin bound the part of each
curve that lies within it. AUROC, AUPR and AUPRO come with how far off they can be (see `areas`).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from monai_dpmm.errors import InputError
from monai_dpmm.metrics.curves import aupr, aupro, auroc, dices
from monai_dpmm.network.thresholds import key_scores, order_keys

__all__ = [
    "MAX_BINS",
    "BestDice",
    "Estimate",
    "ScoreHistogram",
    "enough_bits",
    "grouped_bins",
]

MAX_BINS = 2**18
_CHUNK = 2**18
_PENDING = 2**19
_REGION = 2**40  # what all pixels of a region weigh together: whole numbers add up in any order


class Estimate(NamedTuple):
    """A value in [0, 1], and how far from it the exact one can be at most."""

    value: float
    error: float


class BestDice(NamedTuple):
    """Highest Dice of all masks `score > threshold`, in [0, 1], and the threshold that gives it."""

    value: float
    threshold: float


class ScoreHistogram:
    """Healthy and anomalous pixels counted by score: adds up over images and processes.

    Up to `max_bins` different scores, every metric is exact. Beyond, with 2^18 bins (10 MB), AUROC,
    AUPR and AUPRO differ from the exact ones by less than 1e-4 for normal, heavy-tailed, tied and
    narrow scores (cosine distances from 0.10 to 0.12) with 1 % and 0.1 % of anomalous pixels;
    `error` is what holds for any. It grows where most bins are spent on scores that do not matter,
    as on half of the pixels spread evenly over thirty decades.

    Scores are compared as float32. Pixels are counted on their own device and kept on the CPU.

    Args:
        max_bins: the number of bins that is never exceeded; None for a bin per score, whose memory
            grows with the pixels.
    """

    def __init__(self, max_bins: int | None = MAX_BINS) -> None:
        if max_bins is not None and max_bins < 2:
            raise InputError(f"max_bins must be at least 2, got {max_bins}")
        self.max_bins = max_bins
        self._ignored_bits = 0
        self._bins = torch.zeros(0, 5, dtype=torch.int64)
        self._pending: list[Tensor] = []

    def update(self, scores: Tensor, labels: Tensor, regions: Tensor | None = None) -> None:
        """Count pixels, anomalous where the label is true: (any shape), the same shape.

        Args:
            scores: higher is more anomalous.
            labels: boolean.
            regions: number of the region of each anomalous pixel, from 1, for the AUPRO; whole
                regions only. Each counts the same to 1e-5, for up to ten million pixels in a region
                and eight million regions in all.

        Raises:
            ValueError: where the shapes differ, or a score is NaN or infinite.
        """
        for name, given in (("labels", labels), ("regions", regions)):
            if given is not None and given.shape != scores.shape:
                raise InputError(
                    f"{name} must have the scores' shape {tuple(scores.shape)},"
                    f" got {tuple(given.shape)}"
                )
        scores = scores.float()
        if not bool(scores.isfinite().all()):
            raise InputError(
                f"scores must be finite, got {int(scores.isnan().sum())} NaN and"
                f" {int(scores.isinf().sum())} infinite ones of {scores.numel()}"
            )
        shares = (
            torch.zeros_like(labels, dtype=torch.int64) if regions is None else _shares(regions)
        )
        size = _CHUNK if self.max_bins is not None else max(1, scores.numel())
        parts = (x.flatten().split(size) for x in (scores, labels.bool(), shares))
        for some, of_them, shared in zip(*parts, strict=True):
            counted = _counted(some, of_them, shared, self._ignored_bits)
            self._add(counted.to(self._bins.device))

    def merge(self, other: ScoreHistogram) -> None:
        """Add the pixels of another histogram.

        Raises:
            ValueError: where `max_bins` differs.
        """
        if self.max_bins != other.max_bins:
            raise InputError(
                f"max_bins of merged histograms must agree, got {self.max_bins} and"
                f" {other.max_bins}"
            )
        bins = other.bins
        self._ignored_bits = max(self._ignored_bits, other._ignored_bits)
        self._add(bins)

    @property
    def bins(self) -> Tensor:
        """Bins in ascending order, whose columns are integers: (B, 5).

        The lowest and the highest score, as float32 numbers in integers of the same order, the
        numbers of healthy and of anomalous pixels, and the shares of regions, 2^40 a region.
        """
        if self._pending:
            self._bins = grouped_bins(torch.cat([self._bins, *self._pending]), self._ignored_bits)
            self._pending = []
        if self.max_bins is not None and len(self._bins) > self.max_bins:
            self._ignored_bits = enough_bits(self._bins[:, 0], self._ignored_bits, self.max_bins)
            self._bins = grouped_bins(self._bins, self._ignored_bits)
        return self._bins

    def coarse(self, ignored_bits: int) -> Tensor:
        """Bins of all scores that agree but in so many trailing bits, see `bins`: (B', 5)."""
        return grouped_bins(self.bins, max(ignored_bits, self.ignored_bits))

    @property
    def ignored_bits(self) -> int:
        """Trailing bits of the float32 scores in which those of a bin may differ."""
        _ = self.bins
        return self._ignored_bits

    def auroc(self) -> Estimate:
        """Area under the ROC curve; NaN unless there are both healthy and anomalous pixels."""
        healthy, anomalous, _, mixed = self._columns()
        return _estimate(auroc(healthy, anomalous, mixed))

    def aupr(self) -> Estimate:
        """Average precision; NaN unless there are both healthy and anomalous pixels."""
        healthy, anomalous, _, mixed = self._columns()
        return _estimate(aupr(healthy, anomalous, mixed))

    def aupro(self, limit: float = 0.3) -> Estimate:
        """Area under the per-region overlap up to a false-positive rate, divided by that rate.

        NaN unless there are healthy pixels and regions; see `monai_dpmm.metrics.curves.aupro`.

        Raises:
            ValueError: for a limit outside (0, 1].
        """
        if not 0 < limit <= 1:
            raise InputError(f"limit must lie in (0, 1], got {limit}")
        healthy, _, coverage, mixed = self._columns()
        return _estimate(aupro(healthy, coverage, mixed, limit))

    def best_dice(self) -> BestDice:
        """Highest Dice over all thresholds between bins; NaN where no pixel is anomalous."""
        healthy, anomalous, _, _ = self._columns()
        if not anomalous.sum():
            return BestDice(float("nan"), float("nan"))
        dice = dices(healthy, anomalous)
        best = int(dice.argmax())
        lowest = key_scores(self.bins[best, 0])
        return BestDice(float(dice[best]), float(lowest.nextafter(-lowest.new_tensor(torch.inf))))

    def _columns(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Healthy and anomalous pixels, shares, and whether a bin has several scores: (B,) each."""
        low, high, *counts = self.bins.unbind(1)
        healthy, anomalous, coverage = (count.double() for count in counts)
        return healthy, anomalous, coverage, low != high

    def _add(self, bins: Tensor) -> None:
        """Keep bins, and bring them together when there are many: sorting a few times is enough."""
        self._pending.append(bins)
        if sum(map(len, self._pending)) > max(len(self._bins), _PENDING):
            _ = self.bins


def _shares(regions: Tensor) -> Tensor:
    """What each pixel is of its region, in units of 2^-40: int64, the same shape."""
    sizes = regions.flatten().bincount().clamp(min=1)
    share = torch.div(_REGION, sizes, rounding_mode="floor")
    return share[regions] * (regions > 0)


def _counted(scores: Tensor, labels: Tensor, shares: Tensor, ignored_bits: int) -> Tensor:
    """Bins of pixels: (n,), (n,) bool, (n,) -> (B, 5). The last bit sorted is the label."""
    keys = order_keys(scores)
    ordered = (keys << 1 | labels).sort().values
    anomalous, ordered = ordered & 1, ordered >> 1
    coarse = ordered >> ignored_bits
    sizes, ends = _runs(coarse)
    found = anomalous.cumsum(0)[ends].diff(prepend=keys.new_zeros(1))
    inside = shares > 0
    bins = torch.searchsorted(coarse[ends], keys[inside] >> ignored_bits)
    coverage = torch.zeros_like(sizes).index_add_(0, bins, shares[inside])
    low, high = ordered[ends - sizes + 1], ordered[ends]
    return torch.stack([low, high, sizes - found, found, coverage], dim=1)


def enough_bits(keys: Tensor, ignored_bits: int, max_bins: int) -> int:
    """Fewest trailing bits to ignore, no less than given, for so many bins: of sorted keys (n,)."""
    while int((keys >> ignored_bits).diff().count_nonzero()) >= max_bins:
        ignored_bits += 1
    return ignored_bits


def grouped_bins(bins: Tensor, ignored_bits: int) -> Tensor:
    """One bin for all that differ in ignored bits only: (n, 5) in any order -> (B, 5)."""
    if (bins[:, 0].diff() < 0).any():
        bins = bins[bins[:, 0].argsort()]
    sizes, ends = _runs(bins[:, 0] >> ignored_bits)
    low, high = bins[ends - sizes + 1, 0], bins[:, 1].cummax(0).values[ends]
    counts = bins[:, 2:].cumsum(0)[ends].diff(dim=0, prepend=bins.new_zeros(1, 3))
    return torch.cat([torch.stack([low, high], dim=1), counts], dim=1)


def _runs(ordered: Tensor) -> tuple[Tensor, Tensor]:
    """Lengths of the runs of equal numbers, and the place of the last of each: (n,) -> (B,) x 2."""
    sizes = ordered.unique_consecutive(return_counts=True)[1]
    return sizes, sizes.cumsum(0) - 1


def _estimate(of: tuple[Tensor, Tensor]) -> Estimate:
    return Estimate(*map(float, of))
