"""MONAI transforms from a scan to patch embeddings, and from anomaly maps to what is saved.

Their dictionary versions are in `monai_dpmm.transforms.dictionary`.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from monai.data import MetaTensor
from monai.transforms import InvertibleTransform, Transform
from torch import Tensor, nn

from monai_dpmm.errors import InputError
from monai_dpmm.network.detector import embed_patches
from monai_dpmm.network.geometry import extract_slices, prepare_slices, resize_slices, stack_slices
from monai_dpmm.network.thresholds import TOP_FRACTION, image_score
from monai_dpmm.transforms.intensity import Margin, RescaleIntensity, Window
from monai_dpmm.transforms.metatensors import (
    PIXEL_SPACING,
    errors_name_the_file,
    like,
    pixel_spacings,
    plain,
    square_shapes,
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
    *("EmbedPatches", "ExtractSlices", "ImageScore", "NormalizeSlices", "RescaleIntensity"),
    "ThresholdAnomaly",
]


class ExtractSlices(InvertibleTransform):
    """Slices along an axis, (C, X, Y, Z) -> (S, C, H, W); the inverse stacks them again.

    A 2D image is one slice. A `MetaTensor` keeps its affine, which stays that of the volume, and
    remembers the operation, so that `inverse` restores a volume on the same grid, and the spacing
    of the slices' pixels.

    Args:
        axis: spatial axis that the slices are taken along: 0, 1 or 2.
        step: keep every step-th slice, for training only: such slices cannot be inverted.
    """

    def __init__(self, axis: int = 2, step: int = 1) -> None:
        if axis not in (0, 1, 2):
            raise InputError(f"axis must be 0, 1 or 2, got {axis}")
        if step < 1:
            raise InputError(f"step must be at least 1, got {step}")
        self.axis = axis
        self.step = step

    def __call__(self, volume: Tensor) -> Tensor:
        slices = extract_slices(plain(volume), self.axis)[:: self.step]
        result = like(slices, volume)
        if isinstance(result, MetaTensor):
            axis = self.axis if volume.ndim == 4 else None
            (result.meta[PIXEL_SPACING],) = pixel_spacings(volume, axis)
            self.push_transform(result, extra_info={"ndim": int(volume.ndim), "step": self.step})
        return result

    def inverse(self, slices: Tensor) -> Tensor:
        """Volume of the slices: (S, C, H, W) -> (C, X, Y, Z), or (C, H, W) from one 2D image."""
        info = self.pop_transform(slices)["extra_info"] if isinstance(slices, MetaTensor) else {}
        if info.get("step", self.step) != 1:
            raise InputError(f"slices must be taken with step=1 to be inverted, got {self.step}")
        flat = plain(slices)
        volume = flat[0] if info.get("ndim") == 3 else stack_slices(flat, self.axis)
        result = like(volume, slices)
        if isinstance(result, MetaTensor):
            result.meta.pop(PIXEL_SPACING, None)
        return result


class NormalizeSlices(Transform):
    """Images for a backbone, on ImageNet's scale: (S, C, H, W) -> (S, 3, H', W'), float32.

    The slices of one scan are scaled together to [0, 1], made three channels, resized with their
    aspect ratio in mm and normalised by ImageNet's mean and standard deviation.

    Args:
        size: pixels of the shorter side (448 in the paper), a multiple of `patch_size`.
        patch_size: what both sides become multiples of: the backbone's `patch_size`.
        percentiles: see `RescaleIntensity`; None, with no window, where slices are in [0, 1].
        window: see `RescaleIntensity`.
        margin: see `RescaleIntensity`.

    Raises:
        InputError: for slices, or pixels of them, that are more than 8 times as long as wide.
    """

    def __init__(
        self,
        size: int = 448,
        patch_size: int = 14,
        *,
        percentiles: tuple[float, float] | None = (0.5, 99.5),
        window: Window | None = None,
        margin: Margin = 0.0,
    ) -> None:
        if size < patch_size or size % patch_size:
            raise InputError(f"size must be a positive multiple of {patch_size}, got {size}")
        self.size = size
        self.patch_size = patch_size
        in_range = percentiles is None and window is None
        self.rescale = None if in_range else RescaleIntensity(percentiles, window, margin)

    def __call__(self, slices: Tensor) -> Tensor:
        scaled = plain(slices) if self.rescale is None else self.rescale(plain(slices))
        with errors_name_the_file(slices):
            (shape,) = set(square_shapes(slices))
            images = prepare_slices(resize_slices(scaled, shape), self.size, self.patch_size)
        return like(images, slices)


class EmbedPatches(Transform):
    """Patch embeddings of images: (S, 3, H', W') -> (S, h, w, D), float32, on the CPU.

    A plain tensor: a patch grid has no affine.

    Args:
        backbone: frozen module (S, 3, H', W') -> (S, D, h, w).
        batch_size: images in memory at the backbone at once.
        device: where the backbone runs; its own device if None.
        ignore_background: see `monai_dpmm.network.detector.embed_patches`.
        patch_grid: see `monai_dpmm.network.detector.embed_patches`.
        unit_norm: likewise.
    """

    def __init__(
        self,
        backbone: nn.Module,
        batch_size: int = 8,
        device: torch.device | str | None = None,
        *,
        ignore_background: bool = False,
        patch_grid: Sequence[int] | None = None,
        unit_norm: bool = True,
    ) -> None:
        if batch_size < 1:
            raise InputError(f"batch_size must be at least 1, got {batch_size}")
        self.backbone = backbone.eval()
        self.batch_size = batch_size
        self.options = {
            "ignore_background": ignore_background,
            "unit_norm": unit_norm,
            "patch_grid": patch_grid,
        }
        self.device = None if device is None else torch.device(device)

    def __call__(self, images: Tensor) -> Tensor:
        if self.device is not None:
            self.backbone.to(self.device)
        device = next((p.device for p in self.backbone.parameters()), torch.device("cpu"))
        parts = [
            embed_patches(self.backbone, chunk.to(device), **self.options).cpu()
            for chunk in plain(images).split(self.batch_size)
        ]
        return torch.cat(parts)


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

    def __init__(self, fraction: float = TOP_FRACTION) -> None:
        self.fraction = fraction

    def __call__(self, anomaly: Tensor, foreground: Tensor | None = None) -> float:
        """Score of the map, or of its foreground, where that is above 0: the same shape."""
        scores = plain(anomaly)
        scores = scores if foreground is None else scores[plain(foreground).to(scores.device) > 0]
        return float(image_score(scores, self.fraction))
