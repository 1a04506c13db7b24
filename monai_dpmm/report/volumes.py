"""The volumes of a report's subject, from arrays or from files, one subject at a time."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from monai.data.utils import to_affine_nd

from monai_dpmm.errors import InputError
from monai_dpmm.io.loading import LoadVolume
from monai_dpmm.io.nifti import same_grid
from monai_dpmm.io.suffixes import is_picture

_VOLUMES = ("image", "anomaly", "mask", "components", "label")

__all__ = ["subject_volume", "subject_volumes"]


def subject_volumes(
    subject: Mapping[str, Any],
) -> tuple[dict[str, Any], Sequence[float], np.ndarray | None]:
    """Arrays of one subject, (X, Y, Z) or (X, Y), the voxel size in mm, the affine of files.

    Where the image is the file of a picture, all are (X, Y) as in the files, X to the right and Y
    down, without an affine.

    Raises:
        ValueError: see `subject_volume`, and where a file lies on another grid than the image's.
    """
    from nibabel.affines import voxel_sizes

    loaded = {key: subject_volume(subject, key) for key in _VOLUMES}
    affine = next((affine for _, affine in loaded.values() if affine is not None), None)
    for key, (array, other) in loaded.items():
        if other is not None and not same_grid(affine, other, array.shape):
            raise InputError(f"{key} must lie on the image's grid, got another affine")
    spacing = subject.get("spacing", (1, 1, 1)) if affine is None else voxel_sizes(affine)
    return {key: array for key, (array, _) in loaded.items()}, spacing, affine


def subject_volume(
    subject: Mapping[str, Any], key: str
) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Array and, of a file, its affine; None for what the subject lacks.

    Raises:
        ValueError: naming key and file, where there is neither array nor file for what a subject
            must have, or the file cannot be read or is no volume.
    """
    value = subject.get(key)
    if value is None and key in ("image", "anomaly"):
        raise InputError(f"{key} must be an array or a file, got {sorted(subject)}")
    if isinstance(value, str | os.PathLike):
        picture = is_picture(str(subject.get("image", "")))
        return _loaded(key, Path(value), picture)
    return None if value is None else np.asarray(value), None


def _loaded(key: str, path: Path, picture: bool) -> tuple[np.ndarray, np.ndarray | None]:
    """Array (X, Y, Z) towards Right, Anterior, Superior, or as near as flips bring it; affine.

    Of a picture, the array (X, Y) as it is, and no affine.
    """
    import nibabel as nib

    try:
        colours = picture and key == "image"  # which a mask has not
        image = LoadVolume(None, allow_constant=not colours)(path)
    except InputError as error:
        reason = str(error).removeprefix(f"{path}: ")
        raise InputError(f"{key} must be a readable volume, got {path}: {reason}") from None
    array = image.numpy()[0] if len(image) == 1 else image.numpy().mean(0)  # colours are grey
    array = array.astype(np.float32 if array.dtype.kind == "f" else np.int32)
    array = array[..., None] if array.ndim == 2 else array
    if picture:
        return array[..., 0], None
    turned = nib.as_closest_canonical(nib.Nifti1Image(array, to_affine_nd(3, image.affine.numpy())))
    return np.asanyarray(turned.dataobj), turned.affine
