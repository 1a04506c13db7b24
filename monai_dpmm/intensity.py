"""Intensities of a scan to [0, 1], by percentiles of its foreground or by a fixed window."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["intensity_range", "rescale_intensity"]


def intensity_range(
    image: Tensor,
    percentiles: tuple[float, float] | None = (0.5, 99.5),
    window: tuple[float, float] | None = None,
) -> tuple[float, float]:
    """Intensities (low, high) that become 0 and 1.

    Percentiles are those of the foreground, the voxels above the image's minimum: the padding of
    a skull-stripped or masked scan, often most of its voxels, has no say. The low end of the range
    is then at most the low percentile, and padding itself maps to 0.

    Args:
        image: any shape, one scan.
        percentiles: low and high percentile of the foreground, for MR and other arbitrary units.
        window: fixed (low, high) in the image's units instead, for CT (Hounsfield units).

    Raises:
        ValueError: where neither or both are given, where they are not increasing, or where the
            image is constant.
    """
    if window is not None and percentiles is None:
        if not window[0] < window[1]:
            raise ValueError(f"window must be (low, high) with low < high, got {window}")
        return float(window[0]), float(window[1])
    if percentiles is None or window is not None:
        raise ValueError(
            f"give either percentiles or window, got percentiles={percentiles}, window={window}"
        )
    if not 0 <= percentiles[0] < percentiles[1] <= 100:
        raise ValueError(f"percentiles must satisfy 0 <= low < high <= 100, got {percentiles}")
    foreground = image[image > image.min()]
    if foreground.numel() == 0:
        raise ValueError(f"image must not be constant, every voxel is {image.flatten()[0].item()}")
    low, high = (_percentile(foreground, q) for q in percentiles)
    if not low < high:  # a foreground of one value: a binary image
        low = image.min().item()
    return low, high


def rescale_intensity(
    image: Tensor,
    percentiles: tuple[float, float] | None = (0.5, 99.5),
    window: tuple[float, float] | None = None,
) -> Tensor:
    """Image in [0, 1], float32, the same shape, clipped outside `intensity_range`."""
    low, high = intensity_range(image, percentiles, window)
    return ((image.float() - low) / (high - low)).clamp_(0, 1)


def _percentile(values: Tensor, q: float) -> float:
    """The q-th percentile of a flat tensor of any size (torch.quantile stops at 2^24 values)."""
    rank = max(1, min(values.numel(), round(q / 100 * (values.numel() - 1)) + 1))
    return torch.kthvalue(values, rank).values.item()
