"""EfficientNet-Lite0 at every level, from its stem to its last block: the offline backbone."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from monai_dpmm.network.geometry import IMAGENET_MEAN, IMAGENET_STD

__all__ = ["MultiscaleEfficientNetLite0"]

_GRID = 8  # pixels of a cell
# Of each level: blocks up to it, its stride, channels and share in the embedding.
_LEVELS = (
    (0, 2, 32, 1.5),
    (1, 2, 16, 1.0),
    (3, 4, 24, 1.0),
    (5, 8, 40, 1.0),
    (11, 16, 112, 1.5),
    (16, 32, 320, 1.0),
)


class MultiscaleEfficientNetLite0(nn.Module):
    """Features of six levels of an ImageNet classifier: (B, 3, H, W) -> (B, 544, H / 8, W / 8).

    The stem and the last blocks of strides 2, 4, 8, 16 and 32, each averaged over 3 x 3 of its own
    cells and scaled to unit norm, then brought to the grid of stride 8: finer levels by their mean
    over a cell, coarser ones bilinearly. Stem and stride 16 count 1.5 times: all this was chosen on
    validation slices of FLAIR, see docs/backbones.md. Sides must be multiples of 32, for all grids
    to be whole; the result has four cells for each such multiple.

    Args:
        classifier: EfficientNet-Lite0 of `efficientnet_lite_pytorch`.
    """

    patch_size = 32
    embedding_dim = sum(channels for _, _, channels, _ in _LEVELS)
    variance_floor = 1e-3  # with a mixture's own 1e-6 lesions vanish, see docs/backbones.md
    scale: Tensor
    shift: Tensor

    def __init__(self, classifier: nn.Module) -> None:
        super().__init__()
        full: Any = classifier
        stem = nn.Sequential(full._conv_stem, full._bn0, nn.ReLU6())
        ends = [end for end, *_ in _LEVELS]
        parts = (full._blocks[a:b] for a, b in pairwise(ends))
        self.levels = nn.ModuleList([stem, *(nn.Sequential(*part) for part in parts)])
        # It was trained on (255 x - 127) / 128 of values x in [0, 1], not on ImageNet's scale.
        mean, std = torch.tensor(IMAGENET_MEAN), torch.tensor(IMAGENET_STD)
        self.register_buffer("scale", (std * 255 / 128).view(3, 1, 1), persistent=False)
        shift = (mean * 255 - 127) / 128
        self.register_buffer("shift", shift.view(3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Features: (B, 3, H, W) -> (B, 544, H / 8, W / 8)."""
        if images.device.type == "cpu":  # the same sums in two thirds of the time there
            images = images.contiguous(memory_format=torch.channels_last)
        features = images * self.scale + self.shift
        levels = []
        for level, (_, stride, _, share) in zip(self.levels, _LEVELS, strict=True):
            features = level(features)
            smooth = F.avg_pool2d(features, 3, 1, 1, count_include_pad=False)
            unit = share * F.normalize(smooth, dim=1)
            if stride <= _GRID:
                unit = F.avg_pool2d(unit, _GRID // stride)
                grid = unit.shape[2:]
            else:
                unit = F.interpolate(unit, size=grid, mode="bilinear", align_corners=False)
            levels.append(unit)
        return torch.cat(levels, dim=1)
