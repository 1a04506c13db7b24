"""MONAI's tensors with metadata, what lies under them, and what their metadata says."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from monai.data import MetaTensor
from torch import Tensor

from monai_dpmm.errors import InputError
from monai_dpmm.network.geometry import square_shape, usable_axes

__all__ = [
    "DIRECTION",
    "NO_AIR",
    "PIXEL_SPACING",
    "PLACE",
    "SLICED",
    "directions",
    "errors_name_the_file",
    "file_names",
    "has_no_air",
    "like",
    "one_of_batch",
    "pixel_spacings",
    "plain",
    "slice_step",
    "square_shapes",
    "voxel_spacing",
]

NO_AIR = "no_air"  # in the metadata of scans in which `MaskForeground` has looked for air
DIRECTION = "direction"  # key of the number of the axis that slices were taken along
PLACE = "place"  # key of where in the body the patches are
SLICED = "sliced"  # in the metadata of slices: of which volume, how
PIXEL_SPACING = "slice_pixel_spacing"  # in the metadata of slices, whose affine is the volume's


def plain(image: Tensor) -> Tensor:
    """The tensor without metadata, on its device."""
    return image.as_tensor() if isinstance(image, MetaTensor) else torch.as_tensor(image)


def like(result: Tensor, source: Tensor) -> Tensor:
    """The result with the source's metadata and applied operations, where it has any."""
    if not isinstance(source, MetaTensor):
        return result
    return MetaTensor(result, meta=source.meta, applied_operations=source.applied_operations)


def has_no_air(image: Tensor) -> bool:
    """Whether `MaskForeground` has looked for air in the image and found none."""
    return isinstance(image, MetaTensor) and bool(image.meta.get(NO_AIR))


def pixel_spacings(image: Tensor, axis: int | None = None) -> list[tuple[float, float]]:
    """Spacing of a slice's pixels along H and W in mm, (1, 1) without metadata.

    One for each scan of a collated batch, otherwise one for all.

    Args:
        image: volumes, or slices or pictures.
        axis: that the volumes' slices are taken along; None for slices and pictures.
    """
    if not isinstance(image, MetaTensor):
        return [(1.0, 1.0)]
    if axis is None and PIXEL_SPACING in image.meta:
        return [image.meta[PIXEL_SPACING]]
    affines = image.affine.reshape(-1, *image.affine.shape[-2:])
    height, width = (side for side in range(3) if side != (2 if axis is None else axis))
    spacings = affines[:, :-1, :-1].norm(dim=1)
    return [(float(one[height]), float(one[width])) for one in spacings]


def voxel_spacing(image: Tensor) -> tuple[float, ...] | None:
    """Spacing along the axes of (C, X, Y, Z) or (C, H, W) in mm, None without metadata."""
    if not isinstance(image, MetaTensor):
        return None
    return tuple(image.affine[:-1, : image.ndim - 1].norm(dim=0).tolist())


def slice_step(image: Tensor, axis: int, spacing_mm: float) -> int:
    """How many slices of (C, X, Y, Z) lie at most a distance apart, at least 1.

    A picture (C, H, W) is one slice. Without metadata slices are 1 mm apart.
    """
    own = voxel_spacing(image) if image.ndim == 4 else None
    return max(1, int(spacing_mm / (own[axis] if own else 1.0) + 1e-3))


def square_shapes(image: Tensor, axis: int | None = None) -> list[tuple[int, int]]:
    """Square pixels (H', W') of a slice, of (B, C, X, Y, Z) or of images (B, C, H, W).

    One for each of the `pixel_spacings`, see `square_shape`.
    """
    own: Any = tuple(int(n) for side, n in enumerate(image.shape[2:]) if side != axis)
    return [square_shape(own, spacing) for spacing in pixel_spacings(image, axis)]


def file_names(image: Tensor) -> str:
    """Names of the image's files, of those of a batch with commas between; empty without any."""
    names = image.meta.get("filename_or_obj") if isinstance(image, MetaTensor) else None
    return ", ".join(map(str, names)) if isinstance(names, list | tuple) else str(names or "")


def directions(image: Tensor, axes: Sequence[int]) -> list[tuple[int, int]]:
    """Directions that slices of a scan (C, X, Y, Z) or (C, H, W) are taken in, see `usable_axes`.

    Without metadata its voxels are cubes.
    """
    shape = tuple(image.shape[1:])
    spacing = [1.0] * len(shape)
    if isinstance(image, MetaTensor):
        spacing = image.affine[:-1, :-1].norm(dim=0).tolist()
    return usable_axes(axes, shape, spacing)


def one_of_batch(inputs: Tensor, index: int) -> Tensor:
    """One scan of a batch (B, C, ...) -> (C, ...), with its own affine."""
    scan = plain(inputs)[index]
    if not isinstance(inputs, MetaTensor):
        return scan
    affine = inputs.affine
    kept = (NO_AIR, "filename_or_obj")
    meta = {key: value for key, value in inputs.meta.items() if key in kept}
    return MetaTensor(scan, affine=affine[index] if affine.ndim == 3 else affine, meta=meta)


@contextmanager
def errors_name_the_file(image: Tensor) -> Iterator[None]:
    """An `InputError` raised within starts with the names of the image's files, if it has any."""
    try:
        yield
    except InputError as error:
        names = file_names(image)
        if not names:
            raise
        raise type(error)(f"{names}: {error}") from error
