"""Results of a picture as pictures: a heat map in colours, and a mask, which any viewer shows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

__all__ = ["heat_map", "save_picture"]


def heat_map(scores: NDArray[np.floating], threshold: float) -> NDArray[np.uint8]:
    """Scores (W, H) as a picture (H, W, 3): black at 0, over red and yellow to white, uint8.

    Pictures of one model compare: the mask's threshold is always the same red-orange, half of the
    way, and twice the threshold is white. Where the threshold is not above 0, the highest score is.

    Args:
        scores: of a picture as `LoadVolume` has it.
        threshold: of the mask.
    """
    most = 2 * threshold if threshold > 0 else float(np.nanmax(scores, initial=0.0))
    share = np.clip(np.nan_to_num(scores.T) / max(most, 1e-12), 0, 1)
    colours = np.clip(3 * share[..., None] - np.arange(3), 0, 1)
    return np.round(255 * colours).astype(np.uint8)


def save_picture(array: NDArray[np.uint8], path: Path) -> None:
    """Write a picture (H, W) or (H, W, 3), in the format of the file's suffix."""
    from PIL import Image

    Image.fromarray(array).save(path)
