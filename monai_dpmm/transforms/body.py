"""Which voxels of a scan are body, and the box they lie in: padding, noisy air and CT alike."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from monai_dpmm.errors import InputError
from monai_dpmm.transforms.metatensors import plain

__all__ = ["body_box", "body_mask"]

_STRAY = 1e-3  # of the body's voxels, at either end of an axis: what the box leaves out
_SAMPLES = 10**6  # voxels, about, that statistics are made of
_BORDER_SHARE = 1 / 3  # of the border, that padding or air takes at least
_SMALL_PART = 0.2  # of the largest part: what else counts as body, as a second leg
_AIR_OF_CT = -900.0  # Hounsfield units: darker is air or the padding beyond the field of view
_SKIN_OF_CT = -500.0
_SPECK = 0.05  # of the body's median above padding: specks that a resampling or a codec leaves


def body_mask(
    image: NDArray[np.float32], closing: int = 3, spacing: Sequence[float] | None = None
) -> NDArray[np.bool_]:
    """Whether a voxel is body: (X, Y, Z) or (H, W) -> the same shape; all are, where no air is.

    The rules, of which the first that applies counts:

    1. CT, known by air or padding below -900 HU: above -500 HU.
    2. Noisy air, a dark and even margin of the image: above Otsu's threshold of the intensities,
       clipped at their 90th percentile so that scalp does not outshine brain, without padding.
    3. One value on a third of the border or more, the padding of a skull-stripped or masked scan:
       what is 5 % of the body's median above it, and above a spline's ringing, or, of a z-scored
       scan whose air is 0, whatever differs from it.
    4. Otherwise, as in a picture without air, everything.

    Gaps are then closed, except in CT, whose table would touch the body; parts of less than a fifth
    of the largest are dropped, and holes filled in the slices along each axis: a head is open at
    the neck. Air that one side of the image alone cuts open is a hole of noisy scans.

    Args:
        image: finite intensities, air or padding of any value.
        closing: radius of the closing, in voxels of the finest axis.
        spacing: of the voxels along each axis, mm; None where they are isotropic.
    """
    lit, gaps, open_sides = _lit(image)
    if lit is None or not lit.any():
        return np.ones(image.shape, bool)
    if closing and gaps:
        sides = spacing if spacing is not None else (1.0,) * image.ndim
        radii = [round(closing * min(sides) / side) for side in sides]
        lit = ~_grown(~_grown(lit, radii), radii)
    return _filled(_large_parts(lit), open_sides)


def body_box(image: Tensor) -> Tensor:
    """First voxel of the body along each axis and the first one after it: (2, d), int64, CPU.

    The box that `monai_dpmm.network.geometry.patch_places` takes. At each end of an axis a
    thousandth of the body's voxels may lie outside, so that single stray ones do not count.

    Args:
        image: rescaled scan (C, X, Y, Z) or (C, H, W) whose background is exactly 0. The box is the
            whole image where nothing is body, or everything.

    Raises:
        InputError: for another number of axes.
    """
    if image.ndim not in (3, 4):
        raise InputError(f"image must be (C, X, Y, Z) or (C, H, W), got shape {tuple(image.shape)}")
    body = (plain(image) > 0).any(0).cpu().numpy()
    ends = np.array([[0] * body.ndim, body.shape])
    total = np.count_nonzero(body)
    if total not in (0, body.size):
        for axis in range(body.ndim):
            others = tuple(other for other in range(body.ndim) if other != axis)
            counts = np.count_nonzero(body, axis=others)
            before, after = counts.cumsum(), counts[::-1].cumsum()[::-1]
            inside = np.flatnonzero((before > _STRAY * total) & (after > _STRAY * total))
            ends[:, axis] = inside[0], inside[-1] + 1
    return torch.from_numpy(ends)


def _lit(image: NDArray[np.float32]) -> tuple[NDArray[np.bool_] | None, bool, int]:
    """Voxels above air, None without air; whether to close gaps; sides that may cut a hole."""
    faces = [np.take(image, [0, -1], axis).ravel() for axis in _wide_axes(image.shape)]
    values, counts = np.unique(np.concatenate(faces), return_counts=True)
    border, share = values[counts.argmax()], counts.max() / counts.sum()
    step = max(1, round((image.size / _SAMPLES) ** (1 / image.ndim)))
    coarse = image[tuple(slice(None, None, step if side > 64 else 1) for side in image.shape)]
    rest = coarse[coarse != border]
    if not rest.size:
        return None, False, 0
    if min(border, np.percentile(coarse, 1)) <= _AIR_OF_CT:
        return image > _SKIN_OF_CT, False, 0
    threshold = _above_noise(coarse, border)
    if threshold is not None:
        return image > threshold, True, 1
    if share < _BORDER_SHARE:
        return None, False, 0
    if rest.mean() - border > rest.std() / 2:
        ringing = border - rest.min()  # of a spline, above the padding as far as below
        return image > border + max(_SPECK * (np.median(rest) - border), ringing), True, 0
    return image != border, True, 0


def _wide_axes(shape: Sequence[int]) -> list[int]:
    """Axes along which a border may be air: not those of a slab, whose first slice is body."""
    return [axis for axis, side in enumerate(shape) if 4 * side >= max(shape)]


def _above_noise(coarse: NDArray[np.float32], border: np.float32) -> float | None:
    """Otsu's threshold above noisy air, None where the margin is not dark and even as air is.

    Measured on real slices of 110 heads, brains without skull, and textures: the medians of air and
    body are at least 7 deviations of air apart (textures: at most 4), and air at most 0.21 of the
    body's median above the minimum (brains without skull: 0.3).
    """
    there = coarse != border
    box = tuple(slice(*ends) for ends in body_box(torch.from_numpy(there)[None]).T.tolist())
    inner, there = coarse[box], there[box]
    rest = inner[there]
    margin = np.ones(inner.shape, bool)
    wide = _wide_axes(inner.shape)
    widths = [max(1, round(0.06 * n)) if a in wide else 0 for a, n in enumerate(inner.shape)]
    margin[tuple(slice(w, n - w) for w, n in zip(widths, inner.shape, strict=True))] = False
    low = min(border, rest.min())
    for percentile, least in ((90, 0.0), (99, 0.8), (99.9, 0.8)):  # further up for small bodies
        threshold, separation = _otsu(rest, np.percentile(rest, percentile))
        air, body = inner[margin & there & (inner <= threshold)], rest[rest > threshold]
        if separation <= least or air.size < 0.15 * margin.sum() or not body.size:
            continue
        dark, bright = np.median(air), np.median(body)
        spread = np.subtract(*np.percentile(air, (75, 25))) / 1.35  # that of a normal law
        even = bright - dark >= 7 * spread and dark - low <= 0.22 * (bright - low)
        if even and (inner[margin] <= threshold).mean() >= _BORDER_SHARE:
            return threshold
    return None


def _otsu(values: NDArray[np.float32], high: float) -> tuple[float, float]:
    """Otsu's threshold of values clipped at `high`, and the share of variance between its classes.

    Otsu, "A threshold selection method from gray-level histograms", IEEE Transactions on Systems,
    Man, and Cybernetics, 1979.
    """
    low = float(values.min())
    if not low < high:
        return low, 0.0
    counts, edges = np.histogram(np.minimum(values, high), 256, (low, high))
    share = counts / counts.sum()
    middle = (edges[1:] + edges[:-1]) / 2
    below, moment = share.cumsum()[:-1], (share * middle).cumsum()[:-1]
    mean = (share * middle).sum()
    between = (mean * below - moment) ** 2 / np.maximum(below * (1 - below), 1e-12)
    best = int(between.argmax())
    variance = (share * (middle - mean) ** 2).sum()
    return float(edges[best + 1]), float(between[best] / variance) if variance else 0.0


def _grown(lit: NDArray[np.bool_], radii: Sequence[int]) -> NDArray[np.bool_]:
    """Dilation by a ball, but for its corners: cross and cube in turn, a voxel each time.

    Many times as fast as by the ball itself, which matters for volumes of 10^8 voxels.
    """
    for step in range(max(radii)):
        source = lit
        lit = lit.copy()
        for axis in (axis for axis, radius in enumerate(radii) if step < radius):
            source = lit.copy() if step % 2 else source
            to, since = np.moveaxis(lit, axis, 0), np.moveaxis(source, axis, 0)
            to[1:] |= since[:-1]
            to[:-1] |= since[1:]
    return lit


def _large_parts(lit: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The largest connected part, and those of at least a fifth of its size."""
    parts, count = ndimage.label(lit)
    sizes = np.zeros(count + 1, np.int64)
    for slab in parts:  # a count of the whole would copy it at twice the size
        found = np.bincount(slab.ravel())
        sizes[: len(found)] += found
    sizes[0] = 0
    return (sizes >= _SMALL_PART * sizes.max())[parts] & lit


def _filled(body: NDArray[np.bool_], open_sides: int) -> NDArray[np.bool_]:
    """The body with the holes of its slices along each axis, changed in place.

    A hole touches at most `open_sides` of the four sides of its slice.
    """
    planes = [body[None]] if body.ndim == 2 else [np.moveaxis(body, a, 0) for a in range(3)]
    for plane in (plane for axis in planes for plane in axis):
        parts, count = ndimage.label(~plane)
        touched = np.zeros(count + 1, int)
        for side in (parts[0], parts[-1], parts[:, 0], parts[:, -1]):
            touched[np.unique(side)] += 1
        touched[0] = 4
        holes = touched <= open_sides
        if holes.any():
            plane |= holes[parts]
    return body
