"""A scan to slices to images to patch embeddings, as MONAI transforms."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from monai.data import MetaTensor
from monai.transforms import InvertibleTransform, Transform
from monai.utils import TransformBackends
from torch import Tensor, nn

from monai_dpmm.errors import InputError
from monai_dpmm.network.detector import embed_patches
from monai_dpmm.network.geometry import (
    extract_slices,
    foreground_patches,
    prepare_slices,
    resize_slices,
    stack_slices,
)
from monai_dpmm.transforms.foreground import body_box, warn_if_all_foreground
from monai_dpmm.transforms.intensity import Margin, Percentiles, RescaleIntensity, Window
from monai_dpmm.transforms.metatensors import (
    PIXEL_SPACING,
    SLICED,
    errors_name_the_file,
    like,
    pixel_spacings,
    plain,
    slice_step,
    square_shapes,
)

__all__ = ["EmbedPatches", "ExtractSlices", "NormalizeSlices"]


class ExtractSlices(InvertibleTransform):
    """Slices along an axis, (C, X, Y, Z) -> (S, C, H, W); the inverse stacks them again.

    A 2D image is one slice. A `MetaTensor` keeps its affine, which stays that of the volume, and
    remembers the operation, so that `inverse` restores a volume on the same grid, the spacing of
    the slices' pixels, and where the body lies in the volume.

    Args:
        axis: spatial axis that the slices are taken along: 0, 1 or 2.
        step: keep every step-th slice, for training only: such slices cannot be inverted.
        spacing_mm: before that, keep slices that lie at most so far apart, see `slice_step`; 0
            keeps all.
    """

    backend: ClassVar = [TransformBackends.TORCH]

    def __init__(self, axis: int = 2, step: int = 1, spacing_mm: float = 0.0) -> None:
        if axis not in (0, 1, 2):
            raise InputError(f"axis must be 0, 1 or 2, got {axis}")
        if step < 1:
            raise InputError(f"step must be at least 1, got {step}")
        self.axis = axis
        if not spacing_mm >= 0:
            raise InputError(f"spacing_mm must be at least 0, got {spacing_mm}")
        self.step = step
        self.spacing_mm = spacing_mm

    def __call__(self, volume: Tensor) -> Tensor:
        step = self.step * slice_step(volume, self.axis, self.spacing_mm)
        slices = extract_slices(plain(volume), self.axis)[::step]
        result = like(slices, volume)
        if isinstance(result, MetaTensor):
            axis = self.axis if volume.ndim == 4 else None
            (result.meta[PIXEL_SPACING],) = pixel_spacings(volume, axis)
            result.meta[SLICED] = {
                "shape": tuple(volume.shape[1:]),
                "axis": self.axis,
                "step": step,
                "box": body_box(plain(volume)),
            }
            self.push_transform(result, extra_info={"ndim": int(volume.ndim), "step": step})
        return result

    def inverse(self, slices: Tensor) -> Tensor:
        """Volume of the slices: (S, C, H, W) -> (C, X, Y, Z), or (C, H, W) from one 2D image."""
        info = self.pop_transform(slices)["extra_info"] if isinstance(slices, MetaTensor) else {}
        if (step := info.get("step", self.step)) != 1:
            raise InputError(f"slices must be taken with step=1 to be inverted, got {step}")
        flat = plain(slices)
        volume = flat[0] if info.get("ndim") == 3 else stack_slices(flat, self.axis)
        result = like(volume, slices)
        if isinstance(result, MetaTensor):
            for key in (PIXEL_SPACING, SLICED):
                result.meta.pop(key, None)
        return result


class NormalizeSlices(Transform):
    """Images for a backbone, on ImageNet's scale: (S, C, H, W) -> (S, 3, H', W'), float32.

    The slices of one scan are scaled together to [0, 1], made three channels, resized with their
    aspect ratio in mm and normalised by ImageNet's mean and standard deviation.

    Args:
        size: pixels of the shorter side (448 in the paper), a multiple of `patch_size`.
        patch_size: what both sides become multiples of: the backbone's `patch_size`.
        percentiles: see `RescaleIntensity`; None, with no window, where slices are in [0, 1].
        window: see `RescaleIntensity`.
        margin: see `RescaleIntensity`.

    Raises:
        InputError: for slices, or pixels of them, that are more than 8 times as long as wide.
    """

    backend: ClassVar = [TransformBackends.TORCH]

    def __init__(
        self,
        size: int = 448,
        patch_size: int = 14,
        *,
        percentiles: Percentiles | None = (0.5, 99.5),
        window: Window | None = None,
        margin: Margin = 0.0,
    ) -> None:
        if size < patch_size or size % patch_size:
            raise InputError(f"size must be a positive multiple of {patch_size}, got {size}")
        self.size = size
        self.patch_size = patch_size
        in_range = percentiles is None and window is None
        self.rescale = None if in_range else RescaleIntensity(percentiles, window, margin)

    def __call__(self, slices: Tensor) -> Tensor:
        scaled = plain(slices) if self.rescale is None else self.rescale(plain(slices))
        with errors_name_the_file(slices):
            (shape,) = set(square_shapes(slices))
            images = prepare_slices(resize_slices(scaled, shape), self.size, self.patch_size)
        return like(images, slices)


class EmbedPatches(Transform):
    """Patch embeddings of images: (S, 3, H', W') -> (S, h, w, D), float32, on the CPU.

    A plain tensor: a patch grid has no affine. Slices of background only never reach the backbone
    where this is ignored.

    Args:
        backbone: frozen module (S, 3, H', W') -> (S, D, h, w).
        batch_size: images in memory at the backbone at once.
        device: where the backbone runs; its own device if None.
        ignore_background: see `monai_dpmm.network.detector.embed_patches`.
        patch_grid: see `monai_dpmm.network.detector.embed_patches`.
        unit_norm: likewise.
    """

    backend: ClassVar = [TransformBackends.TORCH]

    def __init__(
        self,
        backbone: nn.Module,
        batch_size: int = 8,
        device: torch.device | str | None = None,
        *,
        ignore_background: bool = False,
        patch_grid: Sequence[int] | None = None,
        unit_norm: bool = True,
    ) -> None:
        if batch_size < 1:
            raise InputError(f"batch_size must be at least 1, got {batch_size}")
        self.backbone = backbone.eval()
        self.batch_size = batch_size
        self.options = {
            "ignore_background": ignore_background,
            "unit_norm": unit_norm,
            "patch_grid": patch_grid,
        }
        self.device = None if device is None else torch.device(device)

    def __call__(self, images: Tensor) -> Tensor:
        if self.device is not None:
            self.backbone.to(self.device)
        device = next((p.device for p in self.backbone.parameters()), torch.device("cpu"))
        source, images = images, plain(images)
        there = torch.ones(len(images), dtype=torch.bool)
        if self.options["ignore_background"]:
            there = foreground_patches(images, (1, 1)).flatten()
            there[0] |= not bool(there.any())  # whose grid that of the others is
        parts = [
            embed_patches(self.backbone, chunk.to(device), **self.options).cpu()
            for chunk in images[there].split(self.batch_size)
        ]
        seen = torch.cat(parts)
        result = seen.new_zeros(len(images), *seen.shape[1:])
        result[there] = seen
        if self.options["ignore_background"]:
            warn_if_all_foreground(result.any(-1), source)
        return result
