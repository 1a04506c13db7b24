"""What finished maps of healthy scans tell: false findings, and thresholds at a rate of voxels.

Everything is kept without the scans, in memory that does not grow with their voxels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from monai_dpmm.errors import InputError
from monai_dpmm.transforms.metatensors import plain
from monai_dpmm.transforms.operating_point import binned, mean_interval
from monai_dpmm.transforms.regions import connected_regions

__all__ = ["HealthyFindings", "PooledScores", "rank_p_value"]

_PENDING = 2**20


def rank_p_value(value: float, healthy: Sequence[float]) -> float | None:
    """Conformal p-value: share of n + 1 scans, this one included, that have at least this value.

    A healthy scan that is exchangeable with the n others has a p-value of at most p with a
    probability of at most p, whatever the values' distribution (Vovk et al., Algorithmic Learning
    in a Random World, 2005). It is never below 1 / (n + 1), and None where there are none.
    """
    if not healthy:
        return None
    return (1 + sum(other >= value for other in healthy)) / (len(healthy) + 1)


class _Voxels(NamedTuple):
    """Highest voxels of a scan: indices (n, 3) int16, scores (n,), and the ml of one."""

    places: Tensor
    scores: Tensor
    ml: float


class HealthyFindings:
    """Findings of healthy scans at thresholds that are known only after the last of them.

    Of each scan the highest voxels are kept, so many ml of them, 10 bytes a voxel. Where more lies
    above a threshold, the findings are those of the voxels that are kept.

    Args:
        ml: to keep of a scan.
    """

    def __init__(self, ml: float) -> None:
        self.ml = ml
        self._scans: list[_Voxels] = []

    def add(self, anomaly: Tensor, foreground: Tensor, ml: float) -> None:
        """Keep the highest voxels of a healthy scan: (X, Y, Z), the same bool, ml of a voxel."""
        anomaly, foreground = plain(anomaly), plain(foreground)
        places = foreground.nonzero()
        scores = anomaly[foreground].float()
        highest = scores.topk(min(len(scores), math.ceil(self.ml / ml)))
        self._scans.append(_Voxels(places[highest.indices].short().cpu(), highest.values.cpu(), ml))

    def at(self, threshold: float, smallest: float) -> list[Tensor]:
        """Excess of each finding of at least so many ml, see `anomaly_findings`, for every scan."""
        return [_excesses(scan, threshold, smallest) for scan in self._scans]

    def summary(self, threshold: float, smallest: float) -> dict[str, Any]:
        """What a calibrated threshold keeps of these scans, for JSON.

        "min_lesion_ml", the smallest finding that counts; "findings_per_scan", the mean;
        "findings_interval" of the mean over all healthy scans like them, None for a single scan;
        and "largest_findings", the largest excess in each scan, 0 where it has no finding.
        """
        found = self.at(threshold, smallest)
        counts = [len(excess) for excess in found]
        return {
            "min_lesion_ml": float(smallest),
            "findings_per_scan": sum(counts) / len(counts),
            "findings_interval": mean_interval(counts, counts=True),
            "largest_findings": [
                float(f"{excess.max():.6g}") if len(excess) else 0.0 for excess in found
            ],
        }


class PooledScores:
    """Scores of the foreground of all healthy scans together: thresholds at a rate of voxels."""

    def __init__(self) -> None:
        self._bins, self._counts = torch.zeros(0), torch.zeros(0, dtype=torch.int64)
        self._pending: list[tuple[Tensor, Tensor]] = []

    def add(self, scores: Tensor) -> None:
        """Count the scores of a scan's foreground: (n,)."""
        self._pending.append(binned(plain(scores).float().flatten().cpu()))
        if sum(len(bins) for bins, _ in self._pending) > max(_PENDING, len(self._bins)):
            self._merge()

    def thresholds(self, rates: Tensor) -> Tensor:
        """Lowest scores that at most these shares of all voxels lie above: (R,) -> (R,).

        Raises:
            ValueError: where no voxel was added.
        """
        self._merge()
        if not len(self._bins):
            raise InputError("scores must have been added before thresholds are found, got none")
        above = self._counts.sum() - self._counts.cumsum(0)
        allowed = (rates.double().cpu() * int(self._counts.sum()) + 1e-9).floor()
        first = torch.searchsorted(-above.double(), -allowed)
        return self._bins[first]

    def _merge(self) -> None:
        parts = [(self._bins, self._counts), *self._pending]
        bins, places = torch.cat([bins for bins, _ in parts]).unique(return_inverse=True)
        counts = torch.cat([counts for _, counts in parts])
        self._counts = torch.zeros(len(bins), dtype=torch.int64).index_add_(0, places, counts)
        self._bins, self._pending = bins, []


def _excesses(scan: _Voxels, threshold: float, smallest: float) -> Tensor:
    """Excess of each finding of a scan that is large enough: (F,) float64."""
    inside = scan.scores > threshold
    places, scores = scan.places[inside].long(), scan.scores[inside].double()
    if not len(places):
        return scores
    places = places - places.amin(0)
    mask = torch.zeros((places.amax(0) + 1).tolist(), dtype=torch.bool)
    mask[tuple(places.T)] = True
    regions = connected_regions(mask)[tuple(places.T)] - 1
    sizes = regions.bincount().double() * scan.ml
    excess = torch.zeros_like(sizes).index_add_(0, regions, (scores - threshold) * scan.ml)
    return excess[sizes >= smallest * (1 - 1e-6)]
