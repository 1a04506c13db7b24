"""Anomaly maps made more readable: slices levelled, smoothed in mm, less the scan's own baseline.

Pure functions on the maps of one scan, (X, Y, Z) or (H, W), and its foreground, bool of the same
shape. Outside the foreground a map keeps its rank: nothing there rises above what it was. Where
not every slice was scored, the others are interpolated before all that.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from monai_dpmm.errors import InputError
from monai_dpmm.mixture.precision import full_float32

__all__ = ["interpolated", "less_baseline", "levelled", "smoothed"]


@torch.no_grad()
def interpolated(maps: Tensor, step: int, count: int) -> Tensor:
    """Maps of all slices from those of every step-th: (s, M, H, W) -> (S, M, H, W).

    Channel 0, the anomaly, is interpolated linearly between the two slices around, as far as they
    have a component there: background does not darken the body's edge. Channel 1, the component
    plus 1, is that of the nearer of these. Behind the last slice that was scored it is repeated.
    Maps without channel 1 are interpolated as they are.

    Args:
        maps: of slices 0, step, 2 step, ...
        step: at least 1; 1 changes nothing.
        count: S.

    Raises:
        ValueError: for a step below 1, or another number of maps than the step and S ask for.
    """
    if step < 1 or len(maps) != -(-count // step):
        raise InputError(
            f"maps must be of every step-th of {count} slices, got {len(maps)} and step={step}"
        )
    if step == 1:
        return maps
    result = maps.new_empty(count, *maps.shape[1:])
    for index in range(count):
        low, part = divmod(index, step)
        near, far = maps[low], maps[min(low + 1, len(maps) - 1)]
        share = part / step
        if maps.shape[1] == 1:
            result[index] = torch.lerp(near, far, share)
            continue
        weights = torch.where(far[1] > 0, share, 0.0), torch.where(near[1] > 0, 1 - share, 0.0)
        known = weights[0] + weights[1] > 0
        within = weights[0] / (weights[0] + weights[1]).where(known, 1)
        result[index, 0] = torch.lerp(near[0], far[0], within.where(known, share))
        result[index, 1] = torch.where(weights[0] > weights[1], far[1], near[1])
    return result


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
def levelled(anomaly: Tensor, foreground: Tensor, axis: int) -> Tensor:
    """Map whose slices along an axis have the median of the whole: (X, Y, Z) -> (X, Y, Z).

    Slices near the ends of a body score higher than others, whatever they show. Each loses the
    difference of its median over the foreground from that of all slices; one whose foreground is
    n voxels loses the share n / (n + m) of it, m a tenth of the largest slice's, since the median
    of a few voxels is uncertain. Outside the foreground nothing changes.

    Raises:
        ValueError: for shapes that differ, or an empty foreground.
    """
    _check(anomaly, foreground)
    middle = _inside(anomaly, foreground).median()
    slices, there = anomaly.movedim(axis, 0), foreground.movedim(axis, 0)
    counts = there.flatten(1).sum(1)
    shifts = torch.zeros_like(slices[:, 0, 0])
    for index in counts.nonzero()[:, 0].tolist():
        shifts[index] = slices[index][there[index]].median() - middle
    shifts = shifts * counts / (counts + 0.1 * counts.max())
    return torch.where(there, slices - shifts[:, None, None], slices).movedim(0, axis)


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
