"""MONAI's tensors with metadata, and what lies under them."""

from __future__ import annotations

import torch
from monai.data import MetaTensor
from torch import Tensor

__all__ = ["like", "plain"]


def plain(image: Tensor) -> Tensor:
    """The tensor without metadata, on its device."""
    return image.as_tensor() if isinstance(image, MetaTensor) else torch.as_tensor(image)


def like(result: Tensor, source: Tensor) -> Tensor:
    """The result with the source's metadata and applied operations, where it has any."""
    if not isinstance(source, MetaTensor):
        return result
    return MetaTensor(result, meta=source.meta, applied_operations=source.applied_operations)
