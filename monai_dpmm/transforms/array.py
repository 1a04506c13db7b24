"""MONAI transforms from a scan to patch embeddings, and from anomaly maps to what is saved.

Their dictionary versions are in `monai_dpmm.transforms.dictionary`.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from monai.data import MetaTensor
from monai.transforms import Transform
from monai.utils import TransformBackends
from torch import Tensor

from monai_dpmm.errors import InputError
from monai_dpmm.network.thresholds import TOP_FRACTION, image_score
from monai_dpmm.transforms.metatensors import (
    like,
    plain,
)
from monai_dpmm.transforms.operating_point import (
    DEFAULT_RATE,
    DEFAULT_VOLUME,
    NO_VOLUMES,
    THRESHOLDS,
    OperatingPoint,
    operating_point,
    volume_threshold,
)

__all__ = [
    "ImageScore",
    "ThresholdAnomaly",
]


class ThresholdAnomaly(Transform):
    """Mask of an anomaly map, uint8 0 or 1, the same shape: score above the calibrated threshold.

    The network's thresholds come with the map, in the metadata that `AnomalyInferer` gives it.
    Without a rate, masks of volumes are those of the false-positive volume, and masks of pictures
    (1, H, W), which have no ml, those of a rate of 0.01.

    Args:
        detector: deprecated; whose thresholds are taken where the map has none.
        false_positive_rate: one of the rates at which the network was calibrated, which counts
            before the volume; None for the latter.
        false_positive_volume: mean ml of false positives in a healthy scan, one that was
            calibrated. Where none was, the default of 2 ml gives way to the rate, and a line says
            so.
        volume_thresholds: what `FalsePositiveVolumes.calibrated` found (models/model.json).

    Raises:
        ValueError: for a volume that was not calibrated, the default only where another one was.
    """

    backend: ClassVar = [TransformBackends.TORCH]

    def __init__(
        self,
        detector: Any = None,
        false_positive_rate: float | None = None,
        *,
        false_positive_volume: float | None = None,
        volume_thresholds: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        if detector is not None:
            warnings.warn(
                "detector goes: the thresholds come with the map of AnomalyInferer",
                DeprecationWarning,
                stacklevel=2,
            )
        self.false_positive_rate = false_positive_rate
        volume = false_positive_volume if false_positive_rate is None else None
        self._tell = volume == DEFAULT_VOLUME and not volume_thresholds
        self.volume = volume_threshold(None if self._tell else volume, volume_thresholds)
        if isinstance(detector, OperatingPoint):
            self.volume, detector = detector.volume, detector.detector
        self.detector = detector

    def __call__(self, anomaly: Tensor, false_positive_rate: float | None = None) -> Tensor:
        """Mask at the rate, or at the configured operating point."""
        return self.mask(anomaly, self.operating_point(anomaly, rate=false_positive_rate))

    def operating_point(
        self, *maps: Tensor | None, rate: float | None = None
    ) -> dict[str, float | None]:
        """Threshold and what it was calibrated for, see `operating_point`.

        The thresholds are those of the first of the maps that carries some. A rate of false
        positives counts before the configured operating point.

        Raises:
            ValueError: where there are no thresholds, or none at this rate.
        """
        carried = [m.meta.get(THRESHOLDS) for m in maps if isinstance(m, MetaTensor)]
        carried.append(getattr(self.detector, "thresholds_by_rate", None))
        known = next((thresholds for thresholds in carried if thresholds), None)
        if known is None:
            raise InputError(
                "the anomaly map must carry the thresholds of a calibrated network, as that of"
                " AnomalyInferer does, got none in its metadata"
            )
        rates = [one for one in (rate, self.false_positive_rate, DEFAULT_RATE) if one is not None]
        if rate is not None or any(one is not None and one.ndim == 3 for one in maps[:1]):
            return operating_point(known, rates[0])
        if self._tell:
            print(NO_VOLUMES)
            self._tell = False
        return operating_point(known, rates[0], self.volume)

    @staticmethod
    def mask(anomaly: Tensor, point: Mapping[str, Any]) -> Tensor:
        """Mask of an anomaly map at an operating point."""
        return like((plain(anomaly) > point["threshold"]).to(torch.uint8), anomaly)


class ImageScore(Transform):
    """Anomaly score of a whole image or volume: any shape -> float, mean of the highest scores.

    Args:
        fraction: share of the scores that is averaged, see `image_score`.
    """

    backend: ClassVar = [TransformBackends.TORCH]

    def __init__(self, fraction: float = TOP_FRACTION) -> None:
        self.fraction = fraction

    def __call__(self, anomaly: Tensor, foreground: Tensor | None = None) -> float:
        """Score of the map, or of its foreground, where that is above 0: the same shape."""
        scores = plain(anomaly)
        scores = scores if foreground is None else scores[plain(foreground).to(scores.device) > 0]
        return float(image_score(scores, self.fraction))
