"""What of a scan is body: noisy air becomes the scan's minimum, so that it can be left out."""

from __future__ import annotations

import numpy as np
import torch
from monai.transforms import Transform
from numpy.typing import NDArray
from torch import Tensor

from monai_dpmm.errors import InputError
from monai_dpmm.transforms.intensity import air_is_zero
from monai_dpmm.transforms.metatensors import like, plain

__all__ = ["MaskForeground", "body_box", "body_mask"]

_STRAY = 1e-3  # of the body's voxels, at either end of an axis: what the box leaves out


def body_mask(image: NDArray[np.float32], closing: int = 3) -> NDArray[np.bool_]:
    """Whether a voxel is body, by Otsu's threshold: (X, Y, Z) or (H, W) -> the same shape.

    Of a z-scored scan whose air is 0 (see `air_is_zero`) it is what is not 0. Gaps are closed, the
    largest connected part is kept and the holes of that are filled, in single slices as well: a
    head is open at the neck.

    Args:
        image: air is darker than body, or 0 in a z-scored scan.
        closing: radius of the closing, voxels.
    """
    import SimpleITK as sitk  # noqa: N813 - its documentation's name
    from scipy import ndimage

    if air_is_zero(torch.from_numpy(image)):
        lit = image != 0
    else:
        lit = sitk.GetArrayFromImage(sitk.OtsuThreshold(sitk.GetImageFromArray(image), 0, 1)) > 0
    if closing:
        axes = np.ogrid[(slice(-closing, closing + 1),) * image.ndim]
        ball = sum(x * x for x in axes) <= closing * closing
        lit = ndimage.binary_closing(np.pad(lit, closing), ball)
        lit = lit[(slice(closing, -closing),) * image.ndim]
    parts, count = ndimage.label(lit)
    return _filled(parts == np.bincount(parts[lit]).argmax() if count else lit)


def _filled(body: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The body with its holes, of slices along every axis."""
    from scipy import ndimage

    for axis in range(body.ndim):
        within = np.ones((3,) * body.ndim, bool)
        if body.ndim == 3:
            within &= np.indices(within.shape)[axis] == 1
        body = ndimage.binary_fill_holes(body, within)
    return body


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
    body = (plain(image) > 0).any(0)
    total = int(body.sum())
    if total in (0, body.numel()):
        return torch.stack([torch.zeros(body.ndim, dtype=torch.long), torch.tensor(body.shape)])
    ends = []
    for axis in range(body.ndim):
        counts = body.sum([other for other in range(body.ndim) if other != axis]).cpu()
        inside = (counts.cumsum(0) > _STRAY * total) & (
            counts.flip(0).cumsum(0).flip(0) > _STRAY * total
        )
        (within,) = inside.nonzero(as_tuple=True)
        ends.append(torch.stack([within[0], within[-1] + 1]))
    return torch.stack(ends, dim=1)


class MaskForeground(Transform):
    """Scan whose air is its minimum, the same shape: (1, X, Y, Z) or (1, H, W).

    `RescaleIntensity` then maps air to 0, and `ignore_background` leaves it out.

    Args:
        closing: see `body_mask`.

    Raises:
        ValueError: for a negative radius, or an image of several channels.
    """

    def __init__(self, closing: int = 3) -> None:
        if closing < 0:
            raise InputError(f"closing must be at least 0, got {closing}")
        self.closing = closing

    def __call__(self, image: Tensor) -> Tensor:
        """The scan with its air masked."""
        scan = plain(image)
        if scan.shape[0] != 1:
            raise InputError(f"image must have one channel, got {scan.shape[0]}")
        body = torch.from_numpy(body_mask(scan[0].float().cpu().numpy(), self.closing))
        return like(scan.where(body.to(scan.device), scan.min()), image)
