"""Maps of a scan smoothed and less its own baseline, before anything is read off them."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any, ClassVar

from monai.data import MetaTensor
from monai.transforms import Transform
from monai.utils import TransformBackends
from torch import Tensor

from monai_dpmm.errors import InputError, InputTypeError
from monai_dpmm.network.postprocessing import less_baseline, smoothed
from monai_dpmm.transforms.metatensors import like, plain

__all__ = ["RefineAnomalyd"]


class RefineAnomalyd(Transform):
    """Data with the anomaly map (1, X, Y, Z) or (1, H, W) smoothed, less its median, or both.

    Smoothing comes first. The foreground is where `foreground_key` is above 0: of a component map,
    the patches that were scored. Thresholds of patches do not hold for such maps: those of a model
    are calibrated on maps that went through the same steps, see `ScanCalibration`.

    Args:
        anomaly_key: key of the map, which it replaces.
        foreground_key: key of a volume on the same grid, above 0 in the foreground.
        baseline_key: where the median of the foreground goes, a float; nothing goes there unless
            it is taken off.
        smoothing_mm: standard deviation of the Gaussian, see `smoothed`; pixels for pictures, whose
            affine is the identity; 0 for none.
        subtract_baseline: take the median of the foreground off, see `less_baseline`.

    Raises:
        ValueError: for a negative smoothing.
    """

    backend: ClassVar = [TransformBackends.TORCH]

    def __init__(
        self,
        anomaly_key: Hashable = "pred_anomaly",
        foreground_key: Hashable = "pred_component",
        baseline_key: Hashable = "baseline",
        *,
        smoothing_mm: float = 0.0,
        subtract_baseline: bool = False,
    ) -> None:
        if not smoothing_mm >= 0:
            raise InputError(f"smoothing_mm must be at least 0, got {smoothing_mm}")
        self.anomaly_key = anomaly_key
        self.foreground_key = foreground_key
        self.baseline_key = baseline_key
        self.smoothing_mm = smoothing_mm
        self.subtract_baseline = subtract_baseline

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Data with the map in the place of the one before."""
        result = dict(data)
        source: Tensor = data[self.anomaly_key]
        anomaly = plain(source)[0]
        foreground = plain(data[self.foreground_key])[0].to(anomaly.device) > 0
        if self.smoothing_mm:
            if not isinstance(source, MetaTensor):
                raise InputTypeError(
                    f"{self.anomaly_key} must be a MetaTensor, whose affine tells millimetres, got "
                    f"{type(source).__name__}"
                )
            spacing = source.pixdim[: anomaly.ndim].tolist()
            anomaly = smoothed(anomaly, foreground, self.smoothing_mm, spacing)
        if self.subtract_baseline:
            anomaly, baseline = less_baseline(anomaly, foreground)
            result[self.baseline_key] = float(baseline)
        if self.smoothing_mm or self.subtract_baseline:
            result[self.anomaly_key] = like(anomaly[None], source)
        return result
