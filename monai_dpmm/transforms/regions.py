"""Connected regions of a mask: its lesions."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

__all__ = ["connected_regions"]


def connected_regions(mask: Tensor) -> Tensor:
    """Number of the region of each pixel, from 1, and 0 outside: (spatial...) -> int64, the same.

    Pixels that share a corner are connected: 8 neighbours of a pixel, 26 of a voxel.
    """
    from scipy.ndimage import label

    regions, _ = label(mask.cpu().numpy(), np.ones((3,) * mask.ndim))
    return torch.from_numpy(regions.astype(np.int64))
