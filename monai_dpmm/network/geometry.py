"""Volume to slices to images to maps and back: pure functions on tensors, no metadata.

Letters: C channels, (X, Y, Z) voxels, S slices, (H, W) pixels of a slice, (h, w) patch grid.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from monai_dpmm.errors import InputError
from monai_dpmm.mixture.precision import is_traced

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
MAX_ASPECT = 8.0
_SQUARE = 1.01  # longest pixel, of its width, that counts as square
_NEAR_SQUARE = 2.0  # longest pixel of a slice that is taken of its own accord
_NEAR_CUBE = 4.0  # longest such slice, of its width, in mm
_DARK = 1e-3  # of the range [0, 1]: what rounding may leave of a 0

__all__ = [
    "extract_slices",
    "foreground_patches",
    "image_shape",
    "like_input",
    "patch_places",
    "prepare_slices",
    "resize_maps",
    "resize_slices",
    "slice_axes",
    "square_shape",
    "stack_slices",
    "upsample_components",
    "upsample_scores",
    "usable_axes",
]


def slice_axes(axis: int | Sequence[int]) -> tuple[int, ...]:
    """Axes that slices are taken along, of one axis or several different ones.

    Raises:
        ValueError: for none, an axis out of range, or one that comes twice.
    """
    axes = (axis,) if isinstance(axis, int) else tuple(axis)
    if not axes or len(set(axes)) < len(axes) or not set(axes) <= {0, 1, 2}:
        raise InputError(f"axis must be 0, 1 or 2, or several different of them, got {axis}")
    return axes


def usable_axes(
    axes: Sequence[int], shape: Sequence[int], spacing: Sequence[float]
) -> list[tuple[int, int]]:
    """Directions that slices of a volume are taken in: (number among the axes, axis) of each.

    Of several axes those whose slices have pixels at most twice as long as wide, and are
    themselves at most 4 times as long as wide in mm: all three of a nearly isotropic volume, only
    that across the slices of a thick-sliced one. Where none is so, the one that is nearest to it.
    A single axis is always taken, and a picture is one slice whatever the axes.

    Args:
        axes: of `slice_axes`.
        shape: voxels along each axis.
        spacing: of the voxels in mm.
    """
    if len(axes) == 1 or len(shape) == 2:
        return [(0, axes[0])]
    stretch = {}
    for axis in axes:
        a, b = (side for side in range(3) if side != axis)
        extent = (shape[a] * spacing[a], shape[b] * spacing[b])
        pixel = max(spacing[a], spacing[b]) / max(min(spacing[a], spacing[b]), 1e-9)
        stretch[axis] = max(pixel / _NEAR_SQUARE, max(extent) / max(min(extent), 1e-9) / _NEAR_CUBE)
    usable = [axis for axis in axes if stretch[axis] <= 1.001]  # affines are rounded
    chosen = usable or [min(axes, key=lambda axis: stretch[axis])]
    return [(number, axis) for number, axis in enumerate(axes) if axis in chosen]


def extract_slices(volume: Tensor, axis: int = 2) -> Tensor:
    """Slices along a spatial axis: (C, X, Y, Z) -> (S, C, H, W); a 2D image is one slice.

    H is the earlier and W the later of the two axes that remain. A 2D image (C, H, W) gives
    (1, C, H, W) whatever the axis. The result is a view, nothing is copied.

    Raises:
        ValueError: for another number of dimensions or an axis out of range.
    """
    if volume.ndim == 3:
        return volume.unsqueeze(0)
    if volume.ndim != 4:
        raise InputError(
            f"volume must be (C, X, Y, Z) or an image (C, H, W), got shape {tuple(volume.shape)}"
        )
    _check_axis(axis)
    return volume.movedim(axis + 1, 0)


def stack_slices(slices: Tensor, axis: int = 2) -> Tensor:
    """Volume of the slices, the inverse of `extract_slices`: (S, C, H, W) -> (C, X, Y, Z)."""
    if slices.ndim != 4:
        raise InputError(f"slices must be (S, C, H, W), got shape {tuple(slices.shape)}")
    _check_axis(axis)
    return slices.movedim(0, axis + 1)


def image_shape(shape: tuple[int, int], size: int, multiple: int) -> tuple[int, int]:
    """Pixels (H', W') that a slice of (H, W) is resized to for a backbone.

    The shorter side becomes `size`, the longer keeps the aspect ratio up to rounding to a whole
    number of patches; nothing is cropped or padded, so the patch grid spans the slice exactly.

    Args:
        shape: pixels of the slice, which are taken as square (see `square_shape`).
        size: pixels of the shorter side, a multiple of `multiple`.
        multiple: what both sides must be divisible by (the backbone's patch size).

    Raises:
        ValueError: where `size` is no multiple, or the slice is more than 8 times as long as wide.
    """
    if size < multiple or size % multiple:
        raise InputError(f"size must be a positive multiple of {multiple}, got {size}")
    short, long = min(shape), max(shape)
    if short < 1 or long / short > MAX_ASPECT:
        raise InputError(
            f"slices must be at most {MAX_ASPECT:g} times as long as wide, got"
            f" {shape[0]}x{shape[1]} square pixels: slice along another axis"
        )
    return _scaled_shape(shape[0], shape[1], size, multiple)


def square_shape(shape: tuple[int, int], spacing: tuple[float, float]) -> tuple[int, int]:
    """Square pixels (H', W') that cover a slice of (H, W) pixels, as fine as their finer spacing.

    Pixels whose sides differ by at most 1 % count as square: (H', W') is then (H, W).

    Args:
        shape: pixels of the slice.
        spacing: of its pixels in mm along H and W.

    Raises:
        InputError: where a pixel is more than 8 times as long as wide.
    """
    fine, coarse = min(spacing), max(spacing)
    if not coarse <= 1.001 * MAX_ASPECT * fine:  # affines are rounded
        raise InputError(
            f"pixels of a slice must be at most {MAX_ASPECT:g} times as long as wide, got"
            f" {spacing[0]:g}x{spacing[1]:g} mm: slice along another axis"
        )
    if coarse <= _SQUARE * fine:
        return shape
    return round(shape[0] * spacing[0] / fine), round(shape[1] * spacing[1] / fine)


def resize_slices(slices: Tensor, shape: tuple[int, int]) -> Tensor:
    """Slices of another shape, bilinear: (S, C, H, W) -> (S, C, *shape), themselves if they fit."""
    if tuple(slices.shape[2:]) == tuple(shape):
        return slices
    return F.interpolate(slices.float(), size=shape, mode="bilinear", align_corners=False)


def resize_maps(maps: Tensor, shape: tuple[int, int]) -> Tensor:
    """Maps of another shape: (S, M, H, W) -> (S, M, *shape), float32.

    Channel 0 is of scores, bilinear, any further one of labels, nearest.
    """
    labels = [upsample_components(label, shape) for label in maps[:, 1:].unbind(1)]
    return torch.cat([upsample_scores(maps[:, 0].float(), shape), *labels], dim=1)


def prepare_slices(slices: Tensor, size: int, multiple: int) -> Tensor:
    """Images for a backbone, on ImageNet's scale: (S, C, H, W) in [0, 1] -> (S, 3, H', W').

    One channel is repeated three times; (H', W') is `image_shape`; resizing is bilinear, with
    antialiasing where it shrinks.

    Raises:
        ValueError: where the channels are neither 1 nor 3, or see `image_shape`.
    """
    if slices.ndim != 4 or slices.shape[1] not in (1, 3):
        raise InputError(
            f"slices must be (S, 1, H, W) or (S, 3, H, W), got shape {tuple(slices.shape)}"
        )
    images = _resized(slices.float(), size, multiple)
    mean = torch.tensor(IMAGENET_MEAN, device=images.device).view(1, 3, 1, 1)
    std = torch.tensor(IMAGENET_STD, device=images.device).view(1, 3, 1, 1)
    return (images - mean) / std


def _resized(slices: Tensor, size: int, multiple: int) -> Tensor:
    """Slices of `image_shape`: (S, C, H, W) -> (S, C, H', W')."""
    if torch.jit.is_tracing():  # a trace would keep the sizes of its example
        return _scripted_resize()(slices, size, multiple)
    image_shape((slices.shape[2], slices.shape[3]), size, multiple)
    return _resize(slices, size, multiple)


def _resize(slices: Tensor, size: int, multiple: int) -> Tensor:
    height, width = _scaled_shape(slices.shape[2], slices.shape[3], size, multiple)
    return F.interpolate(
        slices, size=[height, width], mode="bilinear", align_corners=False, antialias=True
    )


def _scaled_shape(height: int, width: int, size: int, multiple: int) -> tuple[int, int]:
    short, long = min(height, width), max(height, width)
    patches = int(round(long * size / (short * multiple)))  # noqa: RUF046 (a float in TorchScript)
    scaled = multiple * max(patches, size // multiple)
    return (size, scaled) if height <= width else (scaled, size)


@cache
def _scripted_resize() -> Any:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=DeprecationWarning, message=".*torch.jit")
        return torch.jit.script(_resize)


def foreground_patches(images: Tensor, grid: tuple[int, int]) -> Tensor:
    """Whether a patch holds a voxel above 0: images of `prepare_slices`, (h, w) -> (S, h, w) bool.

    What is exactly 0 after rescaling is the padding of a skull-stripped or masked scan, or air.
    """
    lit = images[:, :1] * IMAGENET_STD[0] + IMAGENET_MEAN[0]
    cell = [int(side) // int(n) for side, n in zip(images.shape[2:], grid, strict=True)]
    if any(int(side) % int(n) for side, n in zip(images.shape[2:], grid, strict=True)):
        return F.adaptive_max_pool2d(lit, grid).squeeze(1) > _DARK
    return F.max_pool2d(lit, cell).squeeze(1) > _DARK


def patch_places(
    shape: Sequence[int], grid: tuple[int, int], axis: int = 2, box: Tensor | None = None
) -> Tensor:
    """Places of the patches of all slices: volume (X, Y, Z), grid (h, w) -> (S, h, w, 3) in [0, 1].

    The place of a patch is that of its centre in the body's box, 0 and 1 at its faces, along the
    volume's own axes X, Y, Z whatever axis the slices are taken along. Patches beyond the box are
    on its faces. A 2D image (H, W) lies in the middle of a third axis: (1, h, w, 3).

    Args:
        shape: voxels of the volume, or pixels of the image.
        grid: patches of a slice.
        axis: of the slices, see `extract_slices`.
        box: first voxel of the body along each axis, and the first one after it, (2, d); None is
            the whole volume.

    Raises:
        ValueError: for another number of axes, or a box without a voxel or out of the volume.
    """
    d = len(shape)
    if d not in (2, 3):
        raise InputError(f"shape must be (X, Y, Z) or (H, W), got {tuple(shape)}")
    _check_axis(axis)
    sizes = torch.tensor(shape, dtype=torch.float64)
    low, high = (torch.zeros_like(sizes), sizes) if box is None else box.double().cpu()
    if len(low) != d or bool((low < 0).any() | (low >= high).any() | (high > sizes).any()):
        raise InputError(
            f"box must lie in the volume {tuple(shape)}, got {low.tolist()} to {high.tolist()}"
        )
    counts = list(grid)
    if d == 3:
        counts.insert(axis, int(shape[axis]))
    centres = [
        ((torch.arange(n) + 0.5) * size / n - a) / (b - a)
        for n, size, a, b in zip(counts, sizes, low, high, strict=True)
    ]
    places = torch.stack(torch.meshgrid(*centres, indexing="ij"), dim=-1).clamp(0, 1).float()
    return F.pad(places, (0, 1), value=0.5).unsqueeze(0) if d == 2 else places.movedim(axis, 0)


def like_input(maps: Tensor, slices: Tensor) -> Tensor:
    """Maps of the slices' class: MONAI's MetaTensor, with its metadata, where these are one."""
    if is_traced() or type(slices) is Tensor:
        return maps
    kind = slices[:, :1].expand(-1, maps.shape[1], -1, -1)
    return torch.empty_like(kind, dtype=maps.dtype).copy_(maps)


def upsample_scores(scores: Tensor, shape: Any) -> Tensor:
    """Pixel maps of patch scores, bilinear (Sec. 2.2): (S, h, w) -> (S, 1, H, W)."""
    return F.interpolate(scores.unsqueeze(1), size=shape, mode="bilinear", align_corners=False)


def upsample_components(components: Tensor, shape: Any) -> Tensor:
    """Pixel maps of patch labels, nearest patch: (S, h, w) -> (S, 1, H, W), float32."""
    return F.interpolate(components.unsqueeze(1).float(), size=shape, mode="nearest-exact")


def _check_axis(axis: int) -> None:
    if axis not in (0, 1, 2):
        raise InputError(f"axis must be 0, 1 or 2, got {axis}")
