"""Scans turned to known directions; pictures upright, whatever the directions of scans."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from functools import cache
from typing import Any, ClassVar

import nibabel as nib
import torch
from monai.config import KeysCollection
from monai.data.utils import to_affine_nd
from monai.transforms import Orientation, Orientationd
from monai.utils import TransformBackends

from monai_dpmm.transforms.metatensors import plain

__all__ = ["OrientScand"]


class OrientScand(Orientationd):
    """MONAI's Orientationd of volumes; of images (C, W, H) the axes change places: (C, H, W).

    So a picture has rows first, as backbones take it, without a setting of its own. It is inverted
    like Orientationd.

    Args:
        keys: keys of the scans, each a `MetaTensor`.
        axcodes: directions of the volumes' axes, such as "PLI".
    """

    backend: ClassVar = [TransformBackends.TORCH]

    def __init__(self, keys: KeysCollection, axcodes: str) -> None:
        super().__init__(keys, axcodes=axcodes, labels=None)

    def __call__(
        self, data: Mapping[Hashable, Any], lazy: bool | None = None
    ) -> dict[Hashable, Any]:
        """Data with the scans turned."""
        result = dict(data)
        for key in self.key_iterator(result):
            image = result[key]
            turn = self.ornt_transform if image.ndim != 3 else _swap(image.affine)
            result[key] = turn(image)
        return result

    def inverse(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Data with the scans as they lay before."""
        result = dict(data)
        for key in self.key_iterator(result):
            image, turn = result[key], self.ornt_transform
            if image.ndim == 3:
                turn = _swap(image.applied_operations[-1]["extra_info"]["original_affine"])
            result[key] = turn.inverse(image)
        return result


def _swap(affine: Any) -> Orientation:
    """Turn of images of an affine, the same one whenever it is asked for."""
    directions = nib.aff2axcodes(to_affine_nd(3, plain(torch.as_tensor(affine)).numpy()))
    return _turn("".join(directions[axis] for axis in (1, 0, 2)))


@cache
def _turn(codes: str) -> Orientation:
    return Orientation(axcodes=codes, labels=None)
