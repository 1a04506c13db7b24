"""Evaluation protocols of the field: at which size maps and masks are compared.

"native" compares on the mask's own grid, as the paper does. "224" (BMAD's own code) and "448"
(Erdil, Schulthess and Konukoglu, 2026) bring map and mask of a 2D image to 224 x 224 or 448 x 448
pixels first, whatever its aspect ratio: the map bilinearly, pixel centres kept in place and without
a blur, the mask to its nearest pixel, so that it stays one of 0 and 1.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor
from torch.nn import functional as F

from monai_dpmm.errors import InputError

__all__ = ["PROTOCOLS", "Protocol", "protocol_size", "resized"]

Protocol = Literal["native", "224", "448"]
PROTOCOLS: dict[str, int | None] = {"native": None, "224": 224, "448": 448}


def protocol_size(protocol: Protocol | int) -> int | None:
    """Pixels of both sides in a protocol, None for the native size.

    Raises:
        ValueError: for an unknown protocol.
    """
    if str(protocol) not in PROTOCOLS:
        raise InputError(f"protocol must be one of {', '.join(PROTOCOLS)}, got {protocol!r}")
    return PROTOCOLS[str(protocol)]


def resized(anomaly: Tensor, mask: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Anomaly map and boolean mask of a 2D image: (H, W) or (H, W, 1) -> (size, size) each.

    Raises:
        ValueError: for a volume, whose slices no protocol says how to resize.
    """
    pair = [x.squeeze(-1) if x.ndim == 3 else x for x in (anomaly.float(), mask.float())]
    if any(x.ndim != 2 for x in pair):
        raise InputError(
            f"protocol {size} is for 2D images, got a volume of shape {tuple(anomaly.shape)}:"
            " use native"
        )
    shape = (size, size)
    smooth = F.interpolate(pair[0][None, None], shape, mode="bilinear", align_corners=False)
    return smooth[0, 0], F.interpolate(pair[1][None, None], shape, mode="nearest-exact")[0, 0] > 0.5
