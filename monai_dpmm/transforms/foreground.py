"""Air becomes the scan's minimum, so that it can be left out; where nothing is, a warning."""

from __future__ import annotations

import warnings
from typing import ClassVar

import torch
from monai.data import MetaTensor
from monai.transforms import Transform
from monai.utils import TransformBackends
from torch import Tensor

from monai_dpmm.errors import InputError
from monai_dpmm.transforms.body import body_box, body_mask
from monai_dpmm.transforms.metatensors import NO_AIR, file_names, like, plain, voxel_spacing

__all__ = ["MaskForeground", "body_box", "body_mask", "warn_if_all_foreground"]

_LEFT_OUT = 0.01  # share of patches or voxels: less is what a low percentile alone leaves out
_told: set[str] = set()


class MaskForeground(Transform):
    """Scan whose air is its minimum, the same shape: (C, X, Y, Z) or (C, H, W), C = 1 or 3.

    Voxels of the body lie above the minimum, if by a millionth of the range: after
    `RescaleIntensity` with a floor a voxel is 0 if and only if it is not body. An image without air
    stays as it is; its metadata then says so, and a warning names the first such file.

    Args:
        closing: see `monai_dpmm.transforms.body.body_mask`; the mask of colours is that of their
            mean.

    Raises:
        ValueError: for a negative radius, or an image of other than one channel or three.
    """

    backend: ClassVar = [TransformBackends.TORCH]

    def __init__(self, closing: int = 3) -> None:
        if closing < 0:
            raise InputError(f"closing must be at least 0, got {closing}")
        self.closing = closing

    def __call__(self, image: Tensor) -> Tensor:
        """The scan with its air masked."""
        scan = plain(image)
        if scan.shape[0] not in (1, 3):
            raise InputError(f"image must have one channel or three, got {scan.shape[0]}")
        scan = scan if scan.is_floating_point() else scan.float()
        grey = (scan[0] if scan.shape[0] == 1 else scan.mean(0)).float().cpu().numpy()
        body = torch.from_numpy(body_mask(grey, self.closing, voxel_spacing(image)))
        no_air = bool(body.all())
        result = like(scan if no_air else _masked(scan, body.to(scan.device)), image)
        if isinstance(result, MetaTensor):
            result.meta[NO_AIR] = no_air
        if no_air:
            text = "no air was found: the whole image counts as body, as of a picture without any"
            _warn_once("no_air", image, text)
        return result


def _masked(scan: Tensor, body: Tensor) -> Tensor:
    """Scan (C, ...) with air at its minimum and the darkest of the body just above it."""
    low, high = scan.min(), scan.max()
    above = torch.maximum(low + 1e-6 * (high - low), low.nextafter(high))
    darkest = body & (scan <= low).all(0)
    return scan.masked_fill(~body, low).masked_fill_(darkest, above)


def warn_if_all_foreground(foreground: Tensor, image: Tensor) -> None:
    """Warn, once a process, that `ignore_background` leaves out nothing of an image.

    Not of one in which `MaskForeground` has looked for air: it has said that there is none.

    Args:
        foreground: whether a patch or voxel is foreground, any shape.
        image: whose metadata names the file.
    """
    searched = isinstance(image, MetaTensor) and NO_AIR in image.meta
    if searched or plain(foreground).float().mean() < 1 - _LEFT_OUT:
        return
    text = "ignore_background leaves out nothing, as air is not the darkest value of the scan"
    _warn_once("all_foreground", image, f"{text}: set mask_foreground=true to find it")


def _warn_once(subject: str, image: Tensor, text: str) -> None:
    if subject in _told:
        return
    _told.add(subject)
    names = file_names(image)
    warnings.warn(f"{names}: {text}" if names else text, stacklevel=3)
