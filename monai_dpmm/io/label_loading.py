"""Masks of lesions for an evaluation, or none where an image is known to be healthy."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any, ClassVar, Literal, get_args

import torch
from monai.data import MetaTensor
from monai.transforms import Transform
from monai.utils import TransformBackends

from monai_dpmm.errors import InputError
from monai_dpmm.io.loading import LoadVolume
from monai_dpmm.io.nifti import same_grid

__all__ = ["LabelRule", "LoadLabeld", "lesions"]

LabelRule = Literal["positive", "255"]


class LoadLabeld(Transform):
    """Data with the mask of an image's lesions, 0 or 1, uint8, on the image's grid: (1, ...).

    An image that is known to be healthy ("anomalous" is false) needs no mask and gets zeros.

    Args:
        key: key of the mask's path, and of the mask.
        image_key: key of the image, already loaded, whatever was done to it since.
        rule: what counts as lesion: "positive", every value above 0, or "255", the value 255 only;
            the masks of BMAD's BraTS2021 hold 0, 58, 122 and 255, and both are in use.

    Raises:
        ValueError: for an unknown rule.
        InputError: where the mask is missing or unreadable, or has another size than the image, or
            lies elsewhere by more than a tenth of a voxel.
    """

    backend: ClassVar = [TransformBackends.TORCH]

    def __init__(
        self,
        key: Hashable = "label",
        image_key: Hashable = "image",
        rule: LabelRule | int = "positive",
    ) -> None:
        _check_rule(rule)
        self.key = key
        self.image_key = image_key
        self.rule = str(rule)
        self._loader = LoadVolume(allow_constant=True)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Data with the mask."""
        result = dict(data)
        anomalous, image = result.get("anomalous"), result[self.image_key]
        shape = tuple(int(n) for n in image.meta["spatial_shape"])
        if self.key not in result:
            name = image.meta.get("filename_or_obj", "image")
            if anomalous is not False:
                raise InputError(f"{name}: must have a mask of its lesions, there is none")
            result[self.key] = torch.zeros((1, *shape), dtype=torch.uint8)
            return result
        mask = self._loader(result[self.key])
        size = tuple(mask.shape[1:])
        if size != shape:
            raise InputError(f"{result[self.key]}: must have the image's size {shape}, got {size}")
        grid, other = (scan.meta["original_affine"] for scan in (image, mask))
        if len(grid) == len(other) == 4 and not same_grid(grid, other, shape):  # no pictures
            raise InputError(
                f"{result[self.key]}: must lie on the image's grid, got another voxel-to-world"
                f" matrix than {image.meta.get('filename_or_obj', 'the image')} has"
            )
        result[self.key] = lesions(mask, self.rule)
        return result


def lesions(mask: MetaTensor, rule: LabelRule | int = "positive") -> MetaTensor:
    """What a mask counts as lesion by a rule of `LoadLabeld`, 0 or 1, uint8, the same shape.

    Raises:
        ValueError: for an unknown rule.
    """
    _check_rule(rule)
    plain = mask.as_tensor()
    lesion = plain > 0 if str(rule) == "positive" else plain == 255
    return MetaTensor(lesion.to(torch.uint8), meta=mask.meta)


def _check_rule(rule: LabelRule | int) -> None:
    if str(rule) not in get_args(LabelRule):
        raise InputError(f"rule must be one of {', '.join(get_args(LabelRule))}, got {rule!r}")
