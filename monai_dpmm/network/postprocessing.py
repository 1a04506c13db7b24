"""Anomaly maps made more readable: smoothed in mm, less the scan's own baseline, averaged.

Pure functions on the maps of one scan, (X, Y, Z) or (H, W), and its foreground, bool of the same
shape. Outside the foreground a map keeps its rank: nothing there rises above what it was.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from monai_dpmm.errors import InputError
from monai_dpmm.mixture.precision import full_float32

__all__ = ["averaged", "foreground_moments", "less_baseline", "smoothed"]


@torch.no_grad()
def smoothed(
    anomaly: Tensor, foreground: Tensor, sigma_mm: float, spacing: Sequence[float]
) -> Tensor:
    """Map smoothed by a Gaussian within the foreground: (X, Y, Z) or (H, W) -> the same, float32.

    Each voxel of the foreground becomes the mean of the foreground around it, weighted by a
    Gaussian, so that air does not darken its edge. Outside the map stays as it is. One pass per
    axis, each a product with an (n, n) matrix; three volumes are in memory at a time.

    Args:
        anomaly: the map.
        foreground: bool, the same shape.
        sigma_mm: standard deviation of the Gaussian, in the unit of the spacing; 0 changes nothing.
        spacing: distance of voxel centres along each axis, mm (1 for pictures: sigma in pixels).

    Raises:
        ValueError: for shapes that differ, a negative sigma, or spacings that are not positive or
            not one for each axis.
    """
    _check(anomaly, foreground)
    if not sigma_mm >= 0:
        raise InputError(f"sigma_mm must be at least 0, got {sigma_mm}")
    if len(spacing) != anomaly.ndim or not all(mm > 0 for mm in spacing):
        raise InputError(
            f"spacing must be {anomaly.ndim} positive lengths, one for each axis, got {spacing}"
        )
    anomaly = anomaly.float()
    if sigma_mm == 0:
        return anomaly
    weight = foreground.float()
    total = torch.where(foreground, anomaly, 0)
    with full_float32():
        for axis, mm in enumerate(spacing):
            index = torch.arange(anomaly.shape[axis], device=anomaly.device)
            gaussian = torch.exp(-0.5 * ((index[:, None] - index) * (mm / sigma_mm)) ** 2)
            total, weight = (
                (x.movedim(axis, -1) @ gaussian).movedim(-1, axis) for x in (total, weight)
            )
    return torch.where(foreground, total / weight, anomaly)


@torch.no_grad()
def less_baseline(anomaly: Tensor, foreground: Tensor) -> tuple[Tensor, Tensor]:
    """Map less its median over the foreground, and that median: (any shape) -> (same), 0-d.

    The median is what the scanner or a contrast does to the whole scan; how far it lies from those
    of healthy scans is evidence about the scan itself. It is taken off everywhere, so air, which
    scores lowest, stays lowest. Of an even number of voxels it is the lower median. What covers
    more than half of the foreground is taken for the baseline.

    Raises:
        ValueError: for shapes that differ, or an empty foreground.
    """
    _check(anomaly, foreground)
    median = _inside(anomaly, foreground).median()
    return anomaly - median, median


@torch.no_grad()
def foreground_moments(anomaly: Tensor, foreground: Tensor) -> Tensor:
    """Count, sum and sum of squares of the foreground's scores: (any shape) -> (3,) float64.

    Those of several scans add up.

    Raises:
        ValueError: for shapes that differ, or an empty foreground.
    """
    _check(anomaly, foreground)
    scores = _inside(anomaly, foreground).double()
    return torch.stack([scores.new_tensor(len(scores)), scores.sum(), scores.square().sum()])


@torch.no_grad()
def averaged(maps: Tensor, moments: Tensor) -> Tensor:
    """Mean of the maps of A slice directions, each standardised: (A, any shape), (A, 3) -> (shape).

    Args:
        maps: of one scan, on one grid.
        moments: `foreground_moments` of healthy validation scans, summed, for each direction; a map
            loses their mean and is divided by their standard deviation.

    Raises:
        ValueError: where the moments are not those of A directions, or have no spread.
    """
    if moments.shape != (len(maps), 3):
        raise InputError(f"moments must be ({len(maps)}, 3), got {tuple(moments.shape)}")
    count, total, squares = moments.double().unbind(1)
    mean = total / count
    deviation = (squares / count - mean.square()).clamp_min(0).sqrt()
    if not bool((deviation > 0).all()):
        raise InputError(f"moments must have some spread, got deviations {deviation.tolist()}")
    each = (len(maps), *(1,) * (maps.ndim - 1))
    mean, deviation = (x.to(maps).view(each) for x in (mean, deviation))
    return ((maps - mean) / deviation).mean(0)


def _inside(anomaly: Tensor, foreground: Tensor) -> Tensor:
    """Scores of the foreground, some: (any shape) -> (n,)."""
    scores = anomaly[foreground]
    if not len(scores):
        raise InputError("foreground must have voxels, got none")
    return scores


def _check(anomaly: Tensor, foreground: Tensor) -> None:
    if foreground.dtype != torch.bool or foreground.shape != anomaly.shape:
        raise InputError(
            f"foreground must be bool of shape {tuple(anomaly.shape)}, got "
            f"{foreground.dtype} of shape {tuple(foreground.shape)}"
        )
