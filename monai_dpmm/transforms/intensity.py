"""Intensities of a scan to [0, 1], by percentiles of its foreground or by a fixed window."""

from __future__ import annotations

from typing import ClassVar, Literal, cast

import torch
from monai.transforms import Transform
from monai.utils import TransformBackends
from torch import Tensor

from monai_dpmm.errors import InputError
from monai_dpmm.transforms.metatensors import has_no_air, like, plain

__all__ = [
    "WINDOWS",
    "Margin",
    "RescaleIntensity",
    "Window",
    "air_is_zero",
    "intensity_range",
    "rescale_intensity",
]

WINDOWS: dict[str, tuple[float, float]] = {
    "brain": (0.0, 80.0),
    "liver": (-45.0, 105.0),
    "lung": (-1350.0, 150.0),
}
Window = tuple[float, float] | Literal["brain", "liver", "lung"]
Margin = float | tuple[float, float]
Percentiles = tuple[float, float] | Literal["automatic"]
_AIR = 0.01  # share of voxels at the minimum from which on a scan has air


def air_is_zero(image: Tensor) -> bool:
    """Whether air is 0 though intensities go below it, as of a z-scored brain with air left at 0.

    That is so where more than half of the volume's or image's border is exactly 0, and the mean of
    all else is nearer to 0 than half its standard deviation; with the overshoot of a spline around
    a body it is further away.

    Args:
        image: (1, X, Y, Z), (1, H, W) or without the channel; of others it is False.
    """
    scan = image.as_subclass(Tensor).squeeze()
    if scan.ndim not in (2, 3) or not bool(scan.min() < 0):
        return False
    faces = [scan.select(axis, end).flatten() for axis in range(scan.ndim) for end in (0, -1)]
    if not bool((torch.cat(faces) == 0).float().mean() > 0.5):
        return False
    rest = scan[scan != 0].double()
    return bool(rest.mean().abs() < rest.std() / 2)


def intensity_range(
    image: Tensor,
    percentiles: Percentiles | None = (0.5, 99.5),
    window: Window | None = None,
    margin: Margin = 0.0,
) -> tuple[float, float]:
    """Intensities (low, high) that become 0 and 1.

    Percentiles are those of the foreground, the voxels above the image's minimum: the padding of
    a skull-stripped or masked scan, often most of its voxels, has no say; nor has the air of a
    z-scored scan, see `air_is_zero`. The low end of the range
    is then at most the low percentile, and padding itself maps to 0.

    High percentiles are those of a large bright lesion, which darkens all that is healthy. The
    quartiles with a margin, Tukey's fences, hardly know it: percentiles=(25, 75), margin=1.5.
    Nor does the median, which percentiles=(2, 50) with margin=(0, 7 / 3) map to 0.3; so are
    "automatic" ones of a scan with air, of which at least 1 % of the voxels are at the minimum.
    Of one without, as of an ultrasound image, they are (0.5, 99.5).

    Args:
        image: any shape, one scan.
        percentiles: low and high percentile of the foreground, for MR and other arbitrary units,
            or "automatic".
        window: fixed (low, high) in the image's units instead, for CT (Hounsfield units), or the
            name of a usual one, see `WINDOWS`; percentiles then have no say.
        margin: how much further than the percentiles the range reaches at both ends, or (below,
            above), as a multiple of the distance between them; below, no further than the image's
            minimum.

    Raises:
        ValueError: where neither is given, where they are not increasing, where a name
            is not known, for a negative margin or one of a window, or where the image is constant.
    """
    below, above = _pair(margin)
    if not (below >= 0 and above >= 0) or ((below or above) and window is not None):
        raise InputError(f"margin must be at least 0, and 0 for a window, got {margin}")
    if window is not None:
        return _fixed(window)
    if percentiles is None:
        raise InputError("percentiles or window must be given, got None for both")
    if percentiles == "automatic":
        if below or above:
            raise InputError(f'margin must be 0 for percentiles="automatic", got {margin}')
        air = bool((image == image.min()).float().mean() >= _AIR)
        percentiles, above = ((2, 50), 7 / 3) if air else ((0.5, 99.5), 0)
    if not 0 <= percentiles[0] < percentiles[1] <= 100:
        raise InputError(f"percentiles must satisfy 0 <= low < high <= 100, got {percentiles}")
    lit = image > image.min()
    foreground = image[lit & (image != 0) if air_is_zero(image) else lit]
    if foreground.numel() == 0:
        raise InputError(f"image must not be constant, every voxel is {image.flatten()[0].item()}")
    low, high = (_percentile(foreground, q) for q in percentiles)
    span = high - low
    low = max(low - below * span, image.min().item()) if below * span else low
    high += above * span
    if not low < high:  # a foreground of one value: a binary image
        low = image.min().item()
    return low, high


def rescale_intensity(
    image: Tensor,
    percentiles: Percentiles | None = (0.5, 99.5),
    window: Window | None = None,
    margin: Margin = 0.0,
    floor: float = 0.0,
) -> Tensor:
    """Image in [0, 1], float32, the same shape, clipped outside `intensity_range`; air is 0.

    Args:
        image: any shape, one scan; of colours, (3, ...), a voxel is air where all three are.
        percentiles: see `intensity_range`.
        window: likewise.
        margin: likewise.
        floor: what voxels above the image's minimum become at least. With a floor above 0 only
            voxels at the minimum, where masked air is, are 0.

    Raises:
        ValueError: see `intensity_range`, and for a floor outside [0, 1).
    """
    if not 0 <= floor < 1:
        raise InputError(f"floor must be at least 0 and below 1, got {floor}")
    low, high = intensity_range(image, percentiles, window, margin)
    rescaled = ((image.float() - low) / (high - low)).clamp_(0, 1)
    air = image == 0 if air_is_zero(image) else None
    if floor:
        air = image == image.min() if air is None else air
        air = air.all(0) if image.ndim > 2 and image.shape[0] == 3 else air
        rescaled = rescaled.clamp_(min=floor)
    return rescaled if air is None else rescaled.masked_fill_(air, 0)


class RescaleIntensity(Transform):
    """Scan in [0, 1], float32, the same shape: by percentiles of the foreground, or by a window.

    Args:
        percentiles: percentiles of the foreground (voxels above the minimum) that become 0 and 1,
            or "automatic", see `intensity_range`.
        window: fixed (low, high) in the image's units instead (CT), or the name of a usual one
            (brain, liver, lung).
        margin: how much further than the percentiles the range reaches, at both ends or (below,
            above); for Tukey's fences, which bright lesions hardly move, percentiles=(25, 75) and
            margin=1.5; for a median of 0.3, percentiles=(2, 50) and margin=(0, 7 / 3).
        floor: what voxels above the scan's minimum become at least. With 0.002 after
            `MaskForeground` a voxel is 0 if and only if it is not body.

    Raises:
        ValueError: see `rescale_intensity`.
    """

    backend: ClassVar = [TransformBackends.TORCH]  # type: ignore[misc]

    def __init__(
        self,
        percentiles: Percentiles | None = (0.5, 99.5),
        window: Window | None = None,
        margin: Margin = 0.0,
        floor: float = 0.0,
    ) -> None:
        self.percentiles: Percentiles | None = None
        if percentiles is not None:
            pair = percentiles if isinstance(percentiles, str) else tuple(percentiles)
            self.percentiles = cast(Percentiles, pair)
        self.window: Window | None = None
        if window is not None:
            self.window = window if isinstance(window, str) else (window[0], window[1])
        self.margin = _pair(margin)
        self.floor = floor

    def __call__(self, image: Tensor) -> Tensor:
        """The scan rescaled."""
        options = (self.percentiles, self.window, self.margin, self.floor)
        scaled = rescale_intensity(plain(image), *options)
        return like(scaled.clamp_(min=self.floor) if has_no_air(image) else scaled, image)


def _fixed(window: Window) -> tuple[float, float]:
    """Ends of a window, given or looked up."""
    if isinstance(window, str):
        if window not in WINDOWS:
            raise InputError(f"window must be one of {', '.join(WINDOWS)}, got {window!r}")
        return WINDOWS[window]
    if not window[0] < window[1]:
        raise InputError(f"window must be (low, high) with low < high, got {window}")
    return float(window[0]), float(window[1])


def _pair(margin: Margin) -> tuple[float, float]:
    """Margins (below, above)."""
    return (margin, margin) if isinstance(margin, int | float) else (margin[0], margin[1])


def _percentile(values: Tensor, q: float) -> float:
    """The q-th percentile of a flat tensor of any size (torch.quantile stops at 2^24 values)."""
    rank = max(1, min(values.numel(), round(q / 100 * (values.numel() - 1)) + 1))
    return torch.kthvalue(values, rank).values.item()
