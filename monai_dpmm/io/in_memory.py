"""A scan that is in memory already, as the image that a file would give."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.utils import SpaceKeys, convert_to_tensor
from torch import Tensor

from monai_dpmm.errors import InputError

__all__ = ["IN_MEMORY", "image_in_memory"]

IN_MEMORY = "scan in memory"  # what errors call it, which has no file
# types that PyTorch stores, but does not compute with
_WIDER = {
    **{torch.bool: torch.uint8, torch.uint16: torch.int32},
    **{torch.uint32: torch.int64, torch.uint64: torch.float64},
}


def image_in_memory(scan: np.ndarray[Any, Any] | Tensor) -> MetaTensor:
    """Channel-first image, (1, X, Y, Z) or (1, H, W), of voxels with or without their channel.

    A MetaTensor's affine is the scan's, in mm; the voxels of other arrays are cubes of 1 mm. Three
    axes are those of a volume, unless the first has one entry: then it is a picture's channel,
    but where the metadata's "original_channel_dim" is "no_channel", as MONAI Deploy has it.

    Raises:
        InputError: for other shapes, colours, and voxels that are no real numbers.
    """
    meta = dict(scan.meta) if isinstance(scan, MetaTensor) else {}
    voxels = _voxels(scan)
    bare = meta.get("original_channel_dim") == "no_channel" or voxels.ndim == 2
    if voxels.ndim == 3 and len(voxels) != 1:
        bare = True
    image = voxels[None] if bare else voxels
    if image.ndim not in (3, 4):
        raise InputError(
            f"{IN_MEMORY}: must be (X, Y, Z), (1, X, Y, Z) or (H, W), got shape"
            f" {tuple(voxels.shape)}"
        )
    affine = meta.get("affine", torch.eye(4))
    kept = {key: meta[key] for key in ("filename_or_obj", "nifti_grid") if key in meta}
    grid = {"affine": torch.as_tensor(affine, dtype=torch.float64).clone(), "space": SpaceKeys.RAS}
    shape = {"spatial_shape": np.array(image.shape[1:]), "original_channel_dim": float("nan")}
    return MetaTensor(image.clone(), meta={**kept, **grid, **shape})


def _voxels(scan: np.ndarray[Any, Any] | Tensor) -> Tensor:
    """The numbers, of a type that PyTorch computes with, and in this computer's byte order."""
    if isinstance(scan, np.ndarray):
        if scan.dtype.kind not in "biuf":
            kind = "complex numbers" if scan.dtype.kind == "c" else f"values of type {scan.dtype}"
            raise InputError(f"{IN_MEMORY}: must be a scalar image, got {kind}")
        scan = np.ascontiguousarray(scan, scan.dtype.newbyteorder("="))
        if scan.dtype.itemsize > 8:
            scan = scan.astype(np.float64)
    voxels: Tensor = convert_to_tensor(scan, track_meta=False)
    if voxels.is_complex():
        raise InputError(f"{IN_MEMORY}: must be a scalar image, got complex numbers")
    return voxels.to(_WIDER.get(voxels.dtype, voxels.dtype))
