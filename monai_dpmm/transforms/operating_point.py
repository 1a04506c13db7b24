"""Where a mask begins: at a false-positive volume of healthy scans, or at a false-positive rate.

Thresholds by volume are found on healthy scans, in ml a scan, with how sure they are.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from scipy.stats import t as student
from torch import Tensor

from monai_dpmm.errors import InputError
from monai_dpmm.network.thresholds import key_scores, order_keys, threshold_of

__all__ = [
    *("CONFIDENCE", "DEFAULT_RATE", "DEFAULT_VOLUME", "NO_VOLUMES", "THRESHOLDS"),
    *("FalsePositiveVolumes", "OperatingPoint", "binned", "mean_interval", "operating_point"),
    *("volume_threshold", "voxel_ml"),
]

CONFIDENCE = 0.95
DEFAULT_VOLUME = 2.0  # ml of false positives in a healthy scan: about 0.1 % of a brain
DEFAULT_RATE = 0.01  # for pictures, which have no ml, and models without calibrated volumes
NO_VOLUMES = (
    "The model has no thresholds by volume, so masks are those of a false-positive rate of"
    f" {DEFAULT_RATE:g}: `python -m monai_dpmm calibrate DIR` finds them on healthy scans"
)
THRESHOLDS = "thresholds"  # of the network by rate, in the metadata of a map
_IGNORED = 2**10 - 1  # trailing bits of a float32 score: bins of 1.2e-4 of the score


class FalsePositiveVolumes:
    """Volume above each threshold in every healthy scan: anomaly volumes in, thresholds out.

    Memory does not grow with the voxels: of each scan a list of binned scores is kept, some 8,000
    for every factor of two between its scores, and the ml above each.
    """

    def __init__(self) -> None:
        self._curves: list[tuple[Tensor, Tensor]] = []

    def __len__(self) -> int:
        return len(self._curves)

    def add(self, anomaly: Tensor, ml: float) -> None:
        """Count the voxels of a healthy scan's anomaly volume (any shape), of so many ml each.

        Of a scan with air around the body, the foreground's scores (n,).

        Raises:
            ValueError: where the volume is empty or a score is NaN or infinite.
        """
        scores = anomaly.detach().as_subclass(Tensor).float().flatten().cpu()
        if not len(scores) or not bool(scores.isfinite().all()):
            raise InputError(f"anomaly scores must be finite and some, got {scores.numel()} voxels")
        bins, counts = binned(scores)
        above = len(scores) - torch.cat([counts.new_zeros(1), counts.cumsum(0)])
        self._curves.append((bins, above.double() * ml))

    def merge(self, other: FalsePositiveVolumes) -> None:
        """Count the scans of another."""
        self._curves += other._curves

    @property
    def mean_ml(self) -> float:
        """Mean volume of the scans, ml, as far as it was counted."""
        return sum(float(above[0]) for _, above in self._curves) / len(self)

    def volumes(self, thresholds: Tensor) -> Tensor:
        """Volume of the mask `score > threshold` in each scan, ml: (T,) -> (n, T).

        Exact at thresholds that `threshold` returns, else of the bin that a threshold lies in.
        """
        return torch.stack([_above(curve, thresholds) for curve in self._curves])

    def threshold(self, ml_per_scan: float) -> float:
        """Lowest threshold whose masks take at most so many ml of a healthy scan, on average.

        Raises:
            ValueError: for a volume that is not positive, or not less than what all voxels of a
                scan take on average, or before any scan was added.
        """
        if not self._curves:
            raise InputError("at least one healthy scan must be added before a threshold is found")
        candidates = torch.cat([bins for bins, _ in self._curves]).unique()
        mean = sum(_above(curve, candidates) for curve in self._curves) / len(self)
        if not 0 < ml_per_scan < float(mean[0]):
            raise InputError(
                f"ml_per_scan must be positive and less than the {float(mean[0]):.1f} ml that score"
                f" above the lowest in a mean scan, got {ml_per_scan}"
            )
        return float(candidates[int((mean <= ml_per_scan * (1 + 1e-9)).nonzero()[0])])

    def calibrated(
        self, ml_per_scan: Sequence[float], detector: _Calibrated
    ) -> list[dict[str, Any]]:
        """Thresholds of a detector for these false-positive volumes, as models/model.json has them.

        Each is a dictionary of "ml_per_scan", as asked for; "threshold"; "mean_ml" of the
        validation scans; "interval" of the mean over all healthy scans like them (see
        `mean_interval`), None where it is unknown; "highest_ml", which the next healthy scan
        exceeds with a probability of at most 1 / (scans + 1); "scans", how many there were; and
        "patch_thresholds" of the detector by rate, by which it is known again. See also
        `monai_dpmm.transforms.healthy_findings`, whose numbers join them.
        """
        known = detector.thresholds_by_rate
        found = []
        for ml in ml_per_scan:
            threshold = self.threshold(ml)
            volumes = self.volumes(torch.tensor([threshold]))[:, 0]
            found.append(
                {
                    "ml_per_scan": float(ml),
                    "threshold": threshold,
                    "mean_ml": float(volumes.mean()),
                    "interval": mean_interval(volumes.tolist()),
                    "highest_ml": float(volumes.max()),
                    "scans": len(self),
                    "patch_thresholds": known,
                }
            )
        return found


def mean_interval(
    volumes: Sequence[float], confidence: float = CONFIDENCE, *, counts: bool = False
) -> tuple[float, float] | None:
    """Confidence interval of the mean volume of all scans, ml: Student's t of the log of the mean.

    False-positive volumes are positive and skewed, where neither the bootstrap nor Student's t of
    the mean itself holds what it promises: on lognormal volumes of coefficients of variation from
    0.5 to 1.5, 4 scans, this one covers the mean in 89 to 95 % of draws, Student's in 82 to 93 %, a
    percentile bootstrap in 69 to 80 %.

    Args:
        volumes: one of each scan.
        confidence: of the interval.
        counts: they are numbers of findings instead, which vary at least as those of a Poisson
            distribution; where no scan has any, the upper end is the Poisson distribution's.

    Returns:
        None for a single scan, or where no scan has a false positive (unless they are counts).
    """
    scans, mean = len(volumes), math.fsum(volumes) / len(volumes)
    if counts and scans > 1 and mean == 0:
        return 0.0, -math.log((1 - confidence) / 2) / scans
    if scans < 2 or mean == 0:
        return None
    variance = math.fsum((volume - mean) ** 2 for volume in volumes) / (scans - 1)
    variance = max(variance, mean) if counts else variance
    quantile = float(student.ppf((1 + confidence) / 2, scans - 1))
    width = quantile * math.sqrt(variance / scans) / mean
    return mean * math.exp(-width), mean * math.exp(min(width, 700))


def voxel_ml(affine: Tensor) -> float:
    """Volume of a voxel in ml, of an affine in mm (4, 4)."""
    return abs(float(torch.linalg.det(affine[:3, :3].double()))) / 1000


class _Calibrated(Protocol):
    """What knows thresholds at false-positive rates, as an `AnomalyDetector` does."""

    @property
    def thresholds_by_rate(self) -> dict[str, float]:
        """Thresholds by rate, as text."""


def volume_threshold(
    false_positive_volume: float | None, volume_thresholds: Sequence[Mapping[str, Any]]
) -> Mapping[str, Any] | None:
    """What was calibrated for a false-positive volume in ml; None where no volume is chosen.

    Args:
        false_positive_volume: mean ml of false positives in a healthy scan.
        volume_thresholds: what `FalsePositiveVolumes.calibrated` found (models/model.json).

    Raises:
        ValueError: for a volume that was not calibrated.
    """
    if false_positive_volume is None:
        return None
    if not volume_thresholds:
        raise InputError(
            f"false_positive_volume={false_positive_volume} needs thresholds calibrated by volume,"
            " the model has none: run `python -m monai_dpmm calibrate DIR` on the data that it was"
            " trained on"
        )
    found = [
        one for one in volume_thresholds if math.isclose(one["ml_per_scan"], false_positive_volume)
    ]
    if not found:
        kept = ", ".join(f"{one['ml_per_scan']:g}" for one in volume_thresholds)
        raise InputError(
            f"false_positive_volume must be one of {kept} ml, got {false_positive_volume}"
        )
    return found[0]


def operating_point(
    thresholds: Mapping[str, float],
    false_positive_rate: float = DEFAULT_RATE,
    volume: Mapping[str, Any] | None = None,
) -> dict[str, float | None]:
    """Threshold of a mask and what it was calibrated for, as the data carry it.

    "threshold", and its "false_positive_rate" or, where a volume is chosen, the mean
    "false_positive_volume_ml" of a healthy scan; the other is None.

    Args:
        thresholds: of the network by rate, see `AnomalyDetector.thresholds_by_rate`.
        false_positive_rate: of healthy validation scans' patches, or of the foreground's voxels
            where whole scans were calibrated.
        volume: of `volume_threshold`; it counts before any rate.

    Raises:
        ValueError: for a rate that was not calibrated, and where the network was trained again
            after its volumes were calibrated.
    """
    if volume is None:
        return {
            "threshold": threshold_of(thresholds, false_positive_rate),
            "false_positive_rate": false_positive_rate,
            "false_positive_volume_ml": None,
        }
    for rate, now in thresholds.items():
        before = volume["patch_thresholds"].get(rate)
        if before is None or not math.isclose(now, before, rel_tol=1e-4, abs_tol=1e-6):
            raise InputError(
                f"the model's threshold at a rate of {rate} must be the {before} of when its"
                f" volumes were calibrated, got {now}: calibrate it again"
            )
    return {
        "threshold": volume["threshold"],
        "false_positive_rate": None,
        "false_positive_volume_ml": volume["ml_per_scan"],
    }


class OperatingPoint:
    """Deprecated: `ThresholdAnomaly` takes the volume itself, and the data carry its threshold.

    Args:
        detector: an `AnomalyDetector`.
        false_positive_volume: see `volume_threshold`.
        volume_thresholds: see `volume_threshold`.
    """

    def __init__(
        self,
        detector: _Calibrated,
        false_positive_volume: float | None = None,
        volume_thresholds: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        warnings.warn(
            "OperatingPoint goes: give false_positive_volume and volume_thresholds to"
            " ThresholdAnomaly; the data carry the threshold that it took",
            DeprecationWarning,
            stacklevel=2,
        )
        self.detector = detector
        self.volume = volume_threshold(false_positive_volume, volume_thresholds)

    def threshold(self, false_positive_rate: float) -> Tensor:
        """Score above which a voxel is anomalous: a 0-d tensor."""
        known = self.detector.thresholds_by_rate
        return torch.tensor(operating_point(known, false_positive_rate, self.volume)["threshold"])


def binned(scores: Tensor) -> tuple[Tensor, Tensor]:
    """Bins of scores, by the highest of a bin, and their counts: (n,) float32 -> (B,), (B,).

    Not the highest score seen in the bin, as `ScoreHistogram` keeps it: a threshold must not depend
    on which scans were added.
    """
    return key_scores(order_keys(scores) | _IGNORED).unique(return_counts=True)


def _above(curve: tuple[Tensor, Tensor], thresholds: Tensor) -> Tensor:
    """Volume of the bins above thresholds, ml: (T,) -> (T,)."""
    bins, above = curve  # (B,), and (B + 1,): what is above none of the bins, above the first ...
    return above[torch.searchsorted(bins, thresholds.to(bins.dtype), right=True)]
