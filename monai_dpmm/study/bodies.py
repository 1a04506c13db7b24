"""Where the body is in a scan, as its preprocessing leaves it: foreground and spacing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from monai.data import MetaTensor
from torch import Tensor

from monai_dpmm.network.geometry import extract_slices
from monai_dpmm.transforms.metatensors import plain, slice_step

__all__ = ["Body", "body_of"]


class Body(NamedTuple):
    """The body in a scan that is cut into slices.

    Attributes:
        foreground: voxels above 0, (X, Y, Z) or (H, W), bool.
        spacing: of the voxels along its axes, mm; 1 of pictures.
        axis: that slices are taken along.
        step: every so many of them.
    """

    foreground: Tensor
    spacing: tuple[float, ...]
    axis: int
    step: int

    @property
    def slices(self) -> Tensor:
        """The foreground's slices, (S, H, W)."""
        return extract_slices(self.foreground[None], self.axis)[:: self.step, 0]

    @property
    def slice_spacing(self) -> tuple[float, float, float]:
        """Distance of slices, of rows and of columns, mm."""
        if self.foreground.ndim == 2:
            return (1.0, *self.spacing)
        within = [mm for axis, mm in enumerate(self.spacing) if axis != self.axis]
        return (self.step * self.spacing[self.axis], within[0], within[1])


def body_of(
    item: Mapping[str, Any],
    preprocessing: Callable[[Mapping[str, Any]], Mapping[str, Any]],
    axis: int,
    step: int = 1,
    spacing_mm: float = 0.0,
) -> Body:
    """The body of a scan, what its preprocessing leaves above 0.

    Args:
        item: with the path of the scan at "image".
        preprocessing: from the path to a scan in [0, 1], (1, X, Y, Z) or (1, H, W).
        axis: of the slices.
        step: see `ExtractSlices`.
        spacing_mm: see `ExtractSlices`.
    """
    image = preprocessing({"image": item["image"]})["image"]
    foreground = plain(image)[0] > 0
    known = isinstance(image, MetaTensor)
    spacing = image.pixdim[: foreground.ndim].tolist() if known else [1.0] * foreground.ndim
    return Body(foreground, tuple(spacing), axis, step * slice_step(image, axis, spacing_mm))
