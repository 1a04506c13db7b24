"""Scans cut to the box of their body, and their maps brought back to the whole grid."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any, ClassVar

from monai.config import KeysCollection
from monai.transforms import (
    Crop,
    InvertibleTransform,
    MapTransform,
    generate_spatial_bounding_box,
)
from monai.utils import TransformBackends

from monai_dpmm.transforms.metatensors import plain

__all__ = ["CropToBodyd"]


class CropToBodyd(MapTransform, InvertibleTransform):
    """Scans (C, X, Y, Z) or (C, H, W) cut to the box around what is above 0.

    A scan without anything above 0 stays as it is. The inverse puts a map back: outside the box it
    is 0, or the map's minimum where that is negative, so that nothing there ranks above the body.

    Args:
        keys: keys of the scans, each a `MetaTensor`; the first one tells the box.
    """

    backend: ClassVar = [TransformBackends.TORCH]

    def __init__(self, keys: KeysCollection) -> None:
        super().__init__(keys)
        self.crop = Crop()

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Data with the scans cut."""
        result = dict(data)
        scan = plain(data[self.keys[0]])
        low, high = generate_spatial_bounding_box(scan, allow_smaller=True)
        if not any(high):
            low, high = [0] * len(high), list(scan.shape[1:])
        slices = self.crop.compute_slices(roi_start=low, roi_end=high)
        for key in self.key_iterator(result):
            result[key] = self.crop(result[key], slices)
        return result

    def inverse(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Data with the scans on their whole grid."""
        result = dict(data)
        for key in self.key_iterator(result):
            lowest = min(0.0, float(result[key].min()))
            result[key] = self.crop.inverse(result[key] - lowest) + lowest
        return result
