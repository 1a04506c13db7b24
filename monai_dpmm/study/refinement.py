"""What smoothing and the scan's own baseline do to maps, measured over the pixels of the body.

Every method gets the same steps, so that a comparison is one of methods and not of steps.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from monai_dpmm.metrics.bootstrap import (
    ImageHistograms,
    drawn_counts,
    group_numbers,
    pixel_statistics,
    ranking_statistics,
)
from monai_dpmm.metrics.score_histogram import ScoreHistogram
from monai_dpmm.network.postprocessing import less_baseline, smoothed
from monai_dpmm.network.thresholds import image_score
from monai_dpmm.study.embedded_dataset import LabelledScan

__all__ = ["RESAMPLES", "STEPS", "RefinementMetrics", "refined"]

RESAMPLES = 1000
_BINS = 2**16  # which agree with exact curves to 2e-5 in AUPR
STEPS = ("raw", "smoothed", "less baseline", "both")


def refined(maps: Tensor, scan: LabelledScan, sigma_mm: float) -> Mapping[str, Tensor]:
    """Maps of a scan by step: (S, H, W) -> the same each; without a body they stay as they are.

    Args:
        maps: as a method gives them.
        scan: with the foreground and its spacing.
        sigma_mm: see `smoothed`.
    """
    if not bool(scan.foreground.any()):
        return dict.fromkeys(STEPS, maps)
    smooth = smoothed(maps, scan.foreground, sigma_mm, scan.spacing)
    less, both = (less_baseline(x, scan.foreground)[0] for x in (maps, smooth))
    return dict(zip(STEPS, (maps, smooth, less, both), strict=True))


class RefinementMetrics:
    """Quality of the maps of test scans after each step of `STEPS`, in the body's pixels only.

    Pixels of a lesion count wherever they are: what was taken for air is a lesion missed.

    Args:
        sigma_mm: see `smoothed`.
        unit: scores are counted in multiples of it.
    """

    def __init__(self, sigma_mm: float, unit: float) -> None:
        self.sigma_mm = sigma_mm
        self.unit = unit
        self._steps = {step: _Pixels() for step in STEPS}
        self._groups: list[str] = []
        self._slices: list[tuple[bool, bool]] = []  # of each: with a lesion, matched

    def add(self, maps: Tensor, scan: LabelledScan) -> None:
        """Count the pixels of a scan: (S, H, W)."""
        there = scan.foreground | scan.masks
        numbers = there.flatten(1).any(1).nonzero()[:, 0].tolist()
        if not numbers:
            return
        self._groups.append(scan.group)
        self._slices += [(bool(scan.masks[i].any()), scan.matched) for i in numbers]
        for step, anomaly in refined(maps, scan, self.sigma_mm).items():
            pixels = self._steps[step]
            pixels.add((anomaly[there] / self.unit).round(), scan.masks[there])
            pixels.tops += [float(image_score(anomaly[i][there[i]])) for i in numbers]

    def compute(self) -> dict[str, dict[str, Any]]:
        """By step "auroc", "aupr", "best_dice", those of slices, and AUPR of resamples.

        "image_auroc" is of slices with a lesion against those without, by the mean of the highest
        1 % of their pixels; "matched_auroc" that of the scans that are matched, None where all are.
        "resampled" holds the AUPR of `RESAMPLES` draws of the patients, the same draws for every
        method; None where a draw has no lesion.
        """
        groups = group_numbers(self._groups)
        counts = drawn_counts(int(groups.max()) + 1, RESAMPLES)
        anomalous, matched = torch.tensor(self._slices).unbind(1)
        choices = {"image_auroc": torch.ones_like(matched), "matched_auroc": matched}
        found: dict[str, dict[str, Any]] = {}
        for step, pixels in self._steps.items():
            found[step] = pixels.compute(counts[:, groups])
            for name, chosen in choices.items():
                found[step][name] = _auroc(torch.tensor(pixels.tops), anomalous, chosen)
            if bool(matched.all()):
                found[step]["matched_auroc"] = None
        return found


class _Pixels:
    """Pixels of one step, counted by score; and the highest ones of each slice, averaged."""

    def __init__(self) -> None:
        self.tops: list[float] = []
        self._pool = ScoreHistogram(_BINS)
        self._scans = ImageHistograms()

    def add(self, scores: Tensor, lesions: Tensor) -> None:
        """Count the pixels of a scan: (n,), (n,) bool."""
        histogram = ScoreHistogram(_BINS)
        histogram.update(scores, lesions)
        self._pool.merge(histogram)
        self._scans.add(histogram)

    def compute(self, weights: Tensor) -> dict[str, Any]:
        """Metrics of all pixels, and AUPR where each resample has each scan so often: (B, I)."""
        draws = pixel_statistics(self._scans.images, self._scans.ignored_bits, weights)["aupr"]
        return {
            "auroc": self._pool.auroc().value,
            "aupr": self._pool.aupr().value,
            "best_dice": self._pool.best_dice().value,
            "resampled": [None if math.isnan(draw) else round(draw, 5) for draw in draws.tolist()],
        }


def _auroc(scores: Tensor, labels: Tensor, chosen: Tensor) -> float:
    """Of the chosen slices: (I,), (I,) bool, (I,) bool."""
    weights = torch.ones(1, int(chosen.sum()))
    return float(ranking_statistics(scores[chosen], labels[chosen], weights)["auroc"])
