"""Intensities of MR scans without the slow variation that coils leave: N4, by SimpleITK.

Tustison et al., "N4ITK: Improved N3 Bias Correction", IEEE Transactions on Medical Imaging, 2010.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from monai.data import MetaTensor
from monai.data.utils import affine_to_spacing
from monai.transforms import Transform
from monai.utils import TransformBackends
from torch import Tensor

from monai_dpmm.errors import InputError
from monai_dpmm.transforms.metatensors import like, plain

__all__ = ["CorrectBiasField"]

_SMALLEST = 8  # voxels of a side that shrinking leaves


class CorrectBiasField(Transform):
    """Scan divided by its bias field, float32, the same shape: (1, X, Y, Z) or (1, H, W).

    The field is estimated on the scan shrunk, within Otsu's threshold, and applied at full
    resolution. Voxels at the scan's minimum become that of the result, so that air which
    `MaskForeground` has masked stays masked.

    Args:
        shrink: how much smaller each side is for the estimate, in voxels; it costs the time.
        iterations: at most so many at each of four levels, the coarsest first.

    Raises:
        ValueError: for arguments out of range, an image of several channels, one with sides of 2 or
            3 voxels, or negative intensities, as of CT.
    """

    backend: ClassVar = [TransformBackends.TORCH]

    def __init__(self, shrink: int = 4, iterations: int = 50) -> None:
        for name, value in (("shrink", shrink), ("iterations", iterations)):
            if value < 1:
                raise InputError(f"{name} must be at least 1, got {value}")
        self.shrink = shrink
        self.iterations = iterations

    def __call__(self, image: Tensor) -> Tensor:
        """The scan corrected."""
        scan = plain(image).float()
        if scan.shape[0] != 1:
            raise InputError(f"image must have one channel, got {scan.shape[0]}")
        low = float(scan.min())
        if low < 0:
            raise InputError(
                f"image must have intensities of at least 0, as MR has them, got {low:g}: the bias"
                " field is a factor"
            )
        sides = [i for i, side in enumerate(scan.shape[1:]) if side > 1]  # a slice has a plane
        if len(sides) < 2 or min(scan.shape[1 + i] for i in sides) < _SMALLEST // 2:
            raise InputError(
                f"image must have sides of {_SMALLEST // 2} voxels or more, or be one slice, got"
                f" {tuple(scan.shape[1:])}"
            )
        spacing = [_spacing(image)[i] for i in sides]
        field = self._field(_itk_image(scan.squeeze(), spacing)).view(scan.shape)
        corrected = scan / field.to(scan.device)
        return like(corrected.where(scan > low, corrected.min()), image)

    def _field(self, scan: Any) -> Tensor:
        """Factor at each voxel, of the scan's shape."""
        import SimpleITK as sitk  # noqa: N813 - its documentation's name

        factors = [max(1, min(self.shrink, side // _SMALLEST)) for side in scan.GetSize()]
        body = sitk.OtsuThreshold(scan, 0, 1)
        corrector = sitk.N4BiasFieldCorrectionImageFilter()
        corrector.SetMaximumNumberOfIterations([self.iterations] * 4)
        corrector.Execute(sitk.Shrink(scan, factors), sitk.Shrink(body, factors))
        log_field = corrector.GetLogBiasFieldAsImage(scan)
        return torch.from_numpy(sitk.GetArrayFromImage(log_field)).exp()


def _itk_image(scan: Tensor, spacing: list[float]) -> Any:
    """SimpleITK image of an array, whose axes SimpleITK counts from the last."""
    import SimpleITK as sitk  # noqa: N813 - its documentation's name

    image = sitk.GetImageFromArray(scan.cpu().numpy())
    image.SetSpacing(spacing[::-1])
    return image


def _spacing(image: Tensor) -> list[float]:
    """Voxel size along each axis, mm, 1 where none is known."""
    dimensions = image.ndim - 1
    if not isinstance(image, MetaTensor):
        return [1.0] * dimensions
    return [float(mm) for mm in affine_to_spacing(image.affine, dimensions)]
